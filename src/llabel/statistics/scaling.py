"""Is alpha more important than r, or is it the learning rate in disguise?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llabel.metrics import Interval
from llabel.statistics.design import Axis, axis_of, fit, indicators, smooth
from llabel.statistics.resampling import Floats
from llabel.statistics.shares import Squares, omega_squared, share_interval
from llabel.statistics.terms import added

LORA = ("r", "lora_alpha", "lr", "use_rslora")
STEP = "scaling × lr"
STEP_OF_ALL = "scaling × r × lr"  # without rsLoRA: alpha × lr
FEWEST_SETTINGS = 6


@dataclass(frozen=True, slots=True)
class Explained:
    """How well some predictors tell the loss of settings that they have not seen.

    Attributes:
        predictors: `STEP`, `STEP_OF_ALL`, and axes.
        parameters: free coefficients, the constant not counted.
        r2: share of the variance that they fit.
        r2_cv: share of the variance that they predict, each setting (with all its seeds) from the
            others; below 0 where they predict worse than the mean. None where a value occurs in
            one setting only, so that the others can't tell of it.
    """

    predictors: tuple[str, ...]
    parameters: int
    r2: float
    r2_cv: float | None


@dataclass(frozen=True, slots=True)
class Beyond:
    """What an axis adds to a curve.

    Attributes:
        curve: `STEP` or `STEP_OF_ALL`.
        axis: its name.
        df: degrees of freedom.
        share: of the whole variance (omega²); `ci95` its interval, None without noise.
    """

    curve: str
    axis: str
    df: int
    share: float
    ci95: Interval | None


@dataclass(frozen=True, slots=True)
class Scaling:
    """The step that an update takes against r, alpha and lr as factors.

    Attributes:
        others: axes that all models know besides, but the seed.
        models: the others alone (if there are any), `STEP`, `STEP_OF_ALL` (if r differs), each
            axis, all axes.
        beyond: what each axis adds to each of the two curves.
    """

    others: tuple[str, ...]
    models: tuple[Explained, ...]
    beyond: tuple[Beyond, ...]


def analyse_scaling(
    settings: Sequence[Mapping[str, Any]],
    losses: Floats,
    scaling_lr: Sequence[float | None],
    noise: Squares | None,
) -> Scaling | None:
    """Ask whether r, alpha and lr tell the loss through one number alone.

    There are two candidates. LoRA's update is scaling · B A, and Adam moves each number of B by
    about lr, whatever its gradient is multiplied by.

    - *scaling × lr*: the step of one of the r columns of B. If it decides, r divides alpha.
    - *scaling × r × lr*: the step of all r columns, which add up as long as they learn the same
      (at first, when B is 0, they do). If it decides, alpha / r · r · lr leaves r without effect.
      (Which of them is invariant depends on scaling and initialisation: "Learning Rate Scaling
      across LoRA Ranks and Transfer to Full Finetuning", 2026, arXiv:2602.06204.)

    A restricted cubic spline of the logarithm of either stands against r, alpha and lr as factors
    whose effects add up, by R² in cross-validation (leaving one setting out: Allen 1974,
    Technometrics 16, p. 125), so that more coefficients are no advantage. If r and alpha matter
    through it only, the curve is as good as the factors, and none of them adds to it. What each
    adds to a curve is told as a share of the variance with its interval.

    Args:
        settings: of the n trained cells: r, lora_alpha, lr, use_rslora and any others.
        losses: (n,) finite.
        scaling_lr: of each cell: the factor of the LoRA update, alpha / r (Hu et al. 2021,
            arXiv:2106.09685, section 4.1; with rsLoRA alpha / √r, Kalajdzievski 2023,
            arXiv:2312.03732), times the learning rate.
        noise: of the replicates; None takes what curve and factors together leave.

    Returns:
        None where fewer than two of r, lora_alpha and lr differ, a cell has no scaling × lr, or
        the settings are fewer than six or have fewer than three values of it.
    """
    steps = [step for step in scaling_lr if step is not None and step > 0]
    if len(steps) < len(settings):
        return None
    names = dict.fromkeys(name for cell in settings for name in cell)
    axes = [axis for name in names if len((axis := axis_of(name, settings)).levels) > 1]
    asked = [axis for axis in axes if axis.name in LORA]
    others = [axis for axis in axes if axis.name not in (*LORA, "seed")]
    groups = indicators([*asked, *others], len(settings)).argmax(1)
    x = np.log(np.array(steps))
    if (
        len({axis.name for axis in asked} & {"r", "lora_alpha", "lr"}) < 2
        or len(np.unique(groups)) < FEWEST_SETTINGS
        or len(np.unique(np.round(x, 9))) < 3
    ):
        return None
    curves = [_curve(STEP, x)]
    if any(axis.name == "r" for axis in asked):
        curves.append(_curve(STEP_OF_ALL, x + np.log([cell["r"] for cell in settings])))
    candidates = [[], *([axis] for axis in (*curves, *asked)), asked]
    models = [
        _explained([*others, *chosen], losses, groups) for chosen in candidates if others or chosen
    ]
    beyond = [entry for curve in curves for entry in _beyond(curve, asked, others, losses, noise)]
    return Scaling(tuple(axis.name for axis in others), tuple(models), tuple(beyond))


def _curve(name: str, x: Floats) -> Axis:
    return Axis(name, tuple(np.unique(x)), [0] * len(x), smooth(x), True)


def _explained(axes: Sequence[Axis], y: Floats, groups: npt.NDArray[np.int64]) -> Explained:
    columns = np.concatenate([axis.basis for axis in axes], axis=1)
    found = fit(y, columns)
    total = float(np.square(y - y.mean()).sum())
    names = tuple(axis.name for axis in axes)
    predicted = _predicted(columns, y, groups, found.rank)
    return Explained(names, found.rank - 1, 1 - found.rss / total, predicted)


def _predicted(
    columns: Floats, y: Floats, groups: npt.NDArray[np.int64], rank: int
) -> float | None:
    """Cross-validated R²: each group is predicted from the others."""
    wrong = mean_wrong = 0.0
    for group in np.unique(groups):
        out = groups == group
        if np.linalg.matrix_rank(columns[~out]) < rank:
            return None
        coefficients, *_ = np.linalg.lstsq(columns[~out], y[~out])
        wrong += float(np.square(y[out] - columns[out] @ coefficients).sum())
        mean_wrong += float(np.square(y[out] - y[~out].mean()).sum())
    return 1 - wrong / mean_wrong


def _beyond(
    curve: Axis,
    asked: Sequence[Axis],
    others: Sequence[Axis],
    y: Floats,
    noise: Squares | None,
) -> Iterator[Beyond]:
    base = [*(axis.basis for axis in others), curve.basis]
    if noise is None:
        left = fit(y, *base, *(axis.basis for axis in asked))
        noise = Squares(left.rss, len(y) - left.rank)
    total = float(np.square(y - y.mean()).sum())
    for axis in asked:
        squares = added(y, base, [axis.basis])
        if not noise.df or not squares.df:
            yield Beyond(curve.name, axis.name, squares.df, squares.ss / total, None)
            continue
        rest = Squares(max(0.0, total - noise.ss - squares.ss), len(y) - 1 - noise.df - squares.df)
        interval = share_interval(squares, rest, noise, len(y))
        share = omega_squared(squares, noise, total)
        yield Beyond(curve.name, axis.name, squares.df, share, interval)
