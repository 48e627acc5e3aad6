"""Settings of published experiments by name: what `--preset` stands for."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from llabel.config import load_yaml
from llabel.errors import InputError

PRESETS = ("alpaca-qlora", "boolq-lora")


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset, checked, by name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in PRESETS:
        raise InputError(f"--preset {name!r}: choose {' or '.join(PRESETS)}.")
    return load_yaml(Path(str(files(__name__) / f"{name}.yaml")))


def classifier_preset(name: str) -> dict[str, Any]:
    """The same as parameters of `LLMClassifier`, which calls some of them otherwise.

    Raises:
        InputError: there is none of that name.
    """
    values = preset(name)
    if values.pop("rung") == "llm-qlora":
        values.setdefault("base", "nf4")
    if "seed" in values:
        values["random_state"] = values.pop("seed")
    return values
