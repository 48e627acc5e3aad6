"""Settings of published experiments by name: what `--preset` stands for."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from llabel.config import load_yaml
from llabel.errors import InputError

PRESETS = ("alpaca-qlora", "boolq-lora")


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset, checked, by name.

    Values of several names are lists, as in YAML: a tuple would be several values of a sweep.

    Raises:
        InputError: there is none of that name.
    """
    if name not in PRESETS:
        raise InputError(f"--preset {name!r}: choose {' or '.join(PRESETS)}.")
    values = load_yaml(Path(str(files(__name__) / f"{name}.yaml")))
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in values.items()
    }


def classifier_preset(name: str) -> dict[str, Any]:
    """The same as parameters of `LLMClassifier`, which calls some of them otherwise.

    Raises:
        InputError: there is none of that name.
    """
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in preset(name).items()}
    if values.pop("rung") == "llm-qlora":
        values.setdefault("base", "nf4")
    if "seed" in values:
        values["random_state"] = values.pop("seed")
    return values
