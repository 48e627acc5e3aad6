"""Tables as users keep them (CSV, TSV, JSON Lines, Parquet; plain or gzipped), one row at a time.

Everything that a real file gets wrong is an `InputError` that names the file, the row as a user
counts it (the first data row is 1), the line where that is another number, and the column.
"""

import gzip
import json
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from llabel.data.cells import (
    Row,
    check_cell,
    did_you_mean,
    listed,
    matching,
    refuse_double_columns,
    require_columns,
    row_name,
    shown,
)
from llabel.data.csv_rows import CsvHeader, csv_header, csv_rows
from llabel.errors import InputError

LINE_LIMIT = 100_000_000  # bytes; a line is held in memory while it is parsed
PARQUET_BATCH = 256  # rows held in memory at once
JSON_HEAD = 1_000  # rows of which the keys count as the columns
FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
GZIP_MAGIC = b"\x1f\x8b"

_FORMAT_HINTS = {
    ".json": "If every line is one JSON object, rename it to .jsonl; otherwise turn it into one "
    "object a line: jq -c '.[]' data.json > data.jsonl",
    ".ndjson": "Rename it to .jsonl.",
    ".txt": "If it is separated by commas, rename it to .csv; if by tabs, to .tsv.",
    ".xls": "Save it from the spreadsheet as 'CSV UTF-8'.",
    ".xlsx": "Save it from the spreadsheet as 'CSV UTF-8'.",
    ".ods": "Save it from the spreadsheet as CSV, UTF-8.",
    ".zip": "Unpack it first.",
}
_JSON_FORM = 'Every line must be one JSON object such as {"text": "…", "label": "…"}'


def table_suffix(path: Path) -> str | None:
    """The one of `FORMATS` that a file's name ends with (``.gz`` aside), or None."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), None)


def scan_rows(
    path: str | Path, columns: Sequence[str] | None = None, optional: Collection[str] = ()
) -> Iterator[Row]:
    """Stream a table's rows in constant memory.

    Args:
        path: a .csv, .tsv, .jsonl or .parquet file, or one of these with .gz behind it. CSV and
            TSV are UTF-8 with a header line and double quotes around cells where needed; a header
            that semicolons, tabs or commas divide instead is read so (see `separator`).
        columns: read only these, in this order; all columns by default.
        optional: those of them that a JSON row may lack where others have it: None then.

    Yields:
        Rows. CSV and TSV values are strings; JSON and Parquet values have the type they are
        written with.

    Raises:
        InputError: for whatever is wrong with the file: a wrong name at once, damage further down
            when the rows before it have been read.
    """
    path = Path(path)
    return _guarded(path, _READERS[_checked_suffix(path)](path, columns, optional))


def column_names(path: str | Path, sought: Sequence[str] = ()) -> list[str]:
    """A table's columns; no row is read, but of JSON Lines the first 1,000 for their keys.

    Args:
        path: as for `scan_rows`.
        sought: columns that are looked for further down, too, where these rows lack them.

    Raises:
        InputError: as `scan_rows`.
    """
    path = Path(path)
    suffix = _checked_suffix(path)
    with faults_told(path):
        if suffix == ".jsonl":
            return _keys(path, sought)
        if suffix == ".parquet":
            return _parquet_names(path)
        return _csv_header(path, None).names


def separator(path: str | Path, columns: Sequence[str]) -> str | None:
    """What separates the cells of a CSV or TSV file if that is not what its name says, or None.

    Raises:
        InputError: as `scan_rows`.
    """
    path = Path(path)
    expected = _DELIMITERS.get(_checked_suffix(path))
    if expected is None:
        return None
    with faults_told(path):
        found = _csv_header(path, columns).separator
    return None if found == expected else found


def _checked_suffix(path: Path) -> str:
    with faults_told(path):
        if path.is_dir():
            raise InputError(f"{path} is a folder. Name one table file in it.")
        if not path.exists():
            raise InputError(f"{path}: there is no such file.{_similar_file(path)}")
    suffix = table_suffix(path)
    if suffix is None:
        hint = _FORMAT_HINTS.get(Path(path.name.lower().removesuffix(".gz")).suffix, "")
        raise InputError(
            f"{path}: not a kind of table that can be read. Its name must end in "
            f"{', '.join(FORMATS)}, or one of these and .gz. {hint}".rstrip()
        )
    return suffix


def _similar_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f" There is no folder {path.parent} either."
    return did_you_mean(path.name, (p.name for p in path.parent.iterdir() if table_suffix(p)))


def _guarded(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """Refuse a table without rows, and tell faults of the file."""
    number = 0
    with faults_told(path, lambda: number):
        for row in rows:
            number = row.number
            yield row
    if number == 0:
        raise InputError(f"{path}: there is no data row below the header. At least one is needed.")


@contextmanager
def faults_told(path: Path, rows_read: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Say what errors of disk and gzip mean.

    Raises:
        InputError: in their place.
    """
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{path}: the gzip data is cut off or damaged after row {rows_read()} ({error}). Copy "
            "or download the file again; gzip -t checks it."
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        magic = file.peek(2)[:2]
        zipped = path.name.lower().endswith(".gz")
        if not magic:
            raise InputError(f"{path}: the file is empty. It must hold a table with a header.")
        if zipped and magic != GZIP_MAGIC:
            raise InputError(f"{path}: this is not gzip data. Rename it to {path.name[:-3]}.")
        if not zipped and magic == GZIP_MAGIC:
            raise InputError(f"{path}: this is gzip data. Rename it to {path.name}.gz.")
        if not zipped:
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unzipped:
            yield unzipped  # type: ignore[misc]  # a GzipFile reads as IO[bytes] does


