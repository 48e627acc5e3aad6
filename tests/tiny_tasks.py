"""Small classification tasks whose labels follow from their words."""

import random
from collections.abc import Sequence

import numpy as np

from llabel.task import Label, Split, Task

NOUNS = ("film", "music", "answer", "question", "news", "task", "input", "politics")


def make_task(
    classes: Sequence[Label] = (False, True),
    *,
    train: int = 20,
    validation: int = 6,
    words: int = 6,
    misleading: bool = False,
) -> Task:
    """A task with the fields question and passage; the passage tells the class.

    Args:
        classes: the labels, in class order.
        train, validation: rows of these parts; the test part has four.
        words: most words of a passage.
        misleading: give the validation rows the wrong labels, so that training makes them worse.
    """
    rng = random.Random(0)

    def split(name: str, rows: int, shift: int = 0) -> Split:
        y = np.array([(row + shift) % len(classes) for row in range(rows)], dtype=np.int64)
        texts = []
        for row in range(rows):
            cue = f"it is {NOUNS[row % len(classes)]} "
            noise = " ".join(rng.choices(NOUNS, k=rng.randint(1, words)))
            texts.append((f"is this {row}", cue + noise))
        return Split(tuple(f"{name}:{row + 1}" for row in range(rows)), tuple(texts), y)

    shift = int(misleading)
    parts = split("train", train), split("validation", validation, shift), split("test", 4)
    return Task("tiny", ("question", "passage"), tuple(classes), *parts, "0" * 64)
