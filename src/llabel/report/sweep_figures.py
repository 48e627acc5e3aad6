"""The drawings on the page of a sweep, worked out from its cells."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

from markupsafe import Markup

from llabel import numbers
from llabel.report import sweep_plots
from llabel.report.page import Figure
from llabel.report.plots import Line
from llabel.report.sweep_cells import (
    CellView,
    SweepView,
    is_number,
    number,
    setting_key,
    shown,
    usual_top,
)
from llabel.report.sweep_colours import Groups, Ramp
from llabel.report.sweep_plots import Curve, Dot, Estimate, power
from llabel.report.sweep_scaling import Step

_WIDE, _HALF, _NARROW = (760, 400), (480, 340), (340, 340)
_CURVE = (340, 250)
_POINTS = 80  # of a loss curve; more can't be seen
_PANELS = 6  # at most so many small multiples of one kind
_LOSS = "validation log loss"


@dataclass(frozen=True, slots=True)
class Interaction:
    """Mean losses by the values of two axes.

    Attributes:
        down, across: the axes.
        columns: values across.
        lines: one for each value down; `x` are places among the columns.
    """

    down: str
    across: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def rows(self) -> list[tuple[str, list[float | None]]]:
        """Each line's name and its loss in every column; None where there is none."""
        found = [(line.name, dict(zip(line.x, line.y, strict=True))) for line in self.lines]
        return [(name, [at.get(place) for place in range(len(self.columns))]) for name, at in found]


def scaling_figures(view: SweepView, groups: Groups, steps: Sequence[Step]) -> list[Figure]:
    """Validation loss against each of some numbers, one drawing for each number of epochs."""
    figures: list[Figure] = []
    for step in steps:
        facets = _facets(view, [cell for cell in view.trained if step.of(cell.row)], "epochs")
        size = _WIDE if len(facets) * len(steps) == 1 else _HALF
        for name, found in facets:
            dots = [_dot(view, groups, cell, step.of(cell.row) or 1.0) for cell in found]
            key = f"scaling-{len(figures)}"
            figures.append(_scatter(view, step.name, dots, key, size, part=name))
    return figures


def axis_figures(view: SweepView, groups: Groups) -> list[Figure]:
    """Of a search: validation loss against each axis."""
    figures: list[Figure] = []
    for axis in view.varied:
        dots = [
            _dot(view, groups, cell, value)
            for cell in view.trained
            if is_number(value := cell.row["settings"].get(axis))
        ]
        if axis == "seed" or len(dots) < 2:
            continue
        figures.append(_scatter(view, shown(axis), dots, f"axis-{len(figures)}", _HALF))
    return figures


def weight_figures(view: SweepView, groups: Groups) -> list[Figure]:
    """Validation loss against how far the weights moved, and against perplexity."""
    figures: list[Figure] = []
    for what, value in (
        ("relative update norm", lambda cell: number(cell.row, "weights", "relative_update_norm")),
        ("perplexity, after / before", perplexity_ratio),
    ):
        dots = [
            _dot(view, groups, cell, at)
            for cell in view.trained
            if (at := value(cell)) is not None and isfinite(at) and at > 0
        ]
        if len(dots) > 1:
            figures.append(_scatter(view, what, dots, f"weights-{len(figures)}", _HALF))
    return figures


