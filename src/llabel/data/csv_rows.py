"""CSV and TSV rows by Python's csv module, with faults found down to the cell."""

import csv
import io
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from llabel.data.cells import (
    CELL_LIMIT,
    Row,
    bare,
    check_cell,
    refuse_double_columns,
    require_columns,
    row_name,
    shown,
)
from llabel.data.open_quotes import may_be_rows
from llabel.errors import InputError

SEPARATORS = (",", ";", "\t")
HEADER_LIMIT = 1_000_000  # characters looked at for the separator
_LIMIT_LOCK = threading.Lock()  # the csv module has one limit for the whole process


def csv_rows(
    file: str, lines: Iterable[str], columns: Sequence[str] | None, delimiter: str
) -> Iterator[Row]:
    """Parse the lines of a CSV table (double quotes, header first), strictly.

    A space after each separator is none of the cell's where the header has it throughout, too
    (``text, label``).

    Args:
        file: the file's name, for messages.
        lines: its decoded lines with their ends.
        columns: the columns to read; all that have a name by default.
        delimiter: what separates the cells, ``,`` or a tab, unless the header shows that it is
            another of `SEPARATORS` (see `csv_header`).

    Yields:
        Rows of strings. Blank lines are passed over, but in a table of one column, where they
        are rows with an empty cell unless nothing follows; a table of no lines yields nothing.

    Raises:
        InputError: duplicated or missing column, ragged row, stray or unclosed quote, large cell.
    """
    top, pieces = _top(lines)
    form = _form(top, columns, delimiter)
    record: list[str] = []  # the lines of the row being parsed: a fault is looked for in them
    reader = form.reader(_kept(pieces, record), strict=True)
    header: list[str] = []
    number = 0
    blank: list[int] = []  # lines that may be rows of one empty cell
    while True:
        record.clear()
        line = reader.line_num + 1
        where = row_name(number + len(blank) + 1, line) if header else f"line {line}, the header"
        try:
            cells = _next_record(reader)
        except csv.Error as error:
            raise _fault(f"{file}: {where}", header, "".join(record), form) from error
        if cells is None:
            return
        if not cells:  # a blank line
            if len(header) == 1:
                blank.append(line)
            continue
        if not header:
            header, called = cells, _checked_header(file, cells, columns, form.separator)
            continue
        if len(cells) != len(header):
            raise _ragged(f"{file}: {where}", cells, header)
        for empty in blank:
            number += 1
            yield Row(file, number, empty, dict.fromkeys(called, ""))
        blank.clear()
        number += 1
        values = dict(zip(header, cells, strict=True))
        for name, cell in values.items():
            check_cell(cell, file, where, name)
        last = None
        if len(record) > 1 and may_be_rows(record, form.separator, len(header)):
            last = line + len(record) - 1
        chosen = {asked: values[name] for asked, name in called.items()}
        yield Row(file, number, line, chosen, joined_to=last)


@dataclass(frozen=True, slots=True)
class CsvHeader:
    """The columns of a CSV table that have a name, and what separates its cells."""

    names: list[str]
    separator: str


def csv_header(
    file: str, lines: Iterable[str], columns: Sequence[str] | None, delimiter: str
) -> CsvHeader:
    """Read the header only, with `delimiter`, or with the separator that the table really has.

    Spreadsheets write semicolons where the comma is the decimal mark. Another of `SEPARATORS` is
    taken where it alone gives all `columns`, or where `delimiter` leaves the header in one piece.

    Raises:
        InputError: a header that cannot be parsed, or with a name twice.
    """
    top, pieces = _top(lines)
    form = _form(top, columns, delimiter)
    record: list[str] = []
    reader = form.reader(_kept(pieces, record), strict=True)
    try:
        names = next(filter(None, iter(lambda: _next_record(reader), None)), [])
    except csv.Error as error:
        raise _fault(f"{file}: line 1, the header", [], "".join(record), form) from error
    return CsvHeader(list(_checked_header(file, names, None, form.separator)), form.separator)


@dataclass(frozen=True, slots=True)
class _Form:
    """How the cells of a row are told apart.

    Attributes:
        separator: stands between them.
        spaced: a space follows each separator, and quotes may stand behind it.
    """

    separator: str
    spaced: bool = False

    def reader(self, lines: Iterable[str], *, strict: bool) -> Any:
        return csv.reader(
            lines, delimiter=self.separator, skipinitialspace=self.spaced, strict=strict
        )


def _form(header: str, columns: Sequence[str] | None, expected: str) -> _Form:
    separator = _separator(header, columns, expected)
    _, *others = _parsed(header[:HEADER_LIMIT], _Form(separator), strict=False)
    return _Form(separator, bool(others) and all(name.startswith(" ") for name in others))


