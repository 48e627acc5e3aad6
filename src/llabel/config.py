"""One run's settings as a whole: from the command line or YAML, checked, to run.json."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from llabel.errors import InputError
from llabel.names import HOW, joined, label_columns, names_in
from llabel.precedence import with_batch_size
from llabel.rung_settings import READS
from llabel.settings import (
    CompareSettings,
    DataSettings,
    Duration,
    Help,
    LLMSettings,
    Names,
    RunSettings,
    SimplerSettings,
    SweepSettings,
    parse_rope,
)

_Room = TypeVar(
    "_Room",
    DataSettings,
    RunSettings,
    LLMSettings,
    SimplerSettings,
    CompareSettings,
    SweepSettings,
)
_ROOMS = (RunSettings, DataSettings, LLMSettings, SimplerSettings)
_ONLY_COMPARE = frozenset(setting.name for setting in fields(CompareSettings))
_SWEEP = frozenset(setting.name for setting in fields(SweepSettings))
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_SOURCE = Annotated[str, Help("File, folder, built-in name or Hub id.")]
_OUT = Annotated[str, Help("Folder of the run.")]
_SHORT = {"learning_rate": "lr"}
# What other tools call our settings.
_ELSEWHERE = {
    "lr": "learning_rate",
    "random_state": "seed",
    "rank": "r",
    "lora_r": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "batch_size",
    "lr_scheduler_type": "schedule",
    "optimizer": "optim",
    "max_length": "max_seq_length",
    "output_dir": "out",
    "bf16": "precision",
    "fp16": "precision",
    "load_in_4bit": "base",
    "report_to": "track",
}


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that decides a run's result.

    The rung llm-qlora has a base in 4 bits, said or not.

    Attributes:
        source: the data: file, folder, built-in name or Hub id.
        data, run, llm, simpler: the settings, by room.
    """

    source: str
    data: DataSettings
    run: RunSettings
    llm: LLMSettings
    simpler: SimplerSettings = field(default_factory=SimplerSettings)

    def __post_init__(self) -> None:
        """Refuse settings that exclude each other; llm-qlora implies a base in 4 bits.

        Raises:
            InputError: two of them do, or `rope_scaling` says nothing that can be done.
        """
        run = self.run
        parse_rope(self.llm.rope_scaling)  # it is text: nothing else has looked at it
        asked = [name for name in ("abstain_below", "target_precision") if getattr(run, name)]
        names = " and ".join(map(option, asked))
        if len(asked) == 2:
            raise InputError(
                f"{names} both say when to give no answer: the first names the probability, the "
                "second lets validation find it. Choose one of them."
            )
        if asked and run.decode == "free":
            raise InputError(
                f"{names} and --decode free exclude each other: what the model writes has no "
                "probability to hold against the threshold. Leave one of them out."
            )
        if run.rung == "llm-qlora" and self.llm.base == "auto":
            object.__setattr__(self, "llm", replace(self.llm, base="nf4"))

    @property
    def targets(self) -> tuple[str, ...]:
        """The label columns, where there are several."""
        columns = label_columns(self.data.label)
        return columns if len(columns) > 1 else ()

    @property
    def joint(self) -> bool:
        """Whether several targets are answered together."""
        return bool(self.targets) and self.data.target is None

    def flat(self) -> dict[str, Any]:
        """One level of names, as in YAML and run.json; `data` is the source.

        Settings that another rung reads are left out: they decide nothing here.
        """
        rung = asdict(self.llm) | asdict(self.simpler)
        read = {name: value for name, value in rung.items() if name in READS[self.run.rung]}
        return {"data": self.source, **asdict(self.run), **asdict(self.data), **read}

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of `flat`, every value checked; names that are missing keep their default.

        Raises:
            InputError: unknown name, missing name, wrong type or out of range.
        """
        refuse_missing(values, required())
        if foreign := sorted(_ONLY_COMPARE.intersection(values)):
            names = ", ".join(map(option, foreign))
            raise InputError(f"{names}: known to `llabel compare` only.")
        if foreign := sorted(_SWEEP.intersection(values) - _hints().keys()):
            names = ", ".join(map(option, foreign))
            raise InputError(f"{names}: known to `llabel sweep` only.")
        known = checked(values)
        return cls(
            source=known["data"],
            data=_room(DataSettings, known),
            run=_room(RunSettings, known),
            llm=_room(LLMSettings, known),
            simpler=_room(SimplerSettings, known),
        )


def compare_settings(values: Mapping[str, Any]) -> tuple[CompareSettings, dict[str, Any]]:
    """Take what concerns the comparison out of `values`.

    A `rung`, as presets name one, is a row of the table beside the usual ones; it decides nothing
    about the others.

    Returns:
        That, and the settings of its runs.

    Raises:
        InputError: wrong type or out of range.
    """
    own = checked({name: value for name, value in values.items() if name in _ONLY_COMPARE})
    rest = {name: value for name, value in values.items() if name not in _ONLY_COMPARE}
    asked = _room(CompareSettings, own)
    if "rung" in rest:
        rung = checked({"rung": rest.pop("rung")})["rung"]
        if "rungs" not in own and rung not in asked.rungs:
            asked = replace(asked, rungs=(*asked.rungs, rung))
    return asked, rest


def sweep_settings(values: Mapping[str, Any]) -> tuple[SweepSettings, dict[str, Any]]:
    """Take what concerns the sweep out of `values`: also `trials`, which a cell has one of.

    Returns:
        That, and the settings of its cells.

    Raises:
        InputError: wrong type or out of range, or trials where nothing is searched.
    """
    hints = get_type_hints(SweepSettings, include_extras=True)
    own = _checked({name: value for name, value in values.items() if name in _SWEEP}, hints)
    rest = {name: value for name, value in values.items() if name not in _SWEEP}
    asked = _room(SweepSettings, own)
    # One is what a cell has: it may stand in a file that fit reads, too.
    if asked.search is None and own.get("trials", 1) != 1:
        raise InputError(
            f"--trials {asked.trials} is how many combinations a search tries; without --search a "
            "sweep trains all of them. Add --search tpe (or random), or leave --trials out; "
            "learning rates to try are given as --lr 1e-4,5e-4."
        )
    return asked, rest


def checked(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Values in their proper types; all that is wrong is said at once.

    Args:
        values: by the names of the settings, `data` and `out`, in any type that can stand for the
            right one: ``"a,b"`` or a list for a tuple (a name with a comma is quoted, as in CSV:
            ``'"a, b",c'``), ``"5e-4"`` for a number, ``"none"`` where None may stand.
        where: the file they stand in, for messages.

    Raises:
        InputError: unknown name, wrong type or out of range.
    """
    return _checked(values, _hints(), where)


