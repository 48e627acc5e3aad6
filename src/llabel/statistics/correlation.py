"""Whether two numbers rise together, in ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import atanh, sqrt, tanh
from statistics import NormalDist

from llabel.metrics import Interval

FEWEST = 6


@dataclass(frozen=True, slots=True)
class Correlation:
    """Spearman's rank correlation, -1..1, with its 95 % interval."""

    rho: float
    ci95: Interval
    n: int


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Correlation | None:
    """Give Spearman's rank correlation with Bonett and Wright's interval.

    Bonett and Wright 2000, Psychometrika 65, p. 23: Fisher's z with the variance
    (1 + rho² / 2) / (n - 3), good for |rho| below 0.95.

    Args:
        x, y: n finite numbers each.

    Returns:
        None for fewer than six pairs, or where one side does not vary.
    """
    from scipy.stats import spearmanr

    if len(x) < FEWEST or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    rho = float(spearmanr(x, y).statistic)
    if abs(rho) > 1 - 1e-12:
        return Correlation(rho, (rho, rho), len(x))
    half = NormalDist().inv_cdf(0.975) * sqrt((1 + rho**2 / 2) / (len(x) - 3))
    return Correlation(rho, (tanh(atanh(rho) - half), tanh(atanh(rho) + half)), len(x))
