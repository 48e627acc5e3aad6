"""When to give no answer: a threshold for the top probability, and what it costs in coverage.

Selective classification as in Geifman & El-Yaniv 2017 (arXiv:1705.08500): the surest rows are
answered, the others are left to somebody else.
"""

from collections.abc import Sequence
from itertools import compress
from typing import Any, Literal, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

from llabel.metrics import wilson_limits
from llabel.statistics.intervals import share_interval
from llabel.statistics.resampling import numbered

ABSTAIN = "abstain"  # what stands in place of a label
CURVE_POINTS = 50
# The lower bound of an interval of 90 % holds with 95 %: it errs on one side only.
ONE_SIDED = 0.90

_Mask: TypeAlias = npt.NDArray[np.bool_]
_Values: TypeAlias = npt.NDArray[np.float64]


class CoveragePoint(TypedDict):
    """The rows whose top probability is at least `threshold`.

    Attributes:
        threshold: 0..1.
        coverage: their share of all rows, above 0.
        accuracy: the share of them that is right.
    """

    threshold: float
    coverage: float
    accuracy: float


class Answered(TypedDict):
    """How many rows get an answer, and how good these are.

    Attributes:
        rows: of the part.
        answered: of these.
        coverage: their share; `coverage_ci95` its 95 % interval (`statistics.share_interval`).
        accuracy: of the answered rows, with `accuracy_ci95`; both None where none is answered.
    """

    rows: int
    answered: int
    coverage: float
    coverage_ci95: list[float]
    accuracy: float | None
    accuracy_ci95: list[float] | None


class Abstention(TypedDict):
    """What `--abstain-below` or `--target-precision` does.

    Attributes:
        rule: which of the two.
        threshold: rows whose top (calibrated) probability lies below it get no answer.
        target_precision: what was asked for, or None.
        attained: whether some threshold comes up to that on validation (see
            `smallest_threshold`); None with `abstain_below`.
        validation: of the rung before any refit; a threshold for `target_precision` is chosen
            there.
        test: None with `--untested`.
        curve: coverage and accuracy on the test rows (validation with `--untested`) of this and
            other thresholds, from few rows to all (see `coverage_curve`).
    """

    rule: Literal["abstain_below", "target_precision"]
    threshold: float
    target_precision: float | None
    attained: bool | None
    validation: Answered
    test: Answered | None
    curve: list[CoveragePoint]


def answered(
    right: _Mask, confidence: _Values, threshold: float, groups: Sequence[str] | None = None
) -> Answered:
    """How the rows fare of which only the surest are answered.

    Args:
        right: (n,) whether the most probable class is the true one; n at least 1.
        confidence: (n,) top probabilities.
        threshold: rows with at least so much are answered.
        groups: (n,) the group of each row, or None.
    """
    taken = confidence >= threshold
    n, count = len(right), int(taken.sum())
    good = int(right[taken].sum())
    theirs = None if groups is None else list(compress(groups, taken.tolist()))
    return Answered(
        rows=n,
        answered=count,
        coverage=count / n,
        coverage_ci95=list(share_interval(taken, groups)),
        accuracy=good / count if count else None,
        accuracy_ci95=list(share_interval(right[taken], theirs)) if count else None,
    )


def coverage_curve(
    right: _Mask, confidence: _Values, points: int = CURVE_POINTS
) -> list[CoveragePoint]:
    """Accuracy over coverage, the surest rows first.

    Rows of equal confidence come together: no threshold parts them.

    Args:
        right, confidence: as for `answered`.
        points: most points; all thresholds that the rows tell apart, if there are no more.

    Returns:
        At least one point; the last one is all rows.
    """
    thresholds, counts, good = _by_threshold(right, confidence)
    last = len(thresholds) - 1
    if last < points:
        chosen = np.arange(last + 1)
    else:  # evenly over coverage, not over thresholds, which crowd near 1
        wanted = np.linspace(0, len(right), points + 1)[1:]
        chosen = np.unique(np.minimum(np.searchsorted(counts, wanted), last))
    return [
        CoveragePoint(
            threshold=float(thresholds[at]),
            coverage=float(counts[at] / len(right)),
            accuracy=float(good[at] / counts[at]),
        )
        for at in chosen.tolist()
    ]


def smallest_threshold(
    right: _Mask, confidence: _Values, target: float, groups: Sequence[str] | None = None
) -> tuple[float, bool]:
    """The threshold that answers most rows with the precision that is asked for.

    Precision is the share of right rows among those answered. It counts as reached where the lower
    end of its one-sided 95 % Wilson interval is at least `target`: of many thresholds some look
    good by chance, and few answered rows prove little (52 rows without a mistake are the fewest
    that show 0.95). The bound is not corrected for the number of thresholds tried.

    With groups, the rows count as if those of one group were all right or all wrong together: n of
    them are worth (Σ m)² / Σ m² independent ones, over the groups' m answered rows, as many as
    there are groups where these are alike. That is the least they can be worth (design effect
    1 + (m - 1) ρ with ρ = 1: Kish 1965, Survey Sampling, chapter 5). How like they are cannot be
    told from the few mistakes above a threshold that was chosen for having few.

    Args:
        right, confidence: as for `answered`, of validation rows.
        target: between 0 and 1.
        groups: (n,) the group of each row, or None.

    Returns:
        The threshold, and whether it reaches the target; where none does, the one whose bound is
        highest, which may be well below.
    """
    from scipy.special import ndtri

    thresholds, counts, good = _by_threshold(right, confidence)
    worth = counts if groups is None else _least_worth(confidence, groups, counts)
    bounds, _ = wilson_limits(good / counts, worth, ndtri(0.5 + 0.5 * ONE_SIDED))
    reached = np.flatnonzero(bounds >= target)
    at = int(reached[-1]) if len(reached) else int(bounds.argmax())
    return float(thresholds[at]), bool(len(reached))


def _by_threshold(right: _Mask, confidence: _Values) -> tuple[_Values, Any, Any]:
    """(m,) thresholds that rows tell apart, from high to low; rows at or above each; right ones."""
    order = np.argsort(-confidence, kind="stable")
    sure, good = confidence[order], np.cumsum(right[order])
    ends = np.flatnonzero(np.append(sure[1:] != sure[:-1], True))
    return sure[ends], ends + 1, good[ends]


def _least_worth(confidence: _Values, groups: Sequence[str], counts: Any) -> _Values:
    """(m,) how many independent rows the surest `counts` rows are worth at least."""
    order = np.argsort(-confidence, kind="stable")
    _, of_row, sizes = np.unique(numbered(groups)[order], return_inverse=True, return_counts=True)
    place = np.empty(len(order), dtype=np.int64)  # of each row among those of its group
    firsts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    place[np.argsort(of_row, kind="stable")] = np.arange(len(order)) - firsts
    squares = np.cumsum(2 * place + 1)  # m² is the sum of the first m odd numbers
    worth: _Values = counts**2 / squares[counts - 1]
    return worth
