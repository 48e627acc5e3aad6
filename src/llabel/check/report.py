"""What `check` finds, as plain frozen data: JSON-ready through ``dataclasses.asdict``."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from llabel.check.estimate import RunEstimate
from llabel.metrics import Interval

Part: TypeAlias = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class ClassCount:
    """Rows of one class in each part."""

    label: str
    train: int
    validation: int
    test: int


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """Prompt lengths of one part, in tokens before truncation.

    Attributes:
        part: train, validation or test.
        rows: rows counted.
        p50: median length.
        p95: length that 95 % of the rows do not exceed.
        max: longest.
        total: tokens of all rows after truncation, what a run computes on.
        truncated: rows that lose a part, as they are longer than the limit.
    """

    part: Part
    rows: int
    p50: int
    p95: int
    max: int
    total: int
    truncated: int


@dataclass(frozen=True, slots=True)
class Repeats:
    """Rows of one part whose fields all repeat an earlier row; each row counts at most once.

    Exact means equal after whitespace is collapsed and case folded; near, see `near_duplicates`.

    Attributes:
        part: train, validation or test.
        rows: rows looked at.
        exact_earlier: exact repeats of a row in an earlier part (for test: training, validation).
        near_earlier: near repeats of a row in an earlier part.
        exact_within: exact repeats of a row above in the same part.
        near_within: near repeats of a row above in the same part.
    """

    part: Part
    rows: int
    exact_earlier: int
    near_earlier: int
    exact_within: int
    near_within: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """Rows with one text and several labels (the first few): `labels[i]` stands at `ids[i]`."""

    ids: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FieldOverlap:
    """Values of one field that a part shares with earlier parts, and what looking them up scores.

    The look-up answers with the majority label of the earlier rows that share the value, and with
    the overall majority where none does or labels tie. Empty values are not shared.

    Attributes:
        part: validation or test.
        field: the text column.
        rows: rows of the part whose value occurs earlier.
        share: the same as a share of the part, 0..1.
        lookup_accuracy: of the look-up, on all rows of the part.
        lookup_ci95: its 95 % Wilson interval.
        shared_accuracy: of the look-up on the shared rows alone; None without any.
        majority_accuracy: of the majority class of the earlier rows, on all rows of the part.
    """

    part: Part
    field: str
    rows: int
    share: float
    lookup_accuracy: float
    lookup_ci95: Interval
    shared_accuracy: float | None
    majority_accuracy: float


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All that `check` found, ready for JSON through ``dataclasses.asdict``.

    Attributes:
        name: the task's name.
        fingerprint: the task's fingerprint.
        fields: the text columns.
        max_length: limit of a prompt in tokens.
        classes: rows of each class, in class order.
        tokens: lengths by part, empty parts left out; None where no tokenizer was given.
        repeats: exact and near duplicates by part.
        conflicting_rows: rows of any part that share their text with a row of another label.
        conflicts: a few of them.
        overlap: validation and test against earlier parts, by field.
        best_lookup: the entry of `overlap` for test and the field that `best_lookup_column`
            chooses; None without overlap.
        estimate: cost of a run here; None where it was not asked for.
        warnings: what to mend or bear in mind, in words.
    """

    name: str
    fingerprint: str
    fields: tuple[str, ...]
    max_length: int
    classes: tuple[ClassCount, ...]
    tokens: tuple[TokenLengths, ...] | None
    repeats: tuple[Repeats, ...]
    conflicting_rows: int
    conflicts: tuple[Conflict, ...]
    overlap: tuple[FieldOverlap, ...]
    best_lookup: FieldOverlap | None
    estimate: RunEstimate | None
    warnings: tuple[str, ...]
