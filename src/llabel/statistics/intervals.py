"""Intervals of one system's scores, over rows or groups and over trainings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from llabel.metrics import (
    ECE_BINS,
    LOG_LOSS_EPS,
    NOT_ASKED,
    UNKNOWN,
    Interval,
    Scores,
    confidence_bins,
    score,
    wilson_interval,
    wilson_limits,
)
from llabel.statistics.resampling import (
    Floats,
    Part,
    Spread,
    resampled,
    row_weights,
    spread,
    units_of,
)
from llabel.task import ClassIndices, Probabilities

RESAMPLES = 2_000


class ScoreIntervals(TypedDict):
    """95 % intervals as [lower, upper], ready for JSON. Units are those of `llabel.metrics.Scores`.

    With several seeds each is the interval of the mean score over trainings.
    """

    accuracy_ci95: list[float]
    macro_f1_ci95: list[float]
    log_loss_ci95: list[float]
    ece_ci95: list[float]


@dataclass(frozen=True, slots=True)
class _Columns:
    """Per-row quantities whose weighted sums give every score of every seed.

    All are 0 in rows that a seed was not asked.

    Attributes:
        asked: (n_seeds, n) 1 for a row that the seed was asked.
        right: (n_seeds, n) 1 for a right answer.
        loss: (n_seeds, n) -ln p(true class).
        hit: (n_seeds, n_classes, n) right answers by class.
        answered: (n_seeds, n_classes, n) answers by class.
        truth: (n_seeds, n_classes, n) true classes.
        gap: (n_seeds, bins, n) right - confidence of the top class, in the row's bin.
    """

    asked: Floats
    right: Floats
    loss: Floats
    hit: Floats
    answered: Floats
    truth: Floats
    gap: Floats


@dataclass(frozen=True, slots=True)
class _Draws:
    """(n_seeds, resamples) scores on resampled rows."""

    accuracy: Floats
    macro_f1: Floats
    log_loss: Floats
    ece: Floats


def bootstrap_scores(
    y: ClassIndices,
    proba: npt.NDArray[np.float64],
    answers: npt.NDArray[np.int64],
    *,
    groups: npt.ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ScoreIntervals:
    """Give 95 % intervals of accuracy, macro-F1, log loss and ECE.

    Rows are resampled with replacement, or whole groups (cluster bootstrap: Davison and Hinkley
    1997, section 3.8); several seeds add their own spread, see
    `llabel.statistics.resampling.spread`.

    - accuracy: Wilson's interval; with groups or seeds, Wilson's interval at the effective number
      of rows p(1 - p) / variance (as in Korn and Graubard 1998, Survey Methodology 24, p. 193),
      with Student's t for z. Unlike percentiles it has a width at 0 and 1.
    - log loss: percentiles.
    - macro-F1: percentiles, shifted up. A class that a resample lacks counts as 0 there, as one
      that the rows lack does in the score itself; so with many or rare classes both are too low.
      The lower limit is raised by the bias seen in resampling, which is that of the resamples
      alone, the upper limit by twice that, for the score's own.
    - ECE: the basic bootstrap interval (Davison and Hinkley 1997, section 5.2), made wider. The
      binned ECE of few rows is too high, even for a calibrated system (Kumar et al. 2019,
      NeurIPS, section 4), and resampling shows only part of that bias: two thirds in simulations
      near calibration, nearly all far from it. The lower limit takes off twice the bias seen,
      the upper limit none.

    Args:
        y: (n,) true class indices, n at least 2.
        proba: (n_seeds, n, n_classes) or (n, n_classes) probabilities, rows summing to 1.
        answers: (n_seeds, n) or (n,) answered class indices, -1 for unknown (wrong), -2 for rows
            that a training was not asked: they are no part of its score.
        groups: (n,) the group of each row, or None.
        resamples: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        ValueError: shapes disagree.
        InputError: fewer than two rows or groups.
    """
    proba = np.asarray(proba, dtype=np.float64)
    proba = proba[None] if proba.ndim == 2 else proba
    answers = np.atleast_2d(answers)
    if proba.ndim != 3 or proba.shape[:2] != answers.shape or answers.shape[1:] != np.shape(y):
        raise ValueError(
            f"proba must have shape (n_seeds, n, n_classes) and answers (n_seeds, n), with "
            f"n = {len(y)} rows; got {proba.shape} and {answers.shape}"
        )
    ever_asked = (answers != NOT_ASKED).any(axis=1)
    proba, answers = proba[ever_asked], answers[ever_asked]
    units = units_of(len(y), groups)
    rng = np.random.default_rng(seed)
    columns = _columns(np.asarray(y), proba, answers)
    once = _scores(columns, np.ones((1, len(y))))
    draws = _join(_scores(columns, w) for w in row_weights(units, resamples, rng))

    def error(points: Floats, drawn: Floats) -> Spread:
        return spread([Part(points[:, 0], drawn)], units.count, rng)

    accuracy = error(once.accuracy, draws.accuracy)
    macro_f1 = error(once.macro_f1, draws.macro_f1)
    loss = error(once.log_loss, draws.log_loss)
    ece = error(once.ece, draws.ece)
    if groups is None and len(answers) == 1:
        accuracy_ci = wilson_interval(int(columns.right.sum()), len(y))
    else:
        accuracy_ci = effective_wilson(float(once.accuracy.mean()), accuracy, units.count)
    return ScoreIntervals(
        accuracy_ci95=list(accuracy_ci),
        macro_f1_ci95=_raised(once, macro_f1, accuracy_ci),
        log_loss_ci95=_percentile(once.log_loss, loss),
        ece_ci95=_bias_aware(once.ece, ece),
    )


def score_with_groups(
    y: ClassIndices,
    proba: Probabilities,
    predicted: ClassIndices | None = None,
    groups: Sequence[str] | None = None,
) -> Scores | None:
    """`llabel.metrics.score`, its interval of the accuracy over groups: `share_interval`.

    Args:
        y, proba, predicted: as for `score`.
        groups: (n,) the group of each row, or None.
    """
    found = score(y, proba, predicted)
    if found and groups is not None:
        answers = proba.argmax(axis=1) if predicted is None else predicted
        found["accuracy_ci95"] = list(share_interval(answers == y, groups))
    return found


def share_interval(
    right: npt.NDArray[np.bool_],
    groups: Sequence[str] | None = None,
    *,
    asked: npt.NDArray[np.bool_] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Bound a share of rows, such as an accuracy, at 95 %, as `bootstrap_scores` does.

    Args:
        right: (n,) or (n_trainings, n) which rows count, n at least 1.
        groups: (n,) the group of each row, or None. Where all are of one, rows are resampled.
        asked: (n_trainings, n) which rows each training was asked; None for all.
        resamples: bootstrap draws.
        seed: of the bootstrap.
    """
    right = np.atleast_2d(right)
    found = resampled(groups)
    if found is None and len(right) == 1:
        return wilson_interval(int(right.sum()), right.shape[1])
    counted = np.ones_like(right) if asked is None else asked
    units = units_of(right.shape[1], found)

    def shares(weights: Floats) -> Floats:
        total = counted @ weights.T  # (n_trainings, draws)
        total[total == 0] = np.nan
        shared: Floats = right @ weights.T / total
        return shared

    rng = np.random.default_rng(seed)
    draws = np.concatenate([shares(w) for w in row_weights(units, resamples, rng)], axis=1)
    points = shares(np.ones((1, right.shape[1])))[:, 0]
    error = spread([Part(points, draws)], units.count, rng)
    return effective_wilson(float(points.mean()), error, units.count)


