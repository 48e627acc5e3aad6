"""Comparisons as the tests of the page need them: invented rows, scores worked out as always."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llabel import confidence, metrics
from llabel.comparison import (
    SCHEMA,
    ComparedCost,
    ComparedRung,
    ComparedScores,
    CompareRecord,
    CurvePoint,
    ErrorRow,
    PairRecord,
    ReliabilityBin,
    TrialRecord,
)
from llabel.settings import RunSettings

TOPICS = ("business", "entertainment", "politics", "sport", "tech")
SCRIPT = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> & <b>bold</b>"
ARABIC = "فاز الفريق بالمباراة النهائية بعد وقت إضافي"
LONG_WORD = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamten" * 4
EMOJI = "Final whistle 🏆⚽️ – what a night! 👩‍👩‍👧‍👦"
LONG_TEXT = "The committee met again on Tuesday, and nothing was decided. " * 40
TEXTS = (SCRIPT, ARABIC, LONG_WORD, EMOJI, LONG_TEXT, "", "{{ 7 * 7 }} {% raw %} $x^2$")
UNSEEN_SHARE = 0.8


@dataclass(frozen=True)
class System:
    """What is made up of a rung: how good, how sure, how dear."""

    name: str
    accuracy: float
    sureness: float
    train_seconds: float
    ms: float
    disk_mb: float
    epochs: int = 0
    control: bool = False


SYSTEMS = (
    System("majority", 0.229, 0.0, 0.0002, 0.0004, 0.001),
    System("lookup", 0.33, 0.6, 0.004, 0.002, 0.8, control=True),
    System("bag-of-words", 0.966, 2.6, 6.1, 0.41, 3.2),
    System("word-embeddings", 0.944, 3.2, 4.4, 0.09, 66.0),
    System("rnn", 0.937, 4.0, 48.0, 1.9, 67.5, epochs=9),
    System("transformer", 0.915, 5.0, 31.0, 1.1, 6.4, epochs=12),
    System("encoder", 0.973, 4.2, 212.0, 9.7, 87.0, epochs=4),
    System("llm-zero-shot", 0.71, 1.2, 0.0, 68.0, 259.0),
    System("llm-lora", 0.964, 4.4, 1630.0, 71.0, 268.0, epochs=2),
)


def comparison(
    *,
    classes: Sequence[Any] = TOPICS,
    systems: Sequence[System] = SYSTEMS,
    failed: Sequence[str] = (),
    rows: int = 445,
    seeds: int = 1,
    curve: bool = True,
    texts: bool = True,
    leak: bool = True,
    abstain: bool = False,
) -> CompareRecord:
    """A record as a comparison writes it; the same arguments give the same record."""
    rng = np.random.default_rng(7)
    y = np.sort(rng.integers(0, len(classes), rows))
    unseen = rng.random(rows) < (UNSEEN_SHARE if leak else 1.0)
    rungs = []
    for system in systems:
        proba = _proba(rng, y, len(classes), system)
        done = system.name not in failed
        rungs.append(_rung(system, y, proba, unseen, classes, seeds) if done else _failed(system))
        if done and abstain:
            rungs[-1] |= _confidence(y, proba, free=system.name.startswith("llm-"))
    done_rungs = [rung for rung in rungs if rung["status"] == "done"]
    best = max(done_rungs, key=_accuracy)["name"] if done_rungs else None
    choose = "bag-of-words" if best and "bag-of-words" in {r["name"] for r in done_rungs} else best
    _add_differences(done_rungs, best)
    names = [rung["name"] for rung in done_rungs]
    counts = np.bincount(y, minlength=len(classes))
    return {
        "schema": SCHEMA,
        "title": "bbc",
        "data": {
            "source": "bbc",
            "name": "bbc",
            "fields": ["title", "text"],
            "classes": list(classes),
            "fingerprint": "29d34a524168be219df9205bdb733b94f78e13e20b595a7dc912b9aa8a1626bc",
            "rows": {"train": 4 * rows - rows // 3, "validation": rows // 3, "test": rows},
            "class_counts": {
                "train": [int(4 * n - n // 3) for n in counts],
                "validation": [int(n // 3) for n in counts],
                "test": [int(n) for n in counts],
            },
            "unseen_test_rows": int(unseen.sum()),
            "test_groups": None,
            "truncated": {"train": 120, "validation": 9},
            "notes": ["445 of 2,225 rows (20%) are cut as the test part, seed 0."],
        },
        "verdict": {
            "kind": "no_llm" if "llm-lora" in names and choose == "bag-of-words" else "use",
            "choose": choose,
            "reason": f"{choose} (96.0 %) is no worse than {best} (96.6 %), the best on "
            "validation, by more than the margin of 1 point (difference −0.7 points, 95 % interval "
            "−0.9 to +1.1; 365 test rows whose text is not in training)."
            if best
            else "Nothing to choose from: no rung could be trained and tested.",
            "best": best,
            "margin": 0.01,
            "rows_used": "test_unseen" if leak else "test",
            "rows_needed": None,
        },
        "rungs": rungs,
        "draws": [],
        "pairs": _pairs(names),
        "curve": _curve(names) if curve else [],
        "errors": _errors(names, classes, best, texts) if best else None,
        "baselines": {
            "majority": _baseline(y, np.full(rows, counts.argmax()), unseen, None),
            "lookup": _baseline(y, np.where(unseen, counts.argmax(), y), unseen, "title"),
        },
        "settings": {"trials": 3, "budget": None, "seeds": seeds, "margin": 0.01, "refit": False},
        "environment": {
            "python": "3.11.2",
            "platform": "Linux x86_64",
            "cpus": 2,
            "device": "cpu",
            "packages": {"llabel": "0.1.0", "torch": "2.13.0+cpu", "scikit-learn": "1.9.0"},
        },
        "command": "llabel compare bbc --text title --text text --label topic --out results/bbc",
    }


def _proba(rng: Any, y: Any, n_classes: int, system: System) -> Any:
    """Right at the system's rate; wrong answers lean to the next class, as real ones do."""
    answer = np.where(rng.random(len(y)) < system.accuracy, y, (y + 1) % n_classes)
    if not system.sureness:
        answer = np.full(len(y), np.bincount(y).argmax())
    logits = rng.normal(0, 0.5, (len(y), n_classes)).clip(-1, 1) * min(1, system.sureness / 3)
    logits[np.arange(len(y)), answer] += 0.4 + system.sureness * rng.uniform(0.4, 1.2, len(y))
    proba = np.exp(logits)
    return proba / proba.sum(axis=1, keepdims=True)


