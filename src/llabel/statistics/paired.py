"""Two systems on the same rows: their difference in accuracy, its interval and its p value."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt
from statistics import NormalDist
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from llabel.metrics import NOT_ASKED, Interval
from llabel.statistics.resampling import Floats, Part, Spread, Units, spread, units_of
from llabel.task import ClassIndices

TestName: TypeAlias = Literal["exact McNemar", "paired bootstrap"]
RESAMPLES = 10_000
POWER = 0.8
# "Collect more" is no advice beyond so many rows in all, or so many times those at hand.
MOST_ROWS, MOST_TIMES = 100_000, 10
FEWEST_ROWS = 30  # fewer say too little of the variance


@dataclass(frozen=True, slots=True)
class Pair:
    """System a against system b on the same rows, ready for JSON.

    Attributes:
        difference: accuracy of a minus accuracy of b, each a mean over its seeds, -1..1.
        interval: (lower, upper) of the difference.
        confidence: coverage of the interval, 0..1.
        p_value: two-sided, of "no difference".
        test: the test's name.
        rows: number of test rows; one that several draws test counts once.
        groups: number of groups resampled as wholes, or None.
        seeds: trainings of a and of b.
        row_variance: the difference's variance that shrinks as rows are added.
        seed_variance: its variance that only more trainings shrink.
    """

    difference: float
    interval: Interval
    confidence: float
    p_value: float
    test: TestName
    rows: int
    groups: int | None
    seeds: tuple[int, int]
    row_variance: float
    seed_variance: float

    def turned(self) -> "Pair":
        """The same comparison as b against a."""
        lower, upper = self.interval
        return replace(
            self, difference=-self.difference, interval=(-upper, -lower), seeds=self.seeds[::-1]
        )


@dataclass(frozen=True, slots=True)
class RowsNeeded:
    """How many test rows would settle a question, ready for JSON.

    Attributes:
        rows: about how many in all, or None where no number of rows would.
        reason: why none would, or "".
    """

    rows: int | None
    reason: Literal["", "seeds", "too near the margin", "too few rows"] = ""


def compare_pair(
    y: ClassIndices,
    a: npt.NDArray[np.int64],
    b: npt.NDArray[np.int64],
    *,
    groups: npt.ArrayLike | None = None,
    rows: int | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Pair:
    """Compare the accuracy of two systems on the same rows.

    One seed each and no groups: McNemar's exact test and Tango's interval. Tango's interval
    inverts the score test, which is a little less cautious than the exact one: near p = 0.05 the
    interval may leave out 0 while the test keeps it. Otherwise rows (or groups) are resampled and
    seeds allowed for (see `llabel.statistics.resampling.spread`); interval and p value then come
    from the same draws. A trained system with a single seed counts as it is: its seeds' spread is
    unknown and not in the interval.

    Trainings need not have answered the same rows: those on draws of their own are seeds, too, and
    rows that one was not asked are no part of its score. Each training counts alike, however many
    rows it was asked; one that was asked none is left out. `groups` then tells which rows are the
    same one, drawn several times.

    Args:
        y: (n,) true class indices.
        a: (n_seeds_a, n) or (n,) answered class indices, -1 for unknown (wrong), -2 for not asked.
        b: (n_seeds_b, n) or (n,) the same of the other system.
        groups: (n,) the group of each row, or None.
        rows: how many different rows the n are; None for n.
        confidence: coverage of the interval, between 0 and 1.
        resamples: bootstrap draws; the least p value is 2 / (resamples + 1).
        seed: of the bootstrap.

    Raises:
        ValueError: shapes disagree.
        InputError: fewer than two groups (or, with several seeds, rows).
    """
    a, b = _trainings("a", y, a), _trainings("b", y, b)
    right_a, right_b = a == y, b == y
    n, seeds = len(y), (len(a), len(b))
    difference = float(accuracies(y, a).mean() - accuracies(y, b).mean())
    if groups is None and seeds == (1, 1):
        only_a = int((right_a & ~right_b).sum())
        only_b = int((right_b & ~right_a).sum())
        return Pair(
            difference=difference,
            interval=tango_interval(only_a, only_b, n, confidence),
            confidence=confidence,
            p_value=mcnemar_exact(only_a, only_b),
            test="exact McNemar",
            rows=n if rows is None else rows,
            groups=None,
            seeds=seeds,
            row_variance=_discordance_variance(only_a, only_b, n),
            seed_variance=0.0,
        )

    units = units_of(n, groups)
    asked = np.concatenate([a, b]) != NOT_ASKED
    error = _paired_spread(right_a, right_b, asked, units, resamples, np.random.default_rng(seed))
    draws = difference + error.deviations
    tail = (1 - confidence) / 2
    lower, upper = np.clip(np.quantile(draws, [tail, 1 - tail]), -1, 1)
    beyond = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return Pair(
        difference=difference,
        interval=(float(lower), float(upper)),
        confidence=confidence,
        p_value=min(1.0, 2 * (beyond + 1) / (resamples + 1)),
        test="paired bootstrap",
        rows=n if rows is None else rows,
        groups=None if groups is None else units.count,
        seeds=seeds,
        row_variance=error.row_variance,
        seed_variance=error.seed_variance,
    )


def accuracies(y: ClassIndices, answers: npt.NDArray[np.int64]) -> Floats:
    """(n_trainings,) accuracy of each training that was asked something, on what it was asked.

    Args:
        y: (n,) true class indices.
        answers: (n_seeds, n) answered class indices, -1 for unknown (wrong), -2 for not asked.
    """
    asked = (answers != NOT_ASKED).sum(axis=1)
    shares: Floats = (answers == y).sum(axis=1)[asked > 0] / asked[asked > 0]
    return shares


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Return the two-sided p value of McNemar's exact test (McNemar 1947, Psychometrika 12).

    Args:
        only_a: rows that only a gets right.
        only_b: rows that only b gets right.
    """
    from scipy.special import bdtr

    # Both tails of a fair coin are alike; scipy.stats.binomtest would search for the other one.
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def tango_interval(only_a: int, only_b: int, n: int, confidence: float = 0.95) -> Interval:
    """Bound a difference of paired proportions by the score interval.

    Tango 1998, Statistics in Medicine 17, p. 891, eqs. 13-16: all differences whose score test
    is not rejected. It keeps its coverage with few discordant rows, and has a width with none.

    Args:
        only_a: rows that only a gets right.
        only_b: rows that only b gets right.
        n: all rows, at least 1.
        confidence: coverage, between 0 and 1.

    Returns:
        (lower, upper) of accuracy of a minus accuracy of b, each in -1..1.

    Raises:
        ValueError: counts are negative or exceed n.
    """
    from scipy.optimize import brentq

    if n < 1 or min(only_a, only_b) < 0 or only_a + only_b > n:
        raise ValueError(f"need 0 <= counts, sum <= n, n >= 1, got {only_a}, {only_b}, {n}")
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2

    def excess(delta: float) -> float:
        """Squared score less z², times the score's variance: 0 at the limits."""
        linear = -only_a - only_b + (2 * n - only_a + only_b) * delta
        constant = -only_b * delta * (1 - delta)
        cell = (sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
        variance = n * (2 * cell + delta * (1 - delta))
        return (only_a - only_b - n * delta) ** 2 - z2 * variance

    observed = (only_a - only_b) / n
    step = 1e-9  # the estimate itself is a root where its variance is 0
    lower = -1.0 if only_b == n else brentq(excess, -1, observed - step, xtol=1e-10)
    upper = 1.0 if only_a == n else brentq(excess, observed + step, 1, xtol=1e-10)
    return float(lower), float(upper)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for their number (Holm 1979, Scandinavian Journal of Statistics 6, p. 65).

    Args:
        p_values: of the tests of one family, each 0..1.

    Returns:
        The adjusted values in the same order. Calling those at or below 0.05 significant
        makes any false claim in at most 5 % of cases.

    Raises:
        ValueError: a value lies outside 0..1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p values lie in 0..1, got {list(p_values)}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    steps = np.arange(len(p), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * steps))
    return adjusted.tolist()