def effective_wilson(p: float, error: Spread, units: int, confidence: float = 0.95) -> Interval:
    """Bound a proportion whose rows are not independent (see `bootstrap_scores`).

    Args:
        p: the proportion, 0..1.
        error: its spread; a spread of 0 (p is 0 or 1) counts every unit as one row.
        units: rows or groups that were resampled.
        confidence: coverage, between 0 and 1.

    Returns:
        (lower, upper), each in 0..1.
    """
    from scipy.stats import t

    effective = p * (1 - p) / error.variance if error.variance > 0 else float(units)
    low, high = wilson_limits(p, effective, float(t.ppf((1 + confidence) / 2, error.df)))
    return float(low), float(high)


def _columns(y: ClassIndices, proba: Floats, answers: npt.NDArray[np.int64]) -> _Columns:
    _, n, n_classes = proba.shape
    if answers.min() < NOT_ASKED or answers.max() >= n_classes:
        raise ValueError(f"answers must lie in {UNKNOWN}..{n_classes - 1}, or be {NOT_ASKED}")
    classes = np.arange(n_classes)[:, None]
    asked = answers != NOT_ASKED  # (seeds, n)
    truth = asked[:, None] & (y == classes)  # (seeds, n_classes, n)
    answered = answers[:, None] == classes  # (seeds, n_classes, n)
    confidence = proba.max(axis=2)
    bin_of, _ = confidence_bins(confidence)
    gap = (proba.argmax(axis=2) == y) - confidence
    in_bin = bin_of[:, None] == np.arange(ECE_BINS)[:, None]  # (seeds, bins, n)
    return _Columns(
        asked=asked.astype(np.float64),
        right=(answers == y).astype(np.float64),
        loss=-np.log(np.clip(proba[:, np.arange(n), y], LOG_LOSS_EPS, 1.0)) * asked,
        hit=(answered & truth).astype(np.float64),
        answered=answered.astype(np.float64),
        truth=truth.astype(np.float64),
        gap=in_bin * (gap * asked)[:, None],
    )


