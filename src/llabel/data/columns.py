"""One part of the data, read into columns; every text, group and part name is checked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llabel.data.cells import Row, cell_text, listed, shown
from llabel.data.classes import LabelCells, Place, is_missing, label_values
from llabel.data.open_quotes import noting_joined
from llabel.data.sources import ROLES, Part, part_name
from llabel.errors import InputError
from llabel.task import ClassIndices, Label, Split, Text


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns are read, and as what."""

    fields: tuple[str, ...]
    label: str | None = None
    group: str | None = None
    split: str | None = None

    @property
    def wanted(self) -> list[str]:
        """Each column once."""
        named = (*self.fields, self.label, self.group, self.split)
        return list(dict.fromkeys(name for name in named if name is not None))

    @property
    def optional(self) -> tuple[str, ...]:
        """What a row may be without: a missing label is told with what to do about it."""
        return () if self.label is None else (self.label,)


@dataclass(frozen=True, slots=True)
class Table:
    """One part, read. All lists are (n,), or empty where no such column was named.

    Attributes:
        part: which part it plays.
        typed: whether label cells have types, or all are strings (CSV, TSV).
        ids: ``part:row``, as in `Split`.
        texts: one tuple of field texts per row.
        labels: label cells as they are.
        groups: values of the group column, none of them empty.
        roles: values of the split column: train, validation or test.
        places: file, row and line, for messages.
    """

    part: str
    typed: bool
    ids: list[str] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)

    def with_role(self, role: str, part: str) -> "Table":
        """The rows whose split column says `role`, as a part of their own."""
        return self.take([row for row, found in enumerate(self.roles) if found == role], part)

    def take(self, rows: Sequence[int], part: str) -> "Table":
        """Some rows by position, as the part that is called `part`; roles are left behind."""
        return Table(
            part,
            self.typed,
            ids=[self.ids[row] for row in rows],
            texts=[self.texts[row] for row in rows],
            labels=[self.labels[row] for row in rows],
            groups=[self.groups[row] for row in rows] if self.groups else [],
            places=[self.places[row] for row in rows],
        )

    @property
    def label_cells(self) -> LabelCells:
        """The label column, for `llabel.data.classes`."""
        return LabelCells(self.part, self.labels, self.places, self.typed)

    def split(self, y: ClassIndices) -> Split:
        """The rows with their class indices (n,), locked."""
        groups = tuple(self.groups) if self.groups else None
        return Split(tuple(self.ids), tuple(self.texts), y, groups)


def read_part(part: Part, role: str, columns: Columns, notes: list[str]) -> Table:
    """Read all rows of a part; what is suspicious of them is added to `notes`.

    Raises:
        InputError: a text that is a list or the like, a row without group, an unknown part name.
    """
    table = Table(role, part.typed)
    rows = noting_joined(part.rows(columns.wanted, columns.optional), notes)
    for number, row in enumerate(rows, start=1):
        table.ids.append(f"{part.name}:{number}")
        table.texts.append(row_texts(row, columns.fields))
        table.places.append((row.file, row.number, row.line))
        if columns.label is not None:
            table.labels.append(row.values[columns.label])
        if columns.group is not None:
            table.groups.append(_group(row, columns.group, part.typed))
        if columns.split is not None:
            table.roles.append(_role(row, columns.split))
    return table


def with_labels(
    table: Table,
    column: str,
    notes: list[str],
    known: Iterable[Label],
    *,
    normalise: bool,
) -> Table:
    """The rows that have a label; where none has, all of them, to be refused.

    Args:
        table: a part.
        column: the label column's name.
        notes: how many are left out is added there.
        known: classes, which may look like a missing value.
        normalise: whether labels are compared in their normal form.
    """
    words = frozenset(map(str, known))
    labels = label_values(column, table.label_cells, words, normalise=normalise)
    rows = [row for row, label in enumerate(labels) if label is not None]
    if len(rows) in {0, len(labels)}:
        return table
    notes.append(
        f"{len(labels) - len(rows):,} of {len(labels):,} rows of the {table.part} part have no "
        f"label in column {shown(column)}: they are left out."
    )
    return table.take(rows, table.part)


def refuse_empty(table: Table, fields: Sequence[str]) -> None:
    """Refuse a part of which all texts are empty: there is nothing to classify by.

    Raises:
        InputError: with file, part and columns.
    """
    if not any(text.strip() for texts in table.texts for text in texts):
        named = f"column {shown(fields[0])} is" if len(fields) == 1 else f"{listed(fields)} are"
        raise InputError(
            f"{table.places[0][0]}: {named} empty in all {len(table.texts):,} rows of the "
            f"{table.part} part. Fill in the texts, or name the columns that hold them: --text."
        )


def row_texts(row: Row, fields: Sequence[str]) -> Text:
    """The row's fields as texts: nothing (null, NaN) is an empty text, numbers are written out.

    Raises:
        InputError: a field that is neither text nor number.
    """
    return tuple(_text(row, name) for name in fields)


def _text(row: Row, column: str) -> str:
    value = row.values[column]
    text = cell_text(value)
    if text is not None:
        return text
    raise InputError(
        f"{row.file}: {row.where}, column {shown(column)}: {shown(value)} "
        f"({type(value).__name__}) is no text. Text columns hold strings or numbers: join or "
        "choose what the model shall read."
    )


def _group(row: Row, column: str, typed: bool) -> str:
    value = _text(row, column)
    if is_missing(value, typed):
        word = (
            f" (but {shown(value)}, which means that a value is missing)" if value.strip() else ""
        )
        raise InputError(
            f"{row.file}: {row.where}, column {shown(column)}: there is no group{word}. Every row "
            "needs one, or rows that belong together could stand on both sides: fill it in (a row "
            "on its own gets a value of its own)."
        )
    return value


def _role(row: Row, column: str) -> str:
    value = _text(row, column)
    role = part_name(value)
    if role not in ROLES:
        raise InputError(
            f"{row.file}: {row.where}, column {shown(column)}: {shown(value)} is no part. Allowed "
            "are train, validation (or valid, val, dev) and test."
        )
    return role
