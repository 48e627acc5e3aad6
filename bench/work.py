"""The work that all contenders share: which rows, in which order, with which settings."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from driver import BENCH, Contender, measure

MODEL = "smollm2-135m"
CACHE = BENCH / ".cache"
MAX_LENGTH = 256
BATCH_SIZE = 16
WARM_STEPS, STEPS, REPEATS = 3, 13, 5  # 13 steps of 16 rows: 208 rows a lap
ROWS = 208
LORA = {"r": 16, "lora_alpha": 32}
LEARNING_RATE = 2e-4
SEED = 0
# What our side is asked for beside its defaults; `--set` has the last word.
OURS = {"precision": "int8"}
# And in training.
TRAINING = {
    "model": MODEL,
    "max_seq_length": MAX_LENGTH,
    **LORA,
    "batch_size": BATCH_SIZE,
    "learning_rate": LEARNING_RATE,
    "schedule": "constant",
    "warmup_ratio": 0.0,
    "epochs": 1,
    "seed": SEED,
}
# Thirty-two made-up labels for questions; some share their first token, as labels do.
TOPICS = (
    *("law", "medicine", "history", "geography", "sport", "football", "film", "television"),
    *("music", "literature", "religion", "language", "food and drink", "animals", "plants"),
    *("chemistry", "physics", "mathematics", "astronomy", "computers", "video games"),
    *("transport", "aviation", "military", "politics", "economy", "money", "education"),
    *("architecture", "weather", "holidays", "something else"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured, from the command line.

    Attributes:
        repeats: laps of each contender.
        warm, steps: optimiser steps of a training before its first lap, and in each lap.
        rows: rows of a prediction lap.
        settings: of llabel, that differ from its defaults; int8 unless told otherwise.
        results: where the JSON goes.
        quick: a smoke run, whose figures say nothing.
    """

    repeats: int
    warm: int
    steps: int
    rows: int
    settings: Mapping[str, Any]
    results: Path
    quick: bool

    @property
    def training(self) -> dict[str, int]:
        """What a `StepGate` is asked."""
        return {"warm": self.warm, "steps": self.steps, "batch_size": BATCH_SIZE}

    @property
    def training_rows(self) -> int:
        """Rows of all steps of one trainer, each read once."""
        return (self.warm + self.steps * self.repeats) * BATCH_SIZE


