"""How good predictions are: scores with their uncertainty, and the table of one row per class."""

from collections.abc import Sequence
from typing import Literal, NotRequired, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

from llabel.task import ClassIndices, Label, Probabilities

UNKNOWN = -1  # the class index of an answer that is no label
NO_LABEL = "unknown"  # and what stands in place of one
NOT_ASKED = -2  # that of a row which a training was not asked, where several have rows of their own
LOG_LOSS_EPS = 1e-15
ECE_BINS = 15
SUM_TOLERANCE = 1e-4  # a float32 softmax sums to 1 within 1e-6; half precision is worse

Interval: TypeAlias = tuple[float, float]
Limits: TypeAlias = npt.NDArray[np.float64]
RowKind: TypeAlias = Literal[
    "class",
    "unknown",
    "accuracy",
    "macro avg",
    "macro avg with unknown",
    "macro avg of classes seen",
    "weighted avg",
]


class Scores(TypedDict):
    """Scores of one system on one set of rows, ready for JSON.

    Attributes:
        rows: number of rows, at least 1.
        accuracy: share of right answers, 0..1.
        accuracy_ci95: [lower, upper] of the 95 % Wilson score interval of the accuracy; where rows
            have groups, at the effective number of rows (`statistics.intervals.score_with_groups`).
        macro_f1: unweighted mean of F1 over all classes of the task, 0..1.
        log_loss: mean negative natural logarithm of the true class's probability, 0..34.54.
        ece: expected calibration error, 0..1.
    """

    rows: int
    accuracy: float
    accuracy_ci95: list[float]
    macro_f1: float
    log_loss: float
    ece: float


class ReportRow(TypedDict):
    """One row of a classification report, ready for JSON.

    ``precision`` and ``recall`` are None in the accuracy row, whose value stands in ``f1`` as in
    scikit-learn's printed report. ``support`` counts true rows, ``predicted`` counts answers. A
    measure without a row to measure it on (the precision of what was never answered) is 0.

    Attributes:
        precision_ci95, recall_ci95: of a class, [lower, upper] of the 95 % Wilson score interval,
            over its answers and over its true rows; None where there are none, and in other rows.
            Reports recorded before there were any lack both.
    """

    name: str
    kind: RowKind
    precision: float | None
    recall: float | None
    f1: float
    support: int
    predicted: int
    precision_ci95: NotRequired[list[float] | None]
    recall_ci95: NotRequired[list[float] | None]


def score(
    y: ClassIndices, proba: Probabilities, predicted: ClassIndices | None = None
) -> Scores | None:
    """Score predictions against the truth.

    Args:
        y: (n,) true class indices.
        proba: (n, n_classes) probabilities, each row summing to 1.
        predicted: (n,) answered class indices, -1 for `unknown` (an answer that is no label);
            None takes the most probable class, the first of equals.

    Returns:
        The scores; None for n = 0, where no score is defined. An unknown answer is wrong: it costs
        the true class's recall, and is itself no class in the macro mean. `log_loss` and `ece`
        judge the probabilities, whatever was answered.

    Raises:
        ValueError: shapes disagree, an index is out of range, or a row is no distribution.
    """
    y, proba = np.asarray(y), np.asarray(proba, dtype=np.float64)
    _check_probabilities(proba)
    n, n_classes = proba.shape
    _check_indices("y", y, n, n_classes, lowest=0)
    answers = proba.argmax(axis=1) if predicted is None else np.asarray(predicted)
    _check_indices("predicted", answers, n, n_classes, lowest=UNKNOWN)
    if n == 0:
        return None

    correct = int((answers == y).sum())
    return Scores(
        rows=n,
        accuracy=correct / n,
        accuracy_ci95=list(wilson_interval(correct, n)),
        macro_f1=macro_f1(y, answers, n_classes),
        log_loss=log_loss(y, proba),
        ece=expected_calibration_error(y, proba),
    )


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> Interval:
    """Bound a proportion by `wilson_limits`.

    Args:
        correct: successes, 0..n.
        n: trials, at least 1.
        confidence: coverage, between 0 and 1.

    Returns:
        (lower, upper), each in 0..1.

    Raises:
        ValueError: n is below 1 or `correct` lies outside 0..n.
    """
    from scipy.special import ndtri

    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"need 0 <= correct <= n and n >= 1, got correct={correct}, n={n}")
    low, high = wilson_limits(correct / n, n, ndtri(0.5 + 0.5 * confidence))
    return float(low), float(high)


