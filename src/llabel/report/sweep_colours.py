"""Colours and markers of a sweep's cells, with their keys."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

from llabel import numbers
from llabel.report.svg import RAMP
from llabel.report.sweep_cells import CellView, SweepView, shown
from llabel.report.sweep_plots import MARKERS, SIGNS, power


@dataclass(frozen=True, slots=True)
class Key:
    """An entry of a key: its words, the CSS variable of its colour, its sign."""

    name: str
    colour: str
    sign: str


@dataclass(frozen=True, slots=True)
class Ramp:
    """Colours for positive numbers, from little to much.

    Attributes:
        values: the different ones, in order.
    """

    values: tuple[float, ...]

    def step(self, value: float | None) -> int | None:
        """Place on the ramp, 0..6; None for what is no positive number."""
        if value is None or value not in self.values:
            return None
        last = len(RAMP) - 1
        if len(self.values) <= len(RAMP):
            return round(self.values.index(value) * last / max(1, len(self.values) - 1))
        low, high = log(self.values[0]), log(self.values[-1])
        return min(last, int((log(value) - low) / (high - low) * len(RAMP)))

    def keys(self) -> list[Key]:
        """One entry a colour."""
        by_step: dict[int, list[float]] = {}
        for value in self.values:
            by_step.setdefault(self.step(value) or 0, []).append(value)
        return [
            Key(" to ".join(dict.fromkeys((power(v[0]), power(v[-1])))), f"ramp-{at + 1}", "━")
            for at, v in by_step.items()
        ]


@dataclass(frozen=True, slots=True)
class Groups:
    """Colours and markers for the values of one axis.

    Attributes:
        axis: its name, or "" where nothing varies.
        values: in order.
    """

    axis: str
    values: tuple[Any, ...]

    @property
    def ramp(self) -> bool:
        """Whether there are too many for a marker each."""
        return len(self.values) > len(MARKERS)

    def of(self, cell: CellView) -> int:
        """The group of a cell."""
        at = self.values.index(cell.row["settings"].get(self.axis))
        return at * (len(RAMP) - 1) // (len(self.values) - 1) if self.ramp else at

    def keys(self) -> list[Key]:
        """One entry a value; of many, the least and the largest."""
        if len(self.values) < 2:
            return []
        name = shown(self.axis)
        if self.ramp:
            ends = (self.values[0], "ramp-1"), (self.values[-1], f"ramp-{len(RAMP)}")
            return [Key(f"{name} {numbers.plain(value)}", colour, "●") for value, colour in ends]
        return [
            Key(f"{name} {numbers.plain(value)}", f"series-{at + 1}", SIGNS[at])
            for at, value in enumerate(self.values)
        ]


def ramp_of(cells: Sequence[CellView], value: Callable[[CellView], float | None]) -> Ramp:
    """Colours for a number of the cells."""
    found = {number for cell in cells if (number := value(cell)) is not None and number > 0}
    return Ramp(tuple(sorted(found)))


def groups_of(view: SweepView) -> Groups:
    """Mark cells by r, or by the first axis that varies."""
    names = [name for name in ("r", "lora_alpha", "lr", *view.varied) if name in view.varied]
    return Groups(names[0], view.values(names[0])) if names else Groups("", (None,))
