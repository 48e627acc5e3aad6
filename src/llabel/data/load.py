"""Read → check → split → fingerprint: from what the user names to a locked `Task`."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from llabel.data.cells import listed, matching, shown
from llabel.data.classes import (
    class_indices,
    is_withheld,
    label_words,
    read_labels,
    refuse_lookalikes,
    sorted_classes,
)
from llabel.data.columns import (
    Columns,
    Table,
    read_part,
    refuse_empty,
    row_texts,
    with_labels,
)
from llabel.data.cutting import cut_missing, draw, note_missed
from llabel.data.label_map import (
    LabelMap,
    MappedLabel,
    map_labels,
    read_label_map,
    told,
)
from llabel.data.notes import (
    note_empty_texts,
    note_lacking_classes,
    note_separator,
    note_shared_groups,
)
from llabel.data.open_quotes import noting_joined
from llabel.data.rows import fingerprint
from llabel.data.sources import (
    ROLES,
    Part,
    Source,
    open_source,
    part_name,
    require_part,
    with_files,
)
from llabel.data.splitting import Sampling, check_size
from llabel.errors import InputError
from llabel.task import Label, Split, Task, Text

CutPart: TypeAlias = Literal["validation", "test"]
CUT_PARTS: tuple[CutPart, ...] = ("validation", "test")


@dataclass(frozen=True, slots=True)
class LoadedTask:
    """A task and how it came about.

    Attributes:
        task: its rows, locked.
        notes: what the user should know, one sentence each.
        cut: the parts that were cut from the training rows, of validation and test.
        mapped: what became of the labels that `map_labels` names.
        targets: where a row has several labels, the task of each, on the same rows; `task` is of
            all then, its classes `TargetLabel`s.
    """

    task: Task
    notes: tuple[str, ...]
    cut: tuple[CutPart, ...]
    mapped: tuple[MappedLabel, ...] = ()
    targets: Mapping[str, "LoadedTask"] = field(default_factory=dict)


def load_task(
    data: str,
    *,
    text: Sequence[str],
    label: str,
    group: str | None = None,
    split_column: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    test_split: str | None = None,
    validation_size: float = 0.1,
    test_size: float = 0.2,
    train_rows: int | None = None,
    test_rows: int | None = None,
    sampling: Sampling = "stratified",
    normalise_labels: bool = False,
    drop_unlabelled: bool = False,
    map_labels: str | None = None,
    seed: int = 0,
) -> LoadedTask:
    """Read a labelled table and lock its train, validation and test rows.

    Parts that are given stay as they are. Data with a validation part but no test part lends the
    validation part as the test part (its labels are those people report on; the labels of public
    test parts are often withheld). What is missing is cut from the training rows, stratified by
    class; with `group`, whole groups are cut. The rows of test and validation do not depend on
    `train_rows`, nor those of train and validation on `test_rows`.

    Args:
        data: a table file (.csv, .tsv, .jsonl, .parquet, each also .gz), a folder with train,
            validation and test tables, a built-in name, or a Hugging Face Hub id (``org/name`` or
            ``org/name:config``). A CSV table with semicolons (or tabs) in place of commas is read
            and noted.
        text: the text columns, in the order of ``Task.fields``. Empty texts are allowed (and
            noted) unless all are; numbers become texts.
        label: the label column: texts, true and false, or whole numbers. In CSV and TSV, ``NA``,
            ``NaN``, ``null`` and the like are missing labels.
        group: column whose values never stand on both sides of a cut. Those that differ only by
            case, white space, Unicode form or how a number is written (1, 1.0) are one group.
        split_column: column that says train, validation (or valid, val, dev) or test.
        validation: a table file for the validation part, instead of `data`'s own.
        test: a table file for the test part, instead of `data`'s own.
        test_split: which of `data`'s parts is the test part.
        validation_size: share of `data`'s training rows to cut as validation, in (0, 1).
        test_size: likewise for test; the two add up to less than 1.
        train_rows: train on so many rows only, drawn at random as `sampling` says.
        test_rows: test on so many rows only, drawn in the same way from those held out.
        sampling: see `llabel.data.splitting.subsample`.
        normalise_labels: lower-case string labels and collapse their white space.
        drop_unlabelled: leave out rows without a label, in place of refusing them.
        map_labels: a file that says what labels become, before anything is cut (see
            `llabel.data.label_map`).
        seed: of the cuts and of the draw.

    Returns:
        The task and notes for the user.

    Raises:
        InputError: for whatever cannot be used, before any model is loaded.
    """
    check_cuts(validation_size, test_size, seed, test, test_split)
    label_map = None if map_labels is None else read_label_map(map_labels)
    columns = Columns(checked_columns(text, label), label, group, split_column)
    source = with_files(open_source(data), validation, test)
    notes: list[str] = []
    tables = read_tables(
        source, columns, test_split, notes,
        keep_validation=validation is not None, drop_unlabelled=drop_unlabelled,
        normalise=normalise_labels,
    )  # fmt: skip
    tables, labels, mapped = final_labels(tables, label, normalise_labels, label_map, notes)
    classes, splits = labelled(tables, label, labels)
    cut = tuple(role for role in CUT_PARTS if role not in splits)
    sizes = {"test": test_size, "validation": validation_size}
    splits = cut_missing(splits, sizes, classes, seed, notes, group=group)
    drawn = {"train": train_rows, "test": test_rows}
    whole = splits["train"]
    splits = draw(splits, drawn, sampling, classes, seed, notes)
    note_missed(whole, splits["train"], classes, notes)
    note_shared_groups(splits, group, notes)
    note_lacking_classes(splits, classes, cut, notes)
    note_empty_texts(splits, columns.fields, notes)
    task = Task(
        name=source.name,
        fields=columns.fields,
        classes=classes,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        fingerprint=fingerprint(columns.fields, classes, splits),
    )
    return LoadedTask(task, tuple(notes), cut, tuple(mapped))


def read_texts(
    data: str,
    fields: Sequence[str],
    *,
    part: str | None = None,
    notes: list[str] | None = None,
) -> Iterator[tuple[str, Text]]:
    """Stream ids and texts for prediction, in constant memory; labels are not looked at.

    Args:
        data: as for `load_task`.
        fields: the text columns.
        part: read this part only; all parts one after the other by default.
        notes: what the user should know is added there, when the rows of a part are at their end.

    Raises:
        InputError: as for `load_task`.
    """
    source = open_source(data)
    names = list(source.parts) if part is None else [require_part(source, part, "--split")]
    columns = Columns(tuple(fields))
    said = [] if notes is None else notes
    return (
        (f"{chosen.name}:{number}", row_texts(row, columns.fields))
        for chosen in map(source.parts.__getitem__, names)
        for number, row in enumerate(
            noting_joined(chosen.rows(columns.wanted, columns.optional), said), start=1
        )
    )


def checked_columns(text: Sequence[str], label: str) -> tuple[str, ...]:
    """The text columns, each named once, the label not among them.

    Raises:
        InputError: otherwise.
    """
    if not text or isinstance(text, str):
        raise InputError("--text: name at least one text column, several as --text A,B.")
    if len(set(text)) != len(text):
        raise InputError(f"--text {','.join(text)}: a column is named twice. Name each once.")
    if label in text:
        raise InputError(
            f"--label {label}: this column is also a text column, so the answer would be in the "
            "question. Remove it from --text."
        )
    return tuple(text)


def check_cuts(
    validation_size: float, test_size: float, seed: int, test: str | None, test_split: str | None
) -> None:
    """Refuse sizes, a seed or a test part that no rows can be cut by.

    Raises:
        InputError: with the option's name.
    """
    check_size("--validation-size", validation_size)
    check_size("--test-size", test_size)
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed {seed}: a whole number from 0 to {2**32 - 1} is needed.")
    if test is not None and test_split is not None:
        raise InputError("--test and --test-split both name the test part. Choose one of them.")


def read_tables(
    source: Source,
    columns: Columns,
    test_split: str | None,
    notes: list[str],
    *,
    keep_validation: bool,
    drop_unlabelled: bool,
    normalise: bool,
) -> dict[str, Table]:
    """The parts that are given, by role and in the order of `ROLES`."""
    if columns.split is None:
        roles = _assign_roles(source.parts, source.name, test_split, keep_validation, notes)
        parts = {role: source.parts[name] for role, name in roles.items()}
        for role, part in parts.items():
            if role != "train" and lacks_labels(part, columns.label, source.parts):
                raise _withheld(part.origin, role, columns, roles)
            note_separator(part, columns, notes)
        tables = {role: read_part(part, role, columns, notes) for role, part in parts.items()}
    else:
        tables = _read_by_column(source, columns, test_split, notes)
    learned = label_words(tables["train"].label_cells)
    typed = {word for one in tables.values() if one.typed for word in label_words(one.label_cells)}
    for role, table in tables.items():
        if role != "train" and is_withheld(table.label_cells, learned, normalise=normalise):
            raise _withheld(table.places[0][0], role, columns, tables)
        refuse_empty(table, columns.fields)
        if drop_unlabelled and columns.label is not None:
            tables[role] = with_labels(table, columns.label, notes, typed, normalise=normalise)
    return {role: tables[role] for role in ROLES if role in tables}


def final_labels(
    tables: Mapping[str, Table],
    column: str,
    normalise: bool,
    label_map: LabelMap | None,
    notes: list[str],
) -> tuple[dict[str, Table], list[list[Label]], list[MappedLabel]]:
    """The rows of each part that have a label, those labels, and what the map did."""
    cells = [table.label_cells for table in tables.values()]
    found = read_labels(column, cells, normalise=normalise)
    mapped: list[MappedLabel] = []
    kept: list[list[Label | None]] = [list(part) for part in found]
    if label_map is not None:
        kept, mapped = map_labels(column, label_map, found, normalise=normalise)
        notes.append(told(label_map, mapped))
    refuse_lookalikes(tables["train"].places[0][0], column, kept)
    left = {
        role: without_dropped(table, labels, column)
        for (role, table), labels in zip(tables.items(), kept, strict=True)
    }
    return left, [[label for label in part if label is not None] for part in kept], mapped


def without_dropped(table: Table, labels: Sequence[Label | None], column: str) -> Table:
    """The rows that a label map leaves a label (n,).

    Raises:
        InputError: there is none.
    """
    rows = [row for row, label in enumerate(labels) if label is not None]
    if not rows:
        raise InputError(
            f"{table.places[0][0]}: --map-labels drops every row of the {table.part} part (column "
            f"{shown(column)}). Keep one of its labels."
        )
    return table if len(rows) == len(labels) else table.take(rows, table.part)


def labelled(
    tables: Mapping[str, Table], label: str, labels: Sequence[Sequence[Label]]
) -> tuple[tuple[Label, ...], dict[str, Split]]:
    """The classes, and each part with its class indices."""
    classes = sorted_classes(label, tables["train"].places[0][0], labels[0])
    return classes, {
        role: table.split(class_indices(label, classes, table.label_cells, values))
        for (role, table), values in zip(tables.items(), labels, strict=True)
    }


def _assign_roles(
    names: Collection[str],
    source: str,
    test_split: str | None,
    keep_validation: bool,
    notes: list[str],
) -> dict[str, str]:
    """Role → part that plays it; roles without a part are cut from train later."""
    roles = {role: role for role in ROLES if role in names}
    if test_split is not None:
        chosen = part_name(test_split)
        if chosen not in names or chosen == "train":
            others = [name for name in names if name != "train"]
            there = f"its other parts are {listed(others)}" if others else "it has train rows only"
            raise InputError(
                f"--test-split {test_split}: {source} has no such part beside train; {there}."
            )
        roles["test"] = chosen
        if chosen == "validation":
            del roles["validation"]
    elif "test" not in roles and "validation" in roles and not keep_validation:
        roles["test"] = roles.pop("validation")
        notes.append(
            f"{source} has no test part: its validation part is held as the test part, and "
            "validation rows are cut from train."
        )
    unused = [name for name in names if name not in roles.values()]
    if unused:
        notes.append(f"parts of {source} that are not used: {listed(unused)}.")
    return roles


def lacks_labels(part: Part, label: str | None, parts: Mapping[str, Part]) -> bool:
    """Whether its label column is withheld, not misspelt: train has it."""
    if label is None:
        return False
    known = matching(label, parts["train"].columns([label])) is not None
    return known and matching(label, part.columns([label])) is None


def _withheld(origin: str, role: str, columns: Columns, roles: Collection[str]) -> InputError:
    """What to say of a part without labels; `roles` are those that have a part."""
    if role == "test" and "validation" in roles:
        remedy = "Choose --test-split validation."
    elif columns.split is not None:  # no file can be named beside it
        remedy = "Label these rows, or remove them."
    else:
        remedy = f"Give a labelled file: --{role} FILE."
    return InputError(
        f"{origin}: the {role} part has no labels (column {shown(columns.label)} is missing, "
        f"or empty or -1 in every row), as is usual for public benchmarks. {remedy}"
    )


def _read_by_column(
    source: Source, columns: Columns, test_split: str | None, notes: list[str]
) -> dict[str, Table]:
    if len(source.parts) > 1:
        raise InputError(
            f"--split-column {columns.split}: {source.name} has parts already "
            f"({listed(source.parts)}). Leave the option out, or name one table."
        )
    whole = read_part(source.parts["train"], "train", columns, notes)
    note_separator(source.parts["train"], columns, notes)
    names = [role for role in ROLES if role in whole.roles]
    if "train" not in names:
        raise InputError(
            f"{whole.places[0][0]}: column {shown(columns.split)} names no train row, only "
            f"{listed(names)}. Write train in the rows to learn from, or leave --split-column out: "
            "all rows are cut then."
        )
    roles = _assign_roles(names, source.name, test_split, False, notes)
    return {role: whole.with_role(name, role) for role, name in roles.items()}
