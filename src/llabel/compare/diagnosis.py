"""How answers go wrong: confusion, reliability, the course of the loss, rows worth reading."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from llabel.comparison import ErrorAnalysis, ErrorRow, LossCurve, ReliabilityBin, RowAnswer
from llabel.metrics import ECE_BINS, UNKNOWN, confidence_bins
from llabel.predictions import answer_label
from llabel.task import ClassIndices, Probabilities, Task

LISTED = 20  # rows of a list: as many as somebody reads
TEXT_CHARACTERS = 3000  # of each field of a listed row
CURVE_POINTS = 200  # more than a plot on a page can show
SMOOTHING = 50  # a point's window reaches 1/50 of the steps to either side

RungKind: TypeAlias = Literal["control", "simpler", "llm"]
_Mask: TypeAlias = npt.NDArray[np.bool_]
_Values: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RungAnswers:
    """What one rung answered on the test rows.

    Attributes:
        name: of the rung.
        kind: `control` does not read texts as language (majority, look-up); `llm` is a large
            language model; `simpler` all else.
        answers: (n,) class indices, -1 for `unknown`.
        proba: (n, n_classes) probabilities, rows sum to 1.
    """

    name: str
    kind: RungKind
    answers: ClassIndices
    proba: Probabilities


def confusion(y: ClassIndices, answers: ClassIndices, n_classes: int) -> list[list[int]]:
    """Count rows by true class and answer.

    Args:
        y: (n,) true class indices.
        answers: (n,) class indices, -1 for `unknown`.
        n_classes: number of classes of the task.

    Returns:
        (n_classes, n_classes + 1): a row per true class, a column per answer, `unknown` last.
    """
    counts = np.zeros((n_classes, n_classes + 1), dtype=np.int64)
    np.add.at(counts, (y, answers), 1)  # -1 is the last column
    return counts.tolist()


def reliability(
    y: ClassIndices, proba: Probabilities, bins: int = ECE_BINS
) -> list[ReliabilityBin]:
    """Set accuracy against confidence, by bins of the top probability (Guo et al. 2017, sec. 2).

    The bins are those of `metrics.expected_calibration_error`, which is their mean
    |accuracy - confidence|, weighted by rows.

    Args:
        y: (n,) true class indices.
        proba: (n, n_classes) probabilities.
        bins: number of bins.

    Returns:
        All bins from low to high; mean confidence and accuracy are None in an empty one.
    """
    confidence = proba.max(axis=1)
    correct = proba.argmax(axis=1) == y
    bin_of, edges = confidence_bins(confidence, bins)
    rows = np.bincount(bin_of, minlength=bins).tolist()
    confident = np.bincount(bin_of, weights=confidence, minlength=bins).tolist()
    right = np.bincount(bin_of, weights=correct, minlength=bins).tolist()
    return [
        ReliabilityBin(
            low=low,
            high=high,
            rows=n,
            confidence=c / n if n else None,
            accuracy=r / n if n else None,
        )
        for low, high, n, c, r in zip(
            edges[:-1].tolist(), edges[1:].tolist(), rows, confident, right, strict=True
        )
    ]


def loss_curve(log: Path, stages: Sequence[str]) -> LossCurve | None:
    """Read how the training loss went: `loss_points` without their steps.

    Returns:
        The curve; None where there is no log, or no step of these stages in it.
    """
    points = loss_points(log, stages)
    if not points:
        return None
    return LossCurve(epoch=[epoch for _, epoch, _ in points], loss=[loss for *_, loss in points])


def loss_points(log: Path, stages: Sequence[str]) -> list[tuple[int, float, float]]:
    """Read how the training loss went, smoothed and thinned to at most 200 points.

    A point is the mean epoch and the mean loss over the rows of neighbouring steps, 1/50 of all
    steps to either side and fewer at the ends; a loss that falls evenly is kept as it is.

    Args:
        log: `train.log.jsonl` of a run folder (`events.StepDone` as JSON lines). Where a step
            comes again, training was set back there: what was logged from it on is forgotten.
        stages: names of trainings as in `StepDone.stage`; the first that was logged is read. Name
            the refit first, then the training that was chosen.

    Returns:
        (step in the middle, epoch, loss) of each point; none where there is no log, or no step of
        these stages in it.
    """
    taken = _steps(log, stages) if log.is_file() else {}
    steps = next((taken[stage] for stage in stages if stage in taken), None)
    if steps is None:
        return []
    n, reach = len(steps), len(steps) // SMOOTHING
    centre = np.linspace(0, n - 1, min(n, CURVE_POINTS)).round().astype(np.int64)
    first, end = np.maximum(centre - reach, 0), np.minimum(centre + reach + 1, n)
    rows, epochs, losses = np.array([(s["rows"], s["epoch"], s["loss"]) for s in steps], float).T
    weight = _window_sums(rows, first, end)
    return list(
        zip(
            [steps[at]["step"] for at in centre.tolist()],
            _rounded(_window_sums(rows * epochs, first, end) / weight),
            _rounded(_window_sums(rows * losses, first, end) / weight),
            strict=True,
        )
    )


def analyse_errors(
    task: Task,
    rungs: Sequence[RungAnswers],
    *,
    best: str,
    llm: str | None,
    with_texts: bool = True,
) -> ErrorAnalysis:
    """Pick the test rows that somebody should read.

    `all_wrong`: every rung that reads the text is wrong. Those come first to whose label these
    rungs gave the least probability on average, so that rows with a wrong label stand on top.
    This "self-confidence" also ranks the rows of confident learning (Northcutt et al. 2021, arXiv
    1911.00068, sec. 3), whose candidates are the rows of one cross-validated model that pass a
    threshold per class; here several systems, none of which was trained on the row, must agree.

    `only_llm`: the LLM is right and every simpler rung wrong; where the LLM is surest first.
    `only_simpler`: the LLM is wrong and more than half of the simpler rungs right; where these are
    surest of the label first. Both are empty without an LLM or without a simpler rung.

    `most_confident`: errors of the best rung, by the probability it gave its answer.

    An `unknown` answer is wrong and has probability 0. Ties keep the order of the rows.

    Args:
        task: its test rows are those that were answered.
        rungs: what each answered, in the order in which they are shown after the best.
        best: name of the best rung.
        llm: name of the best LLM rung; None where there is none.
        with_texts: False leaves the texts out.

    Raises:
        ValueError: `best` or `llm` is no such rung, or a rung answered other rows or classes.
    """
    _check(task, rungs)
    y = task.test.y
    best_rung = _named("best", best, rungs)
    shown = [best_rung, *(rung for rung in rungs if rung is not best_rung)]
    readers = [rung for rung in rungs if rung.kind != "control"]
    simpler = [rung for rung in rungs if rung.kind == "simpler"]
    all_wrong = _none_right(readers, y)
    only_llm = only_simpler = np.zeros(len(y), dtype=np.bool_)
    llm_rung = None
    if llm is not None:
        llm_rung = _named("llm", llm, [rung for rung in rungs if rung.kind == "llm"])
        llm_right = llm_rung.answers == y
        only_llm = llm_right & _none_right(simpler, y)
        only_simpler = ~llm_right & (2 * _count_right(simpler, y) > len(simpler))
    wrong = best_rung.answers != y

    def listed(rows: _Mask, surest: _Values) -> list[ErrorRow]:
        found = np.flatnonzero(rows)
        # Rounded: sums of the same numbers in another order are ties, too.
        order = np.argsort(-np.round(surest[found], 9), kind="stable")
        return [_error_row(task, row, shown, with_texts) for row in found[order][:LISTED].tolist()]

    return ErrorAnalysis(
        all_wrong=listed(all_wrong, 1 - _belief(readers, y)),
        all_wrong_count=int(all_wrong.sum()),
        only_llm=listed(only_llm, _belief([llm_rung] if llm_rung else [], y)),
        only_llm_count=int(only_llm.sum()),
        only_simpler=listed(only_simpler, _belief(simpler, y)),
        only_simpler_count=int(only_simpler.sum()),
        most_confident=listed(wrong, _certainty(best_rung)),
        most_confident_count=int(wrong.sum()),
        llm=llm,
        best=best,
    )


def _steps(log: Path, stages: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The steps of each stage in order, as they were last taken."""
    taken: dict[str, list[dict[str, Any]]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:  # the process was killed while it wrote this line
            continue
        if values["stage"] not in stages or "step" not in values:
            continue
        steps = taken.setdefault(values["stage"], [])
        while steps and steps[-1]["step"] >= values["step"]:
            steps.pop()
        steps.append(values)
    return taken


def _window_sums(
    values: _Values, first: npt.NDArray[np.int64], end: npt.NDArray[np.int64]
) -> _Values:
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return sums[end] - sums[first]


def _rounded(values: _Values) -> list[float]:
    """Five digits: more than a plot shows, and a third of the file."""
    return [float(f"{value:.5g}") for value in values.tolist()]


def _check(task: Task, rungs: Sequence[RungAnswers]) -> None:
    n, n_classes = len(task.test), len(task.classes)
    for rung in rungs:
        shapes = rung.answers.shape, rung.proba.shape
        if shapes != ((n,), (n, n_classes)):
            raise ValueError(
                f"{rung.name}: answers and proba must have shapes ({n},) and ({n}, {n_classes}), "
                f"got {shapes[0]} and {shapes[1]}"
            )


def _named(role: str, name: str, rungs: Sequence[RungAnswers]) -> RungAnswers:
    for rung in rungs:
        if rung.name == name:
            return rung
    raise ValueError(f"{role} must be one of {[rung.name for rung in rungs]}, got {name!r}")


def _count_right(rungs: Sequence[RungAnswers], y: ClassIndices) -> npt.NDArray[np.int64]:
    """(n,) how many of the rungs are right on each row."""
    count = np.zeros(len(y), dtype=np.int64)
    for rung in rungs:
        count += rung.answers == y
    return count


def _none_right(rungs: Sequence[RungAnswers], y: ClassIndices) -> _Mask:
    """(n,) whether all rungs are wrong; False where there are none to be wrong."""
    return (_count_right(rungs, y) == 0) & np.bool_(len(rungs) > 0)


def _belief(rungs: Sequence[RungAnswers], y: ClassIndices) -> _Values:
    """(n,) mean over the rungs of the probability of the label; 0 without rungs."""
    total = np.zeros(len(y))
    for rung in rungs:
        total += rung.proba[np.arange(len(y)), y]
    return total / max(len(rungs), 1)


def _certainty(rung: RungAnswers) -> _Values:
    """(n,) the probability of the rung's own answer; 0 for `unknown`, which has none."""
    own = rung.proba[np.arange(len(rung.answers)), rung.answers]
    return np.where(rung.answers == UNKNOWN, 0.0, own)


def _error_row(task: Task, row: int, rungs: Sequence[RungAnswers], with_texts: bool) -> ErrorRow:
    rows = task.test
    shown = [_shortened(text) for text in rows.texts[row]]
    texts = dict(zip(task.fields, shown, strict=True)) if with_texts else None
    return ErrorRow(
        id=rows.ids[row],
        label=task.classes[rows.y[row]],
        text=texts,
        answers=[_row_answer(task, rung, row) for rung in rungs],
    )


def _shortened(text: str) -> str:
    """A text of a book's length would not be read, and would swell the record."""
    return text if len(text) <= TEXT_CHARACTERS else text[:TEXT_CHARACTERS] + " …"


def _row_answer(task: Task, rung: RungAnswers, row: int) -> RowAnswer:
    index = int(rung.answers[row])
    unknown = index == UNKNOWN
    return RowAnswer(
        rung=rung.name,
        answer=answer_label(index, task.classes),
        probability=0.0 if unknown else float(rung.proba[row, index]),
    )
