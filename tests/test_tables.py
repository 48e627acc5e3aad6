import csv
import gzip
import json
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llabel.data.tables import column_names, scan_rows, separator
from llabel.errors import InputError

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
ROWS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1)
NASTY = ('say "hi", twice', "line 1\nline 2\r\nline 3\rline 4", "naïve 🙂 家", "", " ,\t;", '"')


def read(path: Path, columns: Sequence[str] | None = None) -> list[tuple[int, dict[str, Any]]]:
    return [(row.number, row.values) for row in scan_rows(path, columns)]


def write_separated(path: Path, rows: list[tuple[str, str]], delimiter: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([("text", "label"), *rows])


def write_jsonl(path: Path, rows: list[tuple[str, str]]) -> None:
    lines = (json.dumps({"text": a, "label": b}, ensure_ascii=False) for a, b in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="")


def write_parquet(path: Path, rows: list[tuple[str, str]]) -> None:
    pq.write_table(pa.table({"text": [a for a, _ in rows], "label": [b for _, b in rows]}), path)


WRITERS: dict[str, Callable[[Path, list[tuple[str, str]]], None]] = {
    ".csv": lambda path, rows: write_separated(path, rows, ","),
    ".tsv": lambda path, rows: write_separated(path, rows, "\t"),
    ".jsonl": write_jsonl,
    ".parquet": write_parquet,
}


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("suffix", WRITERS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS.map(lambda rows: [*rows, *zip(NASTY, reversed(NASTY), strict=True)]))
def test_what_was_written_is_read(
    tmp_path: Path, suffix: str, zipped: bool, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path / f"t{suffix}"
    WRITERS[suffix](path, rows)
    if zipped:
        path = path.with_name(path.name + ".gz")
        path.write_bytes(gzip.compress((tmp_path / f"t{suffix}").read_bytes()))
    expected = [(n, {"text": a, "label": b}) for n, (a, b) in enumerate(rows, start=1)]
    assert read(path) == expected
    labels = [(n, {"label": row["label"]}) for n, row in expected]
    assert read(path, ["label"]) == labels


@pytest.mark.parametrize(
    "content", ["a,b\rx,1\ry,2", "\ufeffa,b\n\nx,1\n\ny,2\n\n", "b,a,\n1,x,\n2,y,z"]
)
def test_old_line_ends_byte_order_mark_blank_lines_and_nameless_columns(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "t.csv").write_text(content, encoding="utf-8", newline="")
    rows = read(tmp_path / "t.csv", ["a", "b"])
    assert rows == [(1, {"a": "x", "b": "1"}), (2, {"a": "y", "b": "2"})]


def test_a_blank_line_is_an_empty_cell_where_there_is_one_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\na\n\n\nb\n\n")
    assert [(row.number, row.line, row.values) for row in scan_rows(tmp_path / "t.csv")] == [
        (1, 2, {"text": "a"}),
        (2, 3, {"text": ""}),
        (3, 4, {"text": ""}),
        (4, 5, {"text": "b"}),
    ]


SEPARATED: dict[str, tuple[str, str, list[str], str | None]] = {
    "semicolons": ("t.csv", "text;label\nx, y;b\n", ["text", "label"], ";"),
    "quoted": ("t.csv", '"text";"label"\n"x; y";"b"\n', ["text", "label"], ";"),
    "commas in a name": ("t.csv", "id, old;text;label\n1;x;b\n", ["text", "label"], ";"),
    "blank lines, old line ends": ("t.csv", "\r\rtext;label\rx;b\r", ["text", "label"], ";"),
    "line break in a name": ("t.csv", '"te\nxt";"label"\nx;b\n', ["te\nxt", "label"], ";"),
    "tabs": ("t.csv", "text\tlabel\nx\tb\n", ["text", "label"], "\t"),
    "commas": ("t.tsv", "text,label\nx,b\n", ["text", "label"], ","),
    "as named": ("t.csv", "text;long,label\nx,b\n", ["text;long", "label"], None),
    "one column": ("t.csv", "text;label\nx;b\n", ["text;label"], None),
}


@pytest.mark.parametrize(("name", "content", "columns", "told"), SEPARATED.values(), ids=SEPARATED)
def test_the_header_shows_the_separator(
    tmp_path: Path, name: str, content: str, columns: list[str], told: str | None
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    ((_, values),) = read(path, columns)
    assert list(values) == columns
    assert values[columns[-1]] == ("x;b" if len(columns) == 1 else "b")
    assert separator(path, columns) == told


SPACED: dict[str, tuple[str, str, list[str]]] = {
    "commas": ("t.csv", "id, text, y\n1, a, 0\n2,b,  1\n", ["a0", "b1"]),
    "quotes": ("t.csv", '"id", "text", "y"\n"1", "a, b", "0"\n', ["a, b0"]),
    "quoted spaces": ("t.csv", 'id, text, y\n1, " a", 0\n', [" a0"]),
    "semicolons": ("t.csv", 'id; text; y\n1; "a; b"; 0\n', ["a; b0"]),
    "a comma in a name": ("t.csv", 'id, "other, old", text, y\n1, 2, a, 0\n', ["a0"]),
    "not throughout": ("t.csv", "id, text,y\n1, a, 0\n", [" a 0"]),
}


@pytest.mark.parametrize(("name", "content", "cells"), SPACED.values(), ids=SPACED)
def test_a_space_behind_each_separator_is_none_of_the_cell(
    tmp_path: Path, name: str, content: str, cells: list[str]
) -> None:
    (tmp_path / name).write_text(content)
    found = read(tmp_path / name, ["text", "y"])
    assert [row["text"] + row["y"] for _, row in found] == cells


def test_a_fault_behind_a_space_is_found(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('id, text\n1, "a" b\n')
    with pytest.raises(InputError, match=r"row 1 \(line 2\), column 'text': text follows the clos"):
        read(tmp_path / "t.csv", ["text"])


def write_one_row(path: Path, names: tuple[str, str]) -> None:
    table = dict(zip(names, "xb", strict=True))
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [value] for name, value in table.items()}), path)
    elif path.suffix == ".jsonl":
        path.write_text(json.dumps(table) + "\n")
    else:
        delimiter = "," if path.suffix == ".csv" else "\t"
        path.write_text(f"{delimiter.join(table)}\n{delimiter.join(table.values())}\n")


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_name_in_white_space_is_found_without_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    write_one_row(path, (" text", "label "))
    assert read(path, ["text", "label"]) == [(1, {"text": "x", "label": "b"})]
    assert read(path, [" text", "label"]) == [(1, {" text": "x", "label": "b"})]
    with pytest.raises(InputError, match=r"name the column ' text' twice"):
        read(path, ["text", " text"])
    write_one_row(path, (" text", "text "))
    with pytest.raises(InputError, match=r"no column 'text'. Its columns are ' text', 'text '"):
        read(path, ["text"])


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_name_in_another_unicode_form_is_found(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    write_one_row(path, ("re\u0301sume\u0301", "label"))
    assert read(path, ["r\xe9sum\xe9", "label"]) == [(1, {"r\xe9sum\xe9": "x", "label": "b"})]


def test_a_name_with_a_comma_is_asked_for_in_quotes(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('"my text, long",y\na,b\n')
    with pytest.raises(InputError, match="double quotes: --text '\"my text, long\"'"):
        read(tmp_path / "t.csv", ["my text"])
    with pytest.raises(InputError) as error:
        read(tmp_path / "t.csv", ["other"])
    assert "--text" not in str(error.value)


def test_columns_are_named_without_reading_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('text;label\n"a" b;c\n')
    assert column_names(tmp_path / "t.csv") == ["text", "label"]
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n{"text": "b", "label": 1}\n')
    assert column_names(tmp_path / "t.jsonl") == ["text", "label"]
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "t.parquet")
    assert column_names(tmp_path / "t.parquet") == ["text", "label"]
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"text,label\n")[:-12])
    with pytest.raises(InputError, match="cut off or damaged after row 0"):
        column_names(tmp_path / "t.csv.gz")


