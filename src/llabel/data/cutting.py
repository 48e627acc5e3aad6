"""From the parts that are given to those that a task needs."""

from collections.abc import Mapping, Sequence

import numpy as np

from llabel.data.cells import listed, shown
from llabel.data.rows import take, with_groups_joined
from llabel.data.splitting import Sampling, hold_out, subsample
from llabel.errors import InputError
from llabel.task import Label, Split


def cut_missing(
    splits: dict[str, Split],
    sizes: Mapping[str, float],
    classes: Sequence[Label],
    seed: int,
    notes: list[str],
    *,
    group: str | None,
) -> dict[str, Split]:
    """Cut the parts that are not given from train: test first, then validation.

    Args:
        splits: by role; train is there.
        sizes: share of the training rows, as they were given, that each part is to have.
        classes: the labels, for messages.
        seed: of the cuts.
        notes: a sentence for each cut is added.
        group: the group column, if whole groups are cut.

    Returns:
        By role; groups are spelt in one way in all of them.

    Raises:
        InputError: the shares leave nothing, or a class has too few rows.
    """
    missing = [role for role in ("test", "validation") if role not in splits]
    if sum(sizes[role] for role in missing) >= 1:
        raise InputError(
            f"--test-size {sizes['test']:g} and --validation-size {sizes['validation']:g} leave no "
            "row to train on: they must add up to less than 1."
        )
    whole = len(splits["train"])
    left = 1.0
    for position, role in enumerate(missing):
        train = splits["train"]
        parts = ("train", *missing[position + 1 :], role)
        kept, held = hold_out(
            train.y,
            sizes[role] / left,
            classes=classes,
            seed=seed,
            groups=train.groups,
            parts=parts,
        )
        left -= sizes[role]
        splits = {**splits, "train": take(train, kept), role: take(train, held)}
        how = f"whole groups of {shown(group)}" if group else "stratified by class"
        notes.append(
            f"{len(held):,} of {whole:,} rows ({len(held) / whole:.0%}) are cut from train as the "
            f"{role} part: {how}, seed {seed}."
        )
    return with_groups_joined(splits)


def note_missed(
    whole: Split, drawn: Split, classes: Sequence[Label], notes: list[str], of: str = ""
) -> None:
    """Add a sentence on classes that the draw from train left out, if there are any.

    Args:
        whole: all training rows.
        drawn: those of them that are learned from.
        classes: the labels.
        notes: added to.
        of: the target that the labels are of, where there are several.
    """
    missed = [classes[index] for index in np.setdiff1d(whole.y, drawn.y)]
    if missed:
        notes.append(
            f"the draw from train has no row of {f'{of}: ' if of else ''}{listed(missed, 5)}, "
            "which cannot be learned then. Draw more rows, or choose --sampling stratified."
        )


def draw(
    splits: Mapping[str, Split],
    counts: Mapping[str, int | None],
    sampling: Sampling,
    classes: Sequence[Label],
    seed: int,
    notes: list[str],
) -> dict[str, Split]:
    """Keep only so many rows of a part, drawn at random.

    Args:
        splits: by role.
        counts: of the parts that may be made smaller; None keeps all.
        sampling: how (see `subsample`).
        classes: the labels, for messages.
        seed: of the draws.
        notes: a sentence for each draw but a stratified one from train is added.

    Raises:
        InputError: there are fewer rows than that, or too few are asked for.
    """
    drawn = dict(splits)
    for part, count in counts.items():
        if count is None:
            continue
        whole = splits[part]
        rows = subsample(whole.y, count, classes=classes, seed=seed, sampling=sampling, part=part)
        drawn[part] = take(whole, rows)
        if part != "train" or sampling != "stratified":
            notes.append(
                f"{len(rows):,} of {len(whole):,} {part} rows are drawn: {sampling}, seed {seed}."
            )
    if sampling != "stratified" and not any(counts.values()):
        raise InputError(
            f"--sampling {sampling} says how --train-rows and --test-rows are drawn, and neither "
            "is given. Give one of them, or leave --sampling out."
        )
    return drawn
