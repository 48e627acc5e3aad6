"""Sweeps as the tests of the page need them: invented losses, effects worked out as always."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from math import exp, log10, sqrt
from typing import Any

import numpy as np

from llabel.metrics import Scores
from llabel.report.sweep_cells import brief
from llabel.statistics.effects import analyse
from llabel.sweep_record import SCHEMA, Cell, Chosen, NotWorse, SweepRecord

PUBLISHED = {"r": [1, 16, 128, 256], "lora_alpha": [0, 1, 16, 128, 256]}
DEFAULTS = {"r": 16, "lora_alpha": 32, "lr": 1e-4, "epochs": 1, "seed": 0}
ROWS = 1000
LAYERS = 30
UNTOUCHED, PRIOR = 0.86, 0.662


def sweep(
    axes: Mapping[str, Sequence[Any]] = PUBLISHED,
    *,
    search: int = 0,
    failed: Sequence[int] = (),
    pruned: Sequence[int] = (),
    rslora: bool = False,
    noise: float = 0.006,
) -> SweepRecord:
    """A record as a sweep writes it; the same arguments give the same record.

    Args:
        axes: values by name; of a search, those it draws from.
        search: how many trials; 0 for a grid.
        failed, pruned: places of cells that are not done.
        rslora: whether scaling is alpha / √r.
        noise: standard deviation of the loss over seeds.
    """
    rng = np.random.default_rng(11)
    names = [*DEFAULTS, *(name for name in axes if name not in DEFAULTS)]
    values = [list(axes.get(name, [DEFAULTS.get(name)])) for name in names]
    grid = [dict(zip(names, chosen, strict=True)) for chosen in product(*values)]
    if search:
        grid = [_drawn(rng, names, axes) for _ in range(search)]
    cells = [_cell(rng, place, settings, rslora, noise) for place, settings in enumerate(grid)]
    for place in failed:
        cells[place] = _lost(cells[place], "failed")
    for place in pruned:
        cells[place] = _lost(cells[place], "pruned")
    done = [cell for cell in cells if cell["status"] == "done"]
    chosen = _chosen(done) if done else None
    found = analyse(
        [cell["settings"] for cell in cells],
        [_loss(cell) if cell["status"] == "done" else None for cell in cells],
        scaling_lr=[cell["scaling_lr"] for cell in cells],
        control=[cell["control"] for cell in cells],
    )
    return {
        "schema": SCHEMA,
        "title": "boolq",
        "command": "llabel sweep boolq --r 1,16,128,256 --lora-alpha 0,1,16,128,256 --out sweeps/b",
        "environment": {
            "python": "3.11.2",
            "device": "cpu",
            "packages": {"llabel": "0.1.0", "torch": "2.13.0+cpu"},
        },
        "config": {"rung": "llm-lora", "use_rslora": rslora, "batch_size": 16, "epochs": 1},
        "data": {
            "source": "boolq",
            "fields": ["question", "passage"],
            "classes": [False, True],
            "fingerprint": "29d34a524168be219df9205bdb733b94f78e13e20b595a7dc912b9aa8a1626bc",
            "rows": {"train": 4000, "validation": ROWS, "test": 3270},
            "truncated": {"train": 120, "validation": 31},
            "notes": ["1,000 of 5,000 rows, by passage, are cut as the validation part, seed 0."],
        },
        "axes": {name: list(found) for name, found in axes.items()} if not search else {},
        "search": {
            "sampler": "tpe",
            "trials": search,
            "ranges": {"lr": {"low": 1e-5, "high": 1e-2, "log": True, "whole": False}},
            "pruner": "successive halving on validation log loss",
        }
        if search
        else None,
        "cells": cells,
        "chosen": chosen,
        "effects": asdict(found),
        "test": {
            "cell": chosen["cell"],
            "metrics": {"test": _scores(0.52, 3270), "test_unseen": _scores(0.54, 2318)},
            "earlier": [],
        }
        if chosen
        else None,
        "prior_log_loss": PRIOR,
    }


def _drawn(rng: Any, names: Sequence[str], axes: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """As TPE would: half of the trials near what is best."""
    settings = {name: DEFAULTS.get(name) for name in names}
    settings |= {name: values[rng.integers(len(values))] for name, values in axes.items()}
    centre, width = (-2.8, 0.4) if rng.random() < 0.5 else (-3.5, 1.2)
    settings["lr"] = float(10 ** np.clip(rng.normal(centre, width), -5, -2))
    return settings


def _cell(rng: Any, place: int, settings: dict[str, Any], rslora: bool, noise: float) -> Cell:
    r, alpha, lr, epochs = (settings[name] for name in ("r", "lora_alpha", "lr", "epochs"))
    scaling = alpha / (sqrt(r) if rslora else r)
    control = alpha == 0
    x = log10(scaling * lr) if alpha else -9.0
    learned = 1 / (1 + exp(-2.2 * (x + 3.6)))
    broken = max(0.0, x + 2.1) ** 1.5
    final = UNTOUCHED if control else 0.665 - 0.14 * learned + 0.35 * broken
    final += 0 if control else rng.normal(0, noise) - 0.012 * learned * log10(r + 1) / 2.4
    ends = [final + (UNTOUCHED - final) * 0.3 * exp(-1.1 * at) for at in range(epochs)]
    if epochs > 2 and learned > 0.7:
        ends = [end + 0.02 * at for at, end in enumerate(ends)]
    ends = [] if control else ends
    final = min(ends, default=final)
    norm = 0.0 if control else 0.03 * 10 ** (0.45 * (x + 3.5)) * r**0.1
    name = "-".join(f"{key}={brief(value)}" for key, value in settings.items())
    steps = np.linspace(0.02, epochs, 150)
    start, drop = UNTOUCHED + 0.05, max(0.0, UNTOUCHED - final + 0.05)
    curve = start - drop * (1 - np.exp(-steps * (1.5 + 2 * learned)))
    curve += rng.normal(0, 0.012, len(steps)) + 0.5 * broken * np.exp(-steps)
    return {
        "name": f"{place:03d}-{name}",
        "folder": f"cells/{place:03d}-{name}",
        "settings": settings,
        "rung": "llm-lora",
        "scaling": scaling,
        "scaling_lr": scaling * lr,
        "status": "done",
        "control": control,
        "reason": "",
        "metrics": {"validation": _scores(final, ROWS)},
        "epoch_losses": ends,
        "curve": []
        if control
        else [
            (int(250 * at), round(float(at), 3), float(v))
            for at, v in zip(steps, curve, strict=True)
        ],
        "weights": {
            "update_norm": 300 * norm,
            "relative_update_norm": norm,
            "layers": [
                {
                    "layer": layer,
                    "norm": 55 * norm * (0.6 + 0.02 * layer + 0.1 * (layer % 3)),
                    "relative": norm * (0.6 + 0.02 * layer + 0.1 * (layer % 3)),
                }
                for layer in range(LAYERS)
            ],
        },
        "perplexity": {
            "before": 21.4,
            "after": 21.4 * (1 + norm + 4 * norm**2),
            "tokens": 61_200,
        },
        "cost": {
            "train_seconds": 0.0 if control else 610.0 * epochs * (1 + r / 800),
            "train_rows_per_second": None if control else 6.5,
            "steps": 0 if control else 250 * epochs,
            "epochs": 0.0 if control else float(epochs),
            "trainable_parameters": 0 if control else 305_000 * r,
            "parameters": 134_515_008,
            "peak_rss_mb": None if control else 1900.0,
        },
        "command": "" if control else f"llabel fit boolq --r {r} --lora-alpha {alpha} --out DIR",
    }


def _lost(cell: Cell, status: Any) -> Cell:
    reason = {
        "failed": "diverged: the loss was nan at step 40 of 250; try a lower lr.",
        "pruned": "after epoch 1 its validation log loss 0.7912 was above the best third.",
    }[status]
    empty = {"validation": None}
    cell |= {"status": status, "reason": reason, "metrics": empty}  # type: ignore[typeddict-item]
    cell |= {"weights": None, "perplexity": None}
    cell |= {"cost": None, "curve": [], "epoch_losses": []} if status == "failed" else {}
    return cell


def _scores(loss: float, rows: int) -> Scores:
    accuracy = 0.5 + 0.55 * max(0.0, 0.72 - loss)
    return {
        "rows": rows,
        "accuracy": accuracy,
        "accuracy_ci95": [accuracy - 0.03, accuracy + 0.03],
        "macro_f1": accuracy - 0.04,
        "log_loss": loss,
        "ece": 0.03,
    }  # type: ignore[typeddict-item,return-value]


def _loss(cell: Cell) -> float:
    scores = cell["metrics"]["validation"]
    assert scores is not None
    return scores["log_loss"]


def _chosen(done: Sequence[Cell]) -> Chosen:
    groups: dict[str, list[Cell]] = {}
    for cell in done:
        key = repr({name: v for name, v in cell["settings"].items() if name != "seed"})
        groups.setdefault(key, []).append(cell)
    means = {key: sum(map(_loss, cells)) / len(cells) for key, cells in groups.items()}
    best, *others = sorted(groups, key=lambda key: means[key])
    near: list[NotWorse] = [
        {
            "cell": min(groups[key], key=_loss)["name"],
            "cells": [cell["name"] for cell in groups[key]],
            "difference": means[key] - means[best],
            "ci95": [means[key] - means[best] - 0.02, means[key] - means[best] + 0.02],
            "p_value": min(1.0, exp(-150 * (means[key] - means[best]))),
        }
        for key in others
        if means[key] - means[best] < 0.02
    ]
    first = min(groups[best], key=_loss)
    names = {cell["name"]: cell for cell in done}
    cheapest = min(
        [first["name"], *(entry["cell"] for entry in near)],
        key=lambda name: names[name]["cost"]["train_seconds"],  # type: ignore[index]
    )
    return {
        "cell": first["name"],
        "cells": [cell["name"] for cell in groups[best]],
        "metrics": {
            "validation": {
                **_scores(means[best], ROWS),
                "macro_f1_ci95": [0.55, 0.63],
                "log_loss_ci95": [means[best] - 0.025, means[best] + 0.025],
                "ece_ci95": [0.01, 0.06],
            }
        },
        "recommended": cheapest,
        "not_worse": near,
        "rule": "The best setting has the lowest validation log loss. A setting is not measurably "
        "worse where a paired bootstrap over the rows, Holm-corrected, does not tell it from the "
        "best (5 %). Cheapest is the one that took least time to train.",
    }
