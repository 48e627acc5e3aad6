"""Plots of a sweep: plain numbers in, inline SVG out. They know no record."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import TYPE_CHECKING

from markupsafe import Markup

from llabel import numbers
from llabel.report.naming import LABEL, TICK, apart, fit_side_by_side, width
from llabel.report.placing import place_labels, spread
from llabel.report.plots import PANEL, Line, Range, line_style, name_ends
from llabel.report.svg import (
    ACCENT,
    FONT_SIZE,
    INK,
    MUTED,
    PAPER,
    RAMP,
    SERIES,
    drawable,
    drawing,
    fix_layout,
    inline_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vP"
SIGNS = "●■◆▲▼✚"  # the same for a key in the text
_BESIDE = 55  # units that the vertical axis and its title take
_NARROW_LABEL = 16  # characters of a name in a small drawing
_UPRIGHT = 15  # units that a tick's label takes when it is turned
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, slots=True)
class Curve:
    """A line among many.

    Attributes:
        x, y: its points.
        step: place on the ramp of colours, 0..6; None for grey.
        strong: whether it stands out.
    """

    x: Sequence[float]
    y: Sequence[float]
    step: int | None
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """A cell in a plot of two numbers.

    Attributes:
        x, y: its place.
        group: colour and marker, 0..5; or, with `ramp`, place on the ramp of colours, 0..6.
        ramp: see `group`.
        name: a label, for the few that stand out; else "".
    """

    x: float
    y: float
    group: int
    ramp: bool = False
    name: str = ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval, or without one."""

    name: str
    value: float
    low: float | None
    high: float | None


def curves(
    lines: Sequence[Curve],
    *,
    titles: tuple[str, str],
    limits: Range | None,
    key: str,
    label: str,
    size: Range = PANEL,
    log: bool = False,
    whole: bool = True,
    dots: bool = False,
) -> Markup:
    """Many lines, coloured along the ramp.

    Args:
        lines: at least one; strong ones lie above the others.
        titles: of the axes.
        limits: vertical ones, or None.
        key, label: see `inline_svg`.
        size: width and height in units.
        log: whether the vertical axis is logarithmic.
        whole: whether ticks across are whole numbers only.
        dots: whether points are marked.
    """
    from matplotlib.ticker import MaxNLocator

    with drawing(*size) as figure:
        axes = figure.subplots()
        for line in sorted(lines, key=lambda line: line.strong):
            axes.plot(
                line.x,
                line.y,
                color=MUTED if line.step is None else RAMP[line.step],
                linewidth=2.6 if line.strong else 1.1,
                marker="o" if dots else None,
                markersize=4.5 if line.strong else 3,
            )
        if log:
            axes.set_yscale("log")
            _log_ticks(axes, "y")
        if limits:
            axes.set_ylim(limits)
        axes.set(xlabel=titles[0], ylabel=titles[1])
        if whole:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        return inline_svg(figure, key=key, label=label)


def scatter(
    dots: Sequence[Dot],
    *,
    titles: tuple[str, str],
    references: Sequence[tuple[str, float]],
    limits: Range,
    key: str,
    label: str,
    size: Range,
    log: bool = True,
) -> Markup:
    """Cells by two numbers; what lies above the limits stands at the upper edge, as a triangle.

    Args:
        dots: at least one; `x` above 0 where the axis is logarithmic.
        titles: of the axes.
        references: names and heights of horizontal lines; those above the limits are only named.
        limits: vertical ones.
        key, label: see `inline_svg`.
        size: width and height in units.
        log: whether the horizontal axis is logarithmic.
    """
    low, high = limits
    edge = high - 0.03 * (high - low)
    with drawing(*size) as figure:
        axes = figure.subplots()
        if log:
            axes.set_xscale("log")
        axes.set_ylim(limits)
        for name, height in references:
            style = "-" if name.startswith("untouched") else (0, (4, 3))
            if height <= high:
                axes.axhline(height, color=MUTED, linewidth=1.2, linestyle=style)
        _draw_dots(axes, dots, high, edge)
        axes.set(xlabel=titles[0], ylabel=titles[1])
        if log:
            _log_ticks(axes, "x")
        _name_references(axes, references)
        fix_layout(figure)
        _name_dots(axes, dots, edge)
        return inline_svg(figure, key=key, label=label)


