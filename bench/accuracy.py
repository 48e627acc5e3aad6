"""accuracy: what int8 costs, trained beside float32 with the same seeds and rows in the same order.

    python bench/accuracy.py boolq|bbc [--seeds 5] [--out runs/accuracy] [--crossed]

Trains SmolLM2-135M once a seed and precision; the split is the same for all. What is measured of
each training lies in bench/results/accuracy/ (a line of JSON: loss and answer of each validation
row), checkpoints and adapters in --out, so that the same command goes on where it was stopped, on
another machine too. After each seed it writes bench/results/accuracy-TASK.json: the paired
difference, int8 less float32, in validation log loss (nats) and accuracy, with 95 % intervals over
rows (groups of rows that share a text) and seeds; and, for the first seed, how far the label
probabilities of the two are apart: before training, and after it with the same adapter. With
--crossed, each adapter that lies in --out is read in the other precision, too: whether it is the
training in int8 that costs, or the reading. No times are taken. Hours.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from driver import BENCH
from record import surroundings, write_json

PRECISIONS = ("float32", "int8")
TASKS: dict[str, dict[str, Any]] = {
    "boolq": {
        "data": {"text": ("question", "passage"), "label": "answer", "group": "passage"},
        "llm": {"max_seq_length": 128, "learning_rate": 8e-4, "epochs": 1},
        "train_rows": 2000,
        "validation_size": 0.11,
    },
    "bbc": {
        "data": {"text": ("title", "text"), "label": "topic", "group": "text"},
        "llm": {"max_seq_length": 128, "learning_rate": 5e-4, "epochs": 2},
        "train_rows": 300,
        "validation_size": 0.4,
    },
}
# Of all: no early stop, so that the two precisions train equally long; the best epoch is kept.
SETTINGS = {"model": "smollm2-135m", "patience": None}
LIMIT = 0.02  # nats
RESAMPLES = 10_000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Training:
    """What is kept of one."""

    loss: Floats  # (n,) nats of each validation row
    right: Floats  # (n,) 1 where the most probable label is the true one


def task_of(name: str) -> Any:
    """Its rows, split with seed 0 whatever the training's seed."""
    from llabel.data import load_task

    plan = TASKS[name]
    sizes = {key: plan[key] for key in ("train_rows", "validation_size")}
    return load_task(name, **plan["data"], **sizes, seed=0).task


def rung_of(name: str, precision: str, seed: int) -> Any:
    """Not trained yet."""
    from llabel.ladder.llm import LLMRung
    from llabel.settings import LLMSettings

    asked = SETTINGS | TASKS[name]["llm"]
    return LLMRung(LLMSettings(**asked, precision=precision, seed=seed))


def kept(name: str) -> Path:
    """Where what was measured lies."""
    return BENCH / "results" / "accuracy" / f"{name}.json"


def train(task: Any, name: str, precision: str, seed: int, out: Path) -> Training:
    """One cell, or what is left of it to do."""
    from llabel.engine.checkpoint import CheckpointFolder
    from llabel.events import StepDone

    cell = f"{name}-{precision}-{seed}"
    if not kept(cell).exists():
        rung, folder, around = rung_of(name, precision, seed), out / cell, surroundings()

        def notify(event: Any) -> None:
            if isinstance(event, StepDone) and event.step % 20 == 0:
                print(f"{cell}: step {event.step} of {event.steps}, {event.loss:.3f}", flush=True)

        rung.fit(task, checkpoints=CheckpointFolder(folder / "checkpoints"), notify=notify)
        rung.save(folder)
        keep_line(kept(cell), measured(task, rung.validation_proba_) | around)
    return read_cell(task, cell)


def read_cell(task: Any, cell: str) -> Training:
    """What was kept of one."""
    told = json.loads(kept(cell).read_text(encoding="utf-8"))
    if told["fingerprint"] != task.fingerprint:
        raise SystemExit(f"{kept(cell)} is of other rows: remove it, and train that cell again.")
    return Training(np.array(told["loss"]), np.array(told["right"], dtype=np.float64))


def measured(task: Any, proba: Floats) -> dict[str, Any]:
    """Of (n, n_classes) probabilities of the validation rows: what is kept of each row."""
    y = task.validation.y
    own = np.clip(proba[np.arange(len(y)), y], np.finfo(np.float64).eps, 1)
    return {
        "fingerprint": task.fingerprint,
        "loss": [round(value, 7) for value in (-np.log(own)).tolist()],
        "right": (proba.argmax(axis=1) == y).astype(int).tolist(),
    }


def crossed(task: Any, name: str, precision: str, seed: int, out: Path) -> Training | None:
    """The adapter of a cell, read in the other precision; None where it is not in `out`."""
    from llabel.ladder.llm import LLMRung

    folder = out / f"{name}-{precision}-{seed}"
    (other,) = set(PRECISIONS) - {precision}
    cell = f"{folder.name}-read-{other}"
    if not kept(cell).exists():
        if not (folder / "rung.json").exists():
            return None
        around = surroundings()
        rung = LLMRung.load(folder, precision=other)
        proba = rung.predict_proba(task.validation.texts)
        keep_line(kept(cell), measured(task, proba) | around)
        print(f"{cell}: done", flush=True)
    return read_cell(task, cell)