def _checked(
    values: Mapping[str, Any], hints: Mapping[str, Any], where: str = ""
) -> dict[str, Any]:
    problems, good = [], {}
    for name, value in values.items():
        if name not in hints:
            problems.append(_unknown(str(name), hints))
            continue
        try:
            good[name] = _converted(value, hints[name])
        except ValueError as error:
            problems.append(f"{option(name)} {_shown(value)}: {error}.")
    if problems:
        start = f"{where}: " if where else ""
        raise InputError(start + ("\n" + start).join(problems))
    return good


def required() -> list[str]:
    """Names of the settings that have no default, `data` first."""
    settings = [setting for room in _ROOMS for setting in fields(room)]
    return ["data", *(setting.name for setting in settings if setting.default is MISSING)]


def defaults() -> dict[str, Any]:
    """The default of every setting of a run, by name; MISSING where it has none."""
    return {setting.name: setting.default for room in _ROOMS for setting in fields(room)}


def refuse_missing(values: Mapping[str, Any], names: Iterable[str]) -> None:
    """Name every one of `names` that has no value, and what it is.

    Raises:
        InputError: something is missing.
    """
    hints = _hints()
    missing = [name for name in names if values.get(name) is None]
    if missing:
        lines = [f"  {option(name)}: {_help(hints[name])}" for name in missing]
        raise InputError(
            "Missing, both on the command line and in a --config file:\n" + "\n".join(lines)
        )


