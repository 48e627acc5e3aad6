"""Which of several places decides a setting, and what pairs of settings come to.

The command line stands over `--config`, that over `--preset`. Some settings stand in place of
another one: the place that names either decides between them.
"""

import json
from collections.abc import Mapping
from typing import Any

from llabel.errors import InputError

# A number of steps stands in place of the other.
IN_PLACE_OF = {"max_steps": "epochs", "warmup_steps": "warmup_ratio"}
PER_DEVICE = "per_device_train_batch_size"
ACCUMULATION = "gradient_accumulation_steps"
# Accelerate and TRL users know both; a step is the same however it is cut.
_BATCH_NAMES = {"per_device_batch_size": PER_DEVICE, PER_DEVICE: PER_DEVICE}

# Of other tools' settings those that have one value here, and why.
_FIXED: dict[str, tuple[Any, str]] = {
    "packing": (False, "rows are never packed into one another"),
    "bias": ("none", "biases are never trained"),
    "loftq_config": (None, "init_lora: loftq starts from LoftQ"),
    "logging_steps": (1, "every step is logged"),
}


def layered(
    *layers: Mapping[str, Any], command_line: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Settings by name, of which later layers win.

    A layer that says `epochs` undoes `max_steps` of the layers below it, and the reverse; one that
    says both, as the record of a run does, means `max_steps`.

    Args:
        layers: from the lowest to the highest.
        command_line: stands above them; it may not say both.

    Raises:
        InputError: it does, or as `with_batch_size`.
    """
    found: dict[str, Any] = {}
    top = dict(command_line or {})
    for steps, share in IN_PLACE_OF.items():
        if share in top and _is_set(top, steps):
            raise InputError(
                f"{_option(steps)} stands in place of {_option(share)}: give one of them."
            )
    for layer in map(with_batch_size, (*layers, top)):
        for steps, share in IN_PLACE_OF.items():
            if _is_set(layer, steps):
                layer.pop(share, None)
                found.pop(share, None)
            elif share in layer:
                found.pop(steps, None)
        found |= layer
    return found


def with_batch_size(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `batch_size` in place of what other tools make it of, and without `_FIXED`.

    Rows of a step = rows a device × accumulated micro-batches: llabel cuts a step by its tokens
    (`token_budget`), and the weighted mean over the step is the same however it is cut.

    Raises:
        InputError: `batch_size` stands there, too, or a part is missing or no whole number; or
            what has one value here has another.
    """
    for name, (only, reason) in _FIXED.items():
        same = values.get(name) == only or (only is None and not _is_set(values, name))
        if name in values and not same:
            shown = json.dumps(only)
            raise InputError(f"{name}: {values[name]!r} is not to be had: {reason}. Use {shown}.")
    values = {name: value for name, value in values.items() if name not in _FIXED}
    same_setting = {name: str(values[name]) for name in _BATCH_NAMES if name in values}
    if len(set(same_setting.values())) > 1:
        told = " and ".join(f"{name} {value}" for name, value in same_setting.items())
        raise InputError(f"{told} are the same setting. Remove one of them.")
    found = {_BATCH_NAMES.get(name, name): value for name, value in values.items()}
    parts = {name: found.pop(name) for name in (PER_DEVICE, ACCUMULATION) if name in found}
    if not parts:
        return found
    said = " and ".join(f"{_option(name)} {value}" for name, value in parts.items())
    if "batch_size" in found:
        raise InputError(
            f"{said}: --batch-size {found['batch_size']} says the same, the rows of one step. "
            "Leave one of them out."
        )
    if PER_DEVICE not in parts:
        raise InputError(
            f"{said}: of how many rows? Give {_option(PER_DEVICE)}, too, or --batch-size, the "
            "rows of one step, alone."
        )
    try:
        rows, times = (int(str(parts.get(name, 1))) for name in (PER_DEVICE, ACCUMULATION))
    except ValueError as error:
        raise InputError(f"{said}: whole numbers are needed.") from error
    if rows < 1 or times < 1:
        raise InputError(f"{said}: 1 is the least.")
    return found | {"batch_size": rows * times}


def _is_set(values: Mapping[str, Any], name: str) -> bool:
    value = values.get(name)
    if isinstance(value, tuple | list) and len(value) == 1:  # one of a sweep's values
        (value,) = value
    return value is not None and str(value).strip().lower() != "none"


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