@contextmanager
def _opened_lines(path: Path) -> Iterator[Iterator[str]]:
    with _opened(path) as file:
        yield _lines(path, file)


def _lines(path: Path, file: IO[bytes]) -> Iterator[str]:
    """Decode line by line, so that a bad byte is found with its place and memory is bounded."""
    offset = 0
    number = 0
    blank = True
    while raw := file.readline(LINE_LIMIT + 1):
        number += 1
        if len(raw) > LINE_LIMIT:
            raise InputError(
                f"{path}: line {number} has more than {LINE_LIMIT:,} bytes, beginning "
                f"{shown(raw[:60].decode('utf-8', 'replace'))}. Shorten or remove it."
            )
        text = _decoded(path, raw, number, offset)
        offset += len(raw)
        blank = blank and not text.strip()
        yield text
    if blank:
        raise InputError(f"{path}: the file is empty. It must hold a table with a header.")


def _decoded(path: Path, raw: bytes, number: int, offset: int) -> str:
    if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path}: the file is UTF-16, not UTF-8. {_iconv(path, 'UTF-16')}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[max(0, error.start - 20) : error.start].decode("utf-8", "replace")
        raise InputError(
            f"{path}: line {number}, byte {offset + error.start} of the file: "
            f"0x{raw[error.start]:02X} after {before!r} is not UTF-8. "
            f"{_iconv(path, 'WINDOWS-1252')} (or the encoding that the file has)"
        ) from error
    return text.removeprefix("\ufeff") if number == 1 else text


def _iconv(path: Path, encoding: str) -> str:
    if path.name.lower().endswith(".gz"):
        return f"Convert it: gzip -dc {path.name} | iconv -f {encoding} -t utf-8 | gzip > new.gz"
    return f"Convert it: iconv -f {encoding} -t utf-8 {path.name} > new{path.suffix}"


def _csv(path: Path, columns: Sequence[str] | None, _: Collection[str]) -> Iterator[Row]:
    with _opened_lines(path) as lines:
        yield from csv_rows(str(path), lines, columns, _DELIMITERS[table_suffix(path) or ""])


def _csv_header(path: Path, columns: Sequence[str] | None) -> CsvHeader:
    with _opened_lines(path) as lines:
        return csv_header(str(path), lines, columns, _DELIMITERS[table_suffix(path) or ""])


def _jsonl(path: Path, columns: Sequence[str] | None, optional: Collection[str]) -> Iterator[Row]:
    called = dict(zip(columns or (), columns or (), strict=True))  # what the file calls them
    with _opened_lines(path) as lines:
        for number, line, values in _objects(path, lines):
            where = row_name(number, line)
            chosen = values
            if columns is not None:
                if number == 1 and not set(columns) <= values.keys():
                    sought = [name for name in columns if name in optional]
                    called = require_columns(columns, _keys(path, sought), str(path))
                needed = [key for asked, key in called.items() if asked not in optional]
                _require_keys(f"{path}: {where}", needed, values)
                chosen = {asked: values.get(key) for asked, key in called.items()}
            for name, value in chosen.items():
                check_cell(value, str(path), where, name)
            yield Row(str(path), number, line, chosen)