def wilson_limits(share: npt.ArrayLike, n: npt.ArrayLike, z: float) -> tuple[Limits, Limits]:
    """Limits of the score interval (Wilson 1927, JASA 22, p. 209), of many proportions at once.

    Args:
        share: (...) proportions, 0..1.
        n: (...) trials of each, above 0; an effective number may have a fraction.
        z: quantile of the standard normal distribution, or of Student's t where n is estimated.

    Returns:
        (...) lower and upper limits, in 0..1; exactly 0 and 1 at proportions of 0 and 1.
    """
    p, n = np.asarray(share, dtype=np.float64), np.asarray(n, dtype=np.float64)
    width = 2 * (n + z**2)
    centre = (2 * n * p + z**2) / width
    half = z / width * np.sqrt(4 * n * p * (1 - p) + z**2)
    return np.where(p == 0, 0.0, centre - half), np.where(p == 1, 1.0, centre + half)


def macro_f1(y: ClassIndices, predicted: ClassIndices, n_classes: int) -> float:
    """Average F1 over all `n_classes`; a class neither true nor predicted counts as 0.

    Args:
        y: (n,) true class indices, n at least 1.
        predicted: (n,) answered class indices, -1 for unknown.
        n_classes: number of classes of the task.
    """
    from sklearn.metrics import f1_score

    labels = np.arange(n_classes)
    return float(f1_score(y, predicted, labels=labels, average="macro", zero_division=0))


def log_loss(y: ClassIndices, proba: Probabilities) -> float:
    """Return the mean of -ln p(true class), in nats.

    Probabilities are clipped from below at 1e-15, scikit-learn's default eps before version 1.2
    (since then the float64 eps, 2.2e-16), so one confident mistake costs at most 34.54.

    Args:
        y: (n,) true class indices, n at least 1.
        proba: (n, n_classes) probabilities.
    """
    truth = proba[np.arange(len(y)), y]
    return float(-np.log(np.clip(truth, LOG_LOSS_EPS, 1.0)).mean())


def expected_calibration_error(
    y: ClassIndices, proba: Probabilities, bins: int = ECE_BINS
) -> float:
    """Return the mean gap between confidence and accuracy (Guo et al. 2017, eq. 3).

    The confidence is the top probability; bins are of equal width, ((m-1)/M, m/M] as in the paper,
    weighted by their rows.

    Args:
        y: (n,) true class indices, n at least 1.
        proba: (n, n_classes) probabilities.
        bins: M, number of bins.
    """
    confidence = proba.max(axis=1)
    correct = proba.argmax(axis=1) == y
    bin_of, _ = confidence_bins(confidence, bins)
    # |B_m|/n · |acc - conf| = |sum of (correct - confidence)| / n: no empty bin to divide by.
    gaps = np.bincount(bin_of, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(y))


