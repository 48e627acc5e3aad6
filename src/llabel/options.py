"""Command-line options made from the settings: one place says name, type, range and help."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

import rich_click as click
from annotated_types import Ge, Gt, Interval
from click.core import ParameterSource

from llabel.config import is_none, option, short
from llabel.precedence import ACCUMULATION, PER_DEVICE
from llabel.rung_settings import VARIED
from llabel.settings import (
    CompareSettings,
    DataSettings,
    Duration,
    Help,
    LLMSettings,
    RunSettings,
    SimplerSettings,
    SweepSettings,
)

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Bounds: TypeAlias = tuple[Any, Any, bool, bool]  # min, max, min excluded, max excluded

# The panels of `--help`, in reading order.
PANELS: dict[str, tuple[str, ...]] = {
    "Data": tuple(field.name for field in fields(DataSettings)),
    "Comparison": tuple(field.name for field in fields(CompareSettings)),
    "Run": tuple(field.name for field in fields(RunSettings)),
    "Model and prompt": (
        *("model", "template", "instruction", "system", "label_words"),
        *("max_seq_length", "rope_scaling", "long", "shots"),
    ),
    "Simpler rungs": tuple(field.name for field in fields(SimplerSettings)),
    "LoRA": (
        *("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "init_lora"),
        "adapt_layers",
    ),
    "Training": (
        *(
            "loss",
            "class_weight",
            "learning_rate",
            "schedule",
            "warmup_ratio",
            "warmup_steps",
            "epochs",
            "max_steps",
            "patience",
        ),
        *("batch_size", "optim", "weight_decay", "adam_beta2", "max_grad_norm"),
        *("trials", "budget", "refit", "seed"),
    ),
    "Machine": (
        *("precision", "base", "double_quant", "compute_dtype", "engine", "compile", "device"),
        *("token_budget", "gradient_checkpointing"),
    ),
}
ONE_RUN = tuple(name for panel, names in PANELS.items() if panel != "Comparison" for name in names)
COMPARISON = tuple(
    name for names in PANELS.values() for name in names if name not in {"rung", "untested"}
)
_ADDRESS: dict[str, Any] = {"is_flag": False, "flag_value": "default", "metavar": "[ADDRESS]"}
_NOT_SWEPT = {
    *("decode", "untested", "trials"),
    *("calibrate", "abstain_below", "target_precision"),  # cells are judged as they are
}
SWEPT = tuple(name for name in ONE_RUN if name not in _NOT_SWEPT)


_BALANCED = click.option(
    "--balanced",
    "sampling",
    flag_value="balanced",
    default=None,
    panel="Data",
    help="Short for --sampling balanced.",
)
# A step of as many rows as these two come to, where all values are gathered.
_BATCH_PARTS = (
    click.option(
        "--per-device-train-batch-size",
        "--per-device-batch-size",
        PER_DEVICE,
        type=click.IntRange(1),
        panel="Training",
        help="With --gradient-accumulation-steps, another way to say --batch-size: their product.",
    ),
    click.option(
        "--gradient-accumulation-steps",
        ACCUMULATION,
        type=click.IntRange(1),
        panel="Training",
        help="See there. Micro-batches are cut by --token-budget; the result is the same.",
    ),
)


class _IntOrNone(click.IntRange):
    """A whole number, or `none`, which becomes None where all values are checked."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or "none"."""
        if isinstance(value, str) and is_none(value):
            return "none"
        return super().convert(value, param, ctx)


class _FloatOrNone(click.FloatRange):
    """The same of any number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or "none"."""
        if isinstance(value, str) and is_none(value):
            return "none"
        return super().convert(value, param, ctx)


