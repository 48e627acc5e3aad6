"""Public text corpora, rebuilt from the files that package-index wheels carry."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llabel.errors import InputError

BOOLQ_ROWS = {"train": 9_427, "validation": 3_270}
BBC_ROWS = 2_225


def write_boolq(members: Path, out: Path) -> None:
    """Write BoolQ's published training and validation parts as JSON lines.

    ``combined.jsonl`` holds all rows of BoolQ shuffled together, with an answer (``label``) unless
    the row is of the test part, whose answers were never published. ``dev.jsonl`` holds the
    validation part. No two of its questions are equal, and each occurs in exactly one labelled row
    of ``combined.jsonl``, so the question tells the parts apart. The passages of
    ``combined.jsonl`` are taken, since those of ``dev.jsonl`` lack the article's title.
    Clark et al. 2019 (arXiv:1905.10044) give 9,427 and 3,270 rows.

    Args:
        members: folder that holds ``combined.jsonl`` and ``dev.jsonl``.
        out: folder for ``train.jsonl`` and ``validation.jsonl``; rows have ``question``,
            ``passage`` and ``answer`` (JSON boolean) and keep the order of ``combined.jsonl``.

    Raises:
        InputError: a part does not have the published number of rows.
    """
    validation_questions = {row["question"] for row in _read_jsonl(members / "dev.jsonl")}
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for row in _read_jsonl(members / "combined.jsonl"):
        if "label" not in row:
            continue
        part = "validation" if row["question"] in validation_questions else "train"
        parts[part].append(
            {"question": row["question"], "passage": row["passage"], "answer": row["label"]}
        )
    for part, rows in parts.items():
        _check_count("boolq", part, len(rows), BOOLQ_ROWS[part])
        _write_jsonl(out / f"{part}.jsonl", rows)


def write_bbc(members: Path, out: Path) -> None:
    """Write the BBC news articles of 2004-2005 (Greene and Cunningham 2006) as JSON lines.

    Each article is a file ``topic/number.txt`` whose first line is the headline. Ninety-eight
    articles repeat another one word for word; they are kept, since they are in the published data.

    Args:
        members: folder with one folder a topic (business, entertainment, politics, sports, tech).
        out: folder for ``data.jsonl``; rows have ``title``, ``text`` (the article without its
            headline) and ``topic``, ordered by topic and number.

    Raises:
        InputError: the number of articles is not the published one.
    """
    rows = [_bbc_article(path) for path in sorted(members.glob("*/*.txt"))]
    _check_count("bbc", "data", len(rows), BBC_ROWS)
    _write_jsonl(out / "data.jsonl", rows)


def _bbc_article(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    try:
        article = raw.decode("utf-8")
    except UnicodeDecodeError:
        article = raw.decode("latin-1")  # one file (sports/199) was left in the site's old encoding
    title, _, text = article.partition("\n")
    return {"title": title.strip(), "text": text.strip(), "topic": path.parent.name}


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _check_count(asset: str, part: str, found: int, expected: int) -> None:
    if found != expected:
        msg = f"{asset}: {part} has {found:,} rows where {expected:,} were expected"
        raise InputError(msg)
