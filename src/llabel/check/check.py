"""What is worth knowing about a labelled table before an hour goes into training on it."""

import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llabel.check.estimate import RunEstimate
from llabel.check.lookup import (
    RowKey,
    best_lookup_column,
    overlaps_of,
    row_key,
    splits_of,
)
from llabel.check.near_duplicates import first_neighbours
from llabel.check.report import (
    CheckReport,
    ClassCount,
    Conflict,
    FieldOverlap,
    Part,
    Repeats,
    TokenLengths,
)
from llabel.data.rows import long_fields
from llabel.metrics import majority_accuracy, wilson_interval
from llabel.task import Label, Split, Task, Text

CountTokens: TypeAlias = Callable[[Sequence[Text]], Sequence[int]]
Cost: TypeAlias = Callable[[int, int], RunEstimate]

EXAMPLES = 5  # conflicts shown
NAMED = 5  # small classes named
EXAMPLE_ROWS = 4  # rows shown of each
FEW_ROWS = 8  # a class with fewer training rows is hardly learnt
LOPSIDED = 0.9  # share of one class from which accuracy says little
NOTABLE = 0.01  # share of rows from which repeats and overlap are worth a warning
WIDE = 0.05  # half a confidence interval that cannot tell systems apart


def check(
    task: Task,
    count_tokens: CountTokens | None,
    *,
    max_length: int,
    cost: Cost | None = None,
    cut: Collection[Part] = (),
    template_length: int | None = None,
) -> CheckReport:
    """Look a task over: sizes, repeats, contradictions, leaks between parts, and cost.

    Each part is compared with the parts before it, validation with training and test with both,
    since `--refit` trains on both.

    Args:
        task: the split data.
        count_tokens: maps (n,) rows of fields to (n,) prompt lengths in tokens, not truncated.
        max_length: limit of a prompt in tokens, at least 1.
        cost: maps (tokens of one training epoch, tokens of validation and test) after truncation
            to an estimate, such as a partial `estimate_run`; not asked without `count_tokens`.
        cut: the parts that were cut from the training rows (`LoadedTask.cut`), which another
            group column would cut otherwise; the others are given.
        template_length: tokens of a prompt without texts, where rows of validation and test that
            are too long are read piece by piece; None where they lose a part, as training rows do.

    Raises:
        ValueError: `max_length` is below 1, or `count_tokens` answers for other than all rows.
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    splits = splits_of(task)
    keys = {part: list(map(row_key, split.texts)) for part, split in splits.items()}
    classes = _class_counts(task)
    tokens = None
    if count_tokens:
        tokens = _token_lengths(splits, count_tokens, max_length, template_length)
    repeats = _repeats(splits, keys)
    conflicting_rows, conflicts = _conflicts(task, keys)
    overlap = overlaps_of(task, keys)
    best = best_lookup_column(task)
    by_part_and_field = {(entry.part, entry.field): entry for entry in overlap}
    return CheckReport(
        name=task.name,
        fingerprint=task.fingerprint,
        fields=task.fields,
        max_length=max_length,
        classes=classes,
        tokens=tokens,
        repeats=repeats,
        conflicting_rows=conflicting_rows,
        conflicts=conflicts,
        overlap=overlap,
        best_lookup=by_part_and_field["test", best] if best else None,
        estimate=_estimate(tokens, cost) if tokens and cost else None,
        warnings=(
            *_overlap_warnings(overlap, _long_fields(task), cut),
            *_class_warnings(classes),
            *_size_warnings(task),
            *_length_warnings(tokens or (), max_length),
            *_repeat_warnings(repeats, conflicting_rows),
        ),
    )


def _class_counts(task: Task) -> tuple[ClassCount, ...]:
    counts = [
        np.bincount(split.y, minlength=len(task.classes)).tolist()
        for split in splits_of(task).values()
    ]
    return tuple(
        ClassCount(_name(label), *(of_part[index] for of_part in counts))
        for index, label in enumerate(task.classes)
    )


def _name(label: Label) -> str:
    return str(label)


def _token_lengths(
    splits: dict[Part, Split],
    count_tokens: CountTokens,
    max_length: int,
    template_length: int | None,
) -> tuple[TokenLengths, ...]:
    found = []
    for part, split in splits.items():
        if not len(split):
            continue
        lengths = np.asarray(count_tokens(split.texts), dtype=np.int64)
        if lengths.shape != (len(split),):
            raise ValueError(
                f"count_tokens must answer for each of the {len(split)} {part} rows, "
                f"got shape {lengths.shape}"
            )
        whole = None if part == "train" else template_length
        read = tokens_read(lengths, max_length, whole)
        p50, p95 = np.percentile(lengths, [50, 95], method="inverted_cdf")
        found.append(
            TokenLengths(
                part=part,
                rows=len(split),
                p50=int(p50),
                p95=int(p95),
                max=int(lengths.max()),
                total=int(read.sum()),
                truncated=int((read < lengths).sum()),
            )
        )
    return tuple(found)


def tokens_read(
    lengths: npt.NDArray[np.int64], max_length: int, template_length: int | None
) -> npt.NDArray[np.int64]:
    """How many tokens of prompts are read.

    Args:
        lengths: (n,) of the whole prompts.
        max_length: limit of a prompt.
        template_length: as of `check`.

    Returns:
        (n,): at most `max_length`, or all of the prompt, with a template for each piece.
    """
    if template_length is None:
        return np.minimum(lengths, max_length)
    room = max(1, max_length - template_length)
    pieces = np.maximum(1, -(-(lengths - template_length) // room))
    return lengths + (pieces - 1) * template_length


def _estimate(tokens: Iterable[TokenLengths], cost: Cost) -> RunEstimate:
    train = sum(lengths.total for lengths in tokens if lengths.part == "train")
    rest = sum(lengths.total for lengths in tokens if lengths.part != "train")
    return cost(train, rest)


def _repeats(splits: dict[Part, Split], keys: dict[Part, list[RowKey]]) -> tuple[Repeats, ...]:
    distinct: dict[RowKey, int] = {}  # position in `texts`
    texts: list[Text] = []
    rank: list[int] = []  # number of the part in which a text stands first
    for number, (part, split) in enumerate(splits.items()):
        for key, text in zip(keys[part], split.texts, strict=True):
            if distinct.setdefault(key, len(texts)) == len(texts):
                texts.append(text)
                rank.append(number)
    near = first_neighbours(texts)

    found = []
    for number, part in enumerate(splits):
        seen: set[int] = set()
        kinds: Counter[str] = Counter()
        for key in keys[part]:
            this, like = distinct[key], int(near[distinct[key]])
            if rank[this] < number:
                kinds["exact_earlier"] += 1
            elif like >= 0 and rank[like] < number:
                kinds["near_earlier"] += 1
            elif this in seen:
                kinds["exact_within"] += 1
            elif like >= 0:
                kinds["near_within"] += 1
            seen.add(this)
        found.append(
            Repeats(
                part=part,
                rows=len(keys[part]),
                exact_earlier=kinds["exact_earlier"],
                near_earlier=kinds["near_earlier"],
                exact_within=kinds["exact_within"],
                near_within=kinds["near_within"],
            )
        )
    return tuple(found)


def _conflicts(task: Task, keys: dict[Part, list[RowKey]]) -> tuple[int, tuple[Conflict, ...]]:
    rows: dict[RowKey, list[tuple[str, int]]] = defaultdict(list)
    for part, split in splits_of(task).items():
        for key, name, label in zip(keys[part], split.ids, split.y.tolist(), strict=True):
            rows[key].append((name, label))
    at_odds = [same for same in rows.values() if len({label for _, label in same}) > 1]
    examples = tuple(
        Conflict(
            ids=tuple(name for name, _ in shown),
            labels=tuple(_name(task.classes[label]) for _, label in shown),
        )
        for shown in map(_one_of_each_first, at_odds[:EXAMPLES])
    )
    return sum(map(len, at_odds)), examples


def _one_of_each_first(rows: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Order rows so that the few shown hold different labels."""
    firsts = {label: (name, label) for name, label in reversed(rows)}
    shown = sorted(firsts.values(), key=rows.index)
    return (shown + [row for row in rows if row not in shown])[:EXAMPLE_ROWS]


