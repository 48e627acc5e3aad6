"""Rows to evaluate a trained model on: their labels are told by classes that are known."""

from collections.abc import Sequence
from dataclasses import replace

from llabel.data.cells import listed, matching, shown
from llabel.data.classes import is_withheld, match_known
from llabel.data.columns import Columns, Table, read_part, refuse_empty, with_labels
from llabel.data.label_map import MappedLabel, map_known
from llabel.data.load import checked_columns, lacks_labels, without_dropped
from llabel.data.rows import with_groups_joined
from llabel.data.sources import ROLES, Part, Source, open_source, part_name, require_part
from llabel.errors import InputError
from llabel.task import Label, Split


def load_labelled(
    data: str,
    text: Sequence[str],
    label: str,
    classes: Sequence[Label],
    *,
    part: str | None = None,
    group: str | None = None,
    split_column: str | None = None,
    normalise_labels: bool = False,
    drop_unlabelled: bool = False,
    mapped: Sequence[MappedLabel] = (),
    notes: list[str] | None = None,
) -> Split:
    """Read rows to evaluate a trained model on.

    Args:
        data: as for `load_task`.
        text: the text columns, in the order of the model's fields.
        label: the label column. Labels are matched to `classes` by type and value, else by how
            they are written (``"1"`` and 1, ``"True"`` and true).
        classes: the model's classes.
        part: which of the data's parts; by default test, else validation, else all rows.
        group: column of the rows' groups, where the data have it.
        split_column: says which part a row is in, where a single table has this column.
        normalise_labels, drop_unlabelled: as for `load_task`; give what the model was trained with.
        mapped: what a map did to the labels that the model was trained with; done here, too.
        notes: what the user should know is added there.

    Raises:
        InputError: as for `load_task`, and for labels that are not among `classes`.
    """
    notes = [] if notes is None else notes
    columns = Columns(checked_columns(text, label), label, group)
    source = open_source(data)
    table, origin, others = _chosen(source, columns, part, split_column, notes)
    known = (*classes, *(entry["label"] for entry in mapped))
    withheld = is_withheld(table.label_cells, known, normalise=normalise_labels)
    if not table.ids or withheld:
        told = f", another part with --split ({listed(others)})" if others else ""
        raise InputError(
            f"{origin}: no row has a label in column {shown(label)} (missing, or empty "
            "or -1 in every row), so there is nothing to hold the answers against. Name another "
            f"column with --label{told}, or DATA with labels."
        )
    refuse_empty(table, columns.fields)
    if drop_unlabelled:
        table = with_labels(table, label, notes, known, normalise=normalise_labels)
    if mapped:
        labels = map_known(label, mapped, classes, table.label_cells, normalise=normalise_labels)
        if all(one is None for one in labels):
            raise InputError(
                f"{origin}: the label map of the run drops every row (column {shown(label)}), so "
                "there is nothing to hold the answers against. Name DATA with other labels."
            )
        kept = without_dropped(replace(table, labels=labels), labels, label)
        if len(kept.ids) < len(table.ids):
            notes.append(
                f"{len(table.ids) - len(kept.ids):,} of {len(table.ids):,} rows have a label that "
                "the run's map drops: they are left out."
            )
        table = kept
    y = match_known(label, classes, table.label_cells, normalise=normalise_labels)
    return with_groups_joined({table.part: table.split(y)})[table.part]


def _chosen(
    source: Source,
    columns: Columns,
    part: str | None,
    split_column: str | None,
    notes: list[str],
) -> tuple[Table, str, list[str]]:
    """The rows of the part that is meant, where they are from, and what other parts there are.

    The table has no rows where the part lacks the label column.
    """
    if split_column and len(source.parts) == 1:
        (only,) = source.parts.values()
        if matching(split_column, only.columns(())):
            columns = replace(_grouped(columns, only, notes), split=split_column)
            whole = read_part(only, only.name, columns, notes)
            return _by_column(only.origin, whole, split_column, part, notes)
    name = next(role for role in reversed(ROLES) if role in source.parts)
    if part is not None:
        name = require_part(source, part, "--split")
    chosen = source.parts[name]
    others = [other for other in source.parts if other != name]
    table = Table(chosen.name, chosen.typed)
    if not lacks_labels(chosen, columns.label, source.parts):
        table = read_part(chosen, chosen.name, _grouped(columns, chosen, notes), notes)
    if others:
        notes.append(f"Scored is the {name} part, {len(table.ids):,} rows.")
    return table, chosen.origin, others


def _grouped(columns: Columns, part: Part, notes: list[str]) -> Columns:
    """The columns to read: without that of the groups where the part has none."""
    group = columns.group
    if group is None:
        return columns
    if matching(group, part.columns([group])) is None:
        notes.append(
            f"{part.origin} has no column {shown(group)}, by which the run's rows were grouped: "
            "intervals take its rows for independent."
        )
        return replace(columns, group=None)
    notes.append(f"Intervals are over whole groups of rows, those that share their {shown(group)}.")
    return columns


def _by_column(
    origin: str, whole: Table, column: str, part: str | None, notes: list[str]
) -> tuple[Table, str, list[str]]:
    there = [role for role in reversed(ROLES) if role in whole.roles]
    name = there[0] if part is None else part_name(part)
    if name not in there:
        raise InputError(
            f"--split {part}: {origin} has no such part. Column {shown(column)} says "
            f"{listed(there[::-1])}."
        )
    chosen = whole.with_role(name, name)
    notes.append(
        f"Scored are the {len(chosen.ids):,} of {len(whole.ids):,} rows of which column "
        f"{shown(column)} says {name}."
    )
    return chosen, origin, [role for role in there if role != name]
