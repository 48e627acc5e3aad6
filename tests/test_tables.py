import csv
import gzip
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llabel.data.tables import read_rows
from llabel.errors import InputError

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
ROWS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1)
NASTY = ('say "hi", twice', "line 1\nline 2\r\nline 3\rline 4", "naïve 🙂 家", "", " ,\t;", '"')


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
    assert list(read_rows(path)) == expected
    labels = [(n, {"label": row["label"]}) for n, row in expected]
    assert list(read_rows(path, columns=["label"])) == labels


@pytest.mark.parametrize(
    "content", ["a,b\rx,1\ry,2", "\ufeffa,b\n\nx,1\n\ny,2\n\n", "b,a,\n1,x,\n2,y,z"]
)
def test_old_line_ends_byte_order_mark_blank_lines_and_nameless_columns(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "t.csv").write_text(content, encoding="utf-8", newline="")
    rows = list(read_rows(tmp_path / "t.csv", columns=["a", "b"]))
    assert rows == [(1, {"a": "x", "b": "1"}), (2, {"a": "y", "b": "2"})]


def test_json_and_parquet_values_keep_their_types(tmp_path: Path) -> None:
    row = {"text": "a", "yes": True, "n": 3, "x": 0.5, "none": None, "list": [1, 2]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n\n")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        ((_, values),) = read_rows(tmp_path / name)
        assert values == row
        assert type(values["yes"]) is bool


def test_rows_before_a_fault_are_streamed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,4\n5\n")
    rows = read_rows(tmp_path / "t.csv")
    assert [next(rows), next(rows)] == [(1, {"a": "1", "b": "2"}), (2, {"a": "3", "b": "4"})]
    with pytest.raises(InputError):
        next(rows)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_memory_does_not_grow_with_the_table(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    WRITERS[suffix](path, [("x" * 1_000, "y")] * 10_000)
    tracemalloc.start()
    assert sum(1 for _ in read_rows(path)) == 10_000
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
    "semicolons": ("t.csv", b"text;label\na;b\n", ["no column 'text'", "';'", "save the table"]),
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
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        list(read_rows(path, columns=["text"]))
    assert time.monotonic() - start < 10
    message = str(error.value)
    assert message.startswith(str(path))
    assert [words for words in told if words not in message] == []
    assert len(message) < 600 + len(str(path))
    assert csv.field_size_limit() == limit


def test_a_cell_may_be_larger_than_the_csv_modules_own_limit(tmp_path: Path) -> None:
    text = "x" * 1_000_000
    (tmp_path / "t.csv").write_text(f"text\n{text}\n")
    assert list(read_rows(tmp_path / "t.csv")) == [(1, {"text": text})]


def test_names_that_are_no_file(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("a\n1\n")
    with pytest.raises(InputError, match=r"reveiws.csv: there is no such file.*'reviews.csv'\?"):
        read_rows(tmp_path / "reveiws.csv")
    with pytest.raises(InputError, match=r"no folder .*nowhere either"):
        read_rows(tmp_path / "nowhere" / "t.csv")
    with pytest.raises(InputError, match=r"is a folder. Name one table file"):
        read_rows(tmp_path)


def test_damaged_parquet_pages_double_and_missing_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["some text"] * 9}), path, compression="zstd")
    with pytest.raises(InputError, match=r"no column 'label'. Its columns are 'text'"):
        list(read_rows(path, columns=["label"]))
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a damaged one.*again"):
        list(read_rows(path))
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), path)
    with pytest.raises(InputError, match="'text' more than once"):
        list(read_rows(path))
    pq.write_table(pa.table({"text": pa.array([b"a\xff"]).view(pa.string())}), path)
    with pytest.raises(InputError, match=r"rows 1 to 1, column 'text': text that is not UTF-8"):
        list(read_rows(path))
