"""Rows of a CSV table that a quote which was never closed may have drawn together into one."""

from collections.abc import Iterable, Iterator, Sequence

from llabel.data.cells import Row

FEWEST_LINES = 3  # of two lines, a quoted line break between commas is as likely
NAMED = 3  # such rows of a file are named, the others counted


def may_be_rows(lines: Sequence[str], delimiter: str, width: int) -> bool:
    """Whether the lines of one row would each be a row, were its quotes plain characters.

    Args:
        lines: of the file, as they are written.
        delimiter: what separates the cells.
        width: cells of a row. Any line may be a row of one cell, so that tells nothing.
    """
    fewest = 2 if delimiter == "\t" else FEWEST_LINES
    return (
        width > 1
        and len(lines) >= fewest
        and all(line.count(delimiter) == width - 1 for line in lines)
    )


def noting_joined(rows: Iterable[Row], notes: list[str]) -> Iterator[Row]:
    """Pass rows on; when they are at their end, a note for each file in which some are joined."""
    spans: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for row in rows:
        if row.joined_to is not None:
            counts[row.file] = counts.get(row.file, 0) + 1
            if counts[row.file] <= NAMED:
                spans.setdefault(row.file, []).append(f"{row.line} to {row.joined_to}")
        yield row
    for file, count in counts.items():
        more = f", … ({count:,} such rows in all)" if count > NAMED else ""
        notes.append(
            f"{file}: lines {', '.join(spans[file])}{more} are one row{' each' * (count > 1)}: a "
            "quoted cell reaches over them, though each could be a row of its own. If they are, a "
            'quote is not closed: double it ("") or remove it.'
        )