def layer_figure(view: SweepView, ramp: Ramp) -> Figure | None:
    """The relative norm of the update of each layer, a line a cell."""
    lines, ends = [], []
    for cell in view.trained:
        layers = [e for e in (cell.row["weights"] or {"layers": []})["layers"] if e["layer"] >= 0]
        if len(layers) > 1 and all(entry["relative"] > 0 for entry in layers):
            y = [entry["relative"] for entry in layers]
            ends.append((y[0], y[-1]))
            x = [entry["layer"] for entry in layers]
            step = ramp.step(cell.row["scaling_lr"])
            lines.append(Curve(x, y, step, strong=bool(view.mark(cell))))
    if not lines:
        return None
    first, last = (sorted(side)[len(side) // 2] for side in zip(*ends, strict=True))
    label = (
        f"Relative norm of the update by decoder layer, {len(lines)} cells. In the middle one "
        f"{power(first)} in the first layer, {power(last)} in the last."
    )
    titles = ("decoder layer", "relative update norm")
    draw = partial(sweep_plots.curves, lines, titles=titles, limits=None, label=label, log=True)
    return _both("Norm of the update by layer, in shares of the weights’", draw, "layers", _WIDE)


def curve_figures(view: SweepView, ramp: Ramp) -> list[Figure]:
    """Training loss over the epochs, one drawing for each lr."""
    found = [cell for cell in view.cells if cell.row["curve"]]
    limits = _curve_limits(found)
    figures: list[Figure] = []
    for name, cells in _facets(view, found, "lr"):
        lines = []
        for cell in cells:
            points = cell.row["curve"][:: -(-len(cell.row["curve"]) // _POINTS)]
            _, x, y = zip(*points, strict=True)
            lines.append(Curve(x, y, ramp.step(cell.row["scaling"]), bool(view.mark(cell))))
        last = sorted(line.y[-1] for line in lines)
        label = (
            f"Training loss of {len(lines)} cells{', ' if name else ''}{name}, which ends between "
            f"{numbers.score(last[0])} and {numbers.score(last[-1])}."
        )
        svg = sweep_plots.curves(
            lines, titles=("epoch", "training loss"), limits=limits, size=_CURVE,
            key=f"curve-{len(figures)}", label=label,
        )  # fmt: skip
        figures.append(Figure(name or "Training loss", svg))
    return figures


def epoch_figures(view: SweepView, ramp: Ramp) -> list[Figure]:
    """Validation loss after each epoch, one drawing for each lr; none for single epochs."""
    found = [cell for cell in view.cells if len(cell.row["epoch_losses"]) > 1]
    figures: list[Figure] = []
    for name, cells in _facets(view, found, "lr"):
        lines = [
            Curve(
                range(1, len(cell.row["epoch_losses"]) + 1),
                cell.row["epoch_losses"],
                ramp.step(cell.row["scaling"]),
                bool(view.mark(cell)),
            )
            for cell in cells
        ]
        best = sum(min(line.y) == line.y[0] for line in lines)
        label = (
            f"Validation log loss after each epoch of {len(lines)} cells"
            f"{', ' if name else ''}{name}; in {best} of them it is lowest after the first."
        )
        svg = sweep_plots.curves(
            lines, titles=("epoch", _LOSS), limits=view.limits, size=_CURVE, dots=True,
            key=f"epochs-{len(figures)}", label=label,
        )  # fmt: skip
        figures.append(Figure(name or "Validation log loss after each epoch", svg))
    return figures


def share_figure(rows: Sequence[Estimate]) -> Figure:
    """The shares of the variance."""
    told = "; ".join(
        f"{row.name} {numbers.percent(max(0.0, row.value))}"
        + (f" ({span(row.low, row.high)})" if row.low is not None else "")
        for row in rows
    )
    label = f"Shares of the variance of the validation log loss: {told}."
    draw = partial(sweep_plots.estimates, rows, title="share of the variance", label=label)
    height = 60 + 27 * len(rows)
    return _both(
        "Shares of the variance, with 95 % intervals", draw, "shares", (760, height), height
    )


def level_figures(levels: Sequence[dict[str, Any]]) -> list[Figure]:
    """Mean losses at the values of each axis, all on one scale."""
    by_axis: dict[str, list[Estimate]] = {}
    for level in levels:
        low, high = level["ci95"] or (None, None)
        row = Estimate(numbers.plain(level["value"]), level["mean"], low, high)
        by_axis.setdefault(level["axis"], []).append(row)
    means = [level["mean"] for level in levels]
    # An interval of two trainings may be wider than all that is to be seen.
    room = max(0.35 * (max(means, default=0.0) - min(means, default=0.0)), 0.003)
    limits = (min(means, default=0.0) - room, max(means, default=0.0) + room)
    figures: list[Figure] = []
    for axis, rows in by_axis.items():
        told = "; ".join(f"{row.name}: {numbers.score(row.value)}" for row in rows)
        label = f"Mean validation log loss by {shown(axis)}. {told}."
        key = f"levels-{len(figures)}"
        svg = sweep_plots.levels(rows, title=shown(axis), limits=limits, key=key, label=label)
        figures.append(Figure(shown(axis), svg))
    return figures


def interaction_of(view: SweepView) -> Interaction | None:
    """Mean losses by alpha, a line for each r (or of two other axes)."""
    names = [name for name in view.varied if name != "seed"]
    if view.record["search"] or len(names) < 2:
        return None
    down, across = ("r", "lora_alpha") if {"r", "lora_alpha"} <= set(names) else names[:2]
    used = {setting_key(cell.row["settings"].get(across)) for cell in view.trained}
    columns = [value for value in view.values(across) if setting_key(value) in used]
    lines = []
    for value in view.values(down):
        points = []
        for at, column in enumerate(columns):
            losses = [
                cell.loss
                for cell in view.trained
                if cell.loss is not None
                and cell.row["settings"].get(down) == value
                and cell.row["settings"].get(across) == column
            ]
            if losses:
                points.append((at, sum(losses) / len(losses)))
        if points:
            x, y = zip(*points, strict=True)
            lines.append(Line(f"{shown(down)} {numbers.plain(value)}", x, y))
    if len(lines) < 2 or len(columns) < 2 or len(lines) > 12:
        return None
    ticks = tuple(numbers.plain(value) for value in columns)
    return Interaction(shown(down), shown(across), ticks, tuple(lines))


def interaction_figure(found: Interaction) -> Figure:
    """The lines of two axes together."""
    told = "; ".join(
        f"{line.name} from {numbers.score(line.y[0])} to {numbers.score(line.y[-1])}"
        for line in found.lines
    )
    label = f"Mean validation log loss by {found.across}, a line for each {found.down}. {told}."
    draw = partial(
        sweep_plots.interaction, found.lines, found.columns, title=found.across, label=label
    )
    return _both(f"{found.down} and {found.across} together", draw, "interaction", _WIDE)


def perplexity_ratio(cell: CellView) -> float | None:
    """Perplexity after training over that before it; None where it was not measured."""
    found = cell.row["perplexity"]
    return found["after"] / found["before"] if found and found["before"] else None


def span(low: float | None, high: float | None) -> str:
    """An interval of a share: 12 % to 30 %."""
    return f"{numbers.percent(low)} to {numbers.percent(high)}" if low is not None else numbers.NONE


def _scatter(
    view: SweepView,
    what: str,
    dots: Sequence[Dot],
    key: str,
    size: tuple[float, float],
    *,
    part: str = "",
) -> Figure:
    part = f", {part}" if part else ""
    least = min(dots, key=lambda dot: dot.y)
    low, high = min(dot.x for dot in dots), max(dot.x for dot in dots)
    label = (
        f"Validation log loss of {len(dots)} cells against {what}{part}, from {power(low)} to "
        f"{power(high)}. The lowest, {numbers.score(least.y)}, is at {power(least.x)}."
    )
    draw = partial(
        sweep_plots.scatter,
        dots,
        titles=(what, _LOSS),
        references=view.references,
        limits=view.limits,
        label=label,
        log=low > 0 and high / low > 5,
    )
    return _both(f"Validation log loss against {what}{part}", draw, key, size)


def _dot(view: SweepView, groups: Groups, cell: CellView, x: float) -> Dot:
    return Dot(x, cell.loss or 0.0, groups.of(cell), groups.ramp, view.mark(cell))


def _both(
    name: str,
    draw: Callable[..., Markup],
    key: str,
    size: tuple[float, float],
    narrow_height: float = _NARROW[1],
) -> Figure:
    narrow = (_NARROW[0], narrow_height)
    return Figure(name, draw(key=f"{key}-w", size=size), draw(key=f"{key}-n", size=narrow))


def _facets(
    view: SweepView, cells: Sequence[CellView], axis: str
) -> list[tuple[str, list[CellView]]]:
    """Cells by the values of an axis; all together where there are too many."""
    values = view.values(axis)
    if not cells:
        return []
    if not 1 < len(values) <= _PANELS:
        return [("", list(cells))]
    found = [
        (
            f"{shown(axis)} {numbers.plain(v)}",
            [c for c in cells if c.row["settings"].get(axis) == v],
        )
        for v in values
    ]
    return [(name, group) for name, group in found if group]


def _curve_limits(cells: Sequence[CellView]) -> tuple[float, float]:
    """All but the wildest steps."""
    losses = sorted(loss for cell in cells for _, _, loss in cell.row["curve"] if isfinite(loss))
    if not losses:
        return 0.0, 1.0
    low, high = losses[0], min(losses[-1], usual_top(losses))
    room = max(0.05 * (high - low), 0.003)
    return max(0.0, low - room), high + room