def keep_line(path: Path, values: dict[str, Any]) -> None:
    """Write all of one line or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(values) + "\n", encoding="utf-8")
    partial.replace(path)


def difference(
    of: Callable[[Training], Floats], cells: dict[str, list[Training]], task: Any
) -> dict[str, Any]:
    """int8 less float32, seed by seed: mean, 95 % interval, and each seed's."""
    from llabel.statistics.resampling import Part, row_weights, spread, units_of

    pairs = zip(cells["int8"], cells["float32"], strict=True)
    apart = np.stack([of(fast) - of(exact) for fast, exact in pairs])  # (seeds, n)
    units = units_of(apart.shape[1], task.validation.groups)
    rng = np.random.default_rng(0)
    draws = [
        apart @ weights.T / weights.sum(axis=1) for weights in row_weights(units, RESAMPLES, rng)
    ]
    part = Part(points=apart.mean(axis=1), draws=np.concatenate(draws, axis=1))
    error = spread([part], units.count, rng)
    mean = float(apart.mean())
    low, high = np.quantile(mean + error.deviations, [0.025, 0.975])
    return {
        "mean": mean,
        "ci95": [float(low), float(high)],
        "each_seed": part.points.tolist(),
        "float32": [float(of(cell).mean()) for cell in cells["float32"]],
        "int8": [float(of(cell).mean()) for cell in cells["int8"]],
    }


def probabilities(task: Any, name: str, out: Path) -> dict[str, Any] | None:
    """How far int8 moves the probability of the likeliest label, weights being the same.

    None where the first float32 cell was trained elsewhere, and its adapter is not here.
    """
    from llabel.ladder.llm import LLMRung

    path = kept(f"{name}-probabilities")
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    if not (out / f"{name}-float32-0" / "rung.json").exists():
        return None
    texts, told = task.validation.texts, {}
    for when in ("before", "after"):
        proba = []
        for precision in PRECISIONS:
            if when == "before":
                rung = rung_of(name, precision, 0).prepare(task.fields, task.classes)
                rung._load_model()
            else:
                rung = LLMRung.load(out / f"{name}-float32-0", precision=precision)
            proba.append(rung.predict_proba(texts))
        exact, fast = proba
        moved = np.abs(fast - exact).max(axis=1)
        told[f"{when}_training"] = {
            "mean": float(moved.mean()),
            "q95": float(np.quantile(moved, 0.95)),
            "max": float(moved.max()),
            "other_answers": int((fast.argmax(axis=1) != exact.argmax(axis=1)).sum()),
            "rows": len(texts),
        }
    keep_line(path, told)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--crossed", action="store_true")
    parser.add_argument("--out", type=Path, default=BENCH.parent / "runs" / "accuracy")
    asked = parser.parse_args()
    around, name, task = surroundings(), asked.task, task_of(asked.task)
    cells: dict[str, list[Training]] = {precision: [] for precision in PRECISIONS}
    for seed in range(asked.seeds):
        for precision in PRECISIONS:
            cells[precision].append(train(task, name, precision, seed, asked.out))
        summarise(task, name, cells, asked.out, around)
    if asked.crossed:
        write_json(
            BENCH / "results" / f"accuracy-{name}-crossed.json",
            crossings(task, name, cells["float32"], asked.out) | around,
        )


def crossings(task: Any, name: str, exact: list[Training], out: Path) -> dict[str, Any]:
    """Trained or read in int8, not both, less neither; of the seeds whose adapters are there."""
    told: dict[str, Any] = {"name": f"accuracy-{name}-crossed"}
    for precision in PRECISIONS:
        reads = [crossed(task, name, precision, seed, out) for seed in range(len(exact))]
        seeds = [seed for seed, read in enumerate(reads) if read is not None]
        pairs = {
            "int8": [read for read in reads if read is not None],
            "float32": [exact[seed] for seed in seeds],
        }
        if seeds:
            told["trained_in_int8" if precision == "int8" else "read_in_int8"] = {
                "seeds": seeds,
                "log_loss": difference(lambda cell: cell.loss, pairs, task),
                "accuracy": difference(lambda cell: cell.right, pairs, task),
            }
    print(json.dumps(told, indent=2))
    return told


def summarise(
    task: Any, name: str, cells: dict[str, list[Training]], out: Path, around: dict[str, Any]
) -> None:
    """Of the seeds that there are: write and print the result."""
    loss = difference(lambda cell: cell.loss, cells, task)
    seeds = len(cells["int8"])
    result = {
        "name": f"accuracy-{name}",
        "what": "int8 less float32, same seeds, rows and order: validation log loss and accuracy",
        "rows": {"train": len(task.train), "validation": len(task.validation)},
        "settings": SETTINGS | TASKS[name],
        "seeds": seeds,
        "log_loss": loss,
        "accuracy": difference(lambda cell: cell.right, cells, task),
        "probabilities": probabilities(task, name, out),
        "limit": LIMIT,
        "reached": seeds > 1 and max(map(abs, loss["ci95"])) < LIMIT,
        **around,
    }
    write_json(BENCH / "results" / f"accuracy-{name}.json", result)
    for key in ("log_loss", "accuracy", "probabilities"):
        print(key, json.dumps(result[key], indent=2))


if __name__ == "__main__":
    main()
