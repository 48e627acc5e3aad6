"""Cut one table into train, validation and test rows: stratified by class, or group by group."""

import math
import warnings
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from llabel.data.cells import shown
from llabel.data.classes import lookalike_form
from llabel.errors import InputError
from llabel.task import ClassIndices, Label

Sampling: TypeAlias = Literal["stratified", "natural", "balanced"]
Rows = npt.NDArray[np.int64]  # positions in a table, ascending
MAX_FOLDS = 20


def hold_out(
    y: ClassIndices,
    size: float,
    *,
    classes: Sequence[Label],
    seed: int = 0,
    groups: Sequence[str] | None = None,
    parts: Sequence[str] = ("train", "test"),
) -> tuple[Rows, Rows]:
    """Divide rows at random into kept and held-out ones; the class shares are alike in both.

    Args:
        y: (n,) class indices.
        size: share to hold out, between 0 and 1.
        classes: the labels, for messages.
        seed: the same seed gives the same rows.
        groups: (n,) no value of it will stand on both sides (scikit-learn's StratifiedGroupKFold,
            so the share held out is only about `size`), whichever way it is written (see
            `lookalike_form`).
        parts: what will be cut from these rows in all: every class needs a row (or a group) each.
            Without groups it also gets one: held out is at least one row of every class, and one
            is kept for each of the other parts. Held-out groups may lack a class.

    Returns:
        Positions of kept and of held-out rows, each ascending.

    Raises:
        InputError: a class has too few rows or groups.
    """
    if groups is None:
        _refuse_rare_classes(y, classes, None, parts)
        held = _held_rows(y, size, seed, others=len(parts) - 1)
    else:
        alike = list(map(lookalike_form, groups))
        _refuse_rare_classes(y, classes, alike, parts)
        held = _held_groups(y, size, seed, groups)
        # The folds depend on how many groups there are, so spellings are joined only where one of
        # them would stand on the other side: rows that were cut before stay where they were.
        if _stands_on_both_sides(alike, held):
            held = _held_groups(y, size, seed, alike)
    kept = np.setdiff1d(np.arange(len(y)), held)
    lost = np.setdiff1d(y, y[kept])
    if len(lost) or not len(held):
        unit = "rows" if groups is None else "groups"
        whom = f"class {shown(classes[lost[0]])} has" if len(lost) else "there are"
        raise InputError(
            f"{whom} too few {unit} to hold out {size:.0%} of {len(y):,} rows as {parts[-1]}. Add "
            f"rows, or choose another --{parts[-1]}-size"
            + (" or another group column." if groups is not None else ".")
        )
    return kept, held


def subsample(
    y: ClassIndices,
    count: int,
    *,
    classes: Sequence[Label],
    seed: int = 0,
    sampling: Sampling = "stratified",
    part: str = "train",
) -> Rows:
    """Draw rows at random, each at most once.

    Of two draws with one seed, the larger holds nearly all of the smaller, so learning curves
    compare like with like.

    Args:
        y: (n,) class indices.
        count: how many rows, from the number of classes (1 for `natural`) to n.
        classes: the labels, for messages.
        seed: the same seed gives the same rows.
        sampling: `stratified` keeps every class's share, and loses none; `balanced` takes as many
            rows of each class, and of a class that has fewer all, so that the others share what
            it lacks; `natural` draws from all rows alike and may miss a rare class.
        part: what the rows are of, for messages.

    Returns:
        (count,) positions, ascending.

    Raises:
        InputError: there are fewer rows than `count`, or `count` is less than the classes.
    """
    sizes = np.bincount(y, minlength=len(classes))
    natural = sampling == "natural"
    if not (1 if natural else len(classes)) <= count <= len(y):
        least = "1" if natural else f"{len(classes):,} (one a class)"
        raise InputError(
            f"--{part}-rows {count}: choose from {least} to {len(y):,}, the rows there are in the "
            f"{part} part. Without --{part}-rows all are used."
        )
    rng = np.random.default_rng(seed)
    if natural:
        return np.sort(rng.permutation(len(y))[:count])
    quotas = _level(sizes, count) if sampling == "balanced" else _quotas(sizes, count)
    drawn = [
        rng.permutation(np.flatnonzero(y == index))[:quota] for index, quota in enumerate(quotas)
    ]
    return np.sort(np.concatenate(drawn))


def check_size(option: str, size: float) -> None:
    """Refuse a share that is not between 0 and 1.

    Raises:
        InputError: with the option's name.
    """
    if not (math.isfinite(size) and 0 < size < 1):
        raise InputError(f"{option} {size:g}: a share between 0 and 1 is needed, such as 0.1.")