def estimates(rows: Sequence[Estimate], *, title: str, key: str, label: str, size: Range) -> Markup:
    """Shares with their intervals, one below the other.

    Args:
        rows: from top to bottom, at least one.
        title: of the horizontal axis.
        key, label: see `inline_svg`.
        size: width and height in units.
    """
    with drawing(*size) as figure:
        axes = figure.subplots()
        _one_below_the_other(axes, rows, least=0.0)
        axes.set(xlim=(-0.02, 1.02), xlabel=title)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        return inline_svg(figure, key=key, label=label)


def levels(rows: Sequence[Estimate], *, title: str, limits: Range, key: str, label: str) -> Markup:
    """Mean losses at the values of one axis, with their intervals.

    Values whose names do not fit side by side stand one below the other.

    Args:
        rows: in the axis's order, at least one.
        title: name of the axis.
        limits: of the losses, the same for all axes.
        key, label: see `inline_svg`.
    """
    from matplotlib.ticker import MaxNLocator

    names = apart([row.name for row in rows], TICK)
    if not fit_side_by_side(names, PANEL[0] - _BESIDE):
        with drawing(PANEL[0], max(PANEL[1], 50 + 20 * len(rows))) as figure:
            axes = figure.subplots()
            _one_below_the_other(axes, rows, most=_NARROW_LABEL)
            axes.set(xlim=limits, xlabel="log loss")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=2))
            return inline_svg(figure, key=key, label=label)
    with drawing(*PANEL) as figure:
        axes = figure.subplots()
        places = range(len(rows))
        axes.plot(places, [row.value for row in rows], color=MUTED, linewidth=1)
        for place, row in enumerate(rows):
            if row.low is not None and row.high is not None:
                axes.plot([place, place], [row.low, row.high], color=ACCENT, linewidth=2)
        axes.plot(places, [row.value for row in rows], "o", color=ACCENT, markersize=6)
        axes.set_xticks(places, names)
        axes.set(xlim=(-0.4, len(rows) - 0.6), ylim=limits, xlabel=title, ylabel="log loss")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        return inline_svg(figure, key=key, label=label)


def interaction(
    lines: Sequence[Line], ticks: Sequence[str], *, title: str, key: str, label: str, size: Range
) -> Markup:
    """Mean losses at the values of one axis, one line for each value of another.

    Args:
        lines: `x` are places among the ticks; at least one line with at least one point.
        ticks: values of the axis across.
        title: name of the axis across.
        key, label: see `inline_svg`.
        size: width and height in units.
    """
    from matplotlib.ticker import MaxNLocator

    with drawing(*size) as figure:
        axes = figure.subplots()
        styles = {line.name: line_style(place) for place, line in enumerate(lines)}
        for line in lines:
            axes.plot(line.x, line.y, linewidth=1.6, markersize=5, **styles[line.name])
        most = LABEL if size[0] > 2 * PANEL[0] else _NARROW_LABEL
        beside = _BESIDE + max(width(name) for name in apart([line.name for line in lines], most))
        _name_ticks(axes, ticks, size[0] - beside)
        axes.set(xlim=(-0.2, len(ticks) - 0.8), xlabel=title, ylabel="validation log loss")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
        name_ends(axes, lines, {name: style["color"] for name, style in styles.items()}, most)
        return inline_svg(figure, key=key, label=label)


def _one_below_the_other(
    axes: "Axes", rows: Sequence[Estimate], *, least: float | None = None, most: int = LABEL
) -> None:
    """Dots and intervals from top to bottom, named on the left; no dot stands below `least`."""
    for place, row in enumerate(rows):
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [place, place], color=MUTED, linewidth=2.4)
        value = row.value if least is None else max(least, row.value)
        axes.plot([value], [place], "o", color=ACCENT, markersize=7)
    axes.set_yticks(range(len(rows)), apart([row.name for row in rows], most))
    axes.tick_params(axis="y", labelcolor=INK, labelsize=FONT_SIZE)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)


def _name_ticks(axes: "Axes", names: Sequence[str], room: float) -> None:
    """Names of the places across: turned where they don't fit, and then not more than fit."""
    labels = apart(names, TICK)
    if fit_side_by_side(labels, room):
        axes.set_xticks(range(len(labels)), labels)
        return
    each = ceil(len(labels) * _UPRIGHT / room)
    axes.set_xticks(range(0, len(labels), each), labels[::each])
    axes.tick_params(axis="x", labelrotation=90)


