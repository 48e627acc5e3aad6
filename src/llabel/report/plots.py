"""The page's plots: plain numbers in, inline SVG out. They know no record."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from llabel import numbers
from llabel.report.naming import LABEL, apart
from llabel.report.placing import place_labels, spread
from llabel.report.svg import (
    ACCENT,
    FONT_SIZE,
    INK,
    MUTED,
    PAPER,
    SERIES,
    drawable,
    drawing,
    fix_layout,
    inline_svg,
    lay_out,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

Range = tuple[float, float]
PANEL = (280, 200)  # width and height of a small multiple
_MARKERS = {"control": "x", "simple": "o", "llm": "s"}
_TICKS: dict[str, dict[float, str]] = {
    "ms": {10.0**power: f"{10.0**power:g} ms" for power in range(-4, 3)}
    | {10.0**power: f"{10 ** (power - 3):g} s" for power in range(3, 6)},
    "s": {0.01: "0.01 s", 0.1: "0.1 s", 1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min"}
    | {3600: "1 h", 36_000: "10 h", 360_000: "100 h"},
}
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))


@dataclass(frozen=True, slots=True)
class Point:
    """A system in a plot of score against cost.

    Attributes:
        name: its label.
        x: cost, above 0.
        y, low, high: score and its interval.
        kind: `control`, `simple` or `llm`: the marker's shape.
        strong: whether it stands out.
    """

    name: str
    x: float
    y: float
    low: float
    high: float
    kind: str
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A system's score over training sizes.

    Attributes:
        name: its label.
        x, y: rows and scores, in order of rows.
        strong: whether it stands out.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    strong: bool = False


def score_against_cost(
    points: Sequence[Point],
    *,
    floor: float,
    cost: str,
    unit: str,
    key: str,
    label: str,
    size: Range,
) -> Markup:
    """Scores with their intervals over a logarithmic cost, each point named.

    Args:
        points: at least one of them at `floor` or above.
        floor: points below it stand at the lower edge, with their score written beside them, so
            that hopeless ones do not squeeze the others together.
        cost: title of the horizontal axis.
        unit: `ms` or `s`: how its ticks are written.
        key, label: see `inline_svg`.
        size: width and height in units.
    """
    with drawing(*size) as figure:
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.set_autoscale_on(False)
        axes.set(xlabel=cost, ylabel="accuracy")
        edge = _score_limits(axes, [point for point in points if point.y >= floor], points)
        drawn = [point if point.y >= floor else _at_edge(point, edge) for point in points]
        for point, shown in zip(points, drawn, strict=True):
            _draw_point(axes, shown, below=shown is not point)
        _cost_ticks(axes, [point.x for point in points], unit)
        fix_layout(figure)  # only then can places be measured
        order = sorted(drawn, key=lambda point: (not point.strong, -point.y))
        labels = [_point_label(axes, point, place) for place, point in enumerate(order)]
        place_labels(axes, labels, _occupied(axes, drawn))
        return inline_svg(figure, key=key, label=label)


def loss_curve(
    training: tuple[Sequence[float], Sequence[float]],
    validation: tuple[Sequence[float], Sequence[float]],
    *,
    losses: Range,
    key: str,
    label: str,
) -> Markup:
    """Training loss over its steps and validation loss after each epoch.

    Args:
        training, validation: epochs and losses; either may be empty.
        losses: vertical limits, the same in all panels.
        key, label: see `inline_svg`.
    """
    from matplotlib.ticker import MaxNLocator

    with drawing(*PANEL) as figure:
        axes = figure.subplots()
        axes.plot(*training, color=MUTED, linewidth=1)
        axes.plot(*validation, color=ACCENT, linewidth=1.8, marker="o", markersize=4.5)
        axes.set_ylim(losses)
        axes.set_xlim(left=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel("log loss")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        return inline_svg(figure, key=key, label=label)


def reliability(
    bins: Sequence[tuple[float, float, int]], *, edges: Sequence[float], key: str, label: str
) -> Markup:
    """Accuracy against the top probability; below, how the rows spread over it.

    Args:
        bins: confidence, accuracy and rows of each bin that has rows.
        edges: lower edges of all bins, and the upper one of the last.
        key, label: see `inline_svg`.
    """
    total = sum(rows for _, _, rows in bins)
    with drawing(190, 215) as figure:
        axes, shares = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        confidence, accuracy, rows = zip(*bins, strict=True)
        axes.plot(confidence, accuracy, color=ACCENT, linewidth=1)
        areas = [16 + 110 * count / total for count in rows]
        axes.scatter(confidence, accuracy, areas, color=ACCENT, edgecolor=PAPER, zorder=3)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.04, 1.04), ylabel="accuracy")
        weights = [count / total for count in rows]
        shares.hist(confidence, bins=edges, weights=weights, color=MUTED, rwidth=0.8)
        shares.set(xlabel="confidence", ylabel="rows", ylim=(0, 1), yticks=[])
        shares.grid(False)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        return inline_svg(figure, key=key, label=label)


def learning_curve(lines: Sequence[Line], *, key: str, label: str, size: Range) -> Markup:
    """Scores over the number of training rows, each line named at its right end.

    Args:
        lines: at least one, each with at least one point.
        key, label: see `inline_svg`.
        size: width and height in units.
    """
    with drawing(*size) as figure:
        axes = figure.subplots()
        axes.set_xscale("log")
        sizes = sorted({x for line in lines for x in line.x})
        room = (sizes[-1] / sizes[0]) ** 0.06 if len(sizes) > 1 else 3
        axes.set_xlim(sizes[0] / room, sizes[-1] * room)
        styles = {line.name: line_style(place) for place, line in enumerate(lines)}
        for line in lines:
            weight = 2.4 if line.strong else 1.4
            axes.plot(line.x, line.y, linewidth=weight, markersize=4, **styles[line.name])
        axes.set_xlabel("training rows")
        axes.set_ylabel("accuracy on validation rows")
        _row_ticks(axes, sizes)
        score_ticks(axes)
        name_ends(axes, lines, {name: style["color"] for name, style in styles.items()})
        return inline_svg(figure, key=key, label=label)


def _score_limits(axes: "Axes", shown: Sequence[Point], points: Sequence[Point]) -> float:
    """Fit the vertical axis to the points that are shown; return where those below it stand."""
    low, high = min(point.low for point in shown), max(point.high for point in shown)
    room = max(high - low, 0.02)
    below = 0.2 * room if len(shown) < len(points) else 0.06 * room
    axes.set_ylim(low - below, high + 0.08 * room)
    score_ticks(axes, low - 0.06 * room)
    return low - 0.14 * room


def _at_edge(point: Point, edge: float) -> Point:
    name = f"{point.name} {numbers.score(point.y)}"
    return replace(point, name=name, y=edge, low=edge, high=edge)


def _draw_point(axes: "Axes", point: Point, *, below: bool) -> None:
    colour = ACCENT if point.strong else INK
    axes.errorbar(
        [point.x],
        [point.y],
        yerr=[[max(0.0, point.y - point.low)], [max(0.0, point.high - point.y)]],
        fmt="v" if below else _MARKERS[point.kind],
        color=colour,
        ecolor=ACCENT if point.strong else MUTED,
        markerfacecolor=colour if point.strong else PAPER,
        markeredgewidth=1.4,
        markersize=8 if point.strong else 6.5,
        elinewidth=1.8 if point.strong else 1,
        zorder=4 if point.strong else 3,
    )


def _point_label(axes: "Axes", point: Point, place: int) -> "Annotation":
    """Earlier ones are nearer to their points, and so lie above the lines of later ones."""
    return axes.annotate(
        _wrapped(point.name),
        (point.x, point.y),
        xytext=(0, 0),
        textcoords="offset pixels",
        fontsize=FONT_SIZE,
        fontweight="bold" if point.strong else "normal",
        arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkB": 5},
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},
        zorder=6 - place / 100,
    )


def _occupied(axes: "Axes", points: Sequence[Point]) -> list[tuple[float, float, float, float]]:
    boxes = []
    for point in points:
        x, y = axes.transData.transform((point.x, point.y))
        _, low = axes.transData.transform((point.x, point.low))
        _, high = axes.transData.transform((point.x, point.high))
        boxes += [(x - 6, y - 6, x + 6, y + 6), (x - 2, low, x + 2, high)]
    return boxes


def line_style(place: int) -> dict[str, Any]:
    """Hue, dashes and marker together: no two of 24 lines look alike, in grey neither."""
    return {
        "color": SERIES[place % len(SERIES)],
        "linestyle": _DASHES[place // len(SERIES) % len(_DASHES)],
        "marker": "osD^vP"[place % 6],
    }


def name_ends(
    axes: "Axes", lines: Sequence[Line], colours: dict[str, object], most: int = LABEL
) -> None:
    """Names to the right of the axes, moved apart, each tied to its line's end.

    Args:
        axes: that the lines are drawn in.
        lines: their names are cut to `most` characters, and stay different.
        colours: of the ties, by name.
        most: see `lines`.
    """
    figure = axes.get_figure(root=True)
    assert figure
    lay_out(figure)
    ends = [axes.transData.transform((line.x[-1], line.y[-1]))[1] for line in lines]
    box = axes.get_window_extent()
    places = spread(ends, FONT_SIZE * 1.35, box.y0 + 4, box.y1 - 4)
    names = apart([line.name for line in lines], most)
    for name, line, place in zip(names, lines, places, strict=True):
        axes.annotate(
            name,
            (line.x[-1], line.y[-1]),
            xytext=(1.04, (place - box.y0) / box.height),
            textcoords="axes fraction",
            verticalalignment="center",
            fontsize=FONT_SIZE,
            fontweight="bold" if line.strong else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": colours[line.name],
                "linewidth": 0.7,
                "shrinkA": 2,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )


def _row_ticks(axes: "Axes", sizes: Sequence[float]) -> None:
    """Ticks at the training sizes; where they are many, powers of ten."""
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    if len(sizes) <= 6:
        axes.set_xticks(sizes)
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: numbers.count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _cost_ticks(axes: "Axes", costs: Sequence[float], unit: str) -> None:
    """Ticks at round times, over at least a factor of a hundred."""
    from matplotlib.ticker import NullLocator

    low, high = min(costs), max(costs)
    widen = max(2.6, (100 / (high / low)) ** 0.5)
    ticks = [at for at in _TICKS[unit] if low / widen <= at <= high * widen]
    axes.set_xlim(low / widen, high * widen)
    axes.set_xticks(ticks, [_TICKS[unit][at] for at in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def score_ticks(axes: "Axes", least: float = 0.0) -> None:
    """About six ticks, none below `least` or above 1."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    low, high = axes.get_ylim()
    if high - low < 0.02:  # a single point, or equal ones
        low, high = low - 0.01, high + 0.01
        axes.set_ylim(low, high)
    ticks = MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(max(low, least), high)
    axes.yaxis.set_major_locator(FixedLocator([at for at in ticks if least <= at <= 1]))
    axes.spines["left"].set_visible(False)


def _wrapped(name: str) -> str:
    """In lines that fit, since a cut would take the score or the tags at the end."""
    name = drawable(name)
    lines = [name] if len(name) <= LABEL else name.split(" ", 1)
    return "\n".join(part for line in lines for part in wrap(line, LABEL))
