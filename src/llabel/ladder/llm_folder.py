"""What an LLM rung leaves on disk: `rung.json`, and PEFT's `adapter/` where one was trained."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llabel.assets import weights_digest
from llabel.errors import InputError
from llabel.ladder.few_shot import Shot
from llabel.ladder.rung_folder import (
    RECORD,
    SCHEMA,
    damage_told,
    read_record,
    replace_folder,
    write_record,
)
from llabel.paths import sha256_of
from llabel.settings import LLMSettings
from llabel.task import Label, TargetLabel
from llabel.template import Template

ADAPTER = "adapter"
ADAPTER_FILE = f"{ADAPTER}/adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class RungRecord:
    """All that turns a base model, with or without an adapter, back into a classifier.

    Attributes:
        rung: its name on the ladder.
        settings: of the training; `model` is a name that lasts (absolute, if a path).
        fields, classes: text columns and labels, in their orders.
        words: (n_classes,) what is answered for each class.
        template: the prompt, its file no longer needed.
        prior: (n_classes,) mean label probabilities of unlabelled prompts; None if not estimated.
        shots: examples that stand before every row; None where there are some, but they were not
            to be written.
        weights: digest of the base model's (see `weights_digest`); None in old folders.
        adapter: SHA-256 of the adapter's weights, hexadecimal; None without one and in old folders.
    """

    rung: str
    settings: LLMSettings
    fields: tuple[str, ...]
    classes: tuple[Label, ...]
    words: tuple[str, ...]
    template: Template
    prior: tuple[float, ...] | None = None
    shots: tuple[Shot, ...] | None = ()
    weights: str | None = None
    adapter: str | None = None


def save_rung(
    folder: Path, record: RungRecord, save_adapter: Callable[[Path], None] | None = None
) -> None:
    """Write `adapter/`, if there is one, and `rung.json`, each whole or not at all.

    `rung.json` comes last and tells the adapter's digest, so that an adapter is never taken for
    that of another training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if save_adapter is not None:

        def save(new: Path) -> None:
            save_adapter(new)
            (new / "README.md").unlink(missing_ok=True)  # PEFT's; the run folder has its own card

        replace_folder(folder / ADAPTER, save)
        record = replace(record, adapter=sha256_of(folder / ADAPTER_FILE))
    write_record(folder, {"schema": SCHEMA} | asdict(record))


def read_rung(folder: Path, *allowed: str) -> RungRecord:
    """What `save_rung` wrote.

    Args:
        folder: where to look.
        allowed: names of rungs, one of which it must have; any, if none are given.

    Raises:
        InputError: there is nothing of the kind, it is another rung, or it cannot be read.
    """
    values = read_record(folder, *allowed)
    with damage_told(folder / RECORD):
        settings, template = values["settings"], values["template"]
        settings["target_modules"] = tuple(settings["target_modules"])
        literals, holes = tuple(template["literals"]), tuple(template["fields"])
        prior, shots = values.get("prior"), values.get("shots", ())
        return RungRecord(
            rung=values["rung"],
            settings=LLMSettings(**settings),
            fields=tuple(values["fields"]),
            classes=read_classes(values["classes"]),
            words=tuple(values["words"]),
            template=Template(
                template["name"],
                literals,
                holes,
                template["joint"],
                tuple(template.get("tails", ())),
                template.get("end", ""),
                template.get("gap", ""),
            ),
            prior=None if prior is None else tuple(prior),
            shots=None if shots is None else tuple(map(_shot, shots)),
            weights=values.get("weights"),
            adapter=values.get("adapter"),
        )


def refuse_other_weights(record: RungRecord, model: Path, folder: Path) -> None:
    """An adapter, or a prior, means nothing over other weights than its own.

    Args:
        record: what `folder` holds.
        model: the folder of the base model.
        folder: named in the message.

    Raises:
        InputError: the weights there are others by now.
    """
    if record.weights is not None and record.weights != weights_digest(model):
        raise InputError(
            f"The weights of {record.settings.model} are no longer those that {folder} was made "
            "with, and over others its answers would mean nothing. Put the old ones back, or make "
            "the run again with --overwrite."
        )


def refuse_other_adapter(record: RungRecord, folder: Path) -> None:
    """An adapter means nothing to the classes of another training.

    Args:
        record: what `folder` holds.
        folder: where the adapter is, if at all.

    Raises:
        InputError: it is another by now, or damaged.
    """
    path = folder / ADAPTER_FILE
    if record.adapter is not None and path.is_file() and sha256_of(path) != record.adapter:
        raise InputError(
            f"{path} is damaged, or of another training than {folder / RECORD}. Train the run "
            "again with --overwrite."
        )


def read_classes(values: Sequence[Any]) -> tuple[Label, ...]:
    """The classes as `rung.json` has them."""
    return tuple(TargetLabel(**v) if isinstance(v, dict) else v for v in values)


def _shot(values: dict[str, Any]) -> Shot:
    return Shot(values["id"], values["label"], tuple(values["text"]))
