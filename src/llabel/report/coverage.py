"""Accuracy of the surest answers: what a rung is worth where it may leave rows unanswered."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from llabel import numbers
from llabel.comparison import ComparedRung
from llabel.confidence import CoveragePoint
from llabel.report.page import Figure
from llabel.report.plots import Line, Range, line_style, name_ends, score_ticks
from llabel.report.svg import drawing, inline_svg

COVERAGES = (0.5, 0.8, 0.9, 1.0)  # columns of the table
_WIDE, _NARROW = (760, 400), (340, 360)
_SOME = 0.15  # of the drawing's diagonal between two markers on a line
_LEAST = 0.1  # coverage from which lines are drawn: of fewer rows one answer moves them too far


@dataclass(frozen=True, slots=True)
class CoverageView:
    """The plot and its table.

    Attributes:
        figure: None where no rung tells rows apart by how sure it is.
        coverages: the table's columns.
        rows: (rung, accuracy at each of them); None where so few rows cannot be told from more.
    """

    figure: Figure | None
    coverages: tuple[float, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]


def coverage_view(
    rungs: Sequence[ComparedRung], strong: set[str], floor: float
) -> CoverageView | None:
    """What the page shows of rungs that are done; None where their records do not tell.

    Args:
        rungs: that are done, in their order.
        strong: names of those that stand out.
        floor: rungs whose accuracy is below are not drawn.
    """
    told = {rung["name"]: points for rung in rungs if (points := rung.get("coverage", []))}
    if not told:
        return None
    lines, marks = [], []
    for rung in rungs:
        points = [p for p in told.get(rung["name"], []) if p["coverage"] >= _LEAST]
        if len(points) < 2 or points[-1]["accuracy"] < floor:
            continue
        xs, ys = zip(*((p["coverage"], p["accuracy"]) for p in points), strict=True)
        lines.append(Line(rung["name"], xs, ys, strong=rung["name"] in strong))
        marks.append(_mark(rung))
    rows = tuple((name, tuple(_at(points, c) for c in COVERAGES)) for name, points in told.items())
    return CoverageView(_figure(lines, marks), COVERAGES, rows)


def _mark(rung: ComparedRung) -> tuple[float, float] | None:
    """Coverage and accuracy at the threshold that the rung was given."""
    abstention = rung.get("abstention")
    answered = abstention["test"] if abstention else None
    if answered is None or answered["accuracy"] is None:
        return None
    return answered["coverage"], answered["accuracy"]


def _at(points: Sequence[CoveragePoint], coverage: float) -> float | None:
    """Accuracy of the surest rows, about so many of them."""
    nearest = min(points, key=lambda point: abs(point["coverage"] - coverage))
    return nearest["accuracy"] if abs(nearest["coverage"] - coverage) <= 0.05 else None


def _figure(lines: list[Line], marks: list[tuple[float, float] | None]) -> Figure | None:
    if not lines:
        return None
    told = "; ".join(
        f"{line.name} {numbers.score(line.y[0])} on the surest {line.x[0]:.0%}, "
        f"{numbers.score(line.y[-1])} on all"
        for line in lines
    )
    label = f"Accuracy against the share of test rows that is answered. {told}."
    wide, narrow = (
        accuracy_over_coverage(lines, marks, key=f"coverage-{suffix}", label=label, size=size)
        for suffix, size in (("w", _WIDE), ("n", _NARROW))
    )
    return Figure("Accuracy against the share of rows answered", wide, narrow)


def accuracy_over_coverage(
    lines: Sequence[Line],
    marks: Sequence[tuple[float, float] | None],
    *,
    key: str,
    label: str,
    size: Range,
) -> Markup:
    """Accuracy of the surest rows over their share, each line named at its right end.

    Args:
        lines: at least one.
        marks: where a line's threshold stands, if it has one.
        key, label: see `inline_svg`.
        size: width and height in units.
    """
    with drawing(*size) as figure:
        axes = figure.subplots()
        styles = {line.name: line_style(place) for place, line in enumerate(lines)}
        for line, mark in zip(lines, marks, strict=True):
            style = styles[line.name]
            axes.plot(
                line.x,
                line.y,
                **style,
                linewidth=2.4 if line.strong else 1.4,
                markersize=4,
                markevery=_SOME,
            )
            if mark is not None:
                axes.plot(*mark, marker=style["marker"], markersize=10, color=style["color"])
        axes.set_xlim(0, 1.02)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "all"])
        axes.set_xlabel("test rows answered, the surest first")
        axes.set_ylabel("accuracy of the answers")
        low = min(0.98, *(y for line in lines for y in line.y))
        axes.set_ylim(low - 0.04 * (1 - low), 1 + 0.04 * (1 - low))
        score_ticks(axes)
        name_ends(axes, lines, {name: style["color"] for name, style in styles.items()})
        return inline_svg(figure, key=key, label=label)