class _Switch(click.RichOption):
    """True or false, or both: `--compile true,false`; `--compile` and `--no-compile` as in fit."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.secondary_opts = [f"--no-{flag[2:]}" for flag in self.opts]

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """The option itself, and the one that says no; click has that for plain flags only."""
        super().add_to_parser(parser, ctx)
        parser.add_option(
            self, self.secondary_opts, dest=self.name, action="append_const", const="false"
        )


def settings_options(*names: str, **defaults: Any) -> Callable[[_Command], _Command]:
    """Decorate a command with the options of these settings; of all without names.

    Values that the user gives are read with `given`; the defaults shown are the settings' own, or
    those given here.
    """
    options = {name: add for name, add in _all_options(defaults) if name in names or not names}

    def decorate(command: _Command) -> _Command:
        for name in reversed(options):
            command = options[name](_with_others(command, name))
        return command

    return decorate


def _with_others(command: _Command, name: str) -> _Command:
    """Decorate a command with the options that are another way to say a setting."""
    others = {"sampling": (_BALANCED,), "batch_size": _BATCH_PARTS}
    for add in reversed(others.get(name, ())):
        command = add(command)
    return command


def sweep_options(command: _Command) -> _Command:
    """Decorate a command with the options of a sweep: most settings may have several values."""
    for name, add in reversed(list(_all_options({}, several=VARIED))):
        if name in SWEPT:
            command = add(_with_others(command, name))
    hints = get_type_hints(SweepSettings, include_extras=True)
    for field in reversed(fields(SweepSettings)):
        more = _ADDRESS if field.name == "ray" else {}
        command = _option(field, hints[field.name], "Sweep", field.default, **more)(command)
    return command


def given(context: click.Context) -> dict[str, Any]:
    """The settings that stand on the command line, and nothing else."""
    known = {name for panel in PANELS.values() for name in panel}
    known |= {setting.name for setting in fields(SweepSettings)} | {PER_DEVICE, ACCUMULATION}
    values = {
        name: value
        for name, value in context.params.items()
        if name in known and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if "label_words" in values:
        values["label_words"] = _words(values["label_words"])
    return values


def _all_options(
    defaults: Mapping[str, Any], several: Collection[str] = ()
) -> Iterable[tuple[str, Callable[[_Command], _Command]]]:
    rooms = (DataSettings, CompareSettings, RunSettings, LLMSettings, SimplerSettings)
    settings = {field.name: field for room in rooms for field in fields(room)}
    hints: dict[str, Any] = {}
    for room in rooms:
        hints |= get_type_hints(room, include_extras=True)
    for panel, names in PANELS.items():
        for name in names:
            default = defaults.get(name, settings[name].default)
            make = _values_option if name in several else _option
            yield name, make(settings[name], hints[name], panel, default)


def _values_option(
    field: Field[Any], hint: Any, panel: str, default: Any
) -> Callable[[_Command], _Command]:
    """Texts that are cut into values and checked with all the others."""
    kind, *extras = get_args(hint)
    text = next(extra.text for extra in extras if isinstance(extra, Help))
    keywords: dict[str, Any] = {"help": text, "panel": panel, "multiple": True}
    keywords["metavar"] = "VALUES"
    if default is MISSING:
        keywords["help"] += " Required, here or in --config."
    elif kind is bool:
        keywords |= {"help": f"{text} [true,false; default: {str(default).lower()}]"}
        keywords |= {"is_flag": False, "flag_value": "true", "cls": _Switch}
    elif default not in (None, ()):
        shown = ",".join(default) if isinstance(default, tuple) else default
        keywords |= {"help": f"{text} [default: {shown}]"}
    return click.option(*_flags(field.name), field.name, **keywords)


def _flags(name: str) -> list[str]:
    flag = option(name)
    others = [f"--{short(name)}"] if short(name) != name else []
    return [flag, *others, *(["--random-state"] if name == "seed" else [])]


def _option(
    field: Field[Any], hint: Any, panel: str, default: Any, **more: Any
) -> Callable[[_Command], _Command]:
    full, extras = get_args(hint)[0], get_args(hint)[1:]
    kind = _without_none(full)
    text = next(extra.text for extra in extras if isinstance(extra, Help))
    names = _flags(field.name)
    flag = names[0]
    keywords: dict[str, Any] = {"help": text, "panel": panel, **more}
    if default is MISSING:
        keywords["help"] += " Required, here or in --config."
    elif default not in (None, ()):
        keywords |= {"default": default, "show_default": kind is not bool}
    if kind is bool:
        positive = flag.replace("--no-", "--")
        names = [f"{flag}/{positive}" if positive != flag else f"{flag}/--no-{flag[2:]}"]
    elif get_origin(kind) is tuple:
        # Cut at its commas where all values are checked; YAML may write A,B, too.
        keywords["metavar"] = "A,B"
        if "default" in keywords:
            keywords["default"] = ",".join(keywords["default"])
    elif get_origin(kind) is dict:
        keywords |= {"metavar": "LABEL=WORDS", "multiple": True}
    elif any(isinstance(extra, Duration) for extra in extras):
        keywords["metavar"] = "TIME"
    else:
        keywords["type"] = _click_type(full, extras)
    return click.option(*names, field.name, **keywords)


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (UnionType, Union):  # X | None, and Literal[...] | None
        (kind,) = (part for part in get_args(kind) if part is not NoneType)
    return kind


def _click_type(full: Any, extras: Iterable[Any]) -> "click.ParamType[Any]":
    # A text above, since it is generic from click 8.4 on only.
    kind = _without_none(full)
    if get_origin(kind) is Literal:
        return click.Choice([*get_args(kind), *(["none"] if kind is not full else [])])
    if kind in (int, float):
        low, high, low_open, high_open = _bounds(extras)
        if kind is float:
            floats = click.FloatRange if full is float else _FloatOrNone
            return floats(low, high, low_open, high_open)
        ranges = click.IntRange if full is int else _IntOrNone
        return ranges(low, high, low_open, high_open)
    return click.STRING


def _bounds(extras: Iterable[Any]) -> _Bounds:
    for extra in extras:
        match extra:
            case Ge(ge=low):
                return low, None, False, False
            case Gt(gt=low):
                return low, None, True, False
            case Interval(gt=above, ge=low, lt=below, le=high):
                return (
                    above if low is None else low,
                    below if high is None else high,
                    above is not None,
                    below is not None,
                )
    return None, None, False, False


def _words(pairs: Sequence[str]) -> dict[str, str] | None:
    if len(pairs) == 1 and is_none(pairs[0]):
        return None
    words: dict[str, str] = {}
    for pair in pairs:
        label, equals, text = pair.partition("=")
        if not equals or not label:
            raise click.BadParameter(
                f"{pair!r} is not LABEL=WORDS, such as 0=negative.", param_hint="--label-words"
            )
        if label in words:
            raise click.BadParameter(
                f"the label {label!r} is given words twice.", param_hint="--label-words"
            )
        words[label] = text
    return words
