"""Columns of a least squares model whose predictors are settings: factors, curves, products."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json import dumps
from math import isfinite
from typing import Any

import numpy as np

from llabel.statistics.resampling import Floats

MOST_LEVELS = 12  # a numeric axis with more is a curve


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting that differs between cells.

    Attributes:
        name: of the setting.
        levels: its values, in order.
        of_cell: (n,) the level of each cell.
        basis: (n, k) columns that span what it may do alone, the constant first: indicators of
            the levels, or a curve of the logarithm (of the value itself where some are not
            positive).
        curve: whether it is a curve.
    """

    name: str
    levels: tuple[Any, ...]
    of_cell: Sequence[int]
    basis: Floats
    curve: bool


def axis_of(name: str, settings: Sequence[Mapping[str, Any]], *, factor: bool = False) -> Axis:
    """Describe how one setting differs between cells.

    Few values are a factor. Many numbers, as a search draws them, are a curve of second degree:
    indicators of values that occur once would explain everything and mean nothing.

    Args:
        name: of the setting; a cell without it has None.
        settings: of the n cells, at least one.
        factor: whether it is one, however many values it has.
    """
    values = [cell.get(name) for cell in settings]
    keys = [_key(value) for value in values]
    first = dict(zip(reversed(keys), reversed(values), strict=True))
    order = sorted(first, key=lambda key: _place(first[key]))
    of_cell = [order.index(key) for key in keys]
    levels = tuple(first[key] for key in order)
    many = len(levels) > MOST_LEVELS or 2 * len(levels) > len(values) > 7
    if not factor and many and all(map(_is_number, levels)):
        x = np.asarray(values, dtype=np.float64)
        z = standard(np.log(x) if (x > 0).all() else x)
        return Axis(name, levels, of_cell, np.stack([np.ones_like(z), z, z**2], axis=1), True)
    indicators = np.eye(len(levels))[of_cell][:, 1:]
    basis = np.concatenate([np.ones((len(values), 1)), indicators], axis=1)
    return Axis(name, levels, of_cell, basis, False)


def product(axes: Sequence[Axis]) -> Floats:
    """Columns that span what these axes may do together, each alone included: (n, columns)."""
    columns = axes[0].basis
    for axis in axes[1:]:
        columns = (columns[:, :, None] * axis.basis[:, None, :]).reshape(len(columns), -1)
    return columns


def indicators(axes: Sequence[Axis], n: int) -> Floats:
    """Indicators of the combinations of levels that occur: (n, combinations)."""
    rows = [tuple(axis.of_cell[place] for axis in axes) for place in range(n)]
    order = {row: at for at, row in enumerate(dict.fromkeys(rows))}
    return np.eye(len(order))[[order[row] for row in rows]]


def smooth(x: Floats) -> Floats:
    """A restricted cubic spline, the constant first: (n, 2) to (n, 4).

    Harrell 2015, Regression Modeling Strategies, section 2.4.5: cubic between four knots at the
    quantiles 0.05, 0.35, 0.65 and 0.95, linear beyond them. Of fewer than six different values,
    a parabola; of fewer than four, a line.

    Args:
        x: (n,) values, at least two of them different.
    """
    z = standard(x)
    different = np.unique(np.round(z, 9))
    if len(different) < 6:
        powers = range(3 if len(different) > 3 else 2)
        return np.stack([z**power for power in powers], axis=1)
    knots = np.quantile(different, [0.05, 0.35, 0.65, 0.95])
    last, near = knots[3], knots[2]

    def bend(knot: float) -> Floats:
        return np.maximum(z - knot, 0) ** 3

    curved = [
        bend(knot)
        - bend(near) * (last - knot) / (last - near)
        + bend(last) * (near - knot) / (last - near)
        for knot in knots[:2]
    ]
    return np.stack([np.ones_like(z), z, *curved], axis=1)


def standard(x: Floats) -> Floats:
    """Shift and stretch to mean 0 and standard deviation 1."""
    return (x - x.mean()) / (x.std() or 1.0)


@dataclass(frozen=True, slots=True)
class Fit:
    """A least squares fit.

    Attributes:
        rss: sum of squared residuals.
        rank: number of free coefficients.
    """

    rss: float
    rank: int


def fit(y: Floats, *columns: Floats) -> Fit:
    """Fit (n,) values by the span of (n, k) columns, redundant ones included."""
    kept = span(*columns)
    return Fit(float(np.square(y - kept @ (kept.T @ y)).sum()), kept.shape[1])


def span(*columns: Floats) -> Floats:
    """An orthonormal basis of the columns' span: (n, rank)."""
    whole = np.concatenate(columns, axis=1)
    whole = whole / np.maximum(np.linalg.norm(whole, axis=0), 1e-300)
    left, size, _ = np.linalg.svd(whole, full_matrices=False)
    return left[:, size > 1e-9 * size[0]]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _key(value: Any) -> str:
    """Equal for equal settings; 1 and 1.0 are equal, 1 and True are not."""
    return repr(float(value)) if _is_number(value) else dumps(value, sort_keys=True, default=str)


def _place(value: Any) -> tuple[int, float, str]:
    return (0, value, "") if _is_number(value) else (1, 0.0, str(value))
