"""Names in a drawing: cut where they would leave no room for it, and never made alike by that."""

from collections.abc import Sequence

from llabel.report.svg import FONT_SIZE, drawable

LABEL = 28  # characters in a line of a label
TICK = 12  # of a tick's label
_CHARACTER = 0.58 * FONT_SIZE  # width of one, on average; fonts of readers differ
_BETWEEN = 6  # units from a label to the next


def short(name: str, most: int = LABEL) -> str:
    """The beginning of a label that would leave no room for the drawing."""
    name = drawable(name)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def apart(names: Sequence[str], most: int = LABEL) -> list[str]:
    """Labels of at most so many characters, different wherever the names are.

    The first way of cutting that keeps them so serves for all: the beginning; both ends, as what
    tells models or files apart is often the last part; the end; what follows the part that all
    begin with. Where none does, they are numbered in their order.
    """
    whole = [drawable(name) for name in names]
    long = [name for name in whole if len(name) > most]
    columns = enumerate(zip(*long, strict=False))
    shared = next((at for at, letters in columns if len(set(letters)) > 1), 0)
    head = (most - 1) // 3
    ways = (
        lambda name: short(name, most),
        lambda name: f"{name[:head]}…{name[head + 1 - most :]}",
        lambda name: f"…{name[1 - most :]}",
        lambda name: short(f"…{name[shared:]}", most),
    )
    for cut in ways:
        found = [name if len(name) <= most else cut(name) for name in whole]
        if len(set(found)) == len(set(whole)):
            return found
    numbers = {name: place for place, name in enumerate(dict.fromkeys(whole), 1)}
    return [short(f"{numbers[name]}: {name}", most) for name in whole]


def width(label: str) -> float:
    """About so many units of a drawing."""
    return _CHARACTER * len(label)


def fit_side_by_side(labels: Sequence[str], room: float) -> bool:
    """Whether labels at equal distances along `room` units leave space between each other."""
    return max(map(width, labels), default=0.0) + _BETWEEN <= room / max(1, len(labels))