def _scores(y: Any, proba: Any) -> ComparedScores:
    found = metrics.score(y, proba)
    assert found is not None
    return {
        **found,
        "macro_f1_ci95": [found["macro_f1"] - 0.02, min(1.0, found["macro_f1"] + 0.02)],
        "log_loss_ci95": [found["log_loss"] * 0.9, found["log_loss"] * 1.1],
        "ece_ci95": [found["ece"] * 0.6, found["ece"] * 1.5],
    }


def _rung(
    system: System, y: Any, proba: Any, unseen: Any, classes: Sequence[Any], seeds: int
) -> ComparedRung:
    answer, name = proba.argmax(axis=1), system.name
    test, apart = _scores(y, proba), _scores(y[unseen], proba[unseen])
    trained = system.train_seconds > 1
    confusion = np.zeros((len(classes), len(classes) + 1), int)
    np.add.at(confusion, (y, answer), 1)
    spread = [0.0, -0.0045, 0.0067, 0.0022][: seeds if trained else 1]
    return {
        "name": name,
        "status": "done",
        "reason": "",
        "control": system.control,
        "folder": f"rungs/{name}",
        "seeds": list(range(len(spread))),
        "settings": {"learning_rate": 0.0008, "epochs": system.epochs, "refit": False},
        "metrics": {"validation": apart, "test": test, "test_unseen": apart},
        "cost": _cost(system),
        "seed_accuracies": [test["accuracy"] + shift for shift in spread],
        "p_value_vs_best": None,
        "difference_vs_best": None,
        "difference_vs_best_ci95": None,
        "trials": _trials(system) if trained else [],
        "losses": _losses(system.epochs) if system.epochs else None,
        "report": list(metrics.report(y, answer, list(classes))),
        "confusion": confusion.tolist(),
        "reliability": _reliability(y, proba),
        "coverage": confidence.coverage_curve(answer == y, proba.max(axis=1)),
        "lookup_part": max(0.0, test["accuracy"] - apart["accuracy"]),
        "note": "its weights were rounded to 4 bits." if name.startswith("llm-") else "",
        "command": f"llabel fit bbc --text title --text text --label topic --rung {name} --out DIR",
    }


