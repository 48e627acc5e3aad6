"""A rung's row of the comparison: its results, or why there are none."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llabel.compare.answers import FinishedRung, Outcome
from llabel.compare.diagnosis import confusion, loss_curve, reliability
from llabel.compare.scores import compared_metrics
from llabel.comparison import (
    ComparedCost,
    ComparedMetrics,
    ComparedRung,
    PairRecord,
    TrialRecord,
)
from llabel.confidence import coverage_curve
from llabel.ladder.trials import REFIT, stage
from llabel.metrics import report
from llabel.record import RunRecord
from llabel.statistics.paired import accuracies
from llabel.task import Task

CONTROLS = ("majority", "lookup")


def rung_row(
    rung: FinishedRung,
    runs: Sequence[Outcome],
    task: Task,
    unseen: npt.NDArray[np.bool_],
    pairs: Sequence[PairRecord],
    p_values: Mapping[str, float],
    best: str | None,
    reference: dict[str, Any],
    out: Path,
) -> ComparedRung:
    """The row of a rung that is done.

    Args:
        rung: its answers and records.
        runs: all its runs, those that failed too.
        task: fields, classes, rows.
        unseen: (n_test,) which test rows share no long text with train or validation.
        pairs: of the whole table.
        p_values: of each rung against the best, corrected.
        best: name of the best rung.
        reference: majority and look-up.
        out: folder of the comparison.
    """
    record, planned = rung.records[0], rung.outcomes[0].planned
    test = rung.answers["test"]
    once = test.once()
    metrics = compared_metrics(rung.answers, task, unseen)
    pair = _against(rung.name, best, pairs)
    return ComparedRung(
        name=rung.name,
        status="done",
        reason="",
        control=rung.name in CONTROLS,
        folder=planned.folder.relative_to(out).as_posix(),
        seeds=[record["seed"] for record in rung.records],
        settings=record["training"].get("settings", record["config"]),
        metrics=metrics,
        cost=_cost(record),
        seed_accuracies=accuracies(task.test.y, test.answers).tolist(),
        p_value_vs_best=p_values.get(rung.name),
        difference_vs_best=pair and pair["difference"],
        difference_vs_best_ci95=pair and pair["ci95"],
        trials=_trials(record),
        losses=loss_curve(planned.folder / "train.log.jsonl", _stages(record)),
        report=list(report(task.test.y, once.answers[0], task.classes)),
        confusion=confusion(task.test.y, once.answers[0], len(task.classes)),
        reliability=reliability(task.test.y, once.proba[0]),
        coverage=coverage_curve(
            once.proba[0].argmax(axis=1) == task.test.y, once.proba[0].max(axis=1)
        ),
        calibration=record.get("calibration"),
        abstention=record.get("abstention"),
        free_answers=record.get("free_answers"),
        lookup_part=_lookup_part(metrics, reference["majority"]),
        note=_note(record, runs),
        command=record["command"],
    )


def _note(record: RunRecord, runs: Sequence[Outcome]) -> str:
    """What is known of the weights, and which seeds are missing."""
    lost = [f"{run.planned.label} failed: {run.reason}" for run in runs if not run.record]
    return " ".join([*([record["model_note"]] if record["model_note"] else []), *lost])


def failed_row(runs: Sequence[Outcome], out: Path) -> ComparedRung:
    """The row of a rung of which no seed came to a result, or not every draw."""
    planned = runs[0].planned
    lost = next(run for run in runs if run.record is None)
    where = "" if lost is runs[0] else f"{lost.planned.label}: "
    return ComparedRung(
        name=planned.rung,
        status="failed",
        reason=where + lost.reason,
        control=planned.rung in CONTROLS,
        folder=planned.folder.relative_to(out).as_posix(),
        seeds=[],
        settings={},
        metrics=None,
        cost=None,
        seed_accuracies=[],
        p_value_vs_best=None,
        difference_vs_best=None,
        difference_vs_best_ci95=None,
        trials=[],
        losses=None,
        report=[],
        confusion=[],
        reliability=[],
        coverage=[],
        calibration=None,
        abstention=None,
        free_answers=None,
        lookup_part=None,
        note="",
        command=planned.command,
    )


def _against(name: str, best: str | None, pairs: Sequence[PairRecord]) -> PairRecord | None:
    """The pair of a rung and the best, seen from the rung."""
    for pair in pairs:
        if (pair["a"], pair["b"]) == (name, best):
            return pair
        if (pair["b"], pair["a"]) == (name, best):
            low, high = pair["ci95"]
            turned = {"difference": -pair["difference"], "ci95": [-high, -low]}
            return pair | turned  # type: ignore[return-value]
    return None


def _cost(record: RunRecord) -> ComparedCost:
    cost = record["cost"]
    return ComparedCost(
        train_seconds=cost["train_seconds"],
        search_seconds=cost.get("search_seconds", cost["train_seconds"]),
        ms_per_text_single=cost.get("ms_per_text_single"),
        ms_per_text_bulk=1000 / cost["predict_rows_per_second"],
        trainable_parameters=cost["trainable_parameters"],
        parameters=cost.get("parameters", cost["trainable_parameters"]),
        disk_mb=cost.get("disk_mb"),
        peak_rss_mb=cost["peak_rss_mb"],
        peak_gpu_mb=cost["peak_gpu_mb"],
        weights_mb=cost.get("weights_mb"),
    )


def _trials(record: RunRecord) -> list[TrialRecord]:
    training = record["training"]
    if "trials" not in training:  # recorded before there were any
        alone = TrialRecord(
            settings={"learning_rate": record["config"]["learning_rate"]},
            validation_loss=record["metrics"]["validation"]["log_loss"],
            epoch_losses=training["epoch_losses"],
            epochs=training["epochs"],
            seconds=record["cost"]["train_seconds"],
            stopped="epochs",
            chosen=True,
        )
        return [alone]
    names = TrialRecord.__annotations__
    return [
        TrialRecord(**{name: trial[name] for name in names})  # type: ignore[typeddict-item]
        for trial in training["trials"]
    ]


def _stages(record: RunRecord) -> list[str]:
    """What `train.log.jsonl` calls the training that was kept, the likeliest name first."""
    training = record["training"]
    chosen = [trial["number"] for trial in training.get("trials", []) if trial["chosen"]]
    refit = [REFIT] if training["refit"] else []
    return [*refit, *(stage(n, record["config"]["trials"]) for n in chosen), "training"]


def _lookup_part(metrics: ComparedMetrics, majority: dict[str, Any]) -> float | None:
    """The gain over the majority class that is there on rows with known texts only."""
    unseen = metrics["test_unseen"]
    if unseen is None or unseen["rows"] == metrics["test"]["rows"]:
        return None
    gain = metrics["test"]["accuracy"] - majority["accuracy"]
    return gain - (unseen["accuracy"] - majority["accuracy_unseen"])