def _objects(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    filled = ((line, text) for line, text in enumerate(lines, start=1) if text.strip())
    for number, (line, text) in enumerate(filled, start=1):
        yield number, line, _json_object(f"{path}: {row_name(number, line)}", text)


def _keys(path: Path, sought: Iterable[str]) -> list[str]:
    """All keys of the first rows: a key that one row lacks is a column for all that.

    Rows may be without the `sought` ones for long: they are looked for to the end.
    """
    with _opened_lines(path) as lines:
        rows = _objects(path, lines)
        head = islice(rows, JSON_HEAD)
        found = dict.fromkeys(key for _, _, values in head for key in values)
        missing = {name for name in sought if matching(name, found) is None}
        while missing and (row := next(rows, None)) is not None:
            for name in list(missing):
                if key := matching(name, row[2]):
                    found[key] = None
                    missing.remove(name)
        return list(found)


def _json_object(where: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _unique(where, pairs))
    except InputError:
        raise
    except json.JSONDecodeError as error:
        near = shown(text[max(0, error.pos - 20) : error.pos + 20])
        raise InputError(
            f"{where}, character {error.pos + 1}: not JSON: {error.msg}, near {near}. "
            f"{_JSON_FORM}; jq -c . (or jq -c '.[]' for one large list) writes a file so."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON that can be read: {error}. {_JSON_FORM}.") from error
    if not isinstance(value, dict):
        raise InputError(
            f"{where} is {shown(value)}, which is not an object. {_JSON_FORM}; jq -c '.[]' writes "
            "the items of one large list so."
        )
    return value


def _unique(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        double = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise InputError(
            f"{where} has the key {shown(double)} more than once. Give every value its own key."
        )
    return values


def _require_keys(where: str, columns: Iterable[str], values: dict[str, Any]) -> None:
    for name in columns:
        if name not in values:
            raise InputError(
                f"{where} lacks the key {shown(name)}; it has {listed(values)}. Every row needs "
                f'it; an empty text is written as "{name}": "".'
            )


def _parquet(path: Path, columns: Sequence[str] | None, _: Collection[str]) -> Iterator[Row]:
    with _parquet_file(path) as table:
        names = table.schema_arrow.names
        refuse_double_columns(str(path), names)
        called = require_columns(columns, names, str(path))
        wanted = list(called.values())
        number = 0
        for batch in table.iter_batches(PARQUET_BATCH, columns=wanted):
            for cells in _batch_rows(str(path), batch, wanted, number):
                number += 1
                values = {asked: cells[name] for asked, name in called.items()}
                for name, value in values.items():
                    check_cell(value, str(path), row_name(number, None), name)
                yield Row(str(path), number, None, values)


def _parquet_names(path: Path) -> list[str]:
    with _parquet_file(path) as table:
        return list(table.schema_arrow.names)


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _opened(path) as opened, _seekable(opened) as file:
        try:
            yield pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{path}: not a Parquet file, or a damaged one ({reason}). Copy, download or write "
                "the file again."
            ) from error


@contextmanager
def _seekable(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Parquet is read from its end, so gzip around it is unpacked to disk first."""
    if not isinstance(file, gzip.GzipFile):
        yield file
        return
    with tempfile.TemporaryFile() as unpacked:
        shutil.copyfileobj(file, unpacked)
        unpacked.seek(0)
        yield unpacked


def _batch_rows(
    file: str, batch: Any, names: Sequence[str], before: int
) -> Iterator[dict[str, Any]]:
    cells = []
    for name in names:
        try:
            cells.append(batch.column(name).to_pylist())
        except UnicodeDecodeError as error:
            raise InputError(
                f"{file}: rows {before + 1} to {before + batch.num_rows}, column {shown(name)}: "
                f"text that is not UTF-8, near {shown(error.object[:60])}. Write the file again "
                "with text decoded."
            ) from error
        except (OverflowError, ValueError) as error:  # as of a date before the year 1
            raise InputError(
                f"{file}: rows {before + 1} to {before + batch.num_rows}, column {shown(name)}: "
                f"a value that Python cannot hold ({error}). Write the column as text."
            ) from error
    return (dict(zip(names, row, strict=True)) for row in zip(*cells, strict=True))


_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_READERS: dict[str, Callable[[Path, Sequence[str] | None, Collection[str]], Iterator[Row]]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
