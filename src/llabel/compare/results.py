"""From the runs' folders to `compare.json`: scores with intervals, tests, verdict, errors."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llabel.assessment import baselines, data_record
from llabel.compare.answers import FinishedRung, Outcome, read_answers
from llabel.compare.diagnosis import RungAnswers, analyse_errors
from llabel.compare.draws import (
    DrawnRuns,
    all_answers,
    all_rows,
    all_unseen,
    mean_baselines,
    told,
)
from llabel.compare.rows import CONTROLS, failed_row, rung_row
from llabel.comparison import (
    SCHEMA,
    ComparedData,
    CompareRecord,
    CurvePoint,
    ErrorAnalysis,
    PairRecord,
    VerdictRecord,
)
from llabel.config import RunConfig
from llabel.data import LoadedTask, unseen_rows
from llabel.record import Baseline, environment
from llabel.settings import CompareSettings
from llabel.statistics.paired import Pair, compare_pair, holm
from llabel.statistics.resampling import numbered, resampled
from llabel.task import Split, Task
from llabel.verdict import Candidate, decide

_Mask = npt.NDArray[np.bool_]


def assemble(
    config: RunConfig,
    asked: CompareSettings,
    loaded: LoadedTask,
    outcomes: Sequence[Outcome],
    points: Sequence[Outcome],
    out: Path,
    command: str,
) -> CompareRecord:
    """The record of a comparison whose runs have ended.

    Args:
        config, asked: its settings.
        loaded: its rows.
        outcomes: runs of the table, a rung's seeds together, from cheap to dear.
        points: runs of the learning curve.
        out: folder of the comparison.
        command: what the user typed.
    """
    task = loaded.task
    unseen = unseen_rows([task.train, task.validation], task.test, task.fields)
    by_rung = [list(runs) for _, runs in groupby(outcomes, key=lambda run: run.planned.rung)]
    done = {rung.name: rung for runs in by_rung if (rung := _read(runs, task))}
    reference = baselines(task, unseen, refit=config.llm.refit)
    table = _Table(task, loaded, unseen, by_rung, done, reference)
    return _record(table, config, asked, out, command) | {"curve": _curve(points, outcomes)}


def assemble_draws(
    config: RunConfig, asked: CompareSettings, drawn: Sequence[DrawnRuns], out: Path, command: str
) -> CompareRecord:
    """The same of several draws of the rows, put together."""
    task = all_rows(drawn)
    first = drawn[0].loaded
    facts = replace(first, task=replace(first.task, test=task.test))
    by_rung = [list(runs) for runs in zip(*(one.outcomes for one in drawn), strict=True)]
    done = all_answers(drawn)
    table = _Table(task, facts, all_unseen(drawn), by_rung, done, mean_baselines(drawn))
    return _record(table, config, asked, out, command) | {"draws": told(drawn, out)}


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """What a comparison's record is made from.

    Attributes:
        task: the rows that were answered.
        facts: what is told of the data.
        unseen: (n_test,) test rows that share no long text with train or validation.
        runs: of each rung, from cheap to dear.
        done: rungs that have results, by name.
        reference: majority class and look-up.
    """

    task: Task
    facts: LoadedTask
    unseen: _Mask
    runs: list[list[Outcome]]
    done: dict[str, FinishedRung]
    reference: dict[str, Baseline]


def _record(
    table: _Table, config: RunConfig, asked: CompareSettings, out: Path, command: str
) -> CompareRecord:
    task, unseen, done = table.task, table.unseen, table.done
    pairs = _pairs(done, task)
    names: list[str] = [runs[0].planned.rung for runs in table.runs]
    failed = {name: _kind(name) == "llm" for name in names if name not in done}
    verdict = _verdict(done, failed, task, unseen, asked.margin)
    best = verdict["best"]
    p_values = _against_best(pairs, best)
    facts = _data(config, table.facts, unseen)
    rungs = [
        rung_row(done[name], runs, task, unseen, pairs, p_values, best, table.reference, out)
        if (name := runs[0].planned.rung) in done
        else failed_row(runs, out)
        for runs in table.runs
    ]
    return CompareRecord(
        schema=SCHEMA,
        title=f"{facts['name']}: {_of_target(config)}{task_title(task)}",
        data=facts,
        verdict=verdict,
        draws=[],
        rungs=rungs,
        pairs=pairs,
        curve=[],
        errors=_errors(done, task, best, with_texts=not config.run.no_texts),
        baselines=table.reference,
        settings=_settings(config, asked),
        environment=environment("cpu", "float32") | _machine(done),
        command=command,
    )


def _of_target(config: RunConfig) -> str:
    return f"{config.data.target}, " if config.data.target else ""


def task_title(task: Task) -> str:
    """What is answered from what, in a few words."""
    return f"{len(task.classes)} labels from {' + '.join(task.fields)}"


def _read(runs: list[Outcome], task: Task) -> FinishedRung | None:
    """The seeds of one rung that came to a result; None where none did."""
    ended = [(run, run.record) for run in runs if run.record]
    if not ended:
        return None
    answers = read_answers([run.planned.folder for run, _ in ended], task)
    return FinishedRung(
        runs[0].planned.rung, [run for run, _ in ended], [record for _, record in ended], answers
    )


def _pairs(done: dict[str, FinishedRung], task: Task) -> list[PairRecord]:
    """Every pair, tested on all test rows, Holm-corrected as one family."""
    found = [(a, b, _compare(done[a], done[b], task.test)) for a, b in combinations(done, 2)]
    corrected = holm([pair.p_value for _, _, pair in found])
    return [
        PairRecord(
            a=a,
            b=b,
            difference=pair.difference,
            ci95=list(pair.interval),
            p_value=pair.p_value,
            p_value_holm=p,
            test="mcnemar" if "McNemar" in pair.test else "bootstrap",
        )
        for (a, b, pair), p in zip(found, corrected, strict=True)
    ]


def _against_best(pairs: Sequence[PairRecord], best: str | None) -> dict[str, float]:
    """The p value of each rung against the best, Holm-corrected as a family of its own."""
    mine = [pair for pair in pairs if best in (pair["a"], pair["b"])]
    others = [pair["b"] if pair["a"] == best else pair["a"] for pair in mine]
    return dict(zip(others, holm([pair["p_value"] for pair in mine]), strict=True))


def _compare(a: FinishedRung, b: FinishedRung, split: Split) -> Pair:
    return compare_pair(
        split.y,
        a.answers["test"].answers,
        b.answers["test"].answers,
        groups=resampled(split.groups),
    )


def _data(config: RunConfig, loaded: LoadedTask, unseen: _Mask) -> ComparedData:
    task = loaded.task
    parts = {"train": task.train, "validation": task.validation, "test": task.test}
    counts = {
        part: np.bincount(split.y, minlength=len(task.classes)).tolist()
        for part, split in parts.items()
    }
    groups = task.test.groups
    return ComparedData(
        **data_record(config, loaded, {}),
        name=task.name,
        class_counts=counts,
        unseen_test_rows=int(unseen.sum()),
        test_groups=None if groups is None else len(set(groups)),
    )


def _curve(points: Sequence[Outcome], outcomes: Sequence[Outcome]) -> list[CurvePoint]:
    """Validation accuracy by training size; the table's own runs are the last point."""
    if not points:
        return []
    first = {run.planned.rung: run for run in reversed(outcomes)}
    found = []
    for run in [*points, *first.values()]:
        if run.record is None:
            continue
        scores = run.record["metrics"]["validation"]
        found.append(
            CurvePoint(
                rung=run.planned.rung,
                train_rows=run.record["data"]["rows"]["train"],
                accuracy=scores["accuracy"],
                accuracy_ci95=scores["accuracy_ci95"],
                log_loss=scores["log_loss"],
            )
        )
    return found


