"""The classifier on top of fixed features: multinomial logistic regression, its C searched."""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from llabel.events import Listener, RowsDone, StageStarted, ignore
from llabel.ladder.class_weight import row_weights
from llabel.ladder.contract import Trial
from llabel.ladder.rung_folder import Array
from llabel.ladder.trials import FACTOR, around, best_of
from llabel.metrics import log_loss
from llabel.settings import ClassWeight
from llabel.task import ClassIndices, Probabilities

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Features: TypeAlias = "npt.NDArray[np.float32] | csr_matrix"  # (n, n_features)

MAX_ITERATIONS = 200
FURTHER = 7  # values of C beyond those asked for
PROBE = 10  # iterations that are timed first where time is limited


@dataclass(frozen=True, slots=True)
class Logistic:
    """Class scores that are linear in the features.

    Attributes:
        weights: (n_present, n_features) float32, of the classes that training had.
        bias: (n_present,) float32.
        present: (n_present,) class indices, ascending.
        n_classes: with those that training lacked.
        absent: probability of each class that training lacked, above 0 to keep log loss finite.
    """

    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    present: ClassIndices
    n_classes: int
    absent: float

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.weights.size + self.bias.size

    def predict_proba(self, features: Features) -> Probabilities:
        """(n, n_features) → (n, n_classes): softmax over the classes that training had."""
        scores = np.asarray(features @ self.weights.T, dtype=np.float64) + self.bias
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        proba = np.full((scores.shape[0], self.n_classes), self.absent)
        left = 1 - self.absent * (self.n_classes - len(self.present))
        proba[:, self.present] = left * scores / scores.sum(axis=1, keepdims=True)
        return proba

    def arrays(self) -> dict[str, Array]:
        """What `from_arrays` makes it from."""
        return {
            "weights": self.weights,
            "bias": self.bias,
            "present": self.present,
            "absent": np.array(self.absent),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], n_classes: int) -> "Logistic":
        """What `arrays` gave."""
        weights, bias, present = (arrays[name] for name in ("weights", "bias", "present"))
        return cls(weights, bias, present, n_classes, float(arrays["absent"]))


def fit_logistic(
    features: Features,
    y: ClassIndices,
    n_classes: int,
    C: float,
    *,
    class_weight: ClassWeight | None = None,
    limit: float | None = None,
    spent: float = 0.0,
) -> tuple[Logistic, Trial]:
    """Train with one value of C: loss summed over rows, times C, + half the squared weights.

    Args:
        features: (n, n_features).
        y: (n,) class indices; some classes may be missing.
        n_classes: how many there are.
        C: inverse strength of the L2 penalty, as in scikit-learn.
        class_weight: `balanced` lets every class count alike in the loss.
        limit: seconds after which to stop; None is without limit.
        spent: seconds that making the features took, told in the trial.

    Returns:
        The classifier and what its training took, without a validation loss.
    """
    start = time.perf_counter()
    present = np.unique(y)
    # The rule of succession, for classes of which no row was seen.
    absent = 0.0 if len(present) == n_classes else 1.0 / (len(y) + n_classes)
    iterations, stopped = 0, "converged"
    weights = np.zeros((len(present), features.shape[1]), dtype=np.float32)
    bias = np.zeros(len(present), dtype=np.float32)
    if len(present) > 1 and features.shape[1]:
        model, iterations, stopped = _minimise(features, y, C, class_weight, start, limit)
        weights, bias = _by_class(model.coef_, model.intercept_)
    elif len(present) > 1:
        counts = np.bincount(y, weights=row_weights(y, class_weight))[present]
        bias = np.log(counts / len(y)).astype(np.float32)
    trial = Trial(
        settings={"C": C},
        validation_loss=None,
        epochs=iterations,
        steps=iterations,
        rows=iterations * len(y),
        seconds=spent + time.perf_counter() - start,
        stopped=stopped,
    )
    return Logistic(weights, bias, present, n_classes, absent), trial