def _scores(columns: _Columns, weights: Floats) -> _Draws:
    """Score every seed under (draws, n) row weights: (n_seeds, draws) each.

    NaN where a draw holds no row that the seed was asked.
    """
    across = weights.T  # (n, draws)
    total = columns.asked @ across  # (n_seeds, draws)
    total[total == 0] = np.nan
    either = columns.answered @ across + columns.truth @ across  # (n_seeds, n_classes, draws)
    with np.errstate(invalid="ignore"):
        f1 = np.where(either > 0, 2 * (columns.hit @ across) / either, 0.0)
    return _Draws(
        accuracy=columns.right @ across / total,
        macro_f1=np.where(np.isnan(total), np.nan, f1.mean(axis=1)),
        log_loss=columns.loss @ across / total,
        ece=np.abs(columns.gap @ across).sum(axis=1) / total,
    )


def _join(pieces: Iterator[_Draws]) -> _Draws:
    drawn = list(pieces)
    return _Draws(
        accuracy=np.concatenate([d.accuracy for d in drawn], axis=1),
        macro_f1=np.concatenate([d.macro_f1 for d in drawn], axis=1),
        log_loss=np.concatenate([d.log_loss for d in drawn], axis=1),
        ece=np.concatenate([d.ece for d in drawn], axis=1),
    )


def _percentile(points: Floats, error: Spread) -> list[float]:
    limits = points.mean() + np.quantile(error.deviations, [0.025, 0.975])
    return np.clip(limits, 0, np.inf).tolist()


def _raised(once: _Draws, error: Spread, accuracy_ci: Interval) -> list[float]:
    """Percentiles less the bias, wide enough for no more of it and for as much in the score.

    Where every resample says the same (all right, all wrong) it is the interval of the accuracy,
    in proportion: classes without a row are 0 in the macro mean, however right all answers are.
    """
    estimate, bias = float(once.macro_f1.mean()), min(error.bias, 0.0)
    if np.ptp(error.deviations) == 0:
        accuracy = float(once.accuracy.mean())
        scale = estimate / accuracy if accuracy > 0 else 1.0
        return [scale * limit for limit in accuracy_ci]
    low, high = np.quantile(error.deviations, [0.025, 0.975])
    return np.clip([estimate + low - bias, estimate + high - 2 * bias], 0, 1).tolist()


def _bias_aware(points: Floats, error: Spread) -> list[float]:
    """Basic interval of the ECE, wide enough for no bias and for twice the bootstrap's."""
    estimate, bias = float(points.mean()), error.bias
    low, high = np.quantile(error.deviations, [0.025, 0.975])
    return np.clip([estimate - bias - high, estimate + bias - low], 0, 1).tolist()
