"""What the page of a comparison shows: figures, tables and marks worked out from `compare.json`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log
from typing import Literal

from llabel import numbers
from llabel.comparison import ComparedRung, ComparedScores, CompareRecord
from llabel.metrics import NO_LABEL
from llabel.report import plots, wording
from llabel.report.coverage import CoverageView, coverage_view
from llabel.report.page import Figure, render

_WIDE, _NARROW = (480, 350), (340, 360)


@dataclass(frozen=True, slots=True)
class RungView:
    """A rung's row and its marks.

    Attributes:
        id: of its parts on the page.
        row: the record's.
        tags: chosen, best, control, failed: in words.
        whisker: left end, width and middle of its accuracy's interval, in percent of the scale;
            None where it lies below the scale.
        gain, gain_unseen: accuracy above the majority class.
        epochs: epoch, mean training loss up to it, validation loss: the loss curve as a table.
    """

    id: str
    row: ComparedRung
    tags: tuple[str, ...]
    whisker: tuple[float, float, float] | None
    gain: float | None
    gain_unseen: float | None
    epochs: tuple[tuple[int, float | None, float | None], ...]


@dataclass(frozen=True, slots=True)
class Confusion:
    """A confusion matrix: (true class, its rows, [(rows, share of the class)] by answer)."""

    rung: RungView
    answers: tuple[str, ...]
    rows: tuple[tuple[str, int, tuple[tuple[int, float], ...]], ...]


def render_comparison(record: CompareRecord) -> str:
    """Write a comparison as one self-contained HTML page.

    Args:
        record: the content of `compare.json`.

    Returns:
        The page; identical records give identical pages.
    """
    rungs = tuple(_views(record))
    done = tuple(rung for rung in rungs if rung.row["status"] == "done")
    picked = tuple(rung for rung in done if {"chosen", "best"} & set(rung.tags))
    return render(
        "comparison.html.j2",
        {
            "record": record,
            "headline": wording.headline(record),
            "rungs": rungs,
            "done": done,
            "picked": picked,
            "seeds": max((len(rung.row["seeds"]) for rung in done), default=1),
            "classes": [str(label) for label in record["data"]["classes"]],
            "cost_figures": _cost_figures(done),
            "untrained": [rung.row["name"] for rung in done if not _trains(rung)],
            "curve": _learning_curve(record),
            "loss_figures": _loss_figures(done),
            "reliability": _reliability(done),
            "coverage": _coverage(done),
            "calibrated": [rung for rung in done if rung.row.get("calibration")],
            "abstaining": [rung for rung in done if rung.row.get("abstention")],
            "free": [rung for rung in done if rung.row.get("free_answers")],
            "confusions": [_confusion(record, rung) for rung in picked if rung.row["confusion"]],
            "examples": wording.examples(record),
            "lacks_texts": wording.lacks_texts(record),
            "leak": wording.leak(record),
            "lookup_told": wording.lookup_told(record),
            "enough_seen": wording.ENOUGH_SEEN,
            "even_loss": log(max(1, len(record["data"]["classes"]))),
        },
    )


def _views(record: CompareRecord) -> Iterator[RungView]:
    scored = [rung["metrics"]["test"] for rung in record["rungs"] if rung["metrics"]]
    floor = _floor(scored)
    low, high = _scale([scores for scores in scored if scores["accuracy"] >= floor])
    base = record["baselines"].get("majority")
    for place, rung in enumerate(record["rungs"], 1):
        metrics = rung["metrics"] if rung["status"] == "done" else None
        whisker = gain = gain_unseen = None
        if metrics:
            whisker = _whisker(metrics["test"], low, high, floor)
            gain = metrics["test"]["accuracy"] - base["accuracy"] if base else None
            if base and metrics["test_unseen"] and base["accuracy_unseen"] is not None:
                gain_unseen = metrics["test_unseen"]["accuracy"] - base["accuracy_unseen"]
        epochs = tuple(_epochs(rung))
        tags = tuple(_tags(record, rung))
        yield RungView(f"rung-{place}", rung, tags, whisker, gain, gain_unseen, epochs)


def _floor(scores: Sequence[ComparedScores]) -> float:
    """The accuracy below which a rung is out of the race, and is not drawn to scale.

    Within 0.1 of the best, or four widths of the best one's interval, all are in it.
    """
    if not scores:
        return 0.0
    best = max(scores, key=lambda found: found["accuracy"])
    low, high = best["accuracy_ci95"]
    return best["accuracy"] - max(0.1, 4 * (high - low))


def _scale(scores: Sequence[ComparedScores]) -> tuple[float, float]:
    """From the lowest to the highest bound of the intervals of accuracy, with a little room."""
    low = min((found["accuracy_ci95"][0] for found in scores), default=0.0)
    high = max((found["accuracy_ci95"][1] for found in scores), default=1.0)
    room = max(0.02 * (high - low), 0.001)
    return low - room, high + room


def _whisker(
    scores: ComparedScores, low: float, high: float, floor: float
) -> tuple[float, float, float] | None:
    if scores["accuracy"] < floor:
        return None
    bounds = (*scores["accuracy_ci95"], scores["accuracy"])
    left, right, middle = (100 * (bound - low) / (high - low) for bound in bounds)
    return left, right - left, middle


def _tags(record: CompareRecord, rung: ComparedRung) -> Iterator[str]:
    if rung["status"] != "done":
        yield "failed"
        return
    if rung["name"] == record["verdict"]["choose"]:
        yield "chosen"
    if rung["name"] == record["verdict"]["best"]:
        yield "best"
    if rung["control"]:
        yield "control"


def _kind(rung: ComparedRung) -> str:
    if rung["control"] or rung["name"] == "majority":
        return "control"
    return "llm" if rung["name"].startswith("llm-") else "simple"


def _cost_figures(done: Sequence[RungView]) -> list[Figure]:
    """Accuracy over the time to answer, and over the time to train."""
    figures = []
    if done:
        what = "time to answer one text, in bulk"
        figures.append(_cost_figure(done, "ms_per_text_bulk", what, "ms", 1e-3))
    if trained := [rung for rung in done if _trains(rung)]:
        figures.append(_cost_figure(trained, "train_seconds", "time to train", "s", 1e-2))
    return figures


def _trains(rung: RungView) -> bool:
    return rung.row["cost"] is None or rung.row["cost"]["train_seconds"] > 0


def _cost_figure(
    done: Sequence[RungView],
    field: Literal["ms_per_text_bulk", "train_seconds"],
    cost: str,
    unit: str,
    least: float,
) -> Figure:
    """Costs below `least` are drawn there: logarithms have no zero."""
    points, told, scores = [], [], []
    for rung in done:
        metrics, costs = rung.row["metrics"], rung.row["cost"]
        if metrics is None or costs is None:
            continue
        test = metrics["test"]
        low, high = test["accuracy_ci95"]
        scores.append(test)
        told.append(f"{rung.row['name']} {_time(unit, costs[field])} {test['accuracy']:.4f}")
        points.append(
            plots.Point(
                ", ".join((rung.row["name"], *(tag for tag in rung.tags if tag != "control"))),
                x=max(costs[field], least),
                y=test["accuracy"],
                low=low,
                high=high,
                kind=_kind(rung.row),
                strong=bool({"chosen", "best"} & set(rung.tags)),
            )
        )
    label = f"Accuracy against {cost}. {'; '.join(told)}."
    wide, narrow = (
        plots.score_against_cost(
            points,
            floor=_floor(scores),
            cost=cost,
            unit=unit,
            key=f"cost-{unit}-{suffix}",
            label=label,
            size=size,
        )
        for suffix, size in (("w", _WIDE), ("n", _NARROW))
    )
    return Figure(f"Accuracy against {cost}", wide, narrow)


def _time(unit: str, x: float) -> str:
    return f"{numbers.milliseconds(x)} ms" if unit == "ms" else numbers.duration(x)


def _learning_curve(record: CompareRecord) -> Figure | None:
    by_rung: dict[str, list[tuple[int, float]]] = {}
    for point in record["curve"]:
        by_rung.setdefault(point["rung"], []).append((point["train_rows"], point["accuracy"]))
    if not by_rung:
        return None
    picked = {record["verdict"]["choose"], record["verdict"]["best"]}
    lines = []
    for name, points in by_rung.items():
        rows, scores = zip(*sorted(points), strict=True)
        lines.append(plots.Line(name, rows, scores, strong=name in picked))
    told = "; ".join(
        f"{line.name} from {numbers.score(line.y[0])} at {numbers.count(line.x[0])} rows to "
        f"{numbers.score(line.y[-1])} at {numbers.count(line.x[-1])}"
        for line in lines
    )
    label = f"Accuracy on validation rows against training rows. {told}."
    wide, narrow = (
        plots.learning_curve(lines, key=f"curve-{suffix}", label=label, size=size)
        for suffix, size in (("w", (760, 400)), ("n", _NARROW))
    )
    return Figure("Accuracy against the number of training rows", wide, narrow)


def _validation(rung: ComparedRung) -> list[float]:
    return next((trial["epoch_losses"] for trial in rung["trials"] if trial["chosen"]), [])


def _epochs(rung: ComparedRung) -> Iterator[tuple[int, float | None, float | None]]:
    """The loss curve as a table: one row an epoch."""
    validation = _validation(rung)
    steps = rung["losses"] or {"epoch": [], "loss": []}
    pairs = list(zip(steps["epoch"], steps["loss"], strict=True))
    last = max([len(validation), *(int(-(-epoch // 1)) for epoch, _ in pairs)])
    if not pairs and len(validation) < 2:
        return
    for epoch in range(1, last + 1):
        inside = [loss for at, loss in pairs if epoch - 1 < at <= epoch]
        mean = sum(inside) / len(inside) if inside else None
        yield epoch, mean, validation[epoch - 1] if epoch <= len(validation) else None


def _loss_figures(done: Sequence[RungView]) -> list[Figure]:
    shown = [rung for rung in done if rung.epochs]
    limits = _loss_limits([rung.row for rung in shown])
    figures = []
    for rung in shown:
        validation = _validation(rung.row)
        steps = rung.row["losses"] or {"epoch": [], "loss": []}
        label = f"Loss curve of {rung.row['name']}." + (
            f" Validation log loss {numbers.score(validation[0])} after the first epoch, "
            f"{numbers.score(min(validation))} at its lowest."
            if validation
            else ""
        )
        svg = plots.loss_curve(
            (steps["epoch"], steps["loss"]),
            (range(1, len(validation) + 1), validation),
            losses=limits,
            key=f"loss-{rung.id}",
            label=label,
        )
        figures.append(Figure(rung.row["name"], svg))
    return figures


def _loss_limits(rungs: Sequence[ComparedRung]) -> tuple[float, float]:
    """Wide enough for all validation losses; single wild training steps may leave the panel."""
    validation = [loss for rung in rungs for loss in _validation(rung)]
    training = sorted(loss for rung in rungs if rung["losses"] for loss in rung["losses"]["loss"])
    top = training[int(0.98 * (len(training) - 1))] if training else 0.0
    return 0.0, 1.06 * max([top, *validation, 0.1])


def _reliability(done: Sequence[RungView]) -> list[tuple[RungView, Figure, float]]:
    """Each rung's panel and the ECE of the rows in it, which are the first seed's of several."""
    figures = []
    for rung in done:
        bins = [
            (found["confidence"], found["accuracy"], found["rows"])
            for found in rung.row["reliability"]
            if found["confidence"] is not None and found["accuracy"] is not None
        ]
        if not bins:
            continue
        off = sum(rows * abs(accuracy - confidence) for confidence, accuracy, rows in bins)
        ece = off / sum(rows for *_, rows in bins)
        edges = [found["low"] for found in rung.row["reliability"]]
        label = (
            f"Reliability of {rung.row['name']}: expected calibration error {numbers.score(ece)}."
        )
        svg = plots.reliability(
            bins,
            edges=[*edges, rung.row["reliability"][-1]["high"]],
            key=f"reliability-{rung.id}",
            label=label,
        )
        figures.append((rung, Figure(rung.row["name"], svg), ece))
    return figures


def _coverage(done: Sequence[RungView]) -> CoverageView | None:
    floor = _floor([rung.row["metrics"]["test"] for rung in done if rung.row["metrics"]])
    strong = {rung.row["name"] for rung in done if {"chosen", "best"} & set(rung.tags)}
    return coverage_view([rung.row for rung in done], strong, floor)


def _confusion(record: CompareRecord, rung: RungView) -> Confusion:
    """Shares are of the true class; the column of unknown answers is left out where it is empty."""
    counts = rung.row["confusion"]
    answers = [*map(str, record["data"]["classes"]), NO_LABEL]
    if not any(row[-1] for row in counts if len(row) == len(answers)):
        counts, answers = [row[: len(answers) - 1] for row in counts], answers[:-1]
    rows = []
    for label, row in zip(record["data"]["classes"], counts, strict=True):
        total = sum(row)
        cells = tuple((count, count / total if total else 0.0) for count in row)
        rows.append((str(label), total, cells))
    return Confusion(rung, tuple(answers), tuple(rows))