def _class_warnings(classes: Sequence[ClassCount]) -> Iterator[str]:
    small = sorted((c for c in classes if c.train < FEW_ROWS), key=lambda c: c.train)
    if len(small) == 1:
        (only,) = small
        yield f"class {only.label!r} has only {only.train} training rows: hardly learnable"
    elif small:
        named = ", ".join(f"{count.label!r} ({count.train})" for count in small[:NAMED])
        more = f" and {len(small) - NAMED} more" if len(small) > NAMED else ""
        yield (
            f"{len(small)} classes have fewer than {FEW_ROWS} training rows: {named}{more}: "
            "hardly learnable"
        )
    rows = sum(count.train for count in classes)
    for count in classes:
        if count.train >= LOPSIDED * rows:
            yield (
                f"class {count.label!r} makes up {_percent(count.train / rows)} of training: "
                "judge by macro-F1, not by accuracy"
            )


def _size_warnings(task: Task) -> Iterator[str]:
    for part, split in (("validation", task.validation), ("test", task.test)):
        if not len(split) or not len(task.train):
            continue
        hits = round(majority_accuracy(task.train.y, split.y) * len(split))
        low, high = wilson_interval(hits, len(split))
        if high - low > 2 * WIDE:
            yield (
                f"{part} has only {len(split)} rows: an accuracy of {hits / len(split):.2f} is "
                f"known to ±{(high - low) / 2:.2f}, so systems closer than that look alike"
            )


