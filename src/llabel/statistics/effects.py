"""Which settings matter: shares of the variance of a loss over the cells of a sweep."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any, Literal, TypeAlias

import numpy as np

from llabel.metrics import Interval
from llabel.statistics.design import Axis, axis_of
from llabel.statistics.resampling import Floats
from llabel.statistics.scaling import Scaling, analyse_scaling
from llabel.statistics.shares import Squares, noise_interval, omega_squared, share_interval
from llabel.statistics.terms import Model, model_of

SEED = "seed"
FEWEST_CELLS = 3
Kind: TypeAlias = Literal["main", "interaction", "rest", "seed"]


@dataclass(frozen=True, slots=True)
class Effect:
    """One term of the analysis.

    Attributes:
        kind: `main`; `interaction` of two axes; `rest`: what else the settings do; `seed`: a shift
            that all cells with the same seed share.
        axes: what it is of; none for `rest`.
        df: degrees of freedom.
        share: of the variance; where it is null, below 0 as often as above. Without noise to
            compare with it is SS / SS_total.
        ci95: its interval, or None without noise to compare with.
    """

    kind: Kind
    axes: tuple[str, ...]
    df: int
    share: float
    ci95: Interval | None


@dataclass(frozen=True, slots=True)
class Noise:
    """What the terms do not explain.

    Attributes:
        replicated: whether it is what differs between trainings with the same settings and other
            seeds. If not, the highest interactions are in it, too.
        df: degrees of freedom; 0 where every cell is fitted exactly, and the rest is None.
        sd: standard deviation of one cell's loss.
        share: of the variance, above 1 where effects are below 0; `ci95` its interval.
    """

    replicated: bool
    df: int
    sd: float | None
    share: float | None
    ci95: Interval | None


@dataclass(frozen=True, slots=True)
class Level:
    """The loss at one value of an axis.

    Attributes:
        axis, value: of the setting.
        cells: how many have it.
        mean: of cells that spread evenly over the other axes, if effects add up; with all
            combinations present, the plain mean.
        ci95: its interval over trainings, or None.
    """

    axis: str
    value: Any
    cells: int
    mean: float
    ci95: Interval | None


@dataclass(frozen=True, slots=True)
class Effects:
    """What the axes of a sweep do to a loss, ready for JSON (`dataclasses.asdict`).

    Attributes:
        cells: how many are analysed; controls and cells without a finite loss are left out.
        axes: what differs between them, the seed included.
        effects: main effects first; none where nothing can be told.
        noise: None where nothing can be told.
        levels: of the axes that are factors.
        scaling: whether r and alpha are the learning rate in disguise; None where r, alpha and lr
            do not allow the question.
        notes: what a reader must know, in words.
    """

    cells: int
    axes: tuple[str, ...]
    effects: tuple[Effect, ...]
    noise: Noise | None
    levels: tuple[Level, ...]
    scaling: Scaling | None
    notes: tuple[str, ...]


def analyse(
    settings: Sequence[Mapping[str, Any]],
    losses: Sequence[float | None],
    *,
    scaling_lr: Sequence[float | None] | None = None,
    control: Sequence[bool] | None = None,
) -> Effects:
    """Say which share of a loss's variance goes with which setting.

    Analysis of variance over the cells. Each axis is a factor (or, where a search gave it many
    values, a parabola of its logarithm), with all interactions of two axes that the cells cover.
    Sums of squares are of type II: what a term adds to all terms that do not contain it (Langsrud
    2003, Statistics and Computing 13, p. 163). In a balanced factorial these are the classical
    ones, which add up to the total. Shares are omega², see `llabel.statistics.shares`.

    - Seeds are the replicates. Where settings were trained with several seeds, noise is what
      differs between those trainings, less the mean shift of each seed (seeds are blocks).
    - With no replicates the interactions left out can't be told from noise, and stand in for it:
      the noise is then an upper limit, and intervals are wide.
    - Controls (alpha 0: the untouched model) are left out. They are one measurement that stands at
      every r, lr and seed: these could do nothing there, and its copies would pass for trainings
      without noise.
    - An axis that another one decides (r, which a bag of words has not, by the system) has no
      effect of its own, and is left out.
    - Cells without a finite loss that can be compared (failed, pruned, diverged) are given as
      None, inf or nan, and left out: shares are those of the other cells, which the notes say.

    Args:
        settings: of each cell, by name; those called `seed` are replicates.
        losses: of each cell.
        scaling_lr: of each cell, for `Effects.scaling`, see there; None asks nothing of it.
        control: which cells are the untouched model; by default those with lora_alpha 0.
    """
    if control is None:
        control = [cell.get("lora_alpha") == 0 for cell in settings]
    told = [
        (cell, loss, step)
        for cell, loss, step, untouched in zip(
            settings, losses, scaling_lr or [None] * len(settings), control, strict=True
        )
        if not untouched and loss is not None and isfinite(loss)
    ]
    cells = [cell for cell, _, _ in told]
    y = np.array([loss for _, loss, _ in told])
    axes, together = _axes(cells)
    notes = (*_left_out(len(settings), sum(control), len(cells)), *together)
    if refusal := _refusal(y, axes):
        names = tuple(axis.name for axis in axes)
        return Effects(len(cells), names, (), None, (), None, (*notes, refusal))
    factors = [axis for axis in axes if axis.name != SEED]
    seed = next((axis for axis in axes if axis.name == SEED), None)
    model = model_of(y, factors, seed)
    return Effects(
        cells=len(cells),
        axes=tuple(axis.name for axis in axes),
        effects=tuple(_effects(model)),
        noise=_noise(model),
        levels=tuple(_levels(model, axes)),
        scaling=analyse_scaling(
            cells, y, [step for _, _, step in told], model.noise if model.replicated else None
        ),
        notes=(*notes, *_doubts(model, factors, seed)),
    )


def _axes(cells: Sequence[Mapping[str, Any]]) -> tuple[list[Axis], list[str]]:
    """The axes, and in words those that another one decides."""
    names = dict.fromkeys(name for cell in cells for name in cell)
    axes = [axis_of(name, cells, factor=name == SEED) for name in names]
    axes = [axis for axis in axes if len(axis.levels) > 1]
    kept: list[Axis] = []
    notes = []
    for place, axis in enumerate(axes):
        deciding = next(
            (
                other
                for at, other in enumerate(axes)
                if _follows(axis, other) and (at < place or not _follows(other, axis))
            ),
            None,
        )
        if deciding is None:
            kept.append(axis)
        elif sum(level is not None for level in axis.levels) > 1:
            notes.append(
                f"{axis.name} changes only together with {deciding.name} in the cells that are "
                "analysed: its share can't be told from that one's."
            )
    return kept, notes


def _follows(axis: Axis, other: Axis) -> bool:
    """Whether a factor decides another axis (the system, whether there is an r)."""
    repeated = 2 * len(other.levels) <= len(other.of_cell)
    if axis is other or SEED in (axis.name, other.name) or not repeated:
        return False
    met = set(zip(other.of_cell, axis.of_cell, strict=True))
    return len(met) == len(other.levels)


def _refusal(y: Floats, axes: Sequence[Axis]) -> str:
    """Why nothing can be told, or ""."""
    if len(y) < FEWEST_CELLS:
        return (
            f"Effects need at least {FEWEST_CELLS} trained cells with a finite loss; "
            f"{'there is' if len(y) == 1 else 'there are'} {len(y)}."
        )
    if not axes:
        return "No setting differs between the trained cells: there is no effect to tell."
    if np.ptp(y) < 1e-12:
        return "All trained cells have the same loss: there is no variance to share out."
    return ""


def _effects(model: Model) -> Iterator[Effect]:
    terms = sorted(model.terms, key=len)
    for term in terms:
        kind: Kind = "main" if len(term) == 1 else "interaction"
        yield from _effect(model, kind, term, model.of_term(term))
    yield from _effect(model, "rest", (), model.of_rest())
    if model.blocks:
        yield from _effect(model, "seed", (SEED,), model.of_seed())


def _effect(model: Model, kind: Kind, axes: tuple[str, ...], squares: Squares) -> Iterator[Effect]:
    if squares.df == 0:
        return
    noise, total = model.noise, model.total
    if noise.df == 0:
        yield Effect(kind, axes, squares.df, squares.ss / total.ss, None)
        return
    interval = share_interval(squares, model.explained - squares, noise, len(model.y))
    yield Effect(kind, axes, squares.df, omega_squared(squares, noise, total.ss), interval)


def _noise(model: Model) -> Noise:
    noise, n = model.noise, len(model.y)
    if noise.df == 0:
        return Noise(model.replicated, 0, None, None, None)
    error = noise.ss / noise.df
    share = n * error / (model.total.ss + error)
    interval = noise_interval(model.explained, noise, n)
    return Noise(model.replicated, noise.df, sqrt(error), share, interval)


def _levels(model: Model, axes: Sequence[Axis]) -> Iterator[Level]:
    """Adjusted (least squares) means: Searle, Speed and Milliken 1980, American Statistician 34.

    Their intervals are Student's t with the model's noise.
    """
    from scipy.stats import t

    noise, n = model.noise, len(model.y)
    used = [axis for axis in axes if axis.name != SEED or model.blocks]
    columns = np.concatenate([np.ones((n, 1)), *(axis.basis[:, 1:] for axis in used)], axis=1)
    inverse = np.linalg.pinv(columns)
    coefficients = inverse @ model.y
    for axis in used:
        if axis.curve or axis.name == SEED:
            continue
        for place, value in enumerate(axis.levels):
            point = np.concatenate([[1.0], *(_at(other, axis, place) for other in used)])
            mean = float(point @ coefficients)
            interval = None
            if noise.df:
                error = sqrt(noise.ss / noise.df) * float(np.linalg.norm(point @ inverse))
                half = float(t.ppf(0.975, noise.df)) * error
                interval = (mean - half, mean + half)
            cells = sum(at == place for at in axis.of_cell)
            yield Level(axis.name, value, cells, mean, interval)


def _at(axis: Axis, asked: Axis, place: int) -> Floats:
    """The axis's columns at the level asked, or at the mean of its levels."""
    first = [list(axis.of_cell).index(at) for at in range(len(axis.levels))]
    rows = axis.basis[first][:, 1:]
    return rows[place] if axis is asked else rows.mean(axis=0)


