"""A label map: which labels become which, and which are dropped with their rows."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

from llabel.data.cells import listed, shown
from llabel.data.classes import (
    LabelCells,
    are_whole,
    label_values,
    meant,
    normal_form,
    refuse_missing,
    written,
)
from llabel.errors import InputError
from llabel.paths import at_home
from llabel.task import Label

_FORM = (
    "Write one label a line, and what becomes of it, such as `PARENTS: PARENTING`; "
    "`MISCELLANEOUS: null` drops the rows of that label."
)


class MappedLabel(TypedDict):
    """What a map did to one label, ready for JSON.

    Attributes:
        label: as it stands in the data.
        becomes: what it is called from then on; None where its rows were dropped.
        rows: how many rows of all parts had it.
    """

    label: Label
    becomes: Label | None
    rows: int


@dataclass(frozen=True, slots=True)
class LabelMap:
    """What a file says.

    Attributes:
        file: its name, for messages.
        entries: by the label as it is written, what becomes of it; None drops its rows.
    """

    file: str
    entries: Mapping[str, str | None]

    @property
    def option(self) -> str:
        """How messages call it."""
        return f"--map-labels {self.file}"


def read_label_map(path: str) -> LabelMap:
    """Read a YAML (or JSON) file of lines ``OLD: NEW`` or ``OLD: null``.

    Labels are taken as they are written: ``no`` is the text no, ``1`` is whatever the column makes
    of 1.

    Raises:
        InputError: no such file, another form, or a label that stands there twice.
    """
    import yaml

    option = f"--map-labels {path}"
    try:
        node = yaml.compose(at_home(path).read_text(encoding="utf-8-sig"), yaml.SafeLoader)
    except FileNotFoundError as error:
        raise InputError(f"{option}: there is no such file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option}: cannot be read as UTF-8 text ({error}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise InputError(f"{option} is no YAML{where}: {problem}. {_FORM}") from error
    if not isinstance(node, yaml.MappingNode) or not node.value:
        raise InputError(f"{option}: there is no map in it. {_FORM}")
    entries: dict[str, str | None] = {}
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not (isinstance(key, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode)):
            raise InputError(f"{option}, line {line}: a list or the like is no label. {_FORM}")
        if key.value in lines:
            raise InputError(
                f"{option}: {shown(key.value)} stands at line {lines[key.value]} and again at "
                f"line {line}. Remove one of them."
            )
        lines[key.value] = line
        dropped = value.tag == "tag:yaml.org,2002:null"
        if not dropped and not value.value.strip():
            raise InputError(f"{option}, line {line}: the new label is empty. {_FORM}")
        entries[key.value] = None if dropped else value.value
    return LabelMap(path, entries)


def map_labels(
    column: str,
    label_map: LabelMap,
    values: Sequence[Sequence[Label]],
    *,
    normalise: bool = False,
) -> tuple[list[list[Label | None]], list[MappedLabel]]:
    """Replace labels as the map says.

    Args:
        column: name of the label column, for messages.
        label_map: what becomes of which label.
        values: for each part (n,) labels of one type.
        normalise: whether these were normalised, as the map's then are, too.

    Returns:
        For each part (n,) labels, None where the row is to be dropped; and what each entry did.

    Raises:
        InputError: a label that no row has; one that becomes what the map itself changes (a chain,
            or two that overlap); labels of two types come of it, or fewer than two labels.
    """
    entries = _normalised(label_map) if normalise else dict(label_map.entries)
    counts = Counter(label for part in values for label in part)
    key = key_of_labels(counts)
    known = {key(label): label for label in counts}
    numbers = are_whole(counts)
    if numbers:  # 2.0 is 2 there, as in the table
        entries = {old: new and key(new) for old, new in entries.items()}
    by_name = {key(old): (old, new) for old, new in entries.items()}
    if len(by_name) < len(entries):
        names = [name for name in entries if by_name[key(name)][0] != name]
        raise InputError(f"{label_map.option}: {listed(names)} stands there in two spellings.")
    _refuse_unknown(column, label_map, by_name, known)
    _refuse_chains(label_map, by_name, key)
    becomes = {
        known[name]: None if new is None else _label(new, known, key, numbers)
        for name, (_, new) in by_name.items()
    }
    _refuse_remains(column, label_map, becomes, counts, values[0])
    mapped = [MappedLabel(label=old, becomes=new, rows=counts[old]) for old, new in becomes.items()]
    return [[becomes.get(label, label) for label in part] for part in values], mapped


def key_of_labels(labels: Iterable[Label]) -> Callable[[Label], str]:
    """By what a map's lines and the labels (of one type) of a column are compared.

    Texts by themselves, so that a map can join ``TRUE`` and ``true``; else by how they are
    `written`.
    """
    labels = list(labels)
    if all(isinstance(label, str) for label in labels):
        return str
    return partial(written, whole=are_whole(labels))


def map_known(
    column: str,
    mapped: Sequence[MappedLabel],
    classes: Sequence[Label],
    cells: LabelCells,
    *,
    normalise: bool = False,
) -> list[Any]:
    """Do to new rows what a map did to those that a model was trained on.

    Labels are compared by how they are written where none is the same; those that the map does not
    name stay.

    Args:
        column: name of the label column, for messages.
        mapped: what it did.
        classes: the model's classes.
        cells: the label column of the new rows.
        normalise: whether labels are normalised.

    Returns:
        (n,) label cells, None where the row is to be dropped.

    Raises:
        InputError: a row without a label.
    """
    exact = {label: label for label in classes} | {e["label"]: e["becomes"] for e in mapped}
    becomes = {written(entry["label"]): entry["becomes"] for entry in mapped}
    names = frozenset(map(str, (*classes, *(entry["label"] for entry in mapped))))
    found = label_values(column, cells, names, normalise=normalise)
    refuse_missing(column, [cells], [found])
    whole = not cells.typed and are_whole(entry["label"] for entry in mapped)
    return [
        exact[value]
        if isinstance(value, str) and value in exact
        else becomes.get(written(value, whole=whole), cell)
        for value, cell in zip(found, cells.values, strict=True)
    ]


def told(label_map: LabelMap, mapped: Sequence[MappedLabel]) -> str:
    """What it did, in a sentence."""
    kept = [entry for entry in mapped if entry["becomes"] is not None]
    lost = [entry for entry in mapped if entry["becomes"] is None]
    said = []
    if kept:
        into = len({written(entry["becomes"]) for entry in kept})
        rows = sum(entry["rows"] for entry in kept)
        said.append(f"{_count(len(kept), 'label')} became {into:,} ({_count(rows, 'row')})")
    if lost:
        rows = sum(entry["rows"] for entry in lost)
        names = listed([entry["label"] for entry in lost], 5)
        said.append(f"{names} dropped with {_count(rows, 'row')}")
    return f"{label_map.option}: {', '.join(said)}."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _normalised(label_map: LabelMap) -> dict[str, str | None]:
    """The map in the labels' normal form."""
    entries: dict[str, str | None] = {}
    for name, new in label_map.entries.items():
        form = normal_form(name)
        becomes = None if new is None else normal_form(new)
        if entries.setdefault(form, becomes) != becomes:
            raise InputError(
                f"{label_map.option}: with --normalise-labels two lines speak of {shown(form)}, "
                "and differ. Remove one of them."
            )
    return entries