def _top(lines: Iterable[str]) -> tuple[str, Iterator[str]]:
    """The header as it is written, and all lines including its own."""
    pieces = _pieces(lines)
    taken: list[str] = []
    header = ""
    for piece in pieces:
        taken.append(piece)
        header += piece if header or piece.strip("\r\n") else ""
        if header and (header.count('"') % 2 == 0 or len(header) > HEADER_LIMIT):
            break  # an odd count: a line break stands inside quotes
    return header, chain(taken, pieces)


def _separator(header: str, columns: Sequence[str] | None, expected: str) -> str:
    if len(header) > HEADER_LIMIT:
        return expected
    splits: dict[str, list[str]] = {}
    for delimiter in dict.fromkeys((expected, *SEPARATORS)):
        try:
            splits[delimiter] = _parsed(header, _Form(delimiter), strict=True)
        except csv.Error:
            splits[delimiter] = []
    asked = set(map(bare, columns or ()))
    having_all = [d for d, names in splits.items() if asked and asked <= set(map(bare, names))]
    in_pieces = [d for d, names in splits.items() if len(names) > 1]
    return next(iter((*having_all, *in_pieces, expected)))


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        # The csv module takes a lone \r (old Mac) for a line's end only at the end of a string.
        lone = "\r" in line.rstrip("\r\n")
        yield from io.StringIO(line, newline="") if lone else (line,)


def _kept(pieces: Iterable[str], record: list[str]) -> Iterator[str]:
    for piece in pieces:
        record.append(piece)
        yield piece


def _next_record(reader: Any, limit: int = CELL_LIMIT) -> list[str] | None:
    """The next record; the process's limit for cells is put back before anyone else parses."""
    with _LIMIT_LOCK:
        before = csv.field_size_limit(limit)
        try:
            return next(reader, None)
        finally:
            csv.field_size_limit(before)


def _checked_header(
    file: str, names: list[str], columns: Iterable[str] | None, delimiter: str
) -> dict[str, str]:
    """What a header calls `columns`; of None all its names."""
    for name in names:
        check_cell(name, file, "line 1, the header", name)
    refuse_double_columns(file, names)
    hint = " The first line must hold the column names."
    if len(names) == 1 and "|" in names[0]:
        hint = (
            f" The header is one cell, separated perhaps by '|' where {delimiter!r} is "
            "expected: save the table with commas (.csv) or tabs (.tsv)."
        )
    return require_columns(columns, [name for name in names if name], file, hint)


def _ragged(where: str, cells: list[str], header: list[str]) -> InputError:
    if len(cells) > len(header):
        told = f"the first cell too many is {shown(cells[len(header)])}. Put cells that contain "
        told += "the separator in double quotes."
    else:
        told = f"there is none for column {shown(header[len(cells)])}, and the last cell is "
        told += f"{shown(cells[-1])}. Fill in the missing cells; put cells that contain a line "
        told += "break in double quotes."
    found = f"{len(cells)} cell{'s' * (len(cells) > 1)}"
    return InputError(f"{where} has {found} where the header has {len(header)}: {told}")


def _fault(where: str, header: list[str], record: str, form: _Form) -> InputError:
    """Find the cell that made the csv module give up, and say how to mend it."""
    end = _stray_quote(record, form)
    cells = _parsed(record[:end], form, strict=False)
    large = next((i for i, cell in enumerate(cells) if len(cell) > CELL_LIMIT), None)
    place = len(cells) - 1 if large is None else large
    column = f", column {shown(header[place])}" if place < len(header) else ""
    value = shown(cells[place])
    if large is not None:
        told = f"a cell of more than {CELL_LIMIT:,} characters, beginning {value}. Shorten it; if "
        told += "it runs over many rows, a double quote that opens here is never closed."
    elif end is None:
        told = f"a double quote opens {value} and is never closed."
    else:
        told = f"text follows the closing quote of {value}."
    return InputError(
        f'{where}{column}: {told} A double quote inside a quoted cell is written twice ("").'
    )


def _stray_quote(record: str, form: _Form) -> int | None:
    """Length of the record's longest beginning that is well-formed, if text follows a quote."""

    def strays(end: int) -> bool:
        try:
            _parsed(record[:end], form, strict=True)
        except csv.Error as error:
            return "expected after" in str(error)
        return False

    low, high = 0, len(record)
    if not strays(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if strays(middle) else (middle, high)
    return low


def _parsed(record: str, form: _Form, strict: bool) -> list[str]:
    lines = io.StringIO(record, newline="")
    # A limit that no record reaches: the large cell itself is what is looked for.
    limit = CELL_LIMIT if strict else 2**31 - 1
    return _next_record(form.reader(lines, strict=strict), limit) or [""]
