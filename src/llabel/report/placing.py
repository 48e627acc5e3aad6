"""Where labels stand in a plot so that they cover neither points nor each other."""

from collections.abc import Iterable, Sequence
from itertools import product
from math import cos, pi, sin
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

Box = tuple[float, float, float, float]  # left, bottom, right, top; drawing units
_DISTANCES = (9, 16, 26, 38, 52, 68, 86)
_SIXTEENTHS = (0, 8, 4, 12, 2, 14, 6, 10, 1, 15, 7, 9, 3, 13, 5, 11)
_DIRECTIONS = tuple(pi / 8 * step for step in _SIXTEENTHS)
_NEAR = 12  # a label within this distance needs no line to its point


def place_labels(
    axes: "Axes", labels: Sequence["Annotation"], obstacles: Iterable[Box]
) -> list[Box]:
    """Move annotations (made with `textcoords="offset pixels"`) to free places, in their order.

    Each label takes the nearest of 112 places round its point that covers least; one that ends up
    away from its point keeps its leader line, the others lose it.

    Args:
        axes: that the labels shall stay in.
        labels: the first ones get the best places.
        obstacles: boxes in drawing units that no label shall cover.

    Returns:
        The labels' boxes, in order.
    """
    taken = list(obstacles)
    placed: list[Box] = []
    window = axes.get_window_extent()
    inside = (window.x0, window.y0, window.x1, window.y1)
    for label in labels:
        x, y = axes.transData.transform(label.xy)
        extent = label.get_window_extent()
        width, height = extent.width, extent.height
        best = min(
            (
                (distance, _box(x, y, width, height, distance, angle))
                for distance, angle in product(_DISTANCES, _DIRECTIONS)
            ),
            key=lambda place: _badness(place[1], place[0], inside, taken, placed),
        )
        distance, box = best
        # Fonts of readers are narrower than the measured one: lean the text on its point.
        side, at = _anchor(box, x)
        label.set_horizontalalignment(side)
        label.set_verticalalignment("bottom")
        label.set_position((at - x, box[1] - y))
        if distance <= _NEAR and label.arrow_patch is not None:
            label.arrow_patch.set_visible(False)
        placed.append(box)
    return placed


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move numbers apart until neighbours are `gap` apart, as little as needed, order kept.

    Args:
        wanted: places.
        gap: least distance between two; made smaller where `low`..`high` has too little room.
        low, high: limits of the places.
    """
    if not wanted:
        return []
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    # Less k gaps, places only have to rise: pool neighbours that do not (isotonic regression).
    groups: list[tuple[float, int]] = []
    for rank, place in enumerate(order):
        mean, size = wanted[place] - rank * gap, 1
        while groups and groups[-1][0] > mean:
            last, last_size = groups.pop()
            mean = (mean * size + last * last_size) / (size + last_size)
            size += last_size
        groups.append((mean, size))
    flat = [mean for mean, size in groups for _ in range(size)]
    top = high - gap * (len(wanted) - 1)
    result = [0.0] * len(wanted)
    for rank, place in enumerate(order):
        result[place] = min(max(flat[rank], low), top) + rank * gap
    return result


def _box(x: float, y: float, width: float, height: float, distance: float, angle: float) -> Box:
    """The label's box whose nearest edge or corner lies `distance` from the point."""
    middle_x = x + distance * cos(angle) + width / 2 * _side(cos(angle))
    middle_y = y + distance * sin(angle) + height / 2 * _side(sin(angle))
    left, bottom = middle_x - width / 2, middle_y - height / 2
    return left, bottom, left + width, bottom + height


def _anchor(box: Box, x: float) -> tuple[Literal["left", "center", "right"], float]:
    if box[0] >= x:
        return "left", box[0]
    return ("right", box[2]) if box[2] <= x else ("center", (box[0] + box[2]) / 2)


def _side(part: float) -> float:
    """-1, 0 or 1, and in between near the axes, so that labels slide along their point."""
    return max(-1.0, min(1.0, part * 1.5))


def _badness(
    box: Box, distance: float, inside: Box, taken: Sequence[Box], placed: Sequence[Box]
) -> float:
    area = (box[2] - box[0]) * (box[3] - box[1])
    outside = area - _overlap(box, inside)
    on_labels = sum(_overlap(box, other) for other in placed)
    on_points = sum(_overlap(box, other) for other in taken)
    return 20 * outside + 20 * on_labels + 6 * on_points + 2 * distance


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)
