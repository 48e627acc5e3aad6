"""A rung's scores with their intervals, on validation, test and unseen test rows."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import compress

import numpy as np
import numpy.typing as npt

from llabel.compare.answers import PartAnswers
from llabel.comparison import ComparedMetrics, ComparedScores
from llabel.metrics import score
from llabel.statistics.intervals import bootstrap_scores
from llabel.statistics.resampling import resampled
from llabel.task import ClassIndices, Task


def compared_metrics(
    answers: Mapping[str, PartAnswers], task: Task, unseen: npt.NDArray[np.bool_]
) -> ComparedMetrics:
    """Score one rung.

    Args:
        answers: on validation and test.
        task: fields, classes, rows.
        unseen: (n_test,) which test rows share no long text with train or validation.
    """
    test, groups = answers["test"], task.test.groups
    unseen_groups = groups and list(compress(groups, unseen.tolist()))
    enough = int(unseen.sum()) > 1  # one row has no spread
    return ComparedMetrics(
        validation=_scores(answers["validation"], task.validation.y, task.validation.groups),
        test=_scores(test, task.test.y, groups),
        test_unseen=_scores(test.rows(unseen), task.test.y[unseen], unseen_groups)
        if enough
        else None,
    )


def _scores(part: PartAnswers, y: ClassIndices, groups: Sequence[str] | None) -> ComparedScores:
    each = [
        scores
        for proba, answers, asked in zip(part.proba, part.answers, part.asked, strict=True)
        if (scores := score(y[asked], proba[asked], answers[asked]))
    ]
    intervals = bootstrap_scores(y, part.proba, part.answers, groups=resampled(groups))
    return ComparedScores(
        rows=len(y),
        accuracy=_mean(scores["accuracy"] for scores in each),
        macro_f1=_mean(scores["macro_f1"] for scores in each),
        log_loss=_mean(scores["log_loss"] for scores in each),
        ece=_mean(scores["ece"] for scores in each),
        **intervals,
    )


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