def _held_rows(y: ClassIndices, size: float, seed: int, others: int) -> Rows:
    from sklearn.model_selection import train_test_split

    n_classes = len(np.unique(y))
    count = min(max(math.ceil(size * len(y) - 1e-9), n_classes), len(y) - others * n_classes)
    _, held = train_test_split(np.arange(len(y)), test_size=count, stratify=y, random_state=seed)
    return _with_every_class(held, y, seed, others)


def _with_every_class(held: Rows, y: ClassIndices, seed: int, others: int) -> Rows:
    """Exchange as few rows as are needed for one of every class here and in each other part."""
    sizes = np.bincount(y)
    counts = np.bincount(y[held], minlength=len(sizes))
    least, most = np.minimum(sizes, 1), np.maximum(sizes - others, 0)
    share = sizes * len(held) / len(y)
    quotas = np.clip(counts, least, most)
    while excess := int(quotas.sum() - len(held)):
        step = np.sign(excess)
        movable = quotas > least if step > 0 else quotas < most
        quotas[np.argmax(np.where(movable, step * (quotas - share), -np.inf))] -= step
    rng = np.random.default_rng(seed)
    chosen = set(held.tolist())
    for index in np.flatnonzero(quotas != counts):
        rows = rng.permutation(np.flatnonzero(y == index)).tolist()
        spare = counts[index] - quotas[index]
        if spare > 0:
            chosen -= set([row for row in rows if row in chosen][:spare])
        else:
            chosen |= set([row for row in rows if row not in chosen][:-spare])
    return np.array(sorted(chosen), dtype=np.int64)


def _held_groups(y: ClassIndices, size: float, seed: int, groups: Sequence[str]) -> Rows:
    from llabel.data.group_folds import GroupFolds

    _, codes = np.unique(np.asarray(groups, dtype=object), return_inverse=True)
    most = min(MAX_FOLDS, codes.max() + 1, np.bincount(y).max())
    folds, wanted = min(
        ((folds, max(1, round(size * folds))) for folds in range(2, most + 1)),
        key=lambda pair: abs(pair[1] / pair[0] - size),
    )
    splitter = GroupFolds(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class in fewer groups than folds is fine: only some of the folds are held out.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        parts = [held for _, held in splitter.split(y, y, codes)]
    # A giant group fills a fold and few groups balance badly: the folds most like the whole serve.
    share = np.bincount(y) / folds
    parts.sort(key=lambda part: np.abs(np.bincount(y[part], minlength=len(share)) - share).sum())
    return np.sort(np.concatenate(parts[:wanted]))


def _stands_on_both_sides(groups: Sequence[str], held: Rows) -> bool:
    out = {groups[row] for row in held.tolist()}
    kept = np.setdiff1d(np.arange(len(groups)), held)
    return any(groups[row] in out for row in kept.tolist())


def _refuse_rare_classes(
    y: ClassIndices,
    classes: Sequence[Label],
    groups: Sequence[str] | None,
    parts: Sequence[str],
) -> None:
    counts = np.bincount(y, minlength=len(classes))
    unit, each = ("row", "one") if groups is None else ("group", "one group")
    if groups is not None:
        pairs = set(zip(y.tolist(), groups, strict=True))
        counts = np.bincount([index for index, _ in pairs], minlength=len(classes))
    rare = [i for i in np.argsort(counts, kind="stable") if 0 < counts[i] < len(parts)]
    if rare:
        named = ", ".join(f"{shown(classes[i])} ({counts[i]})" for i in rare[:10])
        more = f" and {len(rare) - 10} more" if len(rare) > 10 else ""
        raise InputError(
            f"every class needs at least {len(parts)} {unit}s, {each} each for "
            f"{', '.join(parts)}; of the {len(y):,} rows at hand these have fewer: {named}{more}. "
            "Add rows, or merge these classes with others or drop them: --map-labels FILE, with "
            "lines such as `rare: other` or `rare: null`."
        )


def _quotas(sizes: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Largest remainders, with at least one row of every class there is."""
    floors = (sizes > 0).astype(np.int64)
    spare = sizes - floors
    exact = spare * (count - floors.sum()) / max(1, spare.sum())
    quotas = floors + exact.astype(np.int64)
    short = count - quotas.sum()
    order = np.argsort(-(exact - np.floor(exact)), kind="stable")
    quotas[order[:short]] += 1
    return quotas


def _level(sizes: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """As equal as the classes allow: filled up to one level, what is left over to the largest."""
    quotas = np.zeros_like(sizes)
    while (left := int(count - quotas.sum())) > 0:
        open_to = np.flatnonzero(quotas < sizes)
        if left < len(open_to):  # one more of the largest, of equal ones the first
            open_to = open_to[np.argsort(-sizes[open_to], kind="stable")[:left]]
        share = max(1, left // len(open_to))
        quotas[open_to] = np.minimum(quotas[open_to] + share, sizes[open_to])
    return quotas
