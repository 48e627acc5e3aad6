"""A run whose model answers several targets: each assessed alone, all in one folder."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llabel.assessment import answers_of, assess, data_record
from llabel.confidence import (
    Confidence,
    Judged,
    answered_rows,
    decide,
    refuse_label,
    write_confidence,
)
from llabel.config import RunConfig
from llabel.data import LoadedTask, fingerprint, load_labelled
from llabel.errors import InputError
from llabel.events import Event, Listener, Note, StageStarted
from llabel.folder import read_json_lines, write_json_lines
from llabel.ladder.contract import Rung
from llabel.ladder.targets import each_target, target_folder
from llabel.metrics import report
from llabel.record import JointRecord, RunRecord, joint_record, target_records
from llabel.rung_settings import ADAPTED
from llabel.statistics.intervals import score_with_groups
from llabel.task import Split

if TYPE_CHECKING:
    from llabel.ladder.llm import LLMRung

_PREDICTIONS = "predictions.jsonl"
_SHARED = ("part", "id", "text")  # keys of a line that all targets have in common


def refuse_targets(config: RunConfig, loaded: LoadedTask) -> None:
    """Refuse several targets where they cannot be learned, before anything is loaded.

    Raises:
        InputError: the rung learns one target at a time, or as `refuse_label`.
    """
    if config.joint and config.run.rung not in ADAPTED:
        raise InputError(
            f"--rung {config.run.rung} learns one target at a time. Add --target "
            f"{config.targets[0]} (the rows stay those of all), or let `llabel compare` fit one "
            "for each."
        )
    for own in loaded.targets.values():
        refuse_label(config.run, own.task.classes)


def decide_each(
    rung: Rung, config: RunConfig, loaded: LoadedTask, out: Path
) -> dict[str, Confidence]:
    """Each target's temperature and threshold, chosen on validation and written into `out`."""
    found = {}
    for name, target in each_target(cast("LLMRung", rung)).items():
        held = loaded.targets[name].task.validation
        found[name] = decide(config.run, Judged(held.y, target.validation_proba_, held.groups))
        place = target_folder(out, name)
        if found[name] != Confidence():
            place.mkdir(parents=True, exist_ok=True)
        if place.is_dir():
            write_confidence(place, found[name])
    return found


def assess_each(
    rung: Rung,
    config: RunConfig,
    loaded: LoadedTask,
    out: Path,
    command: str,
    notify: Listener,
    confidences: Mapping[str, Confidence],
) -> JointRecord:
    """Score every target, write `predictions.jsonl` into `out` and return the run's record.

    The texts are read once for all of them.
    """
    records: dict[str, RunRecord] = {}
    lines: dict[str, list[dict[str, Any]]] = {}
    for name, target in each_target(cast("LLMRung", rung)).items():

        def tell(event: Event, name: str = name) -> None:
            if isinstance(event, StageStarted):
                event = replace(event, name=f"{name}: {event.name}")
            notify(event)

        own, confidence = loaded.targets[name], confidences[name]
        records[name] = assess(cast(Rung, target), config, own, out, command, tell, confidence)
        lines[name] = list(read_json_lines(out / _PREDICTIONS))
    write_json_lines(out / _PREDICTIONS, _joined(lines))
    data = data_record(config, loaded, rung.record_.truncated)
    data["classes"] = [asdict(label) for label in loaded.task.classes]  # type: ignore[call-overload]
    return joint_record(data, records)


def _joined(lines: Mapping[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Lines of predictions of each target → one a row, `targets` by name in it."""
    for row in zip(*lines.values(), strict=True):
        targets = {
            name: {key: value for key, value in line.items() if key not in _SHARED}
            for name, line in zip(lines, row, strict=True)
        }
        shared = {key: row[0][key] for key in _SHARED if key in row[0]}
        text = {"text": shared.pop("text")} if "text" in shared else {}
        yield shared | {"targets": targets} | text


def target_lines(folder: Path, target: str) -> Iterator[dict[str, Any]]:
    """The predictions of the run in `folder` as it were of a run for one target alone."""
    for line in read_json_lines(folder / _PREDICTIONS):
        shared = {key: line[key] for key in ("part", "id")}
        told = {"text": line["text"]} if "text" in line else {}
        yield shared | line["targets"][target] | told


def labelled_parts(
    record: RunRecord | JointRecord,
    data: str,
    labels: Mapping[str, str],
    *,
    part: str | None,
    drop_unlabelled: bool,
    notify: Listener,
) -> dict[str, Split]:
    """The rows to score each target of a finished run on.

    Args:
        record: of the run.
        data: file, folder, built-in name or Hub id.
        labels: for each target its label column there.
        part: which part of the data; test, else validation, else all rows.
        drop_unlabelled: leave out, for each target, rows without a label.
        notify: told what the user should know.

    Raises:
        InputError: as `load_labelled`.
    """
    config, found = record["config"], {}
    for name, known in target_records(record).items():
        notes: list[str] = []
        found[name] = load_labelled(
            data,
            known["data"]["fields"],
            labels[name],
            known["data"]["classes"],
            part=part,
            group=config.get("group"),
            split_column=config.get("split_column"),
            normalise_labels=config["normalise_labels"],
            drop_unlabelled=drop_unlabelled,
            mapped=known["data"].get("label_map", ()),
            notes=notes,
        )
        for text in notes:
            notify(Note(f"{name}: {text}"))
    return found


def evaluate_each(
    rung: Rung,
    parts: Mapping[str, Split],
    confidences: Mapping[str, Confidence],
    *,
    decode: str,
    notify: Listener,
) -> dict[str, Any]:
    """Score every target of a finished run on labelled rows.

    Args:
        rung: loaded.
        parts: for each target its rows.
        confidences: for each target.
        decode: `labels` or `free`.
        notify: told of progress.

    Returns:
        For each target, JSON-ready, what `llabel.run.evaluate` gives of one.
    """
    found: dict[str, Any] = {}
    for name, target in each_target(cast("LLMRung", rung)).items():
        split, confidence = parts[name], confidences[name]
        notify(StageStarted(f"{name}: evaluating", len(split)))
        answered = answers_of(cast(Rung, target), split, decode, notify, confidence)
        judged = Judged(split.y, answered.raw, split.groups)
        abstains = confidence.abstain_below is not None
        found[name] = {
            "rows": len(split),
            "fingerprint": fingerprint(target.fields_, target.classes_, {"evaluated": split}),
            "metrics": score_with_groups(split.y, answered.proba, answered.answers, split.groups),
            "report": report(split.y, answered.answers, target.classes_),
            "free_answers": answered.apart(split),
            "answered": answered_rows(confidence, judged) if abstains else None,
        }
    return found
