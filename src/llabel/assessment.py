"""A fitted rung on every part of its task: the test part is read here, once, and written up."""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from llabel.assets import BUILT_IN
from llabel.check import best_lookup_column, look_up
from llabel.confidence import Confidence, Judged, abstention_of, calibration_of
from llabel.config import RunConfig
from llabel.data import LoadedTask, take, unseen_rows
from llabel.data.splitting import subsample
from llabel.events import Listener, StageStarted
from llabel.folder import write_json_lines
from llabel.ladder.contract import FitRecord, Rung, Trial
from llabel.ladder.targets import TargetRung
from llabel.metrics import UNKNOWN, report
from llabel.predictions import prediction_lines, refuse_silent
from llabel.record import (
    SCHEMA,
    Baseline,
    Cost,
    Data,
    FreeAnswers,
    Metrics,
    RunRecord,
    Training,
    TrainingSummary,
    environment,
    peak_rss_mb,
)
from llabel.rung_settings import PROMPTED
from llabel.statistics.intervals import score_with_groups, share_interval
from llabel.task import ClassIndices, Probabilities, Split, Task, Text

if TYPE_CHECKING:
    from llabel.ladder.llm import LLMRung

BaselineRight: TypeAlias = tuple[npt.NDArray[np.bool_], str | None]

TRAIN_SAMPLE = 300  # training rows that are scored: enough for an interval of ± 0.06
SINGLE_TEXTS = 20  # texts answered one by one, whose median time is told


def assess(
    rung: Rung,
    config: RunConfig,
    loaded: LoadedTask,
    out: Path,
    command: str,
    notify: Listener,
    confidence: Confidence = Confidence(),  # noqa: B008  (frozen)
) -> RunRecord:
    """Score the trained rung, write `predictions.jsonl` into `out` and return the run's record.

    Args:
        rung: fitted.
        config, loaded, out, command: of the run.
        notify: told of progress.
        confidence: what was decided on validation of how its probabilities become answers.
    """
    task = loaded.task
    train_scores = None
    if rung.name not in PROMPTED:
        sample = _train_sample(task, config.llm.seed)
        notify(StageStarted("scoring training rows", len(sample)))
        said = confidence.scaled(rung.predict_proba(sample.texts, notify))
        train_scores = score_with_groups(sample.y, said, groups=sample.groups)
    timed = rung.whole if isinstance(rung, TargetRung) else rung  # which keeps no answers
    single = _milliseconds_alone(timed, task.validation.texts)
    validation = Judged(task.validation.y, rung.validation_proba_, task.validation.groups)
    proba = confidence.scaled(validation.proba)
    validation_scores = score_with_groups(validation.y, proba, groups=validation.groups)
    assert validation_scores  # no part is ever empty
    withheld = confidence.withheld(proba)
    lines = list(
        prediction_lines(task, "validation", proba, proba.argmax(axis=1), withheld=withheld)
    )
    metrics = Metrics(train=train_scores, validation=validation_scores, test=None, test_unseen=None)
    test, free = None, None
    if config.run.untested:
        notify(StageStarted("timing on validation rows", len(task.validation)))
        started = time.perf_counter()
        timed.predict_proba(task.validation.texts, notify)
        rows_per_second = len(task.validation) / (time.perf_counter() - started)
        tested = _Tested({}, [])
    else:
        notify(StageStarted("scoring test rows", len(task.test)))
        started = time.perf_counter()
        found = answers_of(rung, task.test, config.run.decode, notify, confidence)
        rows_per_second = len(task.test) / (time.perf_counter() - started)
        test = Judged(task.test.y, found.raw, task.test.groups)
        lines += prediction_lines(
            task, "test", found.proba, found.answers, found.written, withheld=found.withheld
        )
        tested = score_test(task, metrics, found.proba, found.answers, refit=config.llm.refit)
        free = found.apart(task.test)
    write_predictions(out, lines, with_texts=not config.run.no_texts)
    return RunRecord(
        schema=SCHEMA,
        rung=rung.name,
        config=config.flat(),
        data=data_record(config, loaded, rung.record_.truncated),
        metrics=metrics,
        baselines=tested.baselines,
        report=tested.report,
        free_answers=free,
        calibration=calibration_of(config.run, confidence, validation, test),
        abstention=abstention_of(config.run, confidence, validation, test),
        training=_training(rung.record_, task),
        cost=_cost(rung, out, rows_per_second, single),
        model_note=_model_note(config),
        seed=config.llm.seed,
        environment=environment(_device(rung), getattr(rung, "precision", "float32")),
        command=command,
    )


@dataclass(frozen=True, slots=True)
class _Tested:
    """What a record says of the test part beside the metrics."""

    baselines: dict[str, Baseline]
    report: list[Any]