def _refuse_unknown(
    column: str,
    label_map: LabelMap,
    by_name: Mapping[str, tuple[str, str | None]],
    known: Mapping[str, Label],
) -> None:
    unknown = [name for key, (name, _) in by_name.items() if key not in known]
    if unknown:
        raise InputError(
            f"{label_map.option}: no row has the label {listed(unknown, 5)}. Column "
            f"{shown(column)} holds {listed(known.values(), 50)}."
            f"{meant(unknown[0], map(str, known.values()))}"
        )


def _refuse_chains(
    label_map: LabelMap,
    by_name: Mapping[str, tuple[str, str | None]],
    key: Callable[[Label], str],
) -> None:
    for old, (name, new) in by_name.items():
        if new is None or key(new) == old:
            continue
        further = by_name.get(key(new))
        if further is None or (further[1] is not None and key(further[1]) == key(new)):
            continue
        end = "drops" if further[1] is None else f"changes into {shown(further[1])}"
        raise InputError(
            f"{label_map.option}: {shown(name)} becomes {shown(new)}, which the map itself {end}. "
            "A map is applied once: write what each label finally becomes, under a name that the "
            "map does not change."
        )


def _label(
    new: str, known: Mapping[str, Label], key: Callable[[Label], str], numbers: bool
) -> Label:
    """A new label in the type of the others, where it can have it."""
    if key(new) in known:
        return known[key(new)]
    try:
        return int(new) if numbers and str(int(new)) == new.strip() else new
    except ValueError:
        return new


def _refuse_remains(
    column: str,
    label_map: LabelMap,
    becomes: Mapping[Label, Label | None],
    counts: Mapping[Label, int],
    train: Sequence[Label],
) -> None:
    """Refuse a map after which there is nothing to tell apart."""
    left = [label for label in (becomes.get(old, old) for old in counts) if label is not None]
    kinds = {type(label): label for label in left}
    if len(kinds) > 1:
        raise InputError(
            f"{label_map.option}: the labels would be of several types: "
            f"{listed(kinds.values())}. Let the map name every label of column {shown(column)}, or "
            "choose new labels of the same type."
        )
    of_train = {becomes.get(label, label) for label in train} - {None}
    if len(of_train) < 2:
        what = f"one label only, {shown(next(iter(of_train)))}," if of_train else "no label"
        raise InputError(
            f"{label_map.option} leaves {what} in the train part. At least two are needed: map or "
            "drop fewer labels."
        )