def rows_needed(pair: Pair, margin: float = 0.0, power: float = POWER) -> RowsNeeded:
    """Estimate how many test rows would settle on which side of `-margin` the difference lies.

    With V the variance from rows and W that from seeds, N rows have the variance V n / N + W.
    The interval keeps clear of -margin with probability `power` when
    |difference + margin| = (z(confidence) + z(power)) sqrt(V n / N + W), hence
    N = V n / ((|difference + margin| / (z + z))² - W): the usual formula for paired proportions
    (Connor 1987, Biometrics 43, p. 207) with the observed variance and difference put in. V comes
    from whole groups where there are groups, so the design effect is in it; N then means rows in
    groups of the same sizes. The observed difference is itself uncertain: one nearer to -margin
    than half the margin counts as half the margin away, and N is an order of magnitude.

    Args:
        pair: the comparison so far.
        margin: 0 asks whether a and b differ at all, 0.01 whether a is worse by over a point,
            -0.01 whether it is better by over a point.
        power: probability of an answer, 0..1.

    Returns:
        The rows in all (those at hand included), at least one more than at hand; None with
        "seeds" where the seeds' spread alone hides the answer, None with "too near the margin"
        where it would take over 100,000 rows and over 10 times those at hand, None with "too few
        rows" where fewer than 30 are at hand.
    """
    if pair.rows < FEWEST_ROWS:
        return RowsNeeded(None, "too few rows")
    gap = abs(pair.difference + margin)
    rows = _rows_for(max(gap, margin / 2), pair, power)
    if rows <= pair.rows:  # half a margin would have been seen already
        rows = _rows_for(gap, pair, power)
    if rows <= max(MOST_ROWS, MOST_TIMES * pair.rows):
        return RowsNeeded(max(pair.rows + 1, ceil(rows)))
    return RowsNeeded(
        None, "seeds" if pair.seed_variance > pair.row_variance else "too near the margin"
    )