def score_test(
    task: Task, metrics: Metrics, proba: Probabilities, answers: ClassIndices, *, refit: bool
) -> _Tested:
    """Fill the test scores into `metrics`; `refit`: the rung learned from validation rows, too."""
    unseen = unseen_rows([task.train, task.validation], task.test, task.fields)
    new = take(task.test, np.flatnonzero(unseen))
    metrics["test"] = score_with_groups(task.test.y, proba, answers, task.test.groups)
    metrics["test_unseen"] = score_with_groups(new.y, proba[unseen], answers[unseen], new.groups)
    found = report(task.test.y, answers, task.classes)
    return _Tested(baselines(task, unseen, refit=refit), list(found))


def write_predictions(out: Path, lines: Iterable[dict[str, Any]], *, with_texts: bool) -> None:
    """Write `predictions.jsonl` into `out`."""
    if not with_texts:
        lines = [{name: line[name] for name in line if name != "text"} for line in lines]
    write_json_lines(out / "predictions.jsonl", lines)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a rung says of rows.

    Attributes:
        raw: (n, n_classes) its own probabilities.
        proba: (n, n_classes) calibrated, if they are to be.
        answers: (n,) class indices, -1 for `unknown`; of all rows.
        withheld: (n,) rows too unsure to get their answer.
        written: (n,) what the model wrote, where it answered freely.
    """

    raw: Probabilities
    proba: Probabilities
    answers: ClassIndices
    withheld: npt.NDArray[np.bool_]
    written: list[str] | None = None

    def apart(self, split: Split) -> FreeAnswers | None:
        """Knowledge and form of free answers, held against the true classes of their rows."""
        if self.written is None:
            return None
        y = split.y
        unknown = int((self.answers == UNKNOWN).sum())
        right = int((self.answers == y).sum())
        constrained = score_with_groups(y, self.proba, groups=split.groups)
        assert constrained  # no part is ever empty
        return FreeAnswers(
            rows=len(y),
            unknown=unknown,
            unknown_share=unknown / len(y),
            unknown_ci95=list(share_interval(self.answers == UNKNOWN, split.groups)),
            accuracy=right / len(y),
            accuracy_of_labels=right / (len(y) - unknown) if unknown < len(y) else None,
            constrained=constrained,
        )


def answers_of(
    rung: Rung, split: Split, decode: str, notify: Listener, confidence: Confidence
) -> Found:
    """What the rung says of the rows of `split`: the most probable labels, or free answers.

    Free answers are never withheld: they have no probability.

    Raises:
        InputError: the rung writes no answers of its own.
    """
    raw = rung.predict_proba(split.texts, notify)
    proba = confidence.scaled(raw)
    if decode == "labels":
        return Found(raw, proba, proba.argmax(axis=1), confidence.withheld(proba))
    refuse_silent(rung)
    notify(StageStarted("writing answers", len(split)))
    answers, written = cast("LLMRung", rung).generate(split.texts, notify)
    return Found(raw, proba, answers, np.zeros(len(split), dtype=np.bool_), written)


def baselines(task: Task, unseen: npt.NDArray[np.bool_], *, refit: bool) -> dict[str, Baseline]:
    """Majority class, and look-up where test shares texts with train or validation.

    Both know the rows that a rung learns from: train, and with `refit` validation.
    """
    return scored_baselines(baselines_right(task, refit=refit), task, unseen)


def scored_baselines(
    found: Mapping[str, BaselineRight], task: Task, unseen: npt.NDArray[np.bool_]
) -> dict[str, Baseline]:
    """The scores of `baselines_right` on all test rows and on the (n_test,) `unseen` ones."""
    return {
        name: Baseline(
            accuracy=float(right.mean()),
            accuracy_ci95=list(share_interval(right, task.test.groups)),
            accuracy_unseen=float(right[unseen].mean()) if unseen.any() else None,
            column=column,
        )
        for name, (right, column) in found.items()
    }


def baselines_right(task: Task, *, refit: bool) -> dict[str, BaselineRight]:
    """(n_test,) which rows each of `baselines` gets right, and the column that it looks up."""
    known = np.concatenate([task.train.y, task.validation.y]) if refit else task.train.y
    majority = np.full(len(task.test), np.bincount(known).argmax())
    found: dict[str, BaselineRight] = {"majority": (majority == task.test.y, None)}
    column = best_lookup_column(task)
    if column is not None:
        found["lookup"] = look_up(task, column, validation=refit) == task.test.y, column
    return found


def _train_sample(task: Task, seed: int) -> Split:
    count = max(TRAIN_SAMPLE, len(task.classes))  # a row of each class
    if len(task.train) <= count:
        return task.train
    return take(task.train, subsample(task.train.y, count, classes=task.classes, seed=seed))


def _milliseconds_alone(rung: Rung, texts: Sequence[Text]) -> float:
    """Median time to answer one text, the first left out: it warms caches up."""
    seconds = []
    for text in texts[: SINGLE_TEXTS + 1]:
        started = time.perf_counter()
        rung.predict_proba([text])
        seconds.append(time.perf_counter() - started)
    return 1000 * median(seconds[1:] or seconds)


def data_record(config: RunConfig, loaded: LoadedTask, truncated: dict[str, int]) -> Data:
    """The data facts of a run's record."""
    task = loaded.task
    return Data(
        source=config.source,
        fields=list(task.fields),
        classes=list(task.classes),
        fingerprint=task.fingerprint,
        rows={"train": len(task.train), "validation": len(task.validation), "test": len(task.test)},
        truncated=truncated,
        notes=list(loaded.notes),
        label_map=list(loaded.mapped),
    )


