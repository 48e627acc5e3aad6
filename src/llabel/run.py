"""One run → one folder: train, score, record. Evaluation of a finished run on other data."""

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llabel.assets import BUILT_IN
from llabel.card import render_card
from llabel.check import best_lookup_column, look_up
from llabel.config import RunConfig
from llabel.data import LoadedTask, fingerprint, load_labelled, load_task, take, unseen_rows
from llabel.data.splitting import subsample
from llabel.engine.checkpoint import CheckpointFolder
from llabel.events import Listener, Note, StageStarted, ignore
from llabel.folder import TrainingLog, claimed, read_record, write_json, write_text
from llabel.ladder.llm import LLMRung
from llabel.ladder.llm_folder import read_rung
from llabel.metrics import report, score, wilson_interval
from llabel.predictions import prediction_lines
from llabel.record import (
    SCHEMA,
    Baseline,
    Cost,
    Data,
    Metrics,
    RunRecord,
    Training,
    environment,
    peak_rss_mb,
)
from llabel.task import ClassIndices, Probabilities, Split, Task

TRAIN_SAMPLE = 1000  # training rows that are scored: enough for an interval of ± 0.03


def fit(
    config: RunConfig,
    out: Path,
    *,
    command: str,
    overwrite: bool = False,
    notify: Listener = ignore,
) -> RunRecord:
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
    loaded = load(config)
    for text in loaded.notes:
        notify(Note(text))
    rung = LLMRung(config.llm).prepare(loaded.task.fields, loaded.task.classes, notify)
    identity = loaded.task.fingerprint
    with claimed(out, config, identity, overwrite=overwrite, notify=notify) as finished:
        if finished is not None:
            notify(Note(f"{out} holds this run already; nothing is left to do."))
            return finished
        with TrainingLog(out / "train.log.jsonl", notify) as log:
            checkpoints = CheckpointFolder(
                out / "checkpoints" / "training",
                every_steps=config.run.checkpoint_steps,
                every_seconds=60 * config.run.checkpoint_minutes,
            )
            rung.fit(loaded.task, checkpoints=checkpoints, notify=log)
        rung.save(out)
        record = _assess(rung, config, loaded, out, command, notify)
        write_text(out / "README.md", render_card(record))
        write_json(out / "run.json", record)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        return record


def load(config: RunConfig) -> LoadedTask:
    """The rows and splits of a run.

    Raises:
        InputError: as `load_task`.
    """
    return load_task(config.source, **asdict(config.data), seed=config.llm.seed)


def evaluate(
    folder: Path,
    data: str,
    *,
    label: str | None = None,
    part: str | None = None,
    decode: str | None = None,
    device: str | None = None,
    notify: Listener = ignore,
) -> dict[str, Any]:
    """Score a finished run on labelled rows.

    Args:
        folder: the run folder.
        data: file, folder, built-in name or Hub id.
        label: its label column; the run's own by default.
        part: which part of the data; test, else validation, else all rows.
        decode: `labels` or `free`; the run's own by default.
        device: where to run; the best there is by default.

    Returns:
        JSON-ready: `metrics` (Scores), `report` (ReportRows), `rows`, `data.fingerprint`.
    """
    config, saved = read_record(folder)["config"], read_rung(folder)
    split = load_labelled(
        data,
        saved.fields,
        label or config["label"],
        saved.classes,
        part=part,
        normalise_labels=config["normalise_labels"],
    )
    rung = LLMRung.load(folder, device=device or "auto")
    notify(StageStarted("evaluating", len(split)))
    proba, answers, _ = _answers(rung, split, decode or config["decode"], notify)
    return {
        "run": folder.name,
        "data": {
            "source": data,
            "fingerprint": fingerprint(rung.fields_, rung.classes_, {"evaluated": split}),
        },
        "rows": len(split),
        "metrics": score(split.y, proba, answers),
        "report": report(split.y, answers, rung.classes_),
    }


