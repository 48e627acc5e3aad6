"""Temperature scaling (Guo et al. 2017, arXiv:1706.04599, section 4.2)."""

import math
from typing import Literal, TypedDict

import numpy as np

from llabel.metrics import log_loss
from llabel.task import ClassIndices, Probabilities

RANGE = (1 / 20, 20.0)  # temperatures that are looked at
_TOLERANCE = 1e-6  # of the logarithm of the temperature


class Sureness(TypedDict):
    """What calibration changes: see `llabel.metrics.Scores`; accuracy stays as it is."""

    log_loss: float
    ece: float


class BeforeAfter(TypedDict):
    """The same rows with the rung's own probabilities and with calibrated ones."""

    before: Sureness
    after: Sureness


class Calibration(TypedDict):
    """What `--calibrate` did.

    Attributes:
        method: `temperature`.
        temperature: what the logarithms of the rung's probabilities are divided by; above 1 it
            was too sure of itself. 1 where no temperature is the best: with every validation row
            right, a lower one is always better there.
        chosen_on: `validation`: the temperature is chosen on the rows of `validation` below, which
            therefore flatters it; `test` shows the truth.
        validation: of the rung before any refit.
        test: None with `--untested`.
    """

    method: Literal["temperature"]
    temperature: float
    chosen_on: Literal["validation"]
    validation: BeforeAfter
    test: BeforeAfter | None


def fit_temperature(y: ClassIndices, proba: Probabilities) -> float:
    """The temperature that makes the log loss least.

    Args:
        y: (n,) true class indices, n at least 1.
        proba: (n, n_classes) probabilities of rows that the rung did not learn from.

    Returns:
        Within `RANGE`; exactly 1 where nothing in it is better, or only its lower end is.
    """
    from scipy.optimize import minimize_scalar

    # With every row right the loss falls all the way down and may be 0 long before the end, where
    # Brent's method stops at any temperature.
    if (proba[np.arange(len(y)), y] >= proba.max(axis=1)).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        return log_loss(y, scaled(proba, math.exp(log_temperature)))

    low, high = map(math.log, RANGE)
    found = minimize_scalar(
        loss, bounds=(low, high), method="bounded", options={"xatol": _TOLERANCE}
    )
    at_the_end = found.x - low < 100 * _TOLERANCE
    # Brent's method looks into one valley: nothing is taken that is no better than what there is.
    return 1.0 if at_the_end or loss(found.x) >= loss(0.0) else math.exp(found.x)


def scaled(proba: Probabilities, temperature: float) -> Probabilities:
    """softmax(log p / temperature): the same order of classes, more or less sure.

    Args:
        proba: (n, n_classes) probabilities; 0 stays 0.
        temperature: above 0; 1 changes nothing, to the bit.
    """
    if temperature == 1 or len(proba) == 0:
        return proba
    with np.errstate(divide="ignore"):
        logits = np.log(np.asarray(proba, dtype=np.float64)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    out: Probabilities = powers / powers.sum(axis=1, keepdims=True)
    return out
