"""Two systems on the same rows: their difference in log loss, its interval and its p value."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llabel.metrics import LOG_LOSS_EPS, Interval
from llabel.statistics.resampling import Floats, Part, row_weights, spread, units_of
from llabel.task import ClassIndices

RESAMPLES = 4_000


@dataclass(frozen=True, slots=True)
class LossPair:
    """System a against system b on the same rows.

    Attributes:
        difference: log loss of a less that of b, nats, each a mean over its seeds.
        interval: (lower, upper) of the difference, 95 %.
        p_value: two-sided, of "no difference".
    """

    difference: float
    interval: Interval
    p_value: float


def row_losses(y: ClassIndices, proba: npt.NDArray[np.float64]) -> Floats:
    """(n_seeds, n, n_classes) probabilities → (n_seeds, n) -ln p(true class), nats."""
    truth = proba[:, np.arange(len(y)), y]
    losses: Floats = -np.log(np.clip(truth, LOG_LOSS_EPS, 1.0))
    return losses


def compare_losses(
    a: Floats, b: Floats, *, groups: npt.ArrayLike | None = None, seed: int = 0
) -> LossPair:
    """Compare the log loss of two systems on the same rows by the paired bootstrap.

    Rows, or whole groups, are resampled, the same for both systems; several seeds add their own
    spread (see `llabel.statistics.resampling.spread`). Interval and p value come from the same
    draws; where none of them lies beyond 0, the p value is that of Student's t with their variance,
    so that it still tells differences apart once it is corrected for hundreds of pairs. A system
    with a single seed counts as it is.

    Args:
        a: (n_seeds_a, n) losses of each row, from `row_losses`.
        b: (n_seeds_b, n) the same of the other system.
        groups: (n,) the group of each row, or None.
        seed: of the bootstrap.

    Raises:
        ValueError: shapes disagree.
        InputError: fewer than two rows or groups.
    """
    from scipy.stats import t

    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"losses must have shape (n_seeds, n), got {a.shape} and {b.shape}")
    rng = np.random.default_rng(seed)
    units = units_of(a.shape[1], groups)
    drawn = [
        (weights @ np.concatenate([a, b]).T / weights.sum(axis=1, keepdims=True)).T
        for weights in row_weights(units, RESAMPLES, rng)
    ]
    draws = np.concatenate(drawn, axis=1)  # (seeds a + b, resamples)
    cut = len(a)
    parts = [Part(a.mean(axis=1), draws[:cut]), Part(b.mean(axis=1), draws[cut:], sign=-1)]
    difference = float(a.mean() - b.mean())
    error = spread(parts, units.count, rng)
    found = difference + error.deviations
    lower, upper = np.quantile(found, [0.025, 0.975])
    beyond = min(int((found <= 0).sum()), int((found >= 0).sum()))
    p_value = min(1.0, 2 * (beyond + 1) / (RESAMPLES + 1))
    if not beyond and error.variance > 0:
        p_value = min(p_value, 2 * float(t.sf(abs(difference) / error.variance**0.5, error.df)))
    return LossPair(difference, (float(lower), float(upper)), p_value)
