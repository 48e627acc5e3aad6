"""share-of-peak: which share of the machine's int8 speed is useful work, training and predicting.

    python bench/share_of_peak.py [--quick]

The useful operations of our training steps and of our prediction (counted as operations.py says)
per second, divided by the int8 peak: the fastest of a grid of products, PyTorch's and our own,
measured in turns with them. The float32 peak is recorded beside it. Writes
share-of-peak-training.json and share-of-peak-predicting.json. About ten minutes on two cores.
"""

import json
from pathlib import Path
from typing import Any

from driver import Contender, Measured, measure, ratio
from operations import Decoder, needed
from record import surroundings, table, told, write
from work import (
    BATCH_SIZE,
    LORA,
    Plan,
    model_folder,
    ours_predicting,
    ours_training,
    plan_from,
    write_rows,
)

LABELS = 2


def training_operations(plan: Plan, decoder: Decoder, rows: list[dict]) -> list[int]:
    """Of each lap."""
    lengths = [row["tokens"] for row in rows[plan.warm * BATCH_SIZE :]]
    size = plan.steps * BATCH_SIZE
    return [
        needed(
            decoder, lengths[lap * size : (lap + 1) * size],
            labels=LABELS, training=True, r=LORA["r"],
        )
        for lap in range(plan.repeats)
    ]  # fmt: skip


def shared(
    name: str, ours: Measured, operations: list[int], peak: Measured, target: float
) -> dict[str, Any]:
    """The result of one side."""
    rates = [n / lap["seconds"] for n, lap in zip(operations, ours.laps, strict=True)]
    peaks = [lap["best_int8"] for lap in peak.laps]
    spread = ratio(rates, peaks)
    middle = sorted(rates)[len(rates) // 2]
    best = sorted(peaks)[len(peaks) // 2]
    return {
        "name": name,
        "what": "useful operations/s, llabel / the machine's int8 matrix-product peak",
        "unit": "of the peak",
        "ours": told(ours)
        | {"operations_per_second": middle, "operations_of_each_lap": operations},
        "peer": told(peak)
        | {
            "operations_per_second": best,
            "float32_operations_per_second": max(lap["best_float32"] for lap in peak.laps),
        },
        "ratio": spread,
        "target": {"at_least": target},
        "others": [],
    }


def main() -> None:
    plan = plan_from(__doc__)
    around = surroundings()
    config = json.loads((Path(model_folder()) / "config.json").read_text(encoding="utf-8"))
    decoder = Decoder.of(config)
    train_path, train_rows = write_rows("train", "train", plan.training_rows)
    path, rows = write_rows("predict", "validation", plan.rows)
    peak = Contender(
        "int8-peak", "workers/peak.py", {"seconds": 0.05 if plan.quick else 0.5},
        "fastest int8 product of a grid of shapes",
    )  # fmt: skip
    trainer, predictor = ours_training(plan, train_path), ours_predicting(plan, path)
    predictor = Contender("llabel-predict", predictor.script, predictor.job, predictor.what)
    training, predicting, best = measure([trainer, predictor, peak], plan.repeats)
    per_lap = [needed(decoder, [row["tokens"] for row in rows], labels=LABELS)] * plan.repeats
    work = training_operations(plan, decoder, train_rows)
    write(plan.results, shared("share-of-peak-training", training, work, best, 0.4), around)
    write(plan.results, shared("share-of-peak-predicting", predicting, per_lap, best, 0.5), around)
    print(table(plan.results))


if __name__ == "__main__":
    main()