def _left_out(cells: int, control: int, kept: int) -> tuple[str, ...]:
    notes = []
    if control:
        notes.append(
            f"The control ({control} cell{'s' if control > 1 else ''}, one measurement) is left "
            "out: where nothing is trained, no setting can have an effect."
        )
    if lost := cells - control - kept:
        notes.append(
            f"{lost} of {cells - control} cells {'has' if lost == 1 else 'have'} no finite loss to "
            "compare (failed, pruned or diverged) and "
            f"{'is' if lost == 1 else 'are'} left out"
            + (
                ": the shares are those of the others, and settings that fail may look harmless."
                if kept
                else "."
            )
        )
    return tuple(notes)


def _doubts(model: Model, factors: Sequence[Axis], seed: Axis | None) -> Iterator[str]:
    untold = " and ".join(" × ".join(term) for term in model.untold)
    if model.noise.df == 0:
        yield (
            "Every cell was trained once and the axis explains each: without other seeds there is "
            "no noise to compare with, and shares have no interval."
        )
    elif not model.replicated:
        yield (
            "No settings were trained with several seeds: "
            + (
                f"the interaction {untold} "
                if len(model.untold) == 1
                else "the highest interaction "
            )
            + "can't be told from noise, and counts as such."
        )
    elif untold:
        yield f"The cells do not cover the interaction of {untold}."
    if seed and not model.blocks:
        yield "No seed was used twice: its share is part of the noise."
    if curves := [axis.name for axis in factors if axis.curve]:
        yield (
            f"{' and '.join(curves)}: so many values that a curve (a parabola) stands for them; "
            "what does not follow it counts as noise or rest. A search looks more often where "
            "losses are low: the shares are those of its trials."
        )
    sum_of_terms = sum(model.of_term(term).ss for term in model.terms) + model.of_rest().ss
    sum_of_terms += model.of_seed().ss if model.blocks else 0.0
    if abs(sum_of_terms - model.explained.ss) > 0.02 * model.total.ss:
        yield (
            "Combinations are missing, so that effects overlap: each share is what a term adds to "
            "the others, and they do not add up to 1."
        )
    yield from _wild(model.y)


def _wild(y: Floats) -> Iterator[str]:
    """Tell if few cells make up most of the variance: at most one in twenty, half of it."""
    far = np.square(y - y.mean())
    order = np.argsort(far)[::-1]
    most = far[order].cumsum() / far.sum()
    count = int(np.searchsorted(most, 0.5)) + 1
    if len(y) < 8 or count > max(1, len(y) // 20):
        return
    cells = "One cell" if count == 1 else f"{count} cells"
    losses = " and ".join(f"{y[place]:.4f}" for place in order[:count])
    yield (
        f"{cells} of {len(y)} (log loss {losses}) make{'s' if count == 1 else ''} up "
        f"{most[count - 1]:.0%} of the variance: the shares tell mostly of "
        f"{'it' if count == 1 else 'them'}."
    )
