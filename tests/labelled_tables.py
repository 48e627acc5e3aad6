"""Small labelled tables for the tests of reading, labels and splitting."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llabel.data import LoadedTask, load_task
from llabel.task import Split, Task


def write_csv(path: Path, rows: Sequence[Sequence[Any]], header: str = "text,label") -> str:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return str(path)


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_of(n: int, labels: Sequence[Any] = ("no", "yes"), start: int = 0) -> list[tuple[str, Any]]:
    return [(f"text {i}", labels[i % len(labels)]) for i in range(start, start + n)]


def load(data: str, **options: Any) -> LoadedTask:
    return load_task(data, **{"text": ["text"], "label": "label", **options})


def splits(task: Task) -> tuple[Split, Split, Split]:
    return task.train, task.validation, task.test


def texts(split: Split) -> list[str]:
    return [text for (text,) in split.texts]
