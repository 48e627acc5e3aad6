"""The cells of a sweep as the page shows them: named, marked, grouped, laid out as heat maps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from json import dumps
from math import ceil
from typing import Any, TypeGuard

from llabel import numbers
from llabel.rung_settings import UNTOUCHED
from llabel.sweep_record import Cell, SweepRecord

NAMES = {"lora_alpha": "alpha"}
SEED = "seed"
LOST = ("failed", "pruned")
_OF_CONTROLS = UNTOUCHED | {"rung"}  # what untouched models differ in
_MOST_LINES = 3


@dataclass(frozen=True, slots=True)
class CellView:
    """A cell and its marks.

    Attributes:
        id: of its row on the page.
        row: the record's.
        label: its settings that differ between cells.
        tags: best, recommended, may be as good, control, failed, pruned: in words.
        loss: validation log loss, or None where it is not done.
    """

    id: str
    row: Cell
    label: str
    tags: tuple[str, ...]
    loss: float | None


@dataclass(frozen=True, slots=True)
class Setting:
    """Cells that differ at most in the seed.

    Attributes:
        label: what differs from other settings.
        cells: at least one.
        loss: mean validation log loss of those that are done, or None.
        tags: of its cells; where only some of them failed, how many.
    """

    label: str
    cells: tuple[CellView, ...]
    loss: float | None
    tags: tuple[str, ...]

    @property
    def done(self) -> tuple[CellView, ...]:
        """Its cells that have a loss."""
        return tuple(cell for cell in self.cells if cell.loss is not None)

    def mean(self, part: str, field: str) -> float | None:
        """Mean of a number over its done cells: of `weights`, `perplexity`, `cost`, `scores`."""
        found = [
            value for cell in self.done if (value := number(cell.row, part, field)) is not None
        ]
        return sum(found) / len(found) if found else None


@dataclass(frozen=True, slots=True)
class Heat:
    """A grid of settings.

    Attributes:
        name: the values of the other axes, or "".
        down, across: names of the axes.
        columns: values across.
        rows: value down, and the settings across (None where there is none).
    """

    name: str
    down: str
    across: str
    columns: tuple[Any, ...]
    rows: tuple[tuple[Any, tuple[Setting | None, ...]], ...]


@dataclass(frozen=True)
class SweepView:
    """The record, and what is worked out from it once."""

    record: SweepRecord

    @cached_property
    def varied(self) -> tuple[str, ...]:
        """Names of the settings that differ between cells.

        That a system does not read a setting (r of a bag of words) is no difference, unless None
        was asked for.
        """
        asked = {name for name, values in self.record["axes"].items() if len(values) > 1}
        return tuple(
            name
            for name in self._names
            if len(found := self.values(name)) > 1
            and (name in asked or sum(value is not None for value in found) > 1)
        )

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for c in self.record["cells"] for name in c["settings"]))

    def values(self, name: str) -> tuple[Any, ...]:
        """The different values of a setting, in order."""
        found = {
            setting_key(c["settings"].get(name)): c["settings"].get(name)
            for c in self.record["cells"]
        }
        return tuple(sorted(found.values(), key=place))

    @cached_property
    def cells(self) -> tuple[CellView, ...]:
        """In the record's order."""
        chosen = self.record["chosen"]
        near = (
            {name for entry in chosen["not_worse"] for name in entry["cells"]} if chosen else set()
        )
        views = []
        for at, row in enumerate(self.record["cells"], 1):
            tags = []
            if chosen and row["name"] in chosen["cells"]:
                tags.append("best")
            if chosen and row["name"] in self.recommended_cells:
                tags.append("recommended")
            elif row["name"] in near:
                tags.append("may be as good")
            if row["control"]:
                tags.append("control")
            if row["status"] != "done":
                tags.append(row["status"])
            scores = row["metrics"]["validation"] if row["status"] == "done" else None
            label = self.label(row["settings"], self.varied)
            loss = scores["log_loss"] if scores else None
            views.append(CellView(f"cell-{at}", row, label, tuple(tags), loss))
        return tuple(views)

    @cached_property
    def recommended_cells(self) -> tuple[str, ...]:
        """The recommended cell, and the other seeds of its setting."""
        chosen = self.record["chosen"]
        if chosen is None:
            return ()
        groups = [chosen["cells"], *(entry["cells"] for entry in chosen["not_worse"])]
        return tuple(next((g for g in groups if chosen["recommended"] in g), ()))

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """Cells grouped over seeds; those of an untouched model, which is read once, are one."""
        groups: dict[str, list[CellView]] = {}
        for cell in self.cells:
            settings, control = cell.row["settings"], cell.row["control"]
            decides = {
                name: value
                for name, value in settings.items()
                if (name in _OF_CONTROLS if control else name != SEED)
            }
            groups.setdefault(dumps([control, decides], default=str), []).append(cell)
        return tuple(self._setting(cells) for cells in groups.values())

    def _setting(self, cells: Sequence[CellView]) -> Setting:
        losses = [cell.loss for cell in cells if cell.loss is not None]
        names = [name for name in self.varied if name != SEED]
        control = all(cell.row["control"] for cell in cells)
        settings = cells[0].row["settings"]
        label = self.untouched(settings) if control else self.label(settings, names)
        tags = [tag for cell in cells for tag in cell.tags]
        if losses:
            tags = [f"{tags.count(t)} of {len(cells)} {t}" if t in LOST else t for t in tags]
        mean = sum(losses) / len(losses) if losses else None
        return Setting(label, tuple(cells), mean, tuple(dict.fromkeys(tags)))

    @cached_property
    def ranked(self) -> tuple[Setting, ...]:
        """Settings that are done, the lowest loss first."""
        done = [(setting.loss, setting) for setting in self.settings if setting.loss is not None]
        return tuple(setting for _, setting in sorted(done, key=lambda pair: pair[0]))

    @cached_property
    def compared(self) -> tuple[Setting, ...]:
        """Of these, what the choice was made among: settings of which no seed came to nothing.

        Where all are like that, all of them.
        """
        whole = tuple(s for s in self.ranked if all(cell.loss is not None for cell in s.cells))
        return whole or self.ranked

    def untouched(self, settings: Mapping[str, Any]) -> str:
        """A control in words; where there are several untouched models, which."""
        controls = [cell.row["settings"] for cell in self.cells if cell.row["control"]]
        names = [
            name
            for name in self.varied
            if name in _OF_CONTROLS and len({setting_key(c.get(name)) for c in controls}) > 1
        ]
        return ", ".join(["untouched model", *([self.label(settings, names)] if names else ())])

    @cached_property
    def controls(self) -> tuple[Setting, ...]:
        """The untouched models."""
        return tuple(
            setting
            for setting in self.settings
            if setting.loss is not None and setting.cells[0].row["control"]
        )

    @cached_property
    def trained(self) -> tuple[CellView, ...]:
        """Cells that are done, but the controls."""
        return tuple(c for c in self.cells if c.loss is not None and not c.row["control"])

    @cached_property
    def references(self) -> tuple[tuple[str, float], ...]:
        """What to judge losses by: the untouched model, and answering without reading.

        Of many untouched models none: who would tell the lines apart?
        """
        found = []
        if len(self.controls) <= _MOST_LINES:
            found += [(c.label, c.loss) for c in self.controls if c.loss is not None]
        if (prior := self.record.get("prior_log_loss")) is not None:
            found.append(("class shares", prior))
        return tuple(found)

    @cached_property
    def limits(self) -> tuple[float, float]:
        """Limits of plots of the validation loss; a few wild cells may lie above."""
        losses = sorted(cell.loss for cell in self.trained if cell.loss is not None) or [0.0]
        usual = usual_top(losses)
        near = [height for _, height in self.references if height <= usual]
        low = min([losses[0], *near])
        top = max([*near, *(loss for loss in losses if loss <= usual), low + 0.01])
        room = 0.06 * (top - low)
        return low - room, top + room

    def mark(self, cell: CellView) -> str:
        """What a cell is named in drawings: best, recommended, or nothing."""
        chosen = self.record["chosen"]
        if chosen is None:
            return ""
        names = {"best": chosen["cell"], "recommended": chosen["recommended"]}
        return ", ".join(mark for mark, name in names.items() if name == cell.row["name"])

    def cell(self, name: str) -> CellView:
        """The cell of that name."""
        return next(cell for cell in self.cells if cell.row["name"] == name)

    def label(self, settings: Mapping[str, Any], names: Iterable[str]) -> str:
        """Settings in words: r 16, alpha 32, lr 0.001."""
        told = [f"{shown(n)} {brief(settings[n])}" for n in names if settings.get(n) is not None]
        return ", ".join(told) or "these settings"

    @cached_property
    def heats(self) -> tuple[Heat, ...]:
        """One grid for each combination of the axes beyond two; none for a search."""
        names = [name for name in self.varied if name != SEED]
        if self.record["search"] or len(names) < 2 or not self.ranked:
            return ()
        pair = {"r", "lora_alpha"}
        down, across = ("r", "lora_alpha") if pair <= set(names) else names[:2]
        others = [name for name in names if name not in (down, across)]
        order = (*others, down, across)
        cells: dict[tuple[str, ...], list[CellView]] = {}
        for cell in self.cells:
            key = tuple(setting_key(cell.row["settings"].get(name)) for name in order)
            cells.setdefault(key, []).append(cell)

        def at(*values: Any) -> Setting | None:
            found = cells.get(tuple(map(setting_key, values)))
            return self._setting(found) if found else None

        maps = []
        for chosen in product(*(self.values(name) for name in others)):
            fixed = dict(zip(others, chosen, strict=True))
            rows = tuple(
                (value, tuple(at(*chosen, value, v) for v in self.values(across)))
                for value in self.values(down)
            )
            if any(setting for _, row in rows for setting in row):
                name = self.label(fixed, others) if others else ""
                maps.append(Heat(name, shown(down), shown(across), self.values(across), rows))
        return tuple(maps)


def usual_top(values: Sequence[float]) -> float:
    """Where what is usual ends, of rising numbers: a few wild ones shall not squeeze the rest."""
    upper = values[ceil(0.75 * (len(values) - 1))]
    return values[0] + 2.2 * max(upper - values[0], 0.005)


def shown(name: str) -> str:
    """An axis as the page calls it."""
    return NAMES.get(name, name)


def brief(value: Any) -> str:
    """A value of a setting; of a number that a search drew the digits that count."""
    return f"{value:.4g}" if isinstance(value, float) else numbers.plain(value)


def number(cell: Cell, part: str, field: str) -> float | None:
    """A number of a cell, or None where it has none; `scores` are those on validation."""
    found: Any = cell["metrics"]["validation"] if part == "scores" else cell[part]  # type: ignore[literal-required]
    return None if found is None else found[field]


def setting_key(value: Any) -> str:
    """Equal for equal settings."""
    return dumps(float(value) if is_number(value) else value, default=str)


def place(value: Any) -> tuple[int, float, str]:
    """Where a value stands among others: numbers first."""
    return (0, float(value), "") if is_number(value) else (1, 0.0, str(value))


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a setting can stand on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)
