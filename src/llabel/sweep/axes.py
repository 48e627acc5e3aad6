"""What a sweep varies: the values and ranges that stand on the command line or in YAML."""

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_origin

from llabel.config import checked, defaults, kind_of, option, short
from llabel.errors import InputError
from llabel.rung_settings import READS, VARIED, readers_of
from llabel.settings import RungName
from llabel.sweep_record import Range

# Texts that are cut at their commas into values; others (columns, modules, prose) are values whole.
_CUT = frozenset({"model", "template", "device", "encoder", "embeddings"})
_LOG = frozenset({"r", "lora_alpha", "learning_rate", "batch_size", "weight_decay", "train_rows"})
_ONLY_FIT = frozenset({"decode", "untested", "calibrate", "abstain_below", "target_precision"})
_DOTS = ".."
_HOW = "--r 1,16,128; values that are lists themselves, as --target-modules, one an option"


@dataclass(frozen=True, slots=True)
class Axes:
    """What varies and what does not.

    Attributes:
        shared: settings with one value, by name.
        lists: settings with several, in the order of the table of cells.
        ranges: what a search chooses freely from.
    """

    shared: dict[str, Any]
    lists: dict[str, tuple[Any, ...]]
    ranges: dict[str, Range]

    @property
    def rungs(self) -> tuple[RungName, ...]:
        """The systems of all cells."""
        found: tuple[RungName, ...] = self.lists.get("rung", ())
        return found or (self.shared.get("rung", defaults()["rung"]),)

    @property
    def names(self) -> list[str]:
        """All that varies, by what a cell's `settings` call it."""
        return [short(name) for name in (*self.lists, *self.ranges)]

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Every combination of the listed values; the last axis turns fastest."""
        combos: list[dict[str, Any]] = [{}]
        for name, values in self.lists.items():
            combos = [combo | {name: value} for combo in combos for value in values]
        yield from combos


def read_axes(values: Mapping[str, Any], *, searching: bool, seeds: int = 1) -> Axes:
    """Sort settings into what is shared and what varies; all that is wrong is said at once.

    Args:
        values: by setting: texts of the command line (one a time that the option was given), or
            what YAML has.
        searching: whether ranges may stand among them.
        seeds: how many seeds, the given one first.

    Raises:
        InputError: unknown names, values that cannot be used, none or the same one twice.
    """
    problems: list[str] = []
    shared: dict[str, Any] = {}
    lists: dict[str, tuple[Any, ...]] = {}
    ranges: dict[str, Range] = {}
    for name, given in values.items():
        try:
            found = _read(name, given)
        except InputError as error:
            problems.append(str(error))
            continue
        if not isinstance(found, tuple):
            ranges[name] = found
        elif len(found) == 1:
            shared[name] = found[0]
        else:
            lists[name] = found
    if seeds > 1:
        if "seed" in lists:
            problems.append(
                f"--seeds {seeds}: --seed has several values already. Give one of them."
            )
        else:
            first = shared.pop("seed", 0)
            lists["seed"] = tuple(range(first, first + seeds))
    if searching and ("seed" in lists or "seed" in ranges):
        problems.append(
            "--search tries each combination with one seed. Sweep the best ones again with --seeds."
        )
    if ranges and not searching:
        name = next(iter(ranges))
        problems.append(
            f"{option(name)}: a range is for a search: add --search tpe, or list values, as {_HOW}."
        )
    axes = Axes(shared, _in_order(lists), _in_order(ranges))
    problems = problems or list(_unread(axes))
    if problems:
        raise InputError("\n".join(problems))
    if not lists and not ranges:
        raise InputError(
            "Nothing varies. Give at least one setting several values, as --r 1,16,128 "
            "(or a range, as --search tpe --lr 1e-5..1e-2)."
        )
    return axes


def _unread(axes: Axes) -> Iterator[str]:
    """Say along which axes all cells would be alike."""
    rungs = ", ".join(axes.rungs)
    for name in (*axes.lists, *axes.ranges):
        readers = readers_of(name)
        if not readers.intersection(axes.rungs):
            more = ", ".join(rung for rung in READS if rung in readers)
            yield (
                f"{option(name)} varies, and is without effect on {rungs}. Leave it out, or add a "
                f"--rung that reads it: {more}."
            )
    steps = axes.shared.get("max_steps")
    if steps is not None and {"epochs"} & (axes.lists.keys() | axes.ranges.keys()):
        yield (
            f"--epochs varies, and is without effect with --max-steps {steps}, which says how long "
            "every training is. Leave one of them out (or say --max-steps none)."
        )


def _in_order(axes: dict[str, Any]) -> dict[str, Any]:
    """The rung first, then r and alpha, then the others as they came, the seed last."""
    places = {"rung": -3, "r": -2, "lora_alpha": -1, "seed": 1}
    return dict(sorted(axes.items(), key=lambda item: places.get(item[0], 0)))


def _read(name: str, given: Any) -> tuple[Any, ...] | Range:
    kind_of(name)  # refuses unknown names
    if name in _ONLY_FIT:
        return (_unchanged(name, given),)
    if name not in VARIED:
        if isinstance(given, list) and name != "label_words" and not _is_tuple(name):
            raise InputError(f"{option(name)}: all cells share it. Give one value.")
        return (checked({name: given})[name],)
    raw = list(_pieces(name, given))
    if not raw or any(value == "" for value in raw):
        raise InputError(f"{option(name)}: a value is missing. Write values as {_HOW}.")
    if any(isinstance(value, str) and _DOTS in value for value in raw) and _is_number(name):
        if len(raw) > 1:
            raise InputError(f"{option(name)}: a range stands alone, as {option(name)} 1..256.")
        return _range(name, raw[0])
    found = tuple(checked({name: value})[name] for value in raw)
    times = Counter(json.dumps(value) for value in found)
    if twice := next((text for text, count in times.items() if count > 1), None):
        raise InputError(f"{option(name)}: {twice} is given twice.")
    return found


def _unchanged(name: str, given: Any) -> Any:
    """What a sweep cannot do otherwise: the default may stand in a file that fit reads, too."""
    usual = defaults()[name]
    if (value := checked({name: given})[name]) != usual:
        raise InputError(
            f"{name}: known to `llabel fit` only. A sweep judges its cells by the probabilities of "
            "their labels, and tests the chosen one. Leave it out, and fit the chosen settings "
            "with it."
        )
    return value


def _pieces(name: str, given: Any) -> Iterator[Any]:
    """Values that are still to be checked."""
    if isinstance(given, list | tuple):
        if _is_tuple(name) and isinstance(given, list) and all(isinstance(v, str) for v in given):
            yield given  # in YAML, one list of names
            return
        for value in given:
            yield from _cut(name, value) if isinstance(given, tuple) else (value,)
        return
    yield from _cut(name, given)


def _cut(name: str, value: Any) -> Iterator[Any]:
    kind = kind_of(name)
    cuts = name in _CUT or kind in (int, float, bool) or get_origin(kind) is Literal
    if not isinstance(value, str) or not cuts:
        yield value
        return
    (pieces,) = csv.reader([value], skipinitialspace=True) if value else [[]]
    yield from (piece.strip() for piece in pieces)


def _range(name: str, text: str) -> Range:
    """`LOW..HIGH`, with `:log` or `:linear` behind it."""
    limits, _, scale = text.partition(":")
    if _DOTS not in limits:
        raise InputError(
            f"{option(name)} {text}: a range is written as LOW..HIGH, such as 1e-5..1e-2; :log or "
            ":linear stands behind it."
        )
    try:
        low, high = (checked({name: part.strip()})[name] for part in limits.split(_DOTS, 1))
    except InputError as error:
        raise InputError(
            f"{option(name)} {text}: a range is written as LOW..HIGH, such as 1e-5..1e-2. {error}"
        ) from error
    log = (scale or ("log" if name in _LOG else "linear")) == "log"
    if scale not in {"", "log", "linear"}:
        raise InputError(f"{option(name)} {text}: after the colon, write log or linear.")
    if low is None or high is None or not low < high:
        raise InputError(f"{option(name)} {text}: write the lower limit first, as 1e-5..1e-2.")
    if log and low <= 0:
        if scale:
            raise InputError(f"{option(name)} {text}: a logarithmic range begins above 0.")
        log = False
    return Range(low=low, high=high, log=log, whole=kind_of(name) is int)


def rounded(value: float, *, whole: bool) -> float | int:
    """To four digits, as anybody would write it, or to a whole number."""
    if whole:
        return round(value)
    return float(f"{value:.4g}") if math.isfinite(value) else value


def _is_number(name: str) -> bool:
    return kind_of(name) in (int, float)


def _is_tuple(name: str) -> bool:
    return get_origin(kind_of(name)) is tuple
