"""What a trained LLM rung leaves on disk: `rung.json` beside PEFT's `adapter/`."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llabel.errors import InputError
from llabel.prompt import Template
from llabel.settings import LLMSettings
from llabel.task import Label

SCHEMA = 1
ADAPTER = "adapter"
_RECORD = "rung.json"


@dataclass(frozen=True, slots=True)
class RungRecord:
    """All that turns an adapter back into a classifier.

    Attributes:
        settings: of the training; `model` is a name that lasts (absolute, if a path).
        fields, classes: text columns and labels, in their orders.
        words: (n_classes,) what is answered for each class.
        template: the prompt, its file no longer needed.
    """

    settings: LLMSettings
    fields: tuple[str, ...]
    classes: tuple[Label, ...]
    words: tuple[str, ...]
    template: Template


def save_rung(folder: Path, record: RungRecord, save_adapter: Callable[[Path], None]) -> None:
    """Write `adapter/` and `rung.json`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    new, old = folder / f".new-{ADAPTER}", folder / f".old-{ADAPTER}"
    for left_over in (new, old):  # of a process that was killed here
        shutil.rmtree(left_over, ignore_errors=True)
    save_adapter(new)
    (new / "README.md").unlink(missing_ok=True)  # PEFT's; the run folder has its own card
    target = folder / ADAPTER
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    temporary = folder / f".{_RECORD}.{os.getpid()}"
    text = json.dumps({"schema": SCHEMA} | asdict(record), indent=2, ensure_ascii=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(folder / _RECORD)


def read_rung(folder: Path) -> RungRecord:
    """What `save_rung` wrote.

    Raises:
        InputError: there is nothing of the kind, or it cannot be read.
    """
    path = folder / _RECORD
    if not path.is_file():
        raise InputError(
            f"{folder} holds no trained rung ({_RECORD} is missing). Give the --out folder of a "
            "finished `llabel fit` (the same fit command finishes an interrupted run), or a "
            "folder that LLMClassifier.save wrote."
        )
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        settings, template = values["settings"], values["template"]
        settings["target_modules"] = tuple(settings["target_modules"])
        literals, holes = tuple(template["literals"]), tuple(template["fields"])
        return RungRecord(
            settings=LLMSettings(**settings),
            fields=tuple(values["fields"]),
            classes=tuple(values["classes"]),
            words=tuple(values["words"]),
            template=Template(template["name"], literals, holes, template["joint"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}): it is damaged, or of "
            "another version of llabel. Train the run again with --overwrite."
        ) from error
