"""One row of a table, and the words in which messages speak of rows, columns and values."""

import difflib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from typing import Any

from llabel.errors import InputError

CELL_LIMIT = 10_000_000  # characters; a novel has about 500,000
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Row:
    """One data row and where it stands.

    Attributes:
        file: where it is from.
        number: counted from 1.
        line: of the file, its first; None where a format has no lines.
        values: by the column's name.
        joined_to: its last line, where each of them could be a row of its own (`may_be_rows`).
    """

    file: str
    number: int
    line: int | None
    values: dict[str, Any]
    joined_to: int | None = None

    @property
    def where(self) -> str:
        """``row 17 (line 18)``, or ``row 17`` where the line says nothing more."""
        return row_name(self.number, self.line)


def row_name(number: int, line: int | None) -> str:
    """How a row is called in messages."""
    return f"row {number}" if line in (None, number) else f"row {number} (line {line})"


def shown(value: object, length: int = 60) -> str:
    """A value as a message shows it: its repr, shortened; long values are never copied whole."""
    if isinstance(value, str):
        return repr(value) if len(value) <= length else f"{value[:length]!r}…"
    text = repr(value)
    return text if len(text) <= length else text[:length] + "…"


def printable(text: str) -> str:
    """Text of strangers for a terminal: what would steer it (ESC, bell) or turn the direction of
    writing is spelt out, never obeyed. Tabs and line breaks stay.
    """
    return _UNSEEN.sub(lambda found: repr(found.group())[1:-1], text)


def listed(names: Iterable[object], limit: int = 20) -> str:
    """Names for a message, quoted, the first `limit` of them."""
    names = list(names)
    more = f", … ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(shown(name) for name in names[:limit]) + more


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A sentence with the closest of `names`, case aside, or an empty string."""
    folded = {known.strip().casefold(): known for known in names}
    close = difflib.get_close_matches(name.strip().casefold(), folded, n=1)
    return f" Did you mean {shown(folded[close[0]])}?" if close else ""


def cell_text(value: object) -> str | None:
    """A cell as the text it is read as, whatever it comes from; None for what is no text.

    Nothing (None, NaN) is an empty text; truth values and numbers are written out.
    """
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float | Decimal | date | time) else None


def check_cell(value: Any, file: str, row: str, column: str) -> None:
    """Refuse what no later step can use: a cell that is too large, or holds NUL or half characters.

    Raises:
        InputError: naming file, row, column and value.
    """
    if not isinstance(value, str):
        return
    if len(value) > CELL_LIMIT:
        raise InputError(
            f"{file}: {row}, column {shown(column)}: a cell of {len(value):,} characters, "
            f"beginning {shown(value)}. At most {CELL_LIMIT:,} are allowed: shorten the text or "
            "remove the row."
        )
    if "\0" in value:
        at = value.index("\0")
        raise InputError(
            f"{file}: {row}, column {shown(column)}: a NUL byte at character {at + 1} of "
            f"{shown(value[max(0, at - 20) :])}. The file is damaged or not UTF-8 text (UTF-16 "
            "looks like this): remove NULs (tr -d '\\000' < old > new) or save it as UTF-8."
        )
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise InputError(
            f"{file}: {row}, column {shown(column)}: half a character (a lone surrogate such as "
            f"\\ud83d) in {shown(value)}. Write the text again with a JSON library, as UTF-8."
        )


def composed(text: str) -> str:
    """The text in Unicode NFC: an accent and its letter are one character where there is one."""
    return unicodedata.normalize("NFC", text)


def bare(name: str) -> str:
    """A column's name without white space around it, in Unicode NFC."""
    return composed(name.strip())


def matching(column: str, names: Iterable[str]) -> str | None:
    """The column that is meant: of this name, or the only one but for white space around it or
    its Unicode form.

    A header such as ``id, text,label`` has a column that begins with a space; of names that look
    the same, one may have its accents as characters of their own.
    """
    names = list(names)
    if column in names:
        return column
    close = [name for name in names if bare(name) == bare(column)]
    return close[0] if len(close) == 1 else None


def require_columns(
    columns: Iterable[str] | None, names: Sequence[str], file: str, hint: str = ""
) -> dict[str, str]:
    """Find `columns` in a table; the message on one that it lacks lists the `names` there are.

    Returns:
        What the table calls each (see `matching`); of None all its names.

    Raises:
        InputError: with the closest name and `hint`; or two of `columns` are one and the same.
    """
    if columns is None:
        return {name: name for name in names}
    found: dict[str, str] = {}
    for column in columns:
        name = matching(column, names)
        if name is None:
            raise InputError(
                f"{file}: there is no column {shown(column)}. Its columns are {listed(names)}."
                f"{did_you_mean(column, names)}{_comma_hint(column, names)}{hint}"
            )
        if name in found.values() and column not in found:
            raise InputError(
                f"{file}: {listed([*found, column])} name the column {shown(name)} twice. Name "
                "each column once."
            )
        found[column] = name
    return found


def _comma_hint(column: str, names: Iterable[str]) -> str:
    """What to say if `column` is a piece of a name that lists of names were cut at the comma of."""
    for name in names:
        if "," in name and column.strip() in (piece.strip() for piece in name.split(",")):
            return (
                f" In a list of columns, put a name that has a comma in double quotes: --text "
                f"'\"{name}\"'."
            )
    return ""


def refuse_double_columns(file: str, names: Iterable[str]) -> None:
    """Refuse a table of which two columns have the same name.

    Columns without a name, which spreadsheets leave, cannot be asked for and so do no harm.

    Raises:
        InputError: with the name.
    """
    names = list(names)
    double = [name for name, count in Counter(names).items() if name and count > 1]
    if double:
        raise InputError(
            f"{file}: the header has the column {shown(double[0])} more than once (columns "
            f"{listed(names)}). Give every column its own name."
        )
