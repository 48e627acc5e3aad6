"""How sure a share of the variance is: intervals from the noncentral chi-square distribution."""

from dataclasses import dataclass

import numpy as np

from llabel.metrics import Interval
from llabel.statistics.resampling import Floats

DRAWS = 9  # 2 to this power


@dataclass(frozen=True, slots=True)
class Squares:
    """A sum of squares and its degrees of freedom."""

    ss: float
    df: int

    def __sub__(self, part: "Squares") -> "Squares":
        """What is left when an orthogonal part is taken off."""
        return Squares(max(0.0, self.ss - part.ss), self.df - part.df)


def omega_squared(effect: Squares, noise: Squares, total: float) -> float:
    """Estimate the share of the variance that an effect explains, at most 1.

    omega² = (SS - df · MSE) / (SS_total + MSE) (Hays 1963, Statistics for Psychologists; Olejnik
    and Algina 2003, Psychological Methods 8, p. 434). Unlike R² it does not grow with the number
    of levels; where an effect is null, it is as often below 0 as above.

    Args:
        effect: of the effect.
        noise: of the residuals, with at least one degree of freedom.
        total: sum of squares about the mean.
    """
    error = noise.ss / noise.df
    return (effect.ss - effect.df * error) / (total + error)


def share_interval(
    effect: Squares, rest: Squares, noise: Squares, n: int, confidence: float = 0.95
) -> Interval:
    """Bound the share of the variance that an effect explains.

    The share is l / (l + m + n), where l and m are the noncentralities of the effect and of the
    rest of the model: their mean squared deviations over the n cells, in units of the noise, times
    n. The three sums of squares are independent, noncentral chi-square each, so that each has a
    confidence distribution, and so has their ratio (a generalised confidence interval: Weerahandi
    1993, JASA 88, p. 899). With no rest this is the interval that inverts the noncentral F
    distribution (Steiger 2004, Psychological Methods 9, p. 164), which is exact. It takes noise
    for normal and equally large in all cells.

    Where the effect is null the lower limit is 0 in 97.5 % of cases.

    Args:
        effect, rest: orthogonal parts of the model; `rest` may have no degrees of freedom.
        noise: of the residuals, with at least one degree of freedom.
        n: number of cells.
        confidence: coverage, between 0 and 1.

    Returns:
        (lower, upper), each in 0..1.
    """
    u = _uniforms()
    noise_draws = _noise_draws(noise, u[:, 0])
    part = _noncentrality(effect, noise_draws, u[:, 1])
    others = _noncentrality(rest, noise_draws, u[:, 2])
    tail = (1 - confidence) / 2
    low, high = np.quantile(part / (part + others + n), [tail, 1 - tail])
    return float(low), float(high)


def noise_interval(model: Squares, noise: Squares, n: int, confidence: float = 0.95) -> Interval:
    """Bound the share of the variance that is noise: n / (m + n), see `share_interval`."""
    low, high = share_interval(model, Squares(0.0, 0), noise, n, confidence)
    return 1 - high, 1 - low


def _uniforms() -> Floats:
    """The same (2^DRAWS, 3) evenly spread numbers between 0 and 1 every time."""
    from scipy.stats import qmc

    return qmc.Sobol(d=3, seed=0).random_base2(DRAWS)


def _noise_draws(noise: Squares, u: Floats) -> Floats:
    from scipy.stats import chi2

    floor = 1e-12  # of exact fits: no noise, not a division by 0
    return max(noise.ss, floor) / np.maximum(chi2.ppf(u, noise.df), 1e-300)


def _noncentrality(part: Squares, noise: Floats, u: Floats) -> Floats:
    """Draw from the confidence distribution of a noncentrality, given the noise's variance."""
    from scipy.special import chndtrinc
    from scipy.stats import chi2, norm

    if part.df == 0:
        return np.zeros_like(u)
    x = part.ss / noise
    found = np.zeros_like(u)
    # The root of a large noncentral chi-square is normal, within 0.2 % of the limits of 95 %
    # intervals; the exact inverse is slow there.
    large = x > 200 + 20 * part.df
    root = np.sqrt(x[large]) - norm.ppf(u[large])
    found[large] = np.maximum(root**2 - (part.df - 1), 0)
    exact = ~large & (chi2.cdf(x, part.df) > u)  # else even a null effect gives more than x
    found[exact] = chndtrinc(x[exact], part.df, u[exact])
    return found
