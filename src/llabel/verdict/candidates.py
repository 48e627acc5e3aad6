"""What a verdict is made from: rungs that ran, and the test rows they are compared on."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from llabel.statistics.paired import Pair, accuracies, compare_pair
from llabel.task import ClassIndices
from llabel.verdict.text import Basis, Named

MAJORITY, LOOKUP = "majority", "lookup"
ENOUGH_UNSEEN = 100  # fewer rows decide nothing: their intervals span ten points and more


@dataclass(frozen=True, slots=True)
class Candidate:
    """One rung that ran to its end.

    Attributes:
        name: the rung's name; `majority` and `lookup` are the controls.
        cost_rank: place in the order of cost, the cheapest lowest.
        answers: (n_seeds, n) or (n,) answers on all test rows, -1 for unknown (wrong), -2 for rows
            that a training was not asked.
        validation_accuracy: 0..1, mean over seeds; None where it was not measured.
        validation_log_loss: nats, mean over seeds; breaks ties of accuracy.
        is_llm: whether it needs an LLM when used.
        is_control: whether it only tells what the others' scores are worth.
    """

    name: str
    cost_rank: int
    answers: npt.NDArray[np.int64]
    validation_accuracy: float | None = None
    validation_log_loss: float | None = None
    is_llm: bool = False
    is_control: bool = False


@dataclass(frozen=True)
class TestRows:
    """The rows a question is asked on, and how it is asked.

    Attributes:
        y: (n,) true class indices of all test rows.
        keep: (n,) which of them are asked.
        groups: (n,) the group of each row, or None.
        resamples: bootstrap draws.
        seed: of the bootstrap.
        ids: (n,) which row each is, where several draws test one several times; None where all are
            different.
    """

    __test__ = False  # pytest: not a test class

    y: ClassIndices
    keep: npt.NDArray[np.bool_]
    groups: npt.NDArray[np.generic] | None
    resamples: int
    seed: int
    ids: npt.NDArray[np.generic] | None = None

    @cached_property
    def count(self) -> int:
        """Number of different rows kept."""
        return int(self.keep.sum() if self.ids is None else len(np.unique(self.ids[self.keep])))

    @property
    def unseen_only(self) -> bool:
        """Whether some rows are left out, which is done to rows seen in training."""
        return not self.keep.all()

    def pair(self, a: Candidate, b: Candidate, confidence: float = 0.95) -> Pair:
        """Compare a with b on the rows kept.

        The bootstrap's draws depend on the order: as in the table of pairs, the cheaper one is
        first, so that both have the same interval of the same pair.
        """
        if a.cost_rank > b.cost_rank:
            return self.pair(b, a, confidence).turned()
        return compare_pair(
            self.y[self.keep],
            np.atleast_2d(a.answers)[:, self.keep],
            np.atleast_2d(b.answers)[:, self.keep],
            groups=None if self.groups is None else self.groups[self.keep],
            rows=self.count,
            confidence=confidence,
            resamples=self.resamples,
            seed=self.seed,
        )

    def accuracy(self, rung: Candidate) -> float:
        """Mean over trainings of their accuracy on the rows kept, 0..1."""
        answers = np.atleast_2d(rung.answers)[:, self.keep]
        return float(accuracies(self.y[self.keep], answers).mean())

    def named(self, rung: Candidate) -> Named:
        """Name a rung with its accuracy on the rows kept."""
        return Named(rung.name, self.accuracy(rung))

    def basis(self, margin: float) -> Basis:
        """Tell the rows kept, and a margin (0..1), in words."""
        return Basis(self.count, self.unseen_only, margin)


def by_validation(rung: Candidate) -> tuple[float, float, int]:
    """Sort key: highest validation accuracy, lowest log loss, cheapest; the unmeasured last."""
    accuracy = -np.inf if rung.validation_accuracy is None else rung.validation_accuracy
    loss = np.inf if rung.validation_log_loss is None else rung.validation_log_loss
    return (-accuracy, loss, rung.cost_rank)