def _kind(name: str) -> Any:
    if name in CONTROLS:
        return "control"
    return "llm" if name.startswith("llm-") else "simpler"


def _errors(
    done: dict[str, FinishedRung], task: Task, best: str | None, *, with_texts: bool
) -> ErrorAnalysis | None:
    if best is None:
        return None
    llms = [name for name in done if _kind(name) == "llm"]
    rungs = [
        RungAnswers(
            name=rung.name,
            kind=_kind(rung.name),
            answers=once.answers[0],
            proba=once.proba[0],
        )
        for rung in done.values()
        for once in [rung.answers["test"].once()]
    ]
    return analyse_errors(
        task,
        rungs,
        best=best,
        llm=min(llms, key=lambda name: _validation_loss(done[name]), default=None),
        with_texts=with_texts,
    )


def _validation_loss(rung: FinishedRung) -> float:
    return float(np.mean([r["metrics"]["validation"]["log_loss"] for r in rung.records]))


def _verdict(
    done: dict[str, FinishedRung],
    failed: dict[str, bool],
    task: Task,
    unseen: _Mask,
    margin: float,
) -> VerdictRecord:
    if not done:
        return VerdictRecord(
            kind="failed",
            choose=None,
            reason="Every rung failed: there is nothing to choose from.",
            best=None,
            margin=margin,
            rows_used="test",
            rows_needed=None,
        )
    verdict = decide(
        task.test.y,
        [_candidate(rung, rank) for rank, rung in enumerate(done.values())],
        unseen=unseen,
        groups=resampled(task.test.groups),
        ids=numbered(task.test.ids),
        margin=margin,
        failed=failed,
    )
    return VerdictRecord(
        kind=verdict.kind,
        choose=verdict.choose,
        reason=verdict.reason,
        best=verdict.best,
        margin=margin,
        rows_used="test_unseen" if verdict.basis == "unseen" else "test",
        rows_needed=verdict.rows_needed,
    )


def _candidate(rung: FinishedRung, rank: int) -> Candidate:
    return Candidate(
        name=rung.name,
        cost_rank=rank,
        answers=rung.answers["test"].answers,
        validation_accuracy=float(
            np.mean([r["metrics"]["validation"]["accuracy"] for r in rung.records])
        ),
        validation_log_loss=_validation_loss(rung),
        is_llm=_kind(rung.name) == "llm",
        is_control=rung.name in CONTROLS,
    )


def _settings(config: RunConfig, asked: CompareSettings) -> dict[str, Any]:
    llm = config.llm
    own = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(asked).items()}
    target = {"target": config.data.target} if config.data.target else {}
    return (
        own
        | target
        | {
            "trials": llm.trials,
            "budget": llm.budget,
            "refit": llm.refit,
            "seed": llm.seed,
            "no_texts": config.run.no_texts,
        }
    )


def _machine(done: dict[str, FinishedRung]) -> dict[str, Any]:
    """Of the last, dearest rung: it used what there is."""
    last = list(done.values())[-1:]
    return last[0].records[0]["environment"] if last else {}
