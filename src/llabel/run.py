"""One run → one folder: train, score, record. Evaluation of a finished run on other data."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from llabel.assessment import answers_of, assess
from llabel.card import render_card
from llabel.confidence import Judged, answered_rows, decide, refuse_label, write_confidence
from llabel.config import RunConfig
from llabel.data import LoadedTask, fingerprint, load_labelled, load_targets, load_task
from llabel.data.cells import listed
from llabel.engine.checkpoint import CheckpointFolder
from llabel.errors import InputError
from llabel.events import Listener, Note, StageStarted, ignore
from llabel.folder import TrainingLog, claimed, read_record, write_json, write_text
from llabel.ladder import registry
from llabel.ladder.contract import Rung
from llabel.metrics import report
from llabel.names import label_columns
from llabel.paths import at_home
from llabel.predictions import confidence_of, confidences_of, refuse_silent
from llabel.record import Data, JointRecord, RunRecord, target_records
from llabel.rung_settings import ADAPTED
from llabel.statistics.intervals import score_with_groups
from llabel.target_runs import (
    assess_each,
    decide_each,
    evaluate_each,
    labelled_parts,
    refuse_targets,
)
from llabel.task import Split, Task
from llabel.tracking import refuse_missing_tracker, tracked

if TYPE_CHECKING:
    from llabel.ladder.prompted import PromptedRung

_UNTAUGHT = (
    "--decode free after --loss answer: training compares the labels alone and does not teach to "
    "write one and stop, so that answers may run on and count as unknown. --loss sft teaches it."
)


def fit(
    config: RunConfig,
    out: Path,
    *,
    command: str,
    overwrite: bool = False,
    notify: Listener = ignore,
) -> RunRecord | JointRecord:
    """Train and test one rung; leave everything about it in `out`.

    The same call goes on where an interrupted one stopped, and answers at once where a run is
    finished.

    Args:
        config: all settings.
        out: the run folder.
        command: what the user typed, for the record.
        overwrite: throw away what `out` holds of another run.
        notify: told of progress.

    Raises:
        InputError: the data or settings cannot be used, or `out` holds something else.
    """
    refuse_missing_tracker(config)
    loaded = load(config)
    for text in loaded.notes:
        notify(Note(text))
    refuse_targets(config, loaded)
    refuse_label(config.run, loaded.task.classes)
    rung = registry.make(config).prepare(loaded.task.fields, loaded.task.classes, notify)
    if config.run.decode == "free":
        refuse_silent(rung)
        if config.run.rung in ADAPTED and config.llm.loss == "answer":
            notify(Note(_UNTAUGHT))
    identity = loaded.task.fingerprint
    with claimed(out, config, identity, overwrite=overwrite, notify=notify) as finished:
        if finished is not None:
            notify(Note(f"{out} holds this run already; nothing is left to do."))
            return finished
        checkpoints = CheckpointFolder(
            out / "checkpoints" / "training",
            every_steps=config.run.checkpoint_steps,
            every_seconds=60 * config.run.checkpoint_minutes,
        )
        with tracked(config, out, out.name, notify) as tracking:
            with TrainingLog(out / "train.log.jsonl", tracking) as log:
                rung.fit(loaded.task, checkpoints=checkpoints, notify=log)
            record = _finish(rung, config, loaded, out, command, notify)
            for name, told in (target_records(record) or {"": cast(RunRecord, record)}).items():
                prefix = f"{name} " if name else ""
                tracking.tell(told["metrics"]["validation"], f"{prefix}validation")
                if test := told["metrics"]["test"]:
                    tracking.tell(test, f"{prefix}test")
        write_text(out / "README.md", render_card(record))
        write_json(out / "run.json", record)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        return record


def _finish(
    rung: Rung, config: RunConfig, loaded: LoadedTask, out: Path, command: str, notify: Listener
) -> RunRecord | JointRecord:
    """Save the fitted rung and score it.

    What was decided on validation is written first: without it the rung would say other things.
    """
    with_texts = not config.run.no_texts
    if loaded.targets:
        each = decide_each(rung, config, loaded, out)
        save(rung, out, with_texts=with_texts)
        return assess_each(rung, config, loaded, out, command, notify, each)
    held = loaded.task.validation
    validation = Judged(held.y, rung.validation_proba_, held.groups)
    confidence = decide(config.run, validation)
    write_confidence(out, confidence)
    save(rung, out, with_texts=with_texts)
    return assess(rung, config, loaded, out, command, notify, confidence)


def save(rung: Rung, out: Path, *, with_texts: bool) -> None:
    """Write the rung into `out`.

    Examples in a prompt are rows, too: without texts, a few-shot rung is a record only.
    """
    if not with_texts and "few-shot" in rung.name:
        cast("PromptedRung", rung).save(out, with_texts=False)
    else:
        rung.save(out)


def load(config: RunConfig) -> LoadedTask:
    """The rows and splits of a run.

    Raises:
        InputError: as `load_task`.
    """
    settings = asdict(config.data)
    seed, target = settings.pop("split_seed"), settings.pop("target")
    settings["seed"] = config.llm.seed if seed is None else seed
    columns = label_columns(settings.pop("label"))
    if target is not None and target not in columns:
        raise InputError(
            f"--target {target} is none of the label columns. Choose one of --label "
            f"{','.join(columns)}."
        )
    if len(columns) == 1:
        return load_task(config.source, label=columns[0], **settings)
    loaded = load_targets(config.source, labels=columns, **settings)
    return loaded if target is None else loaded.targets[target]


def refuse_single_rows(task: Task, *parts: Literal["validation", "test"]) -> None:
    """Refuse a part of one row, which has no spread to compare with: before any training.

    Raises:
        InputError: one of `parts` is like that.
    """
    for part in parts:
        split: Split = getattr(task, part)
        if len(split) < 2:
            drawn = " (or larger --test-rows)" if part == "test" else ""
            raise InputError(
                f"the {part} part has {len(split)} row, of which no interval can be told; at least "
                f"2 are needed. Give a larger --{part}-size{drawn}, or --{part} FILE with more "
                "rows."
            )


def evaluate(
    folder: Path,
    data: str,
    *,
    label: str | None = None,
    part: str | None = None,
    decode: str | None = None,
    abstain_below: float | None = None,
    drop_unlabelled: bool = False,
    device: str | None = None,
    notify: Listener = ignore,
) -> dict[str, Any]:
    """Score a finished run on labelled rows.

    Args:
        folder: the run folder.
        data: file, folder, built-in name or Hub id.
        label: its label column; the run's own by default; of several targets one each, in the
            order of the run's. A label map of the run is applied to it.
        part: which part of the data; test, else validation, else all rows.
        decode: `labels` or `free`; the run's own by default.
        abstain_below: rows whose top probability lies below it get no answer; the run's own
            threshold by default.
        drop_unlabelled: leave out rows without a label, as the run may do anyway.
        device: where to run; the best there is by default.

    Returns:
        JSON-ready: `metrics` (Scores), `report` (ReportRows), `rows`, `data.fingerprint`;
        `free_answers` (`llabel.record.FreeAnswers`) and `answered`
        (`llabel.confidence.Answered`), each None where there is no such thing. Of several targets
        all this by name in `targets`.
    """
    registry.refuse_comparison(folder)
    record = read_record(folder)
    config, known = record["config"], record["data"]
    decode = decode or str(config["decode"])
    drop_unlabelled |= config.get("drop_unlabelled", False)
    if _is_trained_on(data, record):
        notify(Note(
            f"{data} holds the rows that {folder} was trained on: scores on them say nothing of "
            "new texts. run.json has those of the test part."
        ))  # fmt: skip
    if targets := target_records(record):
        return _evaluate_targets(
            folder, data, list(targets), label, part, decode, abstain_below, drop_unlabelled,
            device, notify,
        )  # fmt: skip
    confidence = confidence_of(folder, decode, abstain_below, notify)
    column = config.get("target") or label_columns(config["label"])[0]
    if label:
        columns = _evaluated_columns(label)
        column = columns[0] if len(columns) == 1 else label
    notes: list[str] = []
    split = load_labelled(
        data,
        tuple(known["fields"]),
        column,
        tuple(known["classes"]),
        part=part,
        group=config.get("group"),
        split_column=config.get("split_column"),
        normalise_labels=config["normalise_labels"],
        drop_unlabelled=drop_unlabelled,
        mapped=known.get("label_map", ()),
        notes=notes,
    )
    for text in notes:
        notify(Note(text))
    rung = registry.load(folder, device=device or "auto")
    _refuse_replaced(folder, rung, known)
    notify(StageStarted("evaluating", len(split)))
    found = answers_of(rung, split, decode, notify, confidence)
    judged = Judged(split.y, found.raw, split.groups)
    abstains = confidence.abstain_below is not None
    return {
        "run": folder.name,
        "data": {
            "source": data,
            "fingerprint": fingerprint(rung.fields_, rung.classes_, {"evaluated": split}),
            "notes": notes,
        },
        "rows": len(split),
        "metrics": score_with_groups(split.y, found.proba, found.answers, split.groups),
        "report": report(split.y, found.answers, rung.classes_),
        "free_answers": found.apart(split),
        "answered": answered_rows(confidence, judged) if abstains else None,
    }


def _is_trained_on(data: str, record: RunRecord) -> bool:
    """Whether it is the single table that a run's parts were cut from."""
    path, source = (at_home(name) for name in (data, record["data"]["source"]))
    whole = path.is_file() and path.resolve() == source.resolve()
    return whole and record["config"].get("split_column") is None


