"""Small tasks with two targets, whose labels follow from their words."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from llabel.task import Split, TargetLabel, Task
from runs import WORDS

PLACES = {"sea": "wave ship coast", "hill": "stone goat path", "town": "street shop tower"}
CLASSES = (
    *(TargetLabel("weather", label) for label in ("ice", "sun")),
    *(TargetLabel("place", label) for label in ("hill", "sea", "town")),
)


def write_letters(path: Path, rows: int, seed: int = 0, **extra: Any) -> Path:
    """A table with the text columns text and note, the targets weather and place, and groups."""
    rng = random.Random(seed)
    lines = []
    for row in range(rows):
        weather, place = list(WORDS)[row % 2], list(PLACES)[row // 2 % 3]
        words = rng.choices(WORDS[weather].split(), k=2) + rng.choices(PLACES[place].split(), k=2)
        # U+2028 ends a line for str.splitlines, but not in JSON.
        line = {"text": f"{' '.join(words)}\u2028{row}", "note": f"day {row % 7}"}
        labels = {"weather": weather, "place": place, "letter": f"letter {row // 6}"}
        lines.append(line | labels | extra)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def joint_task(train: int = 12, validation: int = 6) -> Task:
    """Rows with a weather and a place each; y is (n, 2)."""
    rng = random.Random(0)

    def split(name: str, rows: int) -> Split:
        texts, y = [], []
        for row in range(rows):
            weather, place = row % 2, row // 2 % 3
            words = [
                *rng.choices(WORDS[CLASSES[weather].label].split(), k=2),
                *rng.choices(PLACES[CLASSES[2 + place].label].split(), k=row % 4 + 1),
            ]
            texts.append((f"day {row}", " ".join(words)))
            y.append((weather, 2 + place))
        ids = tuple(f"{name}:{row + 1}" for row in range(rows))
        return Split(ids, tuple(texts), np.array(y, dtype=np.int64))

    parts = split("train", train), split("validation", validation), split("test", 5)
    return Task("letters", ("note", "text"), CLASSES, *parts, "0" * 64)