def _minimise(
    features: Features,
    y: ClassIndices,
    C: float,
    class_weight: ClassWeight | None,
    start: float,
    limit: float | None,
) -> tuple[Any, int, str]:
    """L-BFGS by scikit-learn; model, iterations, why it ended.

    Where time is limited, a first few iterations tell how many there is time for; these are then
    made from the beginning, since L-BFGS that goes on has lost its memory of the curvature.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    most = MAX_ITERATIONS if limit is None else PROBE
    while True:
        began = time.perf_counter()
        model = LogisticRegression(C=C, max_iter=most, class_weight=class_weight)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # told in `stopped`
            model.fit(features, y)
        done, now = int(model.n_iter_.max()), time.perf_counter()
        if done < most:
            return model, done, "converged"
        if done >= MAX_ITERATIONS:
            return model, done, "epochs"
        assert limit is not None
        room = (limit - (now - start)) / (now - began) * done
        if room < done + 1:
            return model, done, "budget"
        most = int(min(room, MAX_ITERATIONS))


def _by_class(
    weights: Array, bias: Array
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """One row a class; of two classes scikit-learn keeps only the second's, the first's is 0."""
    if len(weights) == 1:
        weights = np.concatenate([np.zeros_like(weights), weights])
        bias = np.concatenate([np.zeros_like(bias), bias])
    return weights.astype(np.float32), bias.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Search:
    """What trying several values of C gave: the best classifier and its validation part."""

    chosen: Logistic
    validation_proba: Probabilities
    trials: tuple[Trial, ...]
    best: int

    @property
    def C(self) -> float:
        """The chosen value."""
        return float(self.trials[self.best].settings["C"])


def search_c(
    train: tuple[Features, ClassIndices],
    validation: tuple[Features, ClassIndices],
    n_classes: int,
    *,
    usual: float,
    trials: int,
    budget: float | None = None,
    class_weight: ClassWeight | None = None,
    spent: float = 0.0,
    notify: Listener = ignore,
) -> Search:
    """Train with values of C around the usual one; keep the lowest validation log loss.

    As long as the best is the least or the largest so far, the one beyond it is tried, too. For C
    is all that keeps linear weights from being too small or too large, as the choice of the epoch
    does for what is trained step by step, and its best value differs a thousandfold between tasks.

    Args:
        train, validation: features and class indices.
        n_classes: how many there are.
        usual: the first value of C.
        trials: how many values at least; at most `FURTHER` more.
        budget: seconds for all together, those spent included.
        class_weight: see `fit_logistic`.
        spent: seconds that making the training features took; told in the first trial.
        notify: told of each trial.
    """
    made: list[tuple[Logistic, Probabilities]] = []  # the best so far, and the latest
    features, y = train

    def attempt(number: int, C: float, limit: float | None) -> Trial:
        del made[1:]  # one that lost
        notify(StageStarted(f"training with C = {C:.3g}", len(y)))
        model, trial = fit_logistic(
            features, y, n_classes, C, class_weight=class_weight, limit=limit
        )
        notify(RowsDone(len(y)))
        made.append((model, model.predict_proba(validation[0])))
        return replace(trial, validation_loss=log_loss(validation[1], made[-1][1]))

    def keep(number: int) -> None:
        del made[:-1]

    def beyond(tried: Sequence[Trial], best: int) -> float | None:
        return _beyond(tried, best) if len(tried) < trials + FURTHER else None

    values, left = around(usual, trials), None if budget is None else budget - spent
    found, best = best_of(values, attempt, keep, budget=left, further=beyond)
    found = (replace(found[0], seconds=spent + found[0].seconds), *found[1:])
    return Search(*made[0], found, best)


def _beyond(trials: Sequence[Trial], best: int) -> float | None:
    """The next value of C if the best is at an end of those tried; None if it is within."""
    tried = [float(trial.settings["C"]) for trial in trials]
    if tried[best] == min(tried):
        return tried[best] / FACTOR
    return tried[best] * FACTOR if tried[best] == max(tried) else None