def _confidence(y: Any, proba: Any, *, free: bool) -> Any:
    """What a run records that is calibrated, may abstain, and perhaps writes freely."""
    settings = RunSettings(calibrate="temperature", target_precision=0.95)
    validation, test = (confidence.Judged(y[k::2], proba[k::2]) for k in (0, 1))
    decided = confidence.decide(settings, validation)
    constrained = metrics.score(y, proba)
    assert constrained
    apart = {
        "rows": len(y), "unknown": 40, "unknown_share": 40 / len(y),
        "unknown_ci95": list(metrics.wilson_interval(40, len(y))), "accuracy": 0.8,
        "accuracy_of_labels": 0.9, "constrained": constrained,
    }  # fmt: skip
    return {
        "calibration": confidence.calibration_of(settings, decided, validation, test),
        "abstention": confidence.abstention_of(settings, decided, validation, test),
        "free_answers": apart if free else None,
    }


def _failed(system: System) -> ComparedRung:
    return {
        **dict.fromkeys(ComparedRung.__annotations__),
        "name": system.name,
        "status": "failed",
        "reason": "out of memory: 3.1 GiB were asked for, 2.0 GiB are free; give --batch-size 4.",
        "control": system.control,
        "folder": "",
        "seeds": [],
        "settings": {},
        "seed_accuracies": [],
        "trials": [],
        "report": [],
        "confusion": [],
        "reliability": [],
        "note": "",
        "command": "",
    }  # type: ignore[typeddict-item,return-value]


def _cost(system: System) -> ComparedCost:
    parameters = int(system.disk_mb * 2**18)
    return {
        "train_seconds": system.train_seconds,
        "search_seconds": 3.1 * system.train_seconds,
        "ms_per_text_single": 2.2 * system.ms,
        "ms_per_text_bulk": system.ms,
        "trainable_parameters": parameters // (50 if system.name == "llm-lora" else 1),
        "parameters": parameters,
        "disk_mb": system.disk_mb,
        "peak_rss_mb": 300 + 4 * system.disk_mb,
        "peak_gpu_mb": None,
    }


def _trials(system: System) -> list[TrialRecord]:
    losses = [0.9 * 0.62**epoch + 0.1 + 0.006 * epoch for epoch in range(system.epochs or 1)]
    return [
        {
            "settings": {"learning_rate": rate},
            "validation_loss": min(losses) + place * 0.013,
            "epoch_losses": [loss + place * 0.013 for loss in losses],
            "epochs": float(len(losses)),
            "seconds": system.train_seconds,
            "stopped": "patience" if place else "epochs",
            "chosen": place == 0,
        }
        for place, rate in enumerate((0.0008, 0.0024, 0.00027))
    ]


def _losses(epochs: int) -> dict[str, list[float]]:
    at = np.linspace(0.02, epochs, 120)
    noise = np.random.default_rng(epochs).normal(0, 0.05, len(at))
    loss = np.clip(1.55 * np.exp(-1.1 * at) + 0.04 + noise * np.exp(-0.2 * at), 0.005, None)
    return {"epoch": at.round(3).tolist(), "loss": loss.round(4).tolist()}


