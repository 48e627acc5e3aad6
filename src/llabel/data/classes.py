"""The label column: from cells to labels of one type, and to classes in sorted order."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np

from llabel.data.cells import composed, did_you_mean, listed, row_name, shown
from llabel.errors import InputError
from llabel.task import ClassIndices, Label

Place: TypeAlias = tuple[str, int, int | None]  # file, row, line
MAX_CLASSES = 1_000
_BOOLEANS = ({"true", "false"}, {"True", "False"}, {"TRUE", "FALSE"})
_INTEGER = re.compile(r"(?!-0)-?(?:0|[1-9]\d{0,17})(?:\.0+)?", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?", re.ASCII)
_DIGITS = re.compile(r"[-+]?\d+", re.ASCII)
_NUMBER = re.compile(r"(?P<sign>[-+]?)0*(?P<whole>\d+)(?:\.(?P<fraction>\d*))?", re.ASCII)
# What pandas reads as missing in a CSV file, and so what programs write for it.
_NOTHING = frozenset(
    (
        *("NA", "N/A", "n/a", "<NA>", "#NA", "#N/A", "#N/A N/A", "None", "NULL", "null"),
        *("NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
    )
)
_NOT_CLASSES = (
    "llabel classifies: for predicting numbers use a regression; if these are classes, write them "
    "as words or whole numbers."
)


@dataclass(frozen=True, slots=True)
class LabelCells:
    """The label column of one part, as read.

    Attributes:
        part: ``train``, ``validation``, ``test`` or what the data is called.
        values: (n,) cells; None where there is no value.
        places: (n,) where each stands.
        typed: False where all cells are strings because the format (CSV, TSV) knows nothing else.
    """

    part: str
    values: Sequence[Any]
    places: Sequence[Place]
    typed: bool


def normal_form(text: str) -> str:
    """What labels that a person takes for the same have in common.

    Unicode NFC, white space collapsed to single spaces and stripped, case folded: ``"Sci  Fi "`` →
    ``"sci fi"``. ``--normalise-labels`` replaces string labels by it.
    """
    return " ".join(composed(text).casefold().split())


def lookalike_form(text: str) -> str:
    """The `normal_form`, and of a number (without exponent) its shortest one: ``01``, ``1.0`` and
    ``+1`` → ``1``, ``-0`` → ``0``.
    """
    form = normal_form(text)
    number = _NUMBER.fullmatch(form)
    if number is None:
        return form
    fraction = (number["fraction"] or "").rstrip("0")
    value = number["whole"] + (f".{fraction}" if fraction else "")
    return f"-{value}" if number["sign"] == "-" and value != "0" else value


def read_labels(
    column: str, parts: Sequence[LabelCells], *, normalise: bool = False
) -> list[list[Label]]:
    """Give the labels of all parts one type: bool, int or str.

    In CSV and TSV, a column that holds nothing but ``true`` and ``false`` (or True/False, or
    TRUE/FALSE) is boolean, and one of whole numbers as they are usually written (``7``, ``-1``, or
    ``7.0``, but not ``007``) is of integers. Whole floats of other formats (1.0) become integers.
    ``NA``, ``NaN``, ``null`` and the like are missing labels there, not classes, unless another
    part, in a format with types, has that text as a label. Where the parts with types hold strings
    only, labels of CSV and TSV parts are strings as well, whatever they look like.

    Args:
        column: its name, for messages.
        parts: the label column of each part.
        normalise: replace string labels by their `normal_form`.

    Returns:
        For each part (n,) labels.

    Raises:
        InputError: missing labels, numbers with a fraction, lists and the like, or mixed types.
    """
    known = frozenset(word for part in parts if part.typed for word in label_words(part))
    values = [label_values(column, part, known, normalise=normalise) for part in parts]
    refuse_missing(column, parts, values)
    untyped = [index for index, part in enumerate(parts) if not part.typed]
    typed = {type(v) for index in range(len(parts)) if index not in untyped for v in values[index]}
    if untyped and typed != {str}:
        strings = {value for index in untyped for value in values[index]}
        convert = _conversion(parts[untyped[0]].places[0][0], column, strings)
        for index in untyped:
            values[index] = [convert[value] for value in values[index]]
    _refuse_mixed_types(column, parts, values)
    return values


def label_words(cells: LabelCells) -> set[str]:
    """How the labels of a part are written, without what stands for a missing one."""
    return {str(cell) for cell in cells.values if not is_missing(cell, cells.typed)}


def is_withheld(cells: LabelCells, known: Iterable[Any], *, normalise: bool = False) -> bool:
    """Whether a part has no labels: all are missing, or all are -1 where `known` has no -1.

    With `normalise`, `known` may be in `normal_form`.
    """
    names = frozenset(map(str, known))
    words = _words(names, normalise)
    found = {
        None if is_missing(cell, cells.typed, words, normalise) else str(cell)
        for cell in cells.values
    }
    return found <= {None} or (found <= {None, "-1", "-1.0"} and not names & {"-1", "-1.0"})


def sorted_classes(column: str, origin: str, labels: Sequence[Label]) -> tuple[Label, ...]:
    """The distinct training labels: numbers by value, False before True, text lexicographically.

    Raises:
        InputError: there is one class only, or so many that the column is no label.
    """
    counts = Counter(labels)
    if len(counts) == 1:
        (only, count) = next(iter(counts.items()))
        raise InputError(
            f"{origin}: column {shown(column)} holds one class only: {shown(only)} in all "
            f"{count:,} rows. At least two are needed: add rows of other classes, or name "
            "another --label."
        )
    if len(counts) > MAX_CLASSES or (len(counts) > 20 and 2 * len(counts) > len(labels)):
        raise InputError(
            f"{origin}: column {shown(column)} has {len(counts):,} different values in "
            f"{len(labels):,} rows ({listed(list(counts)[:3])}, …): it looks like a text, a number "
            f"or an id, not a label. At most {MAX_CLASSES:,} classes are allowed, with two rows "
            "each on average: name another --label."
        )
    return tuple(sorted(counts))  # type: ignore[type-var]  # labels are of one type


def class_indices(
    column: str, classes: Sequence[Label], cells: LabelCells, labels: Sequence[Label]
) -> ClassIndices:
    """Position of each label in `classes`.

    Raises:
        InputError: labels that `classes` lacks, with their rows.
    """
    index = {label: position for position, label in enumerate(classes)}
    unknown = [position for position, label in enumerate(labels) if label not in index]
    if unknown:
        named = listed(sorted({labels[position] for position in unknown}, key=str), 5)
        raise InputError(
            f"{cells.places[unknown[0]][0]}: column {shown(column)} of the {cells.part} part has "
            f"labels that the train part lacks: {named}, in {_rows(cells, unknown)}. Known are "
            f"{listed(classes)}. Add such rows to the train part, or correct or remove these."
        )
    return np.fromiter((index[label] for label in labels), np.int64, len(labels))


def match_known(
    column: str, classes: Sequence[Label], cells: LabelCells, *, normalise: bool = False
) -> ClassIndices:
    """Match labels to a trained model's classes: by type and value, else by how they are written.

    Raises:
        InputError: a missing label, or one that is no known class, with their rows.
    """
    known = frozenset(map(str, classes))
    values = label_values(column, cells, known, normalise=normalise)
    refuse_missing(column, [cells], [values])
    exact = {(type(label), label): position for position, label in enumerate(classes)}
    by_name = {written(label): position for position, label in enumerate(classes)}
    whole = not cells.typed and are_whole(classes)
    found = [exact.get((type(v), v), by_name.get(written(v, whole=whole), -1)) for v in values]
    unknown = [position for position, index in enumerate(found) if index < 0]
    if unknown:
        value = values[unknown[0]]
        raise InputError(
            f"{cells.places[unknown[0]][0]}: column {shown(column)} has labels that the model does "
            f"not know: {listed({values[position]: 0 for position in unknown}, 5)}, in "
            f"{_rows(cells, unknown)}. Known are {listed(classes)}."
            f"{meant(str(value), map(str, classes))} Correct or remove these rows."
        )
    return np.array(found, dtype=np.int64)


def meant(label: str, known: Iterable[str]) -> str:
    """A sentence with the label that is meant, or an empty string; like `did_you_mean`.

    What differs by Unicode form looks the same, so that is told in words.
    """
    known = list(known)
    for other in known:
        if other != label and composed(other) == composed(label):
            form = "NFC" if unicodedata.is_normalized("NFC", other) else "NFD"
            return (
                f" {shown(label)} differs from the known {shown(other)} by its Unicode form only "
                "(é as one character or as two): convert the file, for example with uconv -x "
                f"any-{form.lower()}."
            )
    return did_you_mean(label, known)


def are_whole(labels: Iterable[Any]) -> bool:
    """Whether all are integers, so that ``"7.0"`` in a CSV file is one, too."""
    return all(type(label) is int for label in labels)


def written(label: Any, *, whole: bool = False) -> str:
    """How a label is written, whatever its type: true and ``"True"`` alike, 1 and ``"1"``.

    Of `whole` ones ``"7.0"`` is 7, as `read_labels` has it.
    """
    if whole and isinstance(label, str) and _INTEGER.fullmatch(label):
        return label.partition(".")[0]
    return str(label).lower() if isinstance(label, bool) or _is_boolean(label) else str(label)


def _is_boolean(label: Any) -> bool:
    return isinstance(label, str) and any(label in style for style in _BOOLEANS)


def label_values(
    column: str,
    part: LabelCells,
    known: frozenset[str] = frozenset(),
    *,
    normalise: bool = False,
) -> list[Any]:
    """(n,) cells as str, bool or int, or None where they are missing.

    Args:
        column: its name, for messages.
        part: the cells.
        known: words that are labels, though they look like a missing value.
        normalise: replace strings by their `normal_form`, by which `known` is looked up, too.

    Raises:
        InputError: a cell that cannot be a label.
    """
    words = _words(known, normalise)
    values = [
        None if is_missing(cell, part.typed, words, normalise) else _plain(column, cell, *at)
        for cell, at in zip(part.values, part.places, strict=True)
    ]
    if not normalise:
        return values
    return [normal_form(value) if isinstance(value, str) else value for value in values]


def _words(known: frozenset[str], normalise: bool) -> frozenset[str]:
    return frozenset(map(normal_form, known)) if normalise else known


def is_missing(
    cell: Any, typed: bool, known: frozenset[str] = frozenset(), normalise: bool = False
) -> bool:
    """Whether a cell says nothing: it is empty, null or NaN, or a word for that in CSV and TSV.

    Args:
        cell: as read.
        typed: see `LabelCells`.
        known: words that say something, though they look like a missing value.
        normalise: whether these are in `normal_form`.
    """
    if isinstance(cell, str):
        if typed or cell.strip() not in _NOTHING:
            return not cell.strip()
        return (normal_form(cell) if normalise else cell) not in known
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _plain(column: str, cell: Any, file: str, row: int, line: int | None) -> Any:
    if isinstance(cell, str | bool | int):
        return cell
    if isinstance(cell, float | Decimal) and math.isfinite(cell) and cell == int(cell):
        return int(cell)
    where = f"{file}: {row_name(row, line)}, column {shown(column)}: {shown(cell)}"
    if isinstance(cell, float | Decimal):
        raise InputError(f"{where} is a number with a fraction. {_NOT_CLASSES}")
    raise InputError(
        f"{where} ({type(cell).__name__}) cannot be a label. Labels are texts, true and false, or "
        "whole numbers; several labels for a row are not supported: keep one."
    )


class MissingLabelError(InputError):
    """Rows without a label."""


def refuse_missing(
    column: str, parts: Sequence[LabelCells], values: Sequence[Sequence[Any]]
) -> None:
    """Refuse rows without a label.

    Raises:
        MissingLabelError: with their places.
    """
    for part, labels in zip(parts, values, strict=True):
        missing = [position for position, label in enumerate(labels) if label is None]
        if missing:
            cells = {part.values[position]: None for position in missing}
            words = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
            found = f"has no label (but {listed(words, 5)})" if words else "is empty"
            if len(missing) == len(labels):
                rows = f"in all {len(labels):,} rows of the {part.part} part"
                remedy = "Fill the labels in, or name the column that holds them: --label."
            else:
                rows = f"in {_rows(part, missing)}"
                remedy = "Fill in the label, or leave these rows out with --drop-unlabelled."
            keep = (
                " In CSV and TSV such words mean that a value is missing; if one is a class, call "
                "it otherwise, 'not applicable' for example."
            )
            raise MissingLabelError(
                f"{part.places[missing[0]][0]}: column {shown(column)} {found} {rows}. {remedy}"
                + (keep if words else "")
            )


def _rows(part: LabelCells, positions: Sequence[int]) -> str:
    names = ", ".join(row_name(*part.places[position][1:]) for position in positions[:5])
    more = f", … ({len(positions):,} rows in all)" if len(positions) > 5 else ""
    return names + more


def _conversion(file: str, column: str, values: set[str]) -> dict[str, Label]:
    """What the strings of a CSV column mean, taken together."""
    if any(values <= style for style in _BOOLEANS):
        return {value: value.lower() == "true" for value in values}
    if all(_INTEGER.fullmatch(value) for value in values):
        return {value: int(value.partition(".")[0]) for value in values}
    if all(map(_FLOAT.fullmatch, values)) and not all(map(_DIGITS.fullmatch, values)):
        raise InputError(
            f"{file}: column {shown(column)} holds numbers with a fraction, such as "
            f"{listed(sorted(values)[:3])}. {_NOT_CLASSES}"
        )
    return {value: value for value in values}


def _refuse_mixed_types(
    column: str, parts: Sequence[LabelCells], values: Sequence[Sequence[Label]]
) -> None:
    first: dict[type, str] = {}
    for part, labels in zip(parts, values, strict=True):
        for label, (file, row, line) in zip(labels, part.places, strict=True):
            if type(label) not in first:
                first[type(label)] = f"{shown(label)} in {file}, {row_name(row, line)}"
    if len(first) > 1:
        kinds = {str: "text", bool: "true/false", int: "a whole number"}
        told = " and ".join(f"{where} ({kinds[kind]})" for kind, where in first.items())
        raise InputError(
            f"column {shown(column)} mixes types: {told}. Write all labels the same way."
        )


def refuse_lookalikes(file: str, column: str, values: Sequence[Sequence[Label | None]]) -> None:
    """Refuse labels that a person takes for the same.

    Raises:
        InputError: some differ only by case, white space, Unicode form or how a number is written.
    """
    counts = Counter(label for part in values for label in part if isinstance(label, str))
    alike: dict[str, list[str]] = {}
    for label in counts:
        alike.setdefault(lookalike_form(label), []).append(label)
    groups = [sorted(labels) for labels in alike.values() if len(labels) > 1]
    if groups:
        told = "; ".join(
            " and ".join(f"{shown(label)} ({counts[label]:,} rows)" for label in labels)
            for labels in groups[:10]
        )
        more = f"; … ({len(groups)} in all)" if len(groups) > 10 else ""
        numbers = [labels for labels in groups if len(set(map(normal_form, labels))) > 1]
        if numbers:  # their normal forms differ
            how = "case, spaces, Unicode form or how a number is written"
            new, *_, old = sorted(numbers[0], key=len)
            remedy = f"Join them with --map-labels FILE and lines such as `{old}: {new}`"
        else:
            how = "case, spaces or Unicode form"
            remedy = (
                "Choose --normalise-labels to join them (lower case, single spaces), or "
                "--map-labels"
            )
        raise InputError(
            f"{file}: column {shown(column)} has labels that differ only by {how}: {told}{more}. "
            f"{remedy}, or make them differ."
        )
