"""Lists of column names in one text."""

import csv
import re
from collections.abc import Iterable

# What messages say of how such a text is written.
HOW = """A,B, and a name that holds a comma in double quotes: '"A, or B",C'"""


_PIECE = re.compile(r' *("(?:[^"]|"")*"|[^,]*)(?:,|$)')


def names_in(text: str) -> list[str]:
    """Cut ``A,B`` into names; one that holds a comma is quoted, as in CSV.

    White space around names is not theirs, but in quotes or in a text that is one name it is.
    """
    if text.strip() and not {",", '"', "\n", "\r"} & set(text):
        return [text]
    try:
        (names,) = csv.reader([text], skipinitialspace=True, strict=True) if text else [[""]]
    except (csv.Error, ValueError) as error:
        raise ValueError(f"no list of names ({error}); write {HOW}") from error
    pieces = _PIECE.findall(text)  # and an empty one behind the last
    return [
        name if piece.startswith('"') else name.strip()
        for name, piece in zip(names, pieces, strict=False)
    ]


def label_columns(label: str) -> tuple[str, ...]:
    """The columns that `--label` names: ``A,B`` are two, ``"A, B"`` in double quotes is one."""
    return tuple(names_in(label)) if {",", '"'} & set(label) else (label,)


def joined(names: Iterable[str]) -> str:
    """The reverse of `names_in`, always spelt the same way."""
    return ",".join(map(_quoted, names))


def _quoted(name: str) -> str:
    if {",", '"'} & set(name) or name != name.strip():
        return f'"{name.replace(chr(34), 2 * chr(34))}"'
    return name