def _reliability(y: Any, proba: Any, bins: int = metrics.ECE_BINS) -> list[ReliabilityBin]:
    confidence, right = proba.max(axis=1), proba.argmax(axis=1) == y
    found: list[ReliabilityBin] = []
    for place in range(bins):
        low, high = place / bins, (place + 1) / bins
        inside = (confidence > low) & (confidence <= high)
        found.append(
            {
                "low": low,
                "high": high,
                "rows": int(inside.sum()),
                "confidence": float(confidence[inside].mean()) if inside.any() else None,
                "accuracy": float(right[inside].mean()) if inside.any() else None,
            }
        )
    return found


def _accuracy(rung: ComparedRung) -> float:
    assert rung["metrics"] is not None
    return rung["metrics"]["test"]["accuracy"]


def _add_differences(rungs: Sequence[ComparedRung], best: str | None) -> None:
    top = max(map(_accuracy, rungs), default=0.0)
    for rung in rungs:
        if rung["name"] != best:
            difference = _accuracy(rung) - top
            rung["difference_vs_best"] = difference
            rung["difference_vs_best_ci95"] = [difference - 0.018, difference + 0.017]
            rung["p_value_vs_best"] = float(np.exp(70 * difference))


def _pairs(names: Sequence[str]) -> list[PairRecord]:
    return [
        {
            "a": a,
            "b": b,
            "difference": 0.01 * (place - other),
            "ci95": [0.01 * (place - other) - 0.015, 0.01 * (place - other) + 0.015],
            "p_value": 0.5 / (other - place),
            "p_value_holm": min(1.0, 2.0 / (other - place)),
            "test": "mcnemar",
        }
        for place, a in enumerate(names)
        for other, b in enumerate(names)
        if place < other
    ]


def _curve(names: Sequence[str]) -> list[CurvePoint]:
    return [
        {
            "rung": name,
            "train_rows": rows,
            "accuracy": (value := _final(name) * (1 - 0.25 * (100 / rows) ** (0.4 + 0.07 * place))),
            "accuracy_ci95": [value - 0.03, min(1.0, value + 0.02)],
            "log_loss": 1.2 - value,
        }
        for place, name in enumerate(names)
        for rows in (100, 300, 1000, 1632)
    ]


def _final(name: str) -> float:
    return next((system.accuracy for system in SYSTEMS if system.name == name), 0.9)


def _errors(names: Sequence[str], classes: Sequence[Any], best: str | None, texts: bool) -> Any:
    def row(place: int, right: Sequence[str] = ()) -> ErrorRow:
        text = {"title": f"Title {place}", "text": TEXTS[place % len(TEXTS)]} if texts else None
        label, wrong = (classes[(place + shift) % len(classes)] for shift in (1, 0))
        answers = [
            {
                "rung": name,
                "answer": label if name in right else wrong,
                "probability": 0.998 - 0.07 * rank,
            }
            for rank, name in enumerate(reversed(names))
        ]
        return {"id": f"data:{17 * place + 3}", "label": label, "text": text, "answers": answers}

    return {
        "all_wrong": [row(place) for place in range(7)],
        "all_wrong_count": 7,
        "only_llm": [row(1, right=["llm-lora"])],
        "only_llm_count": 1,
        "only_simpler": [],
        "only_simpler_count": 0,
        "most_confident": [row(place) for place in range(20)],
        "most_confident_count": 31,
        "llm": "llm-lora" if "llm-lora" in names else None,
        "best": best,
    }


def _baseline(y: Any, answer: Any, unseen: Any, column: str | None) -> Any:
    right = y == answer
    return {
        "accuracy": float(right.mean()),
        "accuracy_ci95": list(metrics.wilson_interval(int(right.sum()), len(y))),
        "accuracy_unseen": float(right[unseen].mean()),
        "column": column,
    }