def _chosen(fitted: FitRecord) -> Trial | None:
    return None if fitted.chosen is None else fitted.trials[fitted.chosen]


def _training(fitted: FitRecord, task: Task) -> Training:
    chosen = _chosen(fitted)
    kept = fitted.kept_refit or chosen
    return Training(
        epochs=chosen.epochs if chosen else 0,
        epoch_losses=list(chosen.epoch_losses) if chosen else [],
        steps=kept.steps if kept else 0,
        refit=fitted.kept_refit is not None,
        refit_diverged=fitted.refit is not None and fitted.kept_refit is None,
        settings=fitted.settings,
        trials=[
            asdict(trial) | {"chosen": number == fitted.chosen}
            for number, trial in enumerate(fitted.trials)
        ],
        summary=_summary(fitted, kept, task) if kept and kept.training_loss is not None else None,
    )


def _summary(fitted: FitRecord, kept: Trial, task: Task) -> TrainingSummary:
    """What the kept training came to; with refit, it had the validation rows, too."""
    flops = 6 * kept.tokens * fitted.computing_parameters
    seconds = max(kept.seconds, 1e-9)
    rows = len(task.train) + (len(task.validation) if fitted.kept_refit else 0)
    return TrainingSummary(
        global_steps=kept.steps,
        training_loss=kept.training_loss,
        runtime=kept.seconds,
        samples_per_second=kept.rows / seconds,
        steps_per_second=kept.steps / seconds,
        total_flos=flops or None,
        epoch=kept.rows / rows,
    )


def _cost(rung: Rung, out: Path, rows_per_second: float, single: float) -> Cost:
    fitted = rung.record_
    trainings = [trial for trial in (_chosen(fitted), fitted.kept_refit) if trial]
    seconds = sum(trial.seconds for trial in trainings)
    searched = [*fitted.trials, *([fitted.refit] if fitted.refit else [])]
    steps = sum(trial.steps for trial in trainings)
    device = _device(rung)
    gpu = None
    if device.startswith("cuda"):
        gpu = sys.modules["torch"].cuda.max_memory_allocated(device) / 2**20
    base: Path | None = getattr(rung, "base_folder_", None)
    return Cost(
        train_seconds=seconds,
        search_seconds=sum(trial.seconds for trial in searched),
        train_rows_per_second=sum(t.rows for t in trainings) / seconds if steps else None,
        train_tokens_per_second=sum(t.tokens for t in trainings) / seconds if steps else None,
        predict_rows_per_second=rows_per_second,
        ms_per_text_single=single,
        peak_rss_mb=peak_rss_mb(),
        peak_gpu_mb=gpu,
        trainable_parameters=fitted.trainable_parameters,
        parameters=fitted.parameters,
        weights_mb=fitted.weight_bytes / 2**20 if fitted.weight_bytes else None,
        disk_mb=_size_mb(out) + (_size_mb(base) if base else 0),
    )


# What a run folder holds beside the files that predicting needs.
_NOT_THE_RUNG = {
    *("README.md", "checkpoints", "predictions.jsonl", "run.json", "started.json"),
    *("confidence.json", "targets"),
    *("train.log.jsonl", "tensorboard", "mlflow", "wandb"),
}


def _size_mb(place: Path) -> float:
    if place.is_file():
        return place.stat().st_size / 2**20
    files = [path for path in place.rglob("*") if path.is_file()]
    needed = [f for f in files if f.relative_to(place).parts[0] not in _NOT_THE_RUNG]
    return sum(path.stat().st_size for path in needed) / 2**20


def _device(rung: Rung) -> str:
    return str(getattr(rung, "device_", "cpu"))


def _model_note(config: RunConfig) -> str | None:
    """What the catalogue says of the weights that this rung starts from."""
    rung = config.run.rung
    name = config.llm.model if rung.startswith("llm-") else config.simpler.encoder
    asset = BUILT_IN.get(name) if rung == "encoder" or rung.startswith("llm-") else None
    return asset.note or None if asset else None