def _draw_dots(axes: "Axes", dots: Sequence[Dot], high: float, edge: float) -> None:
    """All of a kind at once: hundreds of artists take seconds."""
    kinds: dict[tuple[int, bool, bool], list[Dot]] = {}
    for dot in sorted(dots, key=lambda dot: (bool(dot.name), dot.group)):
        kinds.setdefault((dot.group, dot.y > high, bool(dot.name)), []).append(dot)
    for (group, above, named), same in kinds.items():
        ramp = same[0].ramp
        colour = RAMP[group] if ramp else SERIES[group]
        axes.plot(
            [dot.x for dot in same],
            [edge if above else dot.y for dot in same],
            linestyle="none",
            marker="^" if above else "o" if ramp else MARKERS[group],
            color=PAPER if above else colour,
            markeredgecolor=INK if named else colour if above else PAPER,
            markeredgewidth=1.8 if named else 0.8,
            markersize=9 if named else 7,
            zorder=5 if named else 3,
        )


def _name_references(axes: "Axes", references: Sequence[tuple[str, float]]) -> None:
    """Names to the right of the axes, moved apart."""
    low, high = axes.get_ylim()
    whole = [_lines(name) for name, _ in references]
    parts = list(dict.fromkeys(part for lines in whole for part in lines))
    cut = dict(zip(parts, apart(parts), strict=True))
    names = ["\n".join(cut[part] for part in lines) for lines in whole]
    lines = 2.2 + max((name.count("\n") for name in names), default=1)
    gap = lines * FONT_SIZE / axes.get_window_extent().height * (high - low)
    places = spread([min(height, high) for _, height in references], gap, low, high)
    for name, (_, height), place in zip(names, references, places, strict=True):
        axes.annotate(
            name + (f"\n↑ {numbers.score(height)}" if height > high else ""),
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            verticalalignment="center",
            fontsize=FONT_SIZE - 1,
            color=MUTED,
        )


def _lines(name: str) -> list[str]:
    """class / shares; untouched / model / template qa"""
    head, *others = name.split(", ")
    return [*head.split(" ", 1), *others]


def _name_dots(axes: "Axes", dots: Sequence[Dot], edge: float) -> None:
    boxes = []
    for dot in dots:
        x, y = axes.transData.transform((dot.x, min(dot.y, edge)))
        boxes.append((x - 5, y - 5, x + 5, y + 5))
    labels = [
        axes.annotate(
            drawable(dot.name),
            (dot.x, min(dot.y, edge)),
            xytext=(0, 0),
            textcoords="offset pixels",
            fontsize=FONT_SIZE,
            fontweight="bold",
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkB": 6},
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},
            zorder=6,
        )
        for dot in dots
        if dot.name
    ]
    place_labels(axes, labels, boxes)


def _log_ticks(axes: "Axes", which: str) -> None:
    """Powers of ten; where there are few, also their doubles and fivefolds, or what lies between.

    An axis of less than a factor of five may hold none of those, or one, which tells no scale.
    """
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    axis = axes.xaxis if which == "x" else axes.yaxis
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    steps = (1,) if log10(high / low) > 2 else (1, 2, 5)
    ticks = [m * 10.0**p for p in powers for m in steps if low <= m * 10.0**p <= high]
    if len(ticks) > 7:
        ticks = ticks[:: ceil(len(ticks) / 7)]
    places = 0
    if len(ticks) < 2:
        ticks = [at for at in MaxNLocator(nbins=5).tick_values(low, high) if low <= at <= high]
        places = 2
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: power(value, places))


def power(value: float, places: int = 0) -> str:
    """A number on a logarithmic axis, or beside one: 0, 0.05, 20, 10⁻⁵, −2·10⁻⁵.

    Args:
        value: any number.
        places: decimals before a power of ten.
    """
    if value == 0:  # a search may have it at the end of a linear axis
        return "0"
    sign, value = numbers.MINUS if value < 0 else "", abs(value)
    if 0.000999 < value < 9_999.5:
        return sign + (f"{value:.3g}" if value < 1000 else f"{value:.0f}")
    exponent = floor(log10(value) + 1e-9)
    head = round(value / 10.0**exponent, places)
    tail = f"10{str(exponent).translate(_SUPERSCRIPT)}"
    return sign + (tail if head == 1 else f"{head:g}·{tail}")
