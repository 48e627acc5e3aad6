"""One combination of settings: what it is called, what it trains, and what it has in common."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from math import sqrt
from typing import Any

from llabel.config import RunConfig, defaults, short
from llabel.rung_settings import ADAPTED, READS, SEEDED, UNTOUCHED
from llabel.settings import LLMSettings, SimplerSettings
from llabel.sweep.axes import Axes
from llabel.sweep_record import AXES

_NO_RESULT = (
    *("checkpoint_minutes", "checkpoint_steps", "track", "untested", "decode", "no_texts"),
    *("calibrate", "abstain_below", "target_precision"),
)
_LONGEST = 150  # characters of a name; with a digest and a dot it is still one of a file


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """A cell before it is trained.

    Attributes:
        name: of its folder.
        config: everything it is told; its test part stays unread.
        settings: of `AXES` and of what varies, None where it decides nothing.
    """

    name: str
    config: RunConfig
    settings: dict[str, Any]

    @property
    def control(self) -> bool:
        """Whether it is the untouched model."""
        return is_control(self.config)

    @property
    def identity(self) -> dict[str, Any]:
        """See `identity`."""
        return identity(self.config)

    @property
    def scaling(self) -> float | None:
        """Of the update: lora_alpha / r, or / √r with rsLoRA; None without LoRA."""
        llm = self.config.llm
        if self.config.run.rung not in ADAPTED:
            return None
        return llm.lora_alpha / (sqrt(llm.r) if llm.use_rslora else llm.r)

    @property
    def setting(self) -> str:
        """The same text for cells that differ by their seed only, and for the same control."""
        values = {name: value for name, value in self.identity.items() if name != "seed"}
        if self.control:
            values = {name: value for name, value in values.items() if name in UNTOUCHED}
        return _text(values | {"control": self.control})

    def rows_to_train(self, train: int, validation: int) -> int:
        """Rows that its steps read in all, at most; 0 where no adapter is trained.

        Args:
            train, validation: rows of these parts; a refit trains on both, as many epochs.
        """
        llm = self.config.llm
        if self.config.run.rung not in ADAPTED or self.control:
            return 0
        epochs = llm.passes(train)
        return round(epochs * train) + (round(epochs * (train + validation)) if llm.refit else 0)


def grid(axes: Axes) -> list[PlannedCell]:
    """The cells of a full grid, those that are told the same only once."""
    return distinct(planned(axes, combination) for combination in axes.combinations())


def distinct(cells: Iterable[PlannedCell]) -> list[PlannedCell]:
    """Each once, and each with a name of its own."""
    found = {_text(cell.identity): cell for cell in cells}
    times = Counter(cell.name for cell in found.values())
    return [cell if times[cell.name] == 1 else apart(cell) for cell in found.values()]


def apart(cell: PlannedCell) -> PlannedCell:
    """With a name that no other cell has."""
    return replace(cell, name=f"{cell.name}-{_digest(_text(cell.identity))}")


def searched(axes: Axes, combination: Mapping[str, Any]) -> PlannedCell:
    """The cell of one trial.

    Which others will come is not known, so that a name that might be another's, too, says which.
    """
    cell = planned(axes, combination)
    return cell if all(map(_is_plain, cell.settings.values())) else apart(cell)


def planned(axes: Axes, combination: Mapping[str, Any]) -> PlannedCell:
    """The cell of one combination of values.

    Raises:
        InputError: something is missing or cannot be used.
    """
    config = RunConfig.from_flat({**axes.shared, **combination, "untested": True})
    first = axes.shared.get("seed", axes.lists.get("seed", (0,))[0])
    split_seed = first if config.data.split_seed is None else config.data.split_seed
    seed = config.llm.seed if config.run.rung in SEEDED else first
    config = replace(
        config,
        data=replace(config.data, split_seed=split_seed),
        llm=replace(config.llm, seed=seed),
    )
    settings = _settings(config, axes)
    name = _name(config, settings)
    cell = PlannedCell(name[:_LONGEST], config, settings)
    return cell if cell.name == name else apart(cell)


def is_control(config: RunConfig) -> bool:
    """Whether training changes nothing: LoRA scaled by 0 is the model as it was."""
    return config.run.rung in ADAPTED and config.llm.lora_alpha == 0


def identity(config: RunConfig) -> dict[str, Any]:
    """What decides a cell's result, as far as it differs from the defaults; JSON-ready."""
    usual = defaults()
    values = {
        name: value
        for name, value in config.flat().items()
        if name not in _NO_RESULT and value != usual.get(name, MISSING)
    }
    found: dict[str, Any] = json.loads(_text(values))
    return found


def from_identity(values: Mapping[str, Any]) -> RunConfig:
    """The reverse of `identity`."""
    return RunConfig.from_flat({**values, "untested": True})


def _settings(config: RunConfig, axes: Axes) -> dict[str, Any]:
    rung = config.run.rung
    known = {setting.name for room in (LLMSettings, SimplerSettings) for setting in fields(room)}
    flat = config.flat()
    names = [*("r", "lora_alpha", "learning_rate", "epochs", "seed"), *axes.lists, *axes.ranges]
    read = {n: flat.get(n) if n not in known or n in READS[rung] else None for n in names}
    if config.llm.max_steps is not None:  # these say how long it is trained, whatever the epochs
        read["epochs"] = None
    assert tuple(map(short, names[: len(AXES)])) == AXES
    return {short(name): value for name, value in read.items()}


def _name(config: RunConfig, settings: Mapping[str, Any]) -> str:
    """Short, and the same whatever else varies: r16-alpha32-lr0.0005-epochs3-seed0.

    A name is no identity: cells that an older llabel named otherwise are found by what they are.
    """
    parts = [
        f"{name.removeprefix('lora_')}{_word(settings[name])}"
        for name in AXES
        if settings[name] is not None
    ]
    if config.run.rung not in ADAPTED:
        parts = [config.run.rung, f"seed{config.llm.seed}"]
    elif config.run.rung != ADAPTED[0]:
        parts = [config.run.rung, *parts]
    others = [name for name in settings if name not in {*AXES, "rung"}]
    parts += [
        f"{name.replace('_', '-')}-{_word(settings[name])}"
        for name in others
        if settings[name] is not None
    ]
    return "-".join(parts)


def _word(value: Any) -> str:
    """A value as a part of a folder's name."""
    if isinstance(value, tuple | list):
        return "+".join(map(_word, value))
    text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^A-Za-z0-9.+]+", "-", text).strip("-.")[-40:].lower()


def _is_plain(value: Any) -> bool:
    """Whether no other value has its word."""
    if isinstance(value, tuple | list):
        return all(_is_plain(part) and "+" not in str(part) for part in value)
    if isinstance(value, float):
        return float(_word(value)) == value
    return not isinstance(value, str) or _word(value) == value


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
