"""Resample rows or groups, and account for seeds: how far a mean over trainings may be off."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llabel.errors import InputError

Floats = npt.NDArray[np.float64]
CELLS = 2_000_000  # weights held at once: 16 MB


@dataclass(frozen=True, slots=True)
class Units:
    """What is resampled: the rows, or whole groups of rows.

    Attributes:
        of_row: (n,) the unit of each row, 0..count-1.
        count: number of units, at least 2.
    """

    of_row: npt.NDArray[np.int64]
    count: int

    def total(self, values: npt.NDArray[np.generic]) -> Floats:
        """Sum (n_seeds, n) values over the rows of each unit: (n_seeds, count)."""
        sums = [np.bincount(self.of_row, weights=v, minlength=self.count) for v in values]
        return np.stack(sums)


@dataclass(frozen=True, slots=True)
class Part:
    """One system's share in an estimate.

    Attributes:
        points: (n_seeds,) the score of each training.
        draws: (n_seeds, resamples) the same on resampled rows, the same rows for every seed; NaN
            where a seed was asked none of them, which counts as its point.
        sign: +1, or -1 where the system is subtracted.
    """

    points: Floats
    draws: Floats
    sign: int = 1


@dataclass(frozen=True, slots=True)
class Spread:
    """The sampling error of an estimate.

    Attributes:
        deviations: (resamples,) draws of (estimate on new rows and new trainings) - (estimate).
        row_variance: the part of the variance that shrinks as rows are added.
        seed_variance: the part that only more trainings shrink; 0 with one seed.
        df: degrees of freedom of the variance.
        bias: mean of (estimate on resampled rows) - (estimate). The mean of `deviations` is no
            measure of it: Student's t with one degree of freedom has no mean.
    """

    deviations: Floats
    row_variance: float
    seed_variance: float
    df: float
    bias: float = 0.0

    @property
    def variance(self) -> float:
        """The whole variance of the estimate."""
        return self.row_variance + self.seed_variance


def units_of(n: int, groups: npt.ArrayLike | None) -> Units:
    """Number the units of n rows.

    Args:
        n: number of rows.
        groups: (n,) the group of each row, or None where every row stands for itself.

    Raises:
        ValueError: `groups` has another length.
        InputError: fewer than two units, whose spread nobody can know.
    """
    if groups is None:
        if n < 2:
            raise InputError(f"an interval needs at least 2 test rows, got {n}; add test rows")
        return Units(np.arange(n), n)
    names = numbered(groups)
    if names.shape != (n,):
        raise ValueError(f"groups must have shape ({n},), got {names.shape}")
    unique, of_row = np.unique(names, return_inverse=True)
    if len(unique) < 2:
        raise InputError(
            f"the {n} test rows form {len(unique)} group; intervals over groups need at least 2: "
            "add groups to the test part, or compare without a group column"
        )
    return Units(of_row.astype(np.int64), len(unique))


def row_weights(units: Units, resamples: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Draw units with replacement and yield how often each row was drawn.

    Args:
        units: what to draw.
        resamples: how many times.
        rng: source of chance.

    Yields:
        (part, n) counts; the parts add up to `resamples` and each fits in a few megabytes.
    """
    chunk = max(1, CELLS // max(units.count, len(units.of_row)))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = rng.integers(units.count, size=(size, units.count))
        drawn += np.arange(size)[:, None] * units.count
        counts = np.bincount(drawn.ravel(), minlength=size * units.count)
        yield counts.reshape(size, units.count)[:, units.of_row].astype(np.float64)


def spread(parts: Sequence[Part], count: int, rng: np.random.Generator) -> Spread:
    """Combine the spread over rows and over seeds.

    Seeds cross rows: every training answers the same rows. With a seed effect a, a row effect b
    and the rest e, the variance of a mean over S seeds and n rows is
    var(a)/S + var(b)/n + var(e)/(S n). Resampling seeds and rows at once (the pigeonhole
    bootstrap: Owen 2007, Annals of Applied Statistics 1, p. 386) counts e up to three times and,
    with two to five seeds, finds too little of a. So only rows are resampled, which gives b and e.
    The spread of the seeds' scores, less their share of e (also read off the resamples), gives
    a: the estimate of analysis of variance, cut at 0. This is how studies with several readers
    of the same cases are analysed (Obuchowski and Rockette 1995; Hillis 2007, Statistics in
    Medicine 26, p. 596). A few seeds fix a variance badly, so the draws are turned into draws of
    Student's t with the degrees of freedom of Satterthwaite (1946, Biometrics Bulletin 2, p. 110).

    Args:
        parts: the systems whose mean scores are added or subtracted, drawn on the same rows.
        count: number of units resampled.
        rng: source of chance.
    """
    parts = [
        replace(p, draws=np.where(np.isnan(p.draws), p.points[:, None], p.draws)) for p in parts
    ]
    unbias = count / (count - 1)
    row_draws = sum(p.sign * (p.draws.mean(axis=0) - p.points.mean()) for p in parts)
    assert isinstance(row_draws, np.ndarray)
    centre = float(row_draws.mean())
    row = float(row_draws.var()) * unbias
    seed, uncertainty = 0.0, row**2 / (count - 1)
    for part in parts:
        extra, observed = _seed_variance(part, unbias)
        seed += extra
        if extra > 0:
            uncertainty += observed**2 / (len(part.points) - 1)
    if row == 0:
        return Spread(row_draws, row, seed, float(count - 1), centre)
    # Never fewer than the part with the fewest has: cut at 0, a may be less than its own error.
    df = max(1.0, (row + seed) ** 2 / uncertainty)
    scale = np.sqrt(unbias * (row + seed) / row)
    student = np.sqrt(df / rng.chisquare(df, size=row_draws.shape))
    deviations = centre + (row_draws - centre) * scale * student
    return Spread(deviations, row, seed, float(df), centre)


def _seed_variance(part: Part, unbias: float) -> tuple[float, float]:
    """Return the seeds' own variance of the mean, and that before the rows' share is taken off."""
    seeds = len(part.points)
    if seeds == 1:
        return 0.0, 0.0
    observed = float(part.points.var(ddof=1)) / seeds
    apart = part.draws - part.draws.mean(axis=0)
    from_rows = float(apart.var(axis=1).sum()) * unbias / (seeds - 1) / seeds
    return max(0.0, observed - from_rows), observed


def numbered(groups: npt.ArrayLike) -> npt.NDArray[np.generic]:
    """Number the groups in the order of their names; what is an array already stays as it is.

    NumPy gives every name the width of the longest, which is gigabytes where texts are groups.
    """
    if isinstance(groups, np.ndarray):
        return groups
    names: list[Any] = list(groups)  # type: ignore[arg-type]
    place = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([place[name] for name in names], dtype=np.int64)


def resampled(groups: Sequence[str] | None) -> npt.NDArray[np.generic] | None:
    """The groups by number, if they can be resampled: where all rows are of one, only rows can."""
    return None if groups is None or len(set(groups)) < 2 else numbered(groups)