def test_json_and_parquet_values_keep_their_types(tmp_path: Path) -> None:
    row = {"text": "a", "yes": True, "n": 3, "x": 0.5, "none": None, "list": [1, 2]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n\n")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        ((_, values),) = read(tmp_path / name)
        assert values == row
        assert type(values["yes"]) is bool


JOINED: dict[str, tuple[str, str, list[int | None]]] = {
    "tabs": ("t.tsv", 'id\ttext\n1\t"Wow\n2\tbad\n3\tok\n4\t"\n5\tfine\n', [5, None]),
    "tabs, two lines": ("t.tsv", 'id\ttext\n1\t"Wow\n2\tbad"\n', [3]),
    "commas": ("t.csv", 'text,y\n"Wow,a\nbad,b\nok ",a\nfine,b\n', [4, None]),
    "commas, two lines": ("t.csv", 'text,y\n"Hello,\nbye",a\n', [None]),
    "a line that is no row": ("t.csv", 'text,y\n"Wow,a\nbad\n\nok ",a\n', [None]),
    "more cells on a line": ("t.tsv", 'id\ttext\n1\t"a\tb\n2\tc"\n', [None]),
    "one column": ("t.tsv", 'text\n"a\nb\nc"\n', [None]),
}


@pytest.mark.parametrize(("name", "content", "ends"), JOINED.values(), ids=JOINED)
def test_rows_that_an_open_quote_may_have_joined_are_marked(
    tmp_path: Path, name: str, content: str, ends: list[int | None]
) -> None:
    (tmp_path / name).write_text(content)
    assert [row.joined_to for row in scan_rows(tmp_path / name)] == ends


def test_rows_before_a_fault_are_streamed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,4\n5\n")
    rows = scan_rows(tmp_path / "t.csv")
    assert [next(rows).values, next(rows).values] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    with pytest.raises(InputError):
        next(rows)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_memory_does_not_grow_with_the_table(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    WRITERS[suffix](path, [("x" * 1_000, "y")] * 10_000)
    tracemalloc.start()
    assert sum(1 for _ in scan_rows(path)) == 10_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


BIG = 50_000_000
FAULTS: dict[str, tuple[str, bytes, list[str]]] = {
    "missing column": (
        "t.csv",
        b"Text,label\na,b\n",
        ["t.csv", "no column 'text'", "'Text', 'label'", "Did you mean 'Text'?", "first line"],
    ),
    "missing column, tsv": ("t.tsv", b"a\tb\n1\t2\n", ["no column 'text'", "'a', 'b'"]),
    "bars": ("t.csv", b"text|label\na|b\n", ["no column 'text'", "'|'", "save the table"]),
    "semicolons, misspelt": (
        "t.csv",
        b"txt;y\na;b\n",
        ["Its columns are 'txt', 'y'", "mean 'txt'"],
    ),
    "semicolons, stray quote": (
        "t.csv",
        b'text;label\n"a";"b" c\n',
        ["row 1 (line 2), column 'label'", "closing quote of 'b'"],
    ),
    "empty": ("t.csv", b"", ["t.csv", "the file is empty", "must hold a table with a header"]),
    "blank lines only": ("t.csv", b"\n\n\n", ["t.csv: the file is empty"]),
    "empty gz": ("t.csv.gz", gzip.compress(b""), ["t.csv.gz: the file is empty"]),
    "empty jsonl": ("t.jsonl", b"\n", ["t.jsonl: the file is empty"]),
    "header only": ("t.csv", b"text,label\n", ["t.csv", "no data row below the header"]),
    "latin-1": (
        "t.csv",
        "text,label\na,b\ncafé au lait,c\n".encode("latin-1"),
        ["line 3, byte 18", "0xE9", "'caf'", "not UTF-8", "iconv -f WINDOWS-1252 -t utf-8 t.csv"],
    ),
    "latin-1 gz": (
        "t.jsonl.gz",
        gzip.compress('{"text": "é"}'.encode("latin-1")),
        ["line 1, byte 10", "gzip -dc t.jsonl.gz | iconv -f"],
    ),
    "utf-16": (
        "t.csv",
        "text,label\na,b\n".encode("utf-16"),
        ["UTF-16", "iconv -f UTF-16 -t utf-8 t.csv"],
    ),
    "duplicated header": (
        "t.csv",
        b"text,label,text\na,b,c\n",
        ["column 'text' more than once", "'text', 'label', 'text'", "its own name"],
    ),
    "duplicated key": (
        "t.jsonl",
        b'{"text": "a"}\n{"text": "b", "text": "c"}\n',
        ["row 2", "key 'text' more than once"],
    ),
    "NUL": (
        "t.csv",
        b"text,label\na,b\n\nc\0d,e\n",
        ["row 2 (line 4), column 'text'", "NUL", "'c\\x00d'", "tr -d '\\000'"],
    ),
    "NUL escaped": ("t.jsonl", b'{"text": "a\\u0000"}\n', ["row 1, column 'text'", "NUL"]),
    "half a character": (
        "t.jsonl",
        b'{"text": "a \\ud83d"}\n',
        ["row 1, column 'text'", "half a character", "'a \\ud83d'"],
    ),
    "too many cells": (
        "t.csv",
        b"text,label\na,b\nwell, yes,c\n",
        ["row 2 (line 3) has 3 cells where the header has 2", "'c'", "in double quotes"],
    ),
    "too few cells": (
        "t.csv",
        b'text,label\n"a\nb",c\nd\n',
        ["row 2 (line 4) has 1 cell", "none for column 'label'", "'d'", "Fill in"],
    ),
    "unclosed quote": (
        "t.csv",
        b'text,label\na,b\n"c,d\ne,f\n',
        ["row 2 (line 3), column 'text'", "'c,d\\ne,f\\n' and is never closed", 'twice ("")'],
    ),
    "stray quote": (
        "t.csv",
        b'text,label\na,b\nc,"d" e\n',
        ["row 2 (line 3), column 'label'", "closing quote of 'd'", 'twice ("")'],
    ),
    "large cell, csv": (
        "t.csv",
        b"text,label\na,b\nc," + b"x" * BIG + b"\n",
        ["row 2 (line 3), column 'label'", "10,000,000 characters", "'xxxx", "Shorten it"],
    ),
    "unclosed quote, long file": (
        "t.csv",
        b'text,label\na,"' + b"b,c\n" * (BIG // 4),
        ["row 1 (line 2), column 'label'", "10,000,000", "'b,c", "never closed"],
    ),
    "large cell, jsonl": (
        "t.jsonl",
        b'{"text": "' + b"x" * BIG + b'"}\n',
        ["row 1, column 'text'", "50,000,000 characters", "10,000,000"],
    ),
    "endless line": (
        "t.jsonl",
        b'{"text": "' + b"x" * 2 * BIG + b'"}\n',
        ["line 1 has more than 100,000,000 bytes", '\'{"text": "xxx'],
    ),
    "not JSON": (
        "t.jsonl",
        b'{"text": "a"}\n\n{"text": "b",}\n',
        ["row 2 (line 3), character", "not JSON", '"b",}', "one JSON object", "jq -c"],
    ),
    "JSON list": ("t.jsonl", b"[\n", ["row 1", "not JSON", "jq -c '.[]'"]),
    "not an object": ("t.jsonl", b"[1, 2]\n", ["row 1 is [1, 2], which is not an object", "jq"]),
    "deep JSON": ("t.jsonl", b"[" * 100_000, ["row 1: not JSON that can be read"]),
    "missing key": (
        "t.jsonl",
        b'{"text": "a", "label": 1}\n{"label": 2}\n',
        ["row 2 lacks the key 'text'", "it has 'label'", '"text": ""'],
    ),
    "missing key in the first row": (
        "t.jsonl",
        b'{"label": 2}\n{"text": "a", "label": 1}\n',
        ["row 1 lacks the key 'text'", "it has 'label'"],
    ),
    "missing key at once": ("t.jsonl", b'{"txt": "a"}\n', ["no column 'text'", "mean 'txt'?"]),
    "excel": ("t.xlsx", b"PK", ["t.xlsx", ".csv, .tsv, .jsonl, .parquet", "'CSV UTF-8'"]),
    "json": ("t.json", b"[]", ["t.json", "rename it to .jsonl", "jq -c"]),
    "cut gzip": (
        "t.csv.gz",
        gzip.compress(b"text,label\n" + bytes(range(65, 91)) * 9 + b",b\n")[:-12],
        ["t.csv.gz", "cut off or damaged after row 0", "gzip -t"],
    ),
    "not gzip": ("t.csv.gz", b"text,label\n", ["not gzip data", "Rename it to t.csv."]),
    "gzip unnamed": ("t.csv", gzip.compress(b"text\na\n"), ["gzip data", "t.csv.gz"]),
    "corrupt parquet": ("t.parquet", b"PAR1 nothing", ["t.parquet", "not a Parquet file"]),
    "csv called parquet": ("t.parquet.gz", gzip.compress(b"a,b\n"), ["not a Parquet file"]),
}


@pytest.mark.parametrize(("name", "content", "told"), FAULTS.values(), ids=FAULTS)
def test_faults_are_told_with_place_and_remedy(
    tmp_path: Path, name: str, content: bytes, told: list[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    limit = csv.field_size_limit()
    start = time.process_time()
    with pytest.raises(InputError) as error:
        read(path, ["text"])
    assert time.process_time() - start < 10
    message = str(error.value)
    assert message.startswith(str(path))
    assert [words for words in told if words not in message] == []
    assert len(message) < 600 + len(str(path))
    assert csv.field_size_limit() == limit


def test_a_cell_may_be_larger_than_the_csv_modules_own_limit(tmp_path: Path) -> None:
    text = "x" * 1_000_000
    (tmp_path / "t.csv").write_text(f"text\n{text}\n")
    assert read(tmp_path / "t.csv") == [(1, {"text": text})]


def test_names_that_are_no_file(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("a\n1\n")
    with pytest.raises(InputError, match=r"reveiws.csv: there is no such file.*'reviews.csv'\?"):
        scan_rows(tmp_path / "reveiws.csv")
    with pytest.raises(InputError, match=r"no folder .*nowhere either"):
        scan_rows(tmp_path / "nowhere" / "t.csv")
    with pytest.raises(InputError, match=r"is a folder. Name one table file"):
        scan_rows(tmp_path)


def test_damaged_parquet_pages_double_and_missing_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["some text"] * 9}), path, compression="zstd")
    with pytest.raises(InputError, match=r"no column 'label'. Its columns are 'text'"):
        read(path, ["label"])
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a damaged one.*again"):
        read(path)
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), path)
    with pytest.raises(InputError, match="'text' more than once"):
        read(path)
    pq.write_table(pa.table({"text": pa.array([b"a\xff"]).view(pa.string())}), path)
    with pytest.raises(InputError, match=r"rows 1 to 1, column 'text': text that is not UTF-8"):
        read(path)
    pq.write_table(pa.table({"text": pa.array([-(10**15)], pa.timestamp("s"))}), path)
    with pytest.raises(InputError, match=r"rows 1 to 1, column 'text': a value .* as text"):
        read(path)
