"""Looking texts up: which values of a field a part shares with earlier parts, and what that scores.

A table in which values recur across parts can be answered by memory; what memory scores is the
least that a system must beat there.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llabel.check.report import FieldOverlap, Part
from llabel.ladder.lookup import NO_KEY, key_of, remember
from llabel.metrics import majority_accuracy, wilson_interval
from llabel.task import ClassIndices, Split, Task, Text

# One digest a field: whether texts are the same, without keeping them twice.
RowKey: TypeAlias = tuple[bytes, ...]


def overlaps(task: Task) -> tuple[FieldOverlap, ...]:
    """What validation and test share with earlier parts, by field, and what a look-up scores."""
    keys = {part: list(map(row_key, split.texts)) for part, split in splits_of(task).items()}
    return overlaps_of(task, keys)


def look_up(task: Task, field: str, *, validation: bool = True) -> ClassIndices:
    """Answer the test rows from the training and validation rows with the same value of a field.

    Args:
        task: the split data; training has a row.
        field: one of its fields.
        validation: False leaves the validation rows out.

    Returns:
        (n_test,) class indices: the majority label of the rows that share the value, `folded`;
        the majority of all known rows where none does, labels tie, or the value is empty.

    Raises:
        ValueError: there is no such field.
    """
    parts = [task.train, task.validation] if validation else [task.train]
    known_y = np.concatenate([part.y for part in parts])
    known = [value for part in parts for value in _values(task, part, field)]
    return _look_up(known, known_y, _values(task, task.test, field))[0]


def best_lookup_column(task: Task) -> str | None:
    """Choose the field to look up by, without a test label.

    The field whose look-up from training scores best on validation, of those that share a value
    with test. Where validation cannot judge one of them because it shares none of its values (it
    was held out by group, say): the field that most test rows share with training or validation.

    Returns:
        The field; None where test shares no value of any.
    """
    shared: dict[str, int] = {}
    scores: dict[str, float] = {}
    for field in task.fields:
        train, validation, test = (
            _values(task, split, field) for split in splits_of(task).values()
        )
        seen = {*train, *validation} - {NO_KEY}
        count = sum(value in seen for value in test)
        if not count:
            continue
        shared[field] = count
        answers, known = _look_up(train, task.train.y, validation)
        if known.any():
            scores[field] = float((answers == task.validation.y).mean())
    judged = scores if len(scores) == len(shared) else shared
    return max(judged, key=judged.__getitem__, default=None)


def splits_of(task: Task) -> dict[Part, Split]:
    """The parts by name, each after those it is compared with."""
    return {"train": task.train, "validation": task.validation, "test": task.test}


def row_key(row: Text) -> RowKey:
    """What rows have in common that are the same in every field, `folded`."""
    return tuple(map(key_of, row))


def _values(task: Task, split: Split, field: str) -> list[bytes]:
    position = task.fields.index(field)
    return [key_of(texts[position]) for texts in split.texts]


def overlaps_of(task: Task, keys: Mapping[Part, list[RowKey]]) -> tuple[FieldOverlap, ...]:
    """Like `overlaps`, from the `row_key` of every row."""
    earlier_keys: list[RowKey] = []
    earlier_y: list[ClassIndices] = []
    found = []
    for part, split in splits_of(task).items():
        if len(split) and earlier_keys:
            known_y = np.concatenate(earlier_y)
            for field, name in enumerate(task.fields):
                known, asked = ([k[field] for k in side] for side in (earlier_keys, keys[part]))
                answers, shared = _look_up(known, known_y, asked)
                right = answers == split.y
                found.append(
                    FieldOverlap(
                        part=part,
                        field=name,
                        rows=int(shared.sum()),
                        share=float(shared.mean()),
                        lookup_accuracy=float(right.mean()),
                        lookup_ci95=wilson_interval(int(right.sum()), len(right)),
                        shared_accuracy=float(right[shared].mean()) if shared.any() else None,
                        majority_accuracy=majority_accuracy(known_y, split.y),
                    )
                )
        earlier_keys += keys[part]
        earlier_y.append(split.y)
    return tuple(found)


def _look_up(
    known: Sequence[bytes], known_y: ClassIndices, asked: Sequence[bytes]
) -> tuple[ClassIndices, npt.NDArray[np.bool_]]:
    """Answer with the majority label of the same value; (n,) answers and (n,) whether known."""
    majority = int(np.bincount(known_y).argmax())
    memory = remember(known, known_y, int(known_y.max()) + 1)
    shared, rows = memory.rows_of(asked)
    answers = np.full(len(asked), majority, dtype=np.int64)
    places = np.flatnonzero(shared)
    for part, counts in memory.blocks(rows):
        tied = (counts == counts.max(axis=1, keepdims=True)).sum(axis=1) > 1
        answers[places[part]] = np.where(tied, majority, counts.argmax(axis=1))
    return answers, shared