def _length_warnings(tokens: Iterable[TokenLengths], max_length: int) -> Iterator[str]:
    for lengths in tokens:
        if lengths.truncated:
            yield (
                f"{lengths.truncated} of {lengths.rows} {_spoken(lengths.part)} rows "
                f"({_percent(lengths.truncated / lengths.rows)}) are longer than {max_length} "
                f"tokens (longest {lengths.max}) and lose a part of their longest field (--long): "
                "raise --max-seq-length if it matters"
            )


def _repeat_warnings(repeats: Iterable[Repeats], conflicting_rows: int) -> Iterator[str]:
    for found in repeats:
        part = _spoken(found.part)
        earlier, within = found.exact_earlier + found.near_earlier, found.exact_within
        if earlier:
            yield (
                f"{earlier} {part} rows ({_percent(earlier / found.rows)}) repeat an earlier "
                f"part's row ({found.exact_earlier} exactly, {found.near_earlier} nearly): remove "
                "them, or scores on them show memory"
            )
        if within and within >= NOTABLE * found.rows:
            yield (
                f"{within} {part} rows ({_percent(within / found.rows)}) repeat another {part} "
                "row exactly: remove them, or they count more than others"
            )
    if conflicting_rows:
        yield (
            f"{conflicting_rows} rows share their text with a row of another label: "
            "no system can get all of them right; look at the examples"
        )


def _long_fields(task: Task) -> tuple[str, ...]:
    """The fields of which a shared value gives answers away, as in `unseen_rows`."""
    return long_fields([task.train, task.validation], task.fields)


def _overlap_warnings(
    overlap: Iterable[FieldOverlap], telling: Collection[str], cut: Collection[Part]
) -> Iterator[str]:
    for found in overlap:
        if found.field not in telling or found.share < NOTABLE:
            continue
        earlier = "training" if found.part == "validation" else "training or validation"
        advice = (
            f", so hold out by it: --group {shlex.quote(found.field)}"
            if found.part in cut
            else f"; the {found.part} part is given: report its unseen rows apart"
        )
        yield (
            f"{_percent(found.share)} of {found.part} rows share their `{found.field}` with "
            f"{earlier}; looking those up scores {found.lookup_accuracy:.4f} (majority class "
            f"{found.majority_accuracy:.4f}){advice}"
        )


def _spoken(part: Part) -> str:
    return "training" if part == "train" else part


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1g} %"