def _assess(
    rung: LLMRung,
    config: RunConfig,
    loaded: LoadedTask,
    out: Path,
    command: str,
    notify: Listener,
) -> RunRecord:
    """Score the trained rung on every part (the test part is read here, once) and write it up."""
    task = loaded.task
    sample = _train_sample(task, config.llm.seed)
    notify(StageStarted("scoring training rows", len(sample)))
    train_proba = rung.predict_proba(sample.texts, notify)
    notify(StageStarted("scoring test rows", len(task.test)))
    started = time.perf_counter()
    test_proba, test_answers, written = _answers(rung, task.test, config.run.decode, notify)
    predict_seconds = time.perf_counter() - started
    unseen = unseen_rows([task.train, task.validation], task.test, task.fields)
    validation_proba = rung.validation_proba_

    train_scores = score(sample.y, train_proba)
    validation_scores = score(task.validation.y, validation_proba)
    test_scores = score(task.test.y, test_proba, test_answers)
    assert train_scores  # no part is ever empty
    assert validation_scores
    assert test_scores
    metrics = Metrics(
        train=train_scores,
        validation=validation_scores,
        test=test_scores,
        test_unseen=score(task.test.y[unseen], test_proba[unseen], test_answers[unseen]),
    )
    lines = [
        *prediction_lines(task, "validation", validation_proba, validation_proba.argmax(axis=1)),
        *prediction_lines(task, "test", test_proba, test_answers, written),
    ]
    _write_predictions(out / "predictions.jsonl", lines, with_texts=not config.run.no_texts)
    asset = BUILT_IN.get(config.llm.model)
    return RunRecord(
        schema=SCHEMA,
        rung=rung.name,
        config=config.flat(),
        data=Data(
            source=config.source,
            fields=list(task.fields),
            classes=list(task.classes),
            fingerprint=task.fingerprint,
            rows={"train": len(task.train), "validation": len(task.validation),
                  "test": len(task.test)},
            truncated=rung.truncated_,
            notes=list(loaded.notes),
        ),
        metrics=metrics,
        baselines=_baselines(task, unseen),
        report=list(report(task.test.y, test_answers, task.classes)),
        training=_training(rung),
        cost=_cost(rung, len(task.test) / predict_seconds),
        model_note=asset.note if asset else None,
        seed=config.llm.seed,
        environment=environment(str(rung.device_), rung.precision),
        command=command,
    )  # fmt: skip


def _answers(
    rung: LLMRung, split: Split, decode: str, notify: Listener
) -> tuple[Probabilities, ClassIndices, list[str] | None]:
    """Probabilities, answers (-1: unknown), and what was written, if anything was."""
    proba = rung.predict_proba(split.texts, notify)
    if decode == "labels":
        return proba, proba.argmax(axis=1), None
    notify(StageStarted("writing answers", len(split)))
    return proba, *rung.generate(split.texts, notify)


def _write_predictions(path: Path, lines: list[dict[str, Any]], *, with_texts: bool) -> None:
    if not with_texts:
        lines = [{name: line[name] for name in line if name != "text"} for line in lines]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_text(path, text)


def _train_sample(task: Task, seed: int) -> Split:
    if len(task.train) <= TRAIN_SAMPLE:
        return task.train
    return take(task.train, subsample(task.train.y, TRAIN_SAMPLE, classes=task.classes, seed=seed))


def _baselines(task: Task, unseen: npt.NDArray[np.bool_]) -> dict[str, Baseline]:
    """Majority class, and the look-up of texts that also stand in train or validation."""
    known = np.concatenate([task.train.y, task.validation.y])
    majority = np.full(len(task.test), np.bincount(known).argmax())
    baselines = {"majority": _baseline(task, majority, unseen, column=None)}
    column = best_lookup_column(task)
    if column is not None:
        baselines["lookup"] = _baseline(task, look_up(task, column), unseen, column)
    return baselines


def _baseline(
    task: Task, answers: ClassIndices, unseen: npt.NDArray[np.bool_], column: str | None
) -> Baseline:
    right = answers == task.test.y
    return Baseline(
        accuracy=float(right.mean()),
        accuracy_ci95=list(wilson_interval(int(right.sum()), len(right))),
        accuracy_unseen=float(right[unseen].mean()) if unseen.any() else None,
        column=column,
    )


def _training(rung: LLMRung) -> Training:
    chosen = rung.choice_ or rung.progress_
    return Training(
        epochs=chosen.best_epoch,
        epoch_losses=list(chosen.epoch_losses),
        steps=rung.progress_.step,
        refit=rung.choice_ is not None,
    )


def _cost(rung: LLMRung, predict_rows_per_second: float) -> Cost:
    trainings = [progress for progress in (rung.choice_, rung.progress_) if progress]
    seconds = sum(progress.seconds for progress in trainings)
    on_gpu = rung.device_.type == "cuda"
    return Cost(
        train_seconds=seconds,
        train_rows_per_second=sum(p.rows for p in trainings) / seconds,
        train_tokens_per_second=sum(p.tokens for p in trainings) / seconds,
        predict_rows_per_second=predict_rows_per_second,
        peak_rss_mb=peak_rss_mb(),
        peak_gpu_mb=torch.cuda.max_memory_allocated(rung.device_) / 2**20 if on_gpu else None,
        trainable_parameters=rung.trainable_parameters_,
    )