def _rows_for(gap: float, pair: Pair, power: float) -> float:
    z = NormalDist().inv_cdf((1 + pair.confidence) / 2) + NormalDist().inv_cdf(power)
    left_for_rows = (gap / z) ** 2 - pair.seed_variance
    return pair.row_variance * pair.rows / left_for_rows if left_for_rows > 0 else float("inf")


def _trainings(name: str, y: ClassIndices, answers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(n_trainings, n) the answers of those that were asked something."""
    answers = np.atleast_2d(answers)
    if answers.ndim != 2 or answers.shape[1:] != np.shape(y) or not answers.size:
        raise ValueError(
            f"{name} must have shape (n_seeds, n) with n = {len(y)} rows, got {answers.shape}"
        )
    asked = answers[(answers != NOT_ASKED).any(axis=1)]
    if not len(asked):
        raise ValueError(f"{name} was asked none of the {len(y)} rows")
    return asked


def _discordance_variance(only_a: int, only_b: int, n: int) -> float:
    """Variance of the difference, one row added to each discordant cell.

    Bonett and Price 2012, Journal of Educational and Behavioral Statistics 37, p. 479: without the
    two rows, no discordance would mean no doubt.
    """
    p, q = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    return (p + q - (p - q) ** 2) / (n + 2)


def _paired_spread(
    right_a: npt.NDArray[np.bool_],
    right_b: npt.NDArray[np.bool_],
    asked: npt.NDArray[np.bool_],
    units: Units,
    resamples: int,
    rng: np.random.Generator,
) -> Spread:
    """Resample units; those with the same counts are drawn as one pile, which is the same law.

    Args:
        right_a, right_b: (n_seeds, n) which answers of a and of b are right.
        asked: (n_seeds_a + n_seeds_b, n) which rows each was asked.
        units: what is drawn.
        resamples: how often.
        rng: source of chance.
    """
    n, seeds = right_a.shape[1], len(asked)
    both = np.concatenate([right_a, right_b])  # (seeds a + b, n)
    table = np.vstack([units.total(both), units.total(asked)])  # (2 × (seeds a + b), units)
    table = np.hstack([table, _pseudo_units(right_a, right_b, n / units.count)])
    piles, heights = np.unique(table, axis=1, return_counts=True)
    total = heights.sum()
    drawn = rng.multinomial(total, heights / total, size=resamples) @ piles.T  # (resamples, rows)
    with np.errstate(invalid="ignore"):  # a draw may have no row that a training was asked
        draws = (drawn[:, :seeds] / drawn[:, seeds:]).T
    points = table[:seeds].sum(axis=1) / table[seeds:].sum(axis=1)
    cut = len(right_a)
    parts = [Part(points[:cut], draws[:cut]), Part(points[cut:], draws[cut:], sign=-1)]
    return spread(parts, units.count, rng)


def _pseudo_units(
    right_a: npt.NDArray[np.bool_], right_b: npt.NDArray[np.bool_], unit_size: float
) -> Floats:
    """One row that only a gets right and one that only b gets right (see _discordance_variance).

    With no discordance at all nothing is known of the groups' likeness, and whole groups are added.
    """
    agree = bool((right_a == right_a[0]).all() and (right_b == right_a[0]).all())
    size = unit_size if agree else 1.0
    seeds_a, seeds_b = len(right_a), len(right_b)
    a, b = [size] * seeds_a, [size] * seeds_b
    none_a, none_b = [0.0] * seeds_a, [0.0] * seeds_b
    sizes = [size] * (seeds_a + seeds_b)
    return np.array([[*a, *none_b, *sizes], [*none_a, *b, *sizes]]).T
