"""Lists of column names in one text."""

import csv
from collections.abc import Iterable

# What messages say of how such a text is written.
HOW = """A,B, and a name that holds a comma in double quotes: '"A, or B",C'"""


def names_in(text: str) -> list[str]:
    """Cut ``A,B`` into names; one that holds a comma is quoted, as in CSV."""
    try:
        (names,) = csv.reader([text], skipinitialspace=True, strict=True) if text else [[""]]
    except (csv.Error, ValueError) as error:
        raise ValueError(f"no list of names ({error}); write {HOW}") from error
    return [name.strip() for name in names]


def label_columns(label: str) -> tuple[str, ...]:
    """The columns that `--label` names: ``A,B`` are two, ``"A, B"`` in double quotes is one."""
    return tuple(names_in(label)) if {",", '"'} & set(label) else (label,)


def joined(names: Iterable[str]) -> str:
    """The reverse of `names_in`, always spelt the same way."""
    return ",".join(f'"{n.replace(chr(34), 2 * chr(34))}"' if "," in n else n for n in names)