def load_yaml(path: Path) -> dict[str, Any]:
    """Settings from a YAML file, checked; names may be written with - or _.

    Besides the settings, `data` names the data and `out` the run folder; `lr` is the learning rate.

    Raises:
        InputError: as `read_yaml` or `with_batch_size`, or a value that cannot be used.
    """
    return checked(with_batch_size(read_yaml(path)), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """The same by their full names, not checked.

    Raises:
        InputError: no such file, no YAML, no mapping, or a setting that occurs twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"--config {path}: there is no such file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: cannot be read as UTF-8 text ({error}).") from error
    values = _mapping(text, path)
    if twice := [name for name in _SHORT if {name, _SHORT[name]} <= values.keys()]:
        raise InputError(
            f"{path}: {twice[0]} and {short(twice[0])} are the same setting. Remove one of them."
        )
    return {_full(name): value for name, value in values.items()}


def option(name: str) -> str:
    """How the command line spells a setting."""
    return "DATA" if name == "data" else "--" + name.replace("_", "-")


def _room(room: type[_Room], known: Mapping[str, Any]) -> _Room:
    names = [setting.name for setting in fields(room)]
    return room(**{name: known[name] for name in names if name in known})


def _mapping(text: str, path: Path) -> dict[str, Any]:
    import yaml

    try:
        node = yaml.compose(text, yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise InputError(f"{path} is no YAML{line}: {problem}.") from error
    except ValueError as error:  # 2024-02-30 looks like a date, and is none
        raise InputError(
            f"{path}: a value cannot be read ({error}). Put it in quotes if it is text."
        ) from error
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{path}: a file of lines such as `epochs: 2` is needed, one a setting.")
    _refuse_twice(node, path, lambda key: key.replace("-", "_"))
    for _, value in node.value:
        if isinstance(value, yaml.MappingNode):  # label words; of settings none is deeper
            _refuse_twice(value, path, str)
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def _refuse_twice(node: Any, path: Path, spelt: Callable[[str], str]) -> None:
    """Refuse a key that a YAML mapping has twice; YAML itself would take the last."""
    lines: dict[str, int] = {}
    for key, _ in node.value:
        name, line = spelt(str(key.value)), key.start_mark.line + 1
        if name in lines:
            raise InputError(
                f"{path}: {name} stands at line {lines[name]} and again at line {line}. "
                "Remove one of them."
            )
        lines[name] = line


def _hints() -> dict[str, Any]:
    """Annotated type of every setting, and of `data` and `out`."""
    hints: dict[str, Any] = {"data": _SOURCE, "out": _OUT}
    for room in (*_ROOMS, CompareSettings):
        hints |= get_type_hints(room, include_extras=True)
    return hints


def _help(hint: Any) -> str:
    return next(extra.text for extra in get_args(hint) if isinstance(extra, Help))


def _converted(value: Any, hint: Any) -> Any:
    """`value` in the type of `hint`.

    Raises:
        ValueError: it cannot be; the message says what is allowed.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    kind, *extras = get_args(hint)
    if isinstance(value, bool) and kind is not bool:
        # YAML reads yes, no, on, off and true as truth values, and 1 == True.
        raise ValueError("a truth value stands where none is meant; put it in quotes in YAML")
    if isinstance(value, str) and is_none(value) and NoneType in get_args(kind):
        return None
    if isinstance(value, str) and any(isinstance(extra, Duration) for extra in extras):
        value = _seconds(value)
    if any(isinstance(extra, Names) for extra in extras):
        if isinstance(value, str) and {",", '"'} & set(value):
            value = names_in(value)
        if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
            if "" in value:
                raise ValueError(f"a name is empty; write {HOW}")
            value = joined(value)
    if get_origin(kind) is tuple and isinstance(value, str):
        value = names_in(value.strip() if _choices(kind) else value)
    if get_origin(kind) is tuple and isinstance(value, list | tuple) and "" in value:
        raise ValueError(f"a name is empty; write {HOW}")
    if isinstance(value, dict):
        # The labels true, false, 1 and 0 are no strings in YAML, but are looked up as strings.
        value = {str(key): words for key, words in value.items()}
    try:
        return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        allowed = first["msg"].replace("Input should", "it should")
        inside = f" (at {'.'.join(map(str, first['loc']))})" if first["loc"] else ""
        close = difflib.get_close_matches(str(first["input"]), _choices(kind), 1)
        guess = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(
            allowed.replace("a valid tuple", f"a list, or text as {HOW}") + inside + guess
        ) from error


def _choices(kind: Any) -> tuple[str, ...]:
    """The words that a value, or each part of a tuple, is one of; () where it may be any."""
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    return get_args(kind) if get_origin(kind) is Literal else ()


def _seconds(text: str) -> float:
    unit = text.strip()[-1:].lower()
    try:
        return float(text.strip().lower().removesuffix(unit if unit in _SECONDS else "")) * (
            _SECONDS.get(unit, 1)
        )
    except ValueError as error:
        raise ValueError("write a time as 90s, 10m or 1h") from error


def is_none(text: str) -> bool:
    """Whether it stands for no value, where a setting may have none."""
    return text.strip().lower() == "none"


def kind_of(name: str) -> Any:
    """The type of a setting, None taken off.

    Raises:
        InputError: there is no such setting.
    """
    hints = _hints()
    if name not in hints:
        raise InputError(_unknown(name, hints))
    kind = get_args(hints[name])[0]
    parts = [part for part in get_args(kind) if part is not NoneType]
    return parts[0] if NoneType in get_args(kind) else kind


def short(name: str) -> str:
    """What a setting is called where there is little room: `lr` for `learning_rate`."""
    return _SHORT.get(name, name)


def _full(name: str) -> str:
    """The reverse of `short`."""
    return next((long for long, brief in _SHORT.items() if brief == name), name)


def _unknown(name: str, hints: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, hints, 1)
    meant = _ELSEWHERE.get(name) or (close[0] if close else None)
    guess = f"Did you mean {meant}?" if meant else "`llabel fit --help` lists all settings."
    return f"unknown setting {_shown(name)}. {guess}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
