"""Which class a rung's name stands for; what is heavy is imported when it is asked for."""

from importlib import import_module
from pathlib import Path
from typing import Any, cast

from llabel.config import RunConfig
from llabel.errors import InputError
from llabel.ladder.contract import FitSettings, Rung
from llabel.ladder.rung_folder import RECORD, damage_told, read_json, read_record
from llabel.rung_settings import ADAPTED
from llabel.settings import RungName
from llabel.task import Label

_CLASSES: dict[RungName, str] = {
    "majority": "majority.MajorityRung",
    "lookup": "lookup.LookupRung",
    "bag-of-words": "bag_of_words.BagOfWordsRung",
    "word-embeddings": "word_embeddings.WordEmbeddingsRung",
    "rnn": "rnn.RNNRung",
    "transformer": "transformer.TransformerRung",
    "encoder": "encoder.EncoderRung",
    "llm-zero-shot": "prompted.PromptedRung",
    "llm-zero-shot-calibrated": "prompted.PromptedRung",
    "llm-few-shot": "prompted.PromptedRung",
    "llm-few-shot-calibrated": "prompted.PromptedRung",
    "llm-lora": "llm.LLMRung",
    "llm-qlora": "qlora.QLoRARung",
}


def make(config: RunConfig, **training: Any) -> Rung:
    """The rung that `config` names, not yet prepared.

    Args:
        config: all settings.
        training: `models` and `watch` of rungs that train adapters (see `LLMRung`).
    """
    name, llm = config.run.rung, config.llm
    kind = _class(name)
    if name in ADAPTED:
        return cast(Rung, kind(llm, **training))
    if name.startswith("llm-"):
        few_shot, calibrated = "few-shot" in name, name.endswith("-calibrated")
        return cast(Rung, kind(llm, few_shot=few_shot, calibrated=calibrated))
    settings = FitSettings(
        seed=llm.seed,
        trials=llm.trials,
        budget=llm.budget,
        refit=llm.refit,
        device=llm.device,
        max_seq_length=llm.max_seq_length,
        embeddings=config.simpler.embeddings,
        encoder=config.simpler.encoder,
        class_weight=llm.class_weight,
    )
    return cast(Rung, kind(settings))


def load(folder: Path, *, device: str = "auto", **changes: Any) -> Rung:
    """The finished rung at `folder`, ready to predict.

    Args:
        folder: what its `save` wrote.
        device: where it shall run.
        changes: other settings of an LLM to override.

    Raises:
        InputError: there is none.
    """
    return cast(Rung, _class(saved_name(folder)).load(folder, device=device, **changes))


def saved_name(folder: Path) -> RungName:
    """Which rung `folder` holds.

    Raises:
        InputError: none, or one that this version does not know.
    """
    return cast(RungName, _saved(folder)["rung"])


def saved_fields(folder: Path) -> tuple[str, ...]:
    """The text columns that the rung at `folder` reads, without loading it.

    Raises:
        InputError: as `saved_name`.
    """
    return tuple(_saved(folder)["fields"])


def saved_classes(folder: Path) -> tuple[Label, ...]:
    """The labels that the rung at `folder` answers with, without loading it.

    Raises:
        InputError: as `saved_name`.
    """
    from llabel.ladder.llm_folder import read_classes

    return read_classes(_saved(folder)["classes"])


def refuse_comparison(folder: Path) -> None:
    """Refuse the folder of a comparison, which holds many rungs.

    Raises:
        InputError: it is one.
    """
    if (folder / "compare.json").is_file():
        # Draws of the rows have folders of their own; of a run for several targets the answers
        # alone are there, and to name it tells where the rung is.
        records = [
            path for name in (RECORD, "shared.json") for path in folder.glob(f"**/rungs/*/{name}")
        ]
        found = sorted(path.parent for path in records)
        names = ", ".join(place.relative_to(folder).as_posix() for place in found)
        told = f"Name one of its rungs, as {found[0]}: {names}." if found else "It has no rung."
        raise InputError(f"{folder} is a comparison. {told}")


def _saved(folder: Path) -> dict[str, Any]:
    refuse_comparison(folder)
    if (shared := folder / "shared.json").is_file():
        raise InputError(
            f"{folder} holds the answers to one of several targets. The model that gave them is in "
            f"{read_json(shared)['run']}: give that folder."
        )
    values = read_record(folder)
    with damage_told(folder / RECORD):
        if values["rung"] not in _CLASSES or not values["fields"]:
            raise ValueError(f"rung {values['rung']!r} is not known")
    return values


def _class(name: RungName) -> Any:
    module, _, kind = _CLASSES[name].partition(".")
    return getattr(import_module(f"llabel.ladder.{module}"), kind)
