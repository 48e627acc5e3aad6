"""What a classification task is made of: plain frozen data, no logic."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Label: TypeAlias = Hashable  # str, bool or int as it stands in the user's table


@dataclass(frozen=True, slots=True)
class TargetLabel:
    """One label of one of several targets, where a row has a label for each of them."""

    target: str
    label: Label


Text: TypeAlias = tuple[str, ...]  # one row: the task's fields in their order
# (n,), positions in `Task.classes`; (n, n_targets) where a row has a label for each target
ClassIndices: TypeAlias = npt.NDArray[np.int64]
Probabilities: TypeAlias = npt.NDArray[np.float64]  # (n, n_classes), rows of a target sum to 1


@dataclass(frozen=True, slots=True)
class Split:
    """One part of a task (train, validation or test), rows in a fixed order.

    Attributes:
        ids: (n,) where each row stands in the user's data, as ``part:row`` (first data row is 1).
        texts: (n,) one tuple of field texts per row, in the order of ``Task.fields``.
        y: (n,) class indices.
        groups: (n,) values of the group column, or None where none was named.
    """

    ids: tuple[str, ...]
    texts: tuple[Text, ...]
    y: ClassIndices
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Task:
    """Fields, labels and locked splits: all that a rung may know.

    Attributes:
        name: what the user called the data (a file's or asset's name).
        fields: names of the text columns.
        classes: the labels in sorted order; class index = position. Several targets' labels are
            `TargetLabel`s, a target's together.
        train: rows to learn from.
        validation: rows to choose on.
        test: rows read once, at the end.
        fingerprint: SHA-256 over fields, classes and every row of every part.
    """

    name: str
    fields: tuple[str, ...]
    classes: tuple[Label, ...]
    train: Split
    validation: Split
    test: Split
    fingerprint: str