def confidence_bins(
    confidence: npt.NDArray[np.float64], bins: int = ECE_BINS
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Sort rows into bins of equal width, ((m-1)/M, m/M] (Guo et al. 2017, sec. 2).

    Args:
        confidence: (…, n) top probabilities, 0..1; 0 itself goes to the first bin.
        bins: M, number of bins.

    Returns:
        (…, n) the bin of each row, 0..M-1, and the (M+1,) edges of the bins, 0 to 1.
    """
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1), edges


def report(y: ClassIndices, predicted: ClassIndices, classes: Sequence[Label]) -> list[ReportRow]:
    """Break predictions down by class, as published classification reports do.

    Args:
        y: (n,) true class indices, n at least 1.
        predicted: (n,) answered class indices, -1 for unknown.
        classes: the labels, position = class index.

    Returns:
        One row per class; one for `unknown` where any was answered; accuracy; the macro average
        over the classes; where any answer was unknown, also the macro average with `unknown` as
        if it were a class, as scikit-learn's report has it: its measures are 0, so however few
        such answers there are, this average is n_classes / (n_classes + 1) of the other; where a
        class is neither true nor answered, also the macro average over the others, as
        scikit-learn has it (in the first one, such a class counts as 0); the average weighted by
        support, to which `unknown` adds nothing.

    Raises:
        ValueError: no rows, shapes disagree, or an index is out of range.
    """
    from sklearn.metrics import precision_recall_fscore_support

    y, predicted = np.asarray(y), np.asarray(predicted)
    _check_indices("y", y, len(y), len(classes), lowest=0)
    _check_indices("predicted", predicted, len(y), len(classes), lowest=UNKNOWN)
    if len(y) == 0:
        raise ValueError("a classification report needs at least one row")

    n, n_classes = len(y), len(classes)
    table = precision_recall_fscore_support(
        y, predicted, labels=np.arange(n_classes), zero_division=0
    )
    measures, supports = np.array(table[:3]), table[3]  # (3, n_classes), (n_classes,)
    answered = np.bincount(predicted + 1, minlength=n_classes + 1)  # position 0 is unknown
    right = np.bincount(y[y == predicted], minlength=n_classes)
    rows = [
        _row(
            "class", str(label), measures[:, index], int(supports[index]), int(answered[index + 1])
        )
        | {
            "precision_ci95": _share_interval(right[index], answered[index + 1]),
            "recall_ci95": _share_interval(right[index], supports[index]),
        }
        for index, label in enumerate(classes)
    ]
    if answered[0]:
        rows.append(_row("unknown", NO_LABEL, np.zeros(3), 0, int(answered[0])))
    accuracy = _row("accuracy", "accuracy", np.full(3, (y == predicted).mean()), n, n)
    rows.append(accuracy | {"precision": None, "recall": None})
    rows.append(_row("macro avg", "macro avg", measures.mean(axis=1), n, n))
    name: RowKind
    if answered[0]:
        name = "macro avg with unknown"
        rows.append(_row(name, name, measures.sum(axis=1) / (n_classes + 1), n, n))
    seen = (supports > 0) | (answered[1:] > 0)
    if not seen.all():
        name = "macro avg of classes seen"
        rows.append(_row(name, name, measures[:, seen].mean(axis=1), n, n))
    rows.append(_row("weighted avg", "weighted avg", measures @ supports / n, n, n))
    return rows


def majority_accuracy(train_y: ClassIndices, test_y: ClassIndices) -> float:
    """Score the answer that needs no text: the most frequent training class for every row.

    Args:
        train_y: (n,) class indices to count, n at least 1; of equally frequent ones the lowest.
        test_y: (m,) class indices to score on, m at least 1.

    Raises:
        ValueError: either is empty.
    """
    if len(train_y) == 0 or len(test_y) == 0:
        raise ValueError(
            f"need training and test rows, got {len(train_y)} training and {len(test_y)} test rows"
        )
    return float((np.asarray(test_y) == np.bincount(train_y).argmax()).mean())


def _row(
    kind: RowKind, name: str, measures: npt.NDArray[np.float64], support: int, predicted: int
) -> ReportRow:
    """`measures` (3,): precision, recall, F1."""
    precision, recall, f1 = measures.tolist()
    return ReportRow(
        name=name,
        kind=kind,
        precision=precision,
        recall=recall,
        f1=f1,
        support=support,
        predicted=predicted,
        precision_ci95=None,
        recall_ci95=None,
    )


def _share_interval(right: int, rows: int) -> list[float] | None:
    return list(wilson_interval(int(right), int(rows))) if rows else None


def _check_probabilities(proba: Probabilities) -> None:
    if proba.ndim != 2 or proba.shape[1] == 0:
        raise ValueError(f"proba must have shape (n, n_classes), got {proba.shape}")
    bad = ~np.isfinite(proba).all(axis=1)
    if bad.any():
        raise ValueError(f"proba must be finite; row {bad.argmax()} is {proba[bad.argmax()]}")
    bad = (proba < 0).any(axis=1) | (np.abs(proba.sum(axis=1) - 1) > SUM_TOLERANCE)
    if bad.any():
        raise ValueError(
            f"each row of proba must be a distribution (0 or above, sum 1 within "
            f"{SUM_TOLERANCE:g}); row {bad.argmax()} is {proba[bad.argmax()]}"
        )


def _check_indices(
    name: str, indices: npt.NDArray[np.int64], n: int, n_classes: int, *, lowest: int
) -> None:
    if indices.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), got {indices.shape}")
    if n == 0:
        return
    if not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"{name} must hold class indices (integers), got {indices.dtype}")
    bad = (indices < lowest) | (indices >= n_classes)
    if bad.any():
        raise ValueError(
            f"{name} must lie in {lowest}..{n_classes - 1}; row {bad.argmax()} is "
            f"{indices[bad.argmax()]}"
        )