def plan_from(doc: str | None, argv: Sequence[str] | None = None) -> Plan:
    """Read the switches that all programs share; `doc` is the program's docstring."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, help=f"laps of each contender ({REPEATS})")
    parser.add_argument("--steps", type=int, help=f"steps of a training lap ({STEPS})")
    parser.add_argument("--warm", type=int, help=f"steps before the first lap ({WARM_STEPS})")
    parser.add_argument("--rows", type=int, help=f"rows of a prediction lap ({ROWS})")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of llabel, as precision=float32 (int8) or compile=true (repeatable)",
    )
    parser.add_argument("--results", type=Path, help="folder for the JSON (bench/results)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="smoke run: 1 repeat of 2 steps or 16 rows, into bench/.cache/quick",
    )
    asked = parser.parse_args(argv)
    repeats, steps, warm, rows = (
        (1, 2, 2, 16) if asked.quick else (REPEATS, STEPS, WARM_STEPS, ROWS)
    )
    return Plan(
        repeats=asked.repeats or repeats,
        warm=asked.warm or warm,
        steps=asked.steps or steps,
        rows=asked.rows or rows,
        settings=ours_with(parser, asked.set),
        results=asked.results or (CACHE / "quick" if asked.quick else BENCH / "results"),
        quick=asked.quick,
    )


def ours_with(parser: argparse.ArgumentParser, given: Sequence[str]) -> dict[str, Any]:
    """`OURS`, and what --set says over it."""
    return OURS | dict(_setting(parser, each) for each in given)


def _setting(parser: argparse.ArgumentParser, given: str) -> tuple[str, Any]:
    name, equals, value = given.partition("=")
    if not equals:
        parser.error(f"--set {given}: write it as NAME=VALUE")
    return name, yaml.safe_load(value)


def write_rows(name: str, part: str, count: int, **changes: Any) -> tuple[Path, list[dict]]:
    """Write the first `count` rows of a part of BoolQ as every contender is to read them.

    Texts are cut here, once, so that prompt, answer and end token fit into `MAX_LENGTH` tokens:
    libraries differ in which end they cut, and some would cut off the answer.

    Args:
        name: of the file in the cache.
        part: train or validation.
        count: how many rows.
        changes: settings that decide the prompt, such as `template`; `classes` and `fields` for a
            task other than BoolQ's own.

    Returns:
        The file, and its rows: `fields` (texts by name), `prompt`, `completion`, `label` (class
        index), `tokens` (of the prompt) and `read` (those, and what the loss reads of the answer).
    """
    from llabel.assets import resolve_dataset
    from llabel.ladder.prompting import prepare_prompting
    from llabel.settings import LLMSettings

    classes = changes.pop("classes", (False, True))
    fields = changes.pop("fields", ("question", "passage"))
    with (resolve_dataset("boolq") / f"{part}.jsonl").open(encoding="utf-8") as lines:
        source = [json.loads(line) for _, line in zip(range(count), lines, strict=False)]
    settings = LLMSettings(**{"model": MODEL, "max_seq_length": MAX_LENGTH, **changes})
    prompting = prepare_prompting(settings, fields, classes)
    texts = [tuple(row[field] for field in fields) for row in source]
    boolean = classes == (False, True)
    rows = []
    for number, (row, prompt) in enumerate(
        zip(source, prompting.encoder.encode(texts), strict=True)
    ):
        label = int(row["answer"]) if boolean else number % len(classes)
        steps = prompting.trie.steps[label]
        answer = max(len(prompting.trie.branchings[choice].prefix) for choice, _ in steps)
        rows.append(
            {
                "fields": dict(zip(fields, prompt.text, strict=True)),
                "prompt": prompting.template.render(prompt.text, fields),
                "completion": prompting.template.joint + prompting.trie.words[label],
                "label": label,
                "tokens": len(prompt.input_ids),
                "read": len(prompt.input_ids) + answer,
            }
        )
    path = CACHE / "rows" / f"{name}-{count}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    new.replace(path)
    return path, rows


def adapter(plan: Plan) -> Path:
    """Folder of a rung that was fine-tuned for a few steps; made when it is first asked for."""
    folder = CACHE / "adapter"
    if not (folder / "rung.json").is_file():
        rows, _ = write_rows("adapter", "train", 8 * BATCH_SIZE)
        job = {"rows": str(rows), "out": str(folder), "settings": TRAINING | dict(plan.settings)}
        measure([Contender("make-adapter", "workers/make_adapter.py", job)], repeats=0)
    return folder


def model_folder() -> str:
    """Where the built-in model lies as safetensors, for the peers."""
    from llabel.assets import resolve_model

    return str(resolve_model(MODEL))


def ours_training(plan: Plan, rows: Path) -> Contender:
    """Our training."""
    settings = TRAINING | dict(plan.settings)
    job = {"rows": str(rows), "settings": settings, **plan.training}
    return Contender("llabel", "workers/train_ours.py", job, "LLMRung.fit")


def ours_predicting(plan: Plan, rows: Path) -> Contender:
    """Our prediction with an adapter."""
    job = {"rows": str(rows), "folder": str(adapter(plan)), "changes": dict(plan.settings)}
    return Contender("llabel", "workers/predict_ours.py", job, "LLMRung.load, predict_proba")


def peer_training(plan: Plan, rows: Path, name: str, what: str, **changes: Any) -> Contender:
    """A peer's training: `name` is TRL's or sysone's, perhaps with a variant after a dash."""
    job = {
        "rows": str(rows),
        "model": model_folder(),
        **plan.training,
        **LORA,
        "max_length": MAX_LENGTH,
        "learning_rate": LEARNING_RATE,
        "seed": SEED,
        **changes,
    }
    return Contender(name, f"workers/train_{name.partition('-')[0]}.py", job, what)
