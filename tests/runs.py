"""Small runs on tiny models for the tests of run folders, predictions and commands."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from llabel.config import RunConfig
from llabel.settings import DataSettings, LLMSettings, RunSettings

WORDS = {"sun": "warm light summer sand", "ice": "cold snow winter frost"}


def write_weather(path: Path, rows: int, seed: int = 0, **extra: Any) -> Path:
    """A table whose label follows from its words; note occurs twice in a row of three."""
    rng = random.Random(seed)
    lines = []
    for row in range(rows):
        label = rng.choice(list(WORDS))
        words = " ".join(rng.choices(WORDS[label].split(), k=4))
        lines.append({"text": f"{words} {row}", "note": f"day {row % 7}", "label": label, **extra})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def config(data: Path, model: Path, run: RunSettings | None = None, **llm: Any) -> RunConfig:
    settings = LLMSettings(
        model=str(model), epochs=2, learning_rate=3e-3, batch_size=8, r=4, device="cpu"
    )
    return RunConfig(
        source=str(data),
        data=DataSettings(text=("text", "note"), label="label"),
        run=run or RunSettings(),
        llm=replace(settings, **llm),
    )