def _refuse_replaced(folder: Path, rung: Rung, known: Data) -> None:
    """Refuse to score a model that somebody put in the place of the run's own."""
    if list(rung.classes_) != known["classes"] or list(rung.fields_) != known["fields"]:
        raise InputError(
            f"{folder} holds another model than run.json tells of: it answers "
            f"{listed(map(str, rung.classes_))} from the columns {listed(rung.fields_)}. Train the "
            "run again with --overwrite."
        )


def _evaluated_columns(label: str) -> tuple[str, ...]:
    """The label columns of an evaluation, named as in `fit`."""
    try:
        return label_columns(label)
    except ValueError as error:
        raise InputError(f"--label {label}: {error}.") from error


def _evaluate_targets(
    folder: Path,
    data: str,
    targets: list[str],
    label: str | None,
    part: str | None,
    decode: str,
    abstain_below: float | None,
    drop_unlabelled: bool,
    device: str | None,
    notify: Listener,
) -> dict[str, Any]:
    columns = _evaluated_columns(label) if label else tuple(targets)
    if len(columns) != len(targets):
        raise InputError(
            f"--label {label}: the run answers {len(targets)} targets, {', '.join(targets)}. Name "
            "a label column for each, in this order."
        )
    confidences = confidences_of(folder, decode, abstain_below, notify)
    parts = labelled_parts(
        read_record(folder),
        data,
        dict(zip(targets, columns, strict=True)),
        part=part,
        drop_unlabelled=drop_unlabelled,
        notify=notify,
    )
    rung = registry.load(folder, device=device or "auto")
    found = evaluate_each(rung, parts, confidences, decode=decode, notify=notify)
    return {"run": folder.name, "data": {"source": data}, "targets": found}
