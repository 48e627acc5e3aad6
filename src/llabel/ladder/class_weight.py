"""Rare classes that count as much as frequent ones in the loss."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llabel.settings import ClassWeight
from llabel.task import ClassIndices

if TYPE_CHECKING:
    from llabel.engine.batching import Example


def row_weights(y: ClassIndices, class_weight: ClassWeight | None) -> npt.NDArray[np.float64]:
    """What each row counts: 1, or with `balanced` n / (n_classes · rows of its class).

    These are scikit-learn's (King & Zeng 2001): every class that occurs counts alike, and the mean
    over the rows is 1.

    Args:
        y: (n,) class indices; (n, n_targets) of several targets, each balanced for itself.
        class_weight: how.

    Returns:
        As `y`.
    """
    from sklearn.utils.class_weight import compute_sample_weight

    columns = [compute_sample_weight(class_weight, column) for column in y.reshape(len(y), -1).T]
    return np.stack(columns, axis=1).reshape(y.shape)


def weigh(
    examples: Sequence["Example"], y: ClassIndices, class_weight: ClassWeight | None
) -> list["Example"]:
    """The rows with their weights; `y` (n,) or (n, n_targets) are their classes."""
    if class_weight is None:
        return list(examples)
    weights = row_weights(y, class_weight).reshape(len(y), -1).tolist()
    return [replace(row, weights=tuple(own)) for row, own in zip(examples, weights, strict=True)]
