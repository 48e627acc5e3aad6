"""`run.json`: the one record of a run. Tables, cards and comparisons read this and nothing else.

Keys are added, never renamed; `schema` counts changes that readers must know of.
"""

import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from llabel.confidence import Abstention, Calibration
from llabel.data.label_map import MappedLabel
from llabel.metrics import Scores

SCHEMA = 1


class Rows(TypedDict):
    """How many rows each part has."""

    train: int
    validation: int
    test: int


class Data(TypedDict):
    """What the rows were.

    Attributes:
        source: as the user named it.
        fields, classes: text columns and labels in class order.
        fingerprint: SHA-256 over fields, classes and all rows of all parts.
        rows: of each part.
        truncated: rows of train and validation whose texts were cut to fit (see `FitRecord`).
        notes: how the parts came about, in words.
        label_map: what `--map-labels` did to each label that it names: `label`, `becomes` (None:
            dropped) and `rows`; [] without. `classes` and `fingerprint` are of the mapped labels.
    """

    source: str
    fields: list[str]
    classes: list[Any]
    fingerprint: str
    rows: Rows
    truncated: dict[str, int]
    notes: list[str]
    label_map: NotRequired[list[MappedLabel]]


class Metrics(TypedDict):
    """Scores on each part (see `llabel.metrics.Scores`).

    Attributes:
        train: on a stratified sample of at most `assessment.TRAIN_SAMPLE` training rows; None
            where nothing was trained (`rung_settings.PROMPTED`).
        validation: of the model whose epoch was chosen there (before any refit).
        test: on all test rows, read once; None with `--untested`.
        test_unseen: on the test rows none of whose long text fields occurs in train or
            validation; None where there are none.
    """

    train: Scores | None
    validation: Scores
    test: Scores | None
    test_unseen: Scores | None


class Baseline(TypedDict):
    """A reference without a model, on the test rows.

    It knows the training rows; with `--refit`, as the rungs do, the validation rows, too.
    """

    accuracy: float
    accuracy_ci95: list[float]
    accuracy_unseen: float | None
    column: str | None


class Cost(TypedDict):
    """What the run took on this machine.

    Attributes:
        train_seconds: of the chosen trial, optimiser steps only, interruptions not counted; with
            `--refit` of both trainings.
        search_seconds: of all trials and the refit.
        train_rows_per_second, train_tokens_per_second: over `train_seconds`, padding not
            counted; None where nothing is trained by steps.
        predict_rows_per_second: on the test rows (validation rows with `--untested`), tokenising
            included.
        ms_per_text_single: median time to answer one validation text alone, milliseconds.
        peak_rss_mb: largest resident memory of the process, MiB.
        peak_gpu_mb: largest GPU memory in use, MiB; None on the CPU.
        trainable_parameters: numbers that training may change.
        parameters: numbers that the rung computes with.
        weights_mb: memory of a language model's weights as they stand (in 4 bits only where they
            stay so), adapters included, MiB; None for other rungs.
        disk_mb: size of the files that predicting needs, a base model included, MiB.
    """

    train_seconds: float
    search_seconds: NotRequired[float]
    train_rows_per_second: float | None
    train_tokens_per_second: float | None
    predict_rows_per_second: float
    ms_per_text_single: NotRequired[float]
    peak_rss_mb: float
    peak_gpu_mb: float | None
    trainable_parameters: int
    parameters: NotRequired[int]
    weights_mb: NotRequired[float | None]
    disk_mb: NotRequired[float]


class TrainingSummary(TypedDict):
    """The line that Hugging Face's Trainer ends with, of the training that was kept.

    Attributes:
        global_steps: of the optimiser.
        training_loss: mean of the steps' losses, nats.
        runtime: seconds of training, validation not counted; of all parts, if it was interrupted.
        samples_per_second, steps_per_second: in that time.
        total_flos: 6 × tokens × parameters without embeddings, as transformers'
            `floating_point_ops` (Kaplan et al. 2020, arXiv 2001.08361, section 2.1); padding is
            not counted. It is what training all weights takes, not what was computed here.
        epoch: passes over the rows.
    """

    global_steps: int
    training_loss: float | None
    runtime: float
    samples_per_second: float
    steps_per_second: float
    total_flos: float | None
    epoch: float


class Training(TypedDict):
    """How the training went.

    Attributes:
        summary: of rungs that train by steps, else None.
        epochs: that the kept rung was trained for; 0 where there are none.
        epoch_losses: validation log loss after each epoch of the chosen trial.
        steps: optimiser steps of the kept rung's training.
        refit: whether it was trained anew on train + validation.
        refit_diverged: whether that was tried, and came to nothing.
        settings: everything that decides the kept rung.
        trials: every training of the search (`llabel.ladder.contract.Trial`), `chosen` marked.
    """

    epochs: float
    epoch_losses: list[float]
    steps: int
    refit: bool
    refit_diverged: NotRequired[bool]
    settings: NotRequired[dict[str, Any]]
    trials: NotRequired[list[dict[str, Any]]]
    summary: NotRequired[TrainingSummary | None]


class FreeAnswers(TypedDict):
    """What `--decode free` came to, apart: whether the model knows, and whether it keeps the form.

    Attributes:
        rows: test rows.
        unknown: answers that are no label, which count as wrong; `unknown_share` of the rows, with
            its 95 % interval `unknown_ci95`.
        accuracy: of all free answers, as in `metrics`.
        accuracy_of_labels: of those that are labels; None where none is.
        constrained: the same rows answered with the most probable label.
    """

    rows: int
    unknown: int
    unknown_share: float
    unknown_ci95: list[float]
    accuracy: float
    accuracy_of_labels: float | None
    constrained: Scores


class RunRecord(TypedDict):
    """The whole of `run.json`.

    Attributes:
        schema: `SCHEMA`.
        rung: name of the system.
        config: every setting, one level (what `--config` takes).
        data, metrics, baselines, training, cost: see there; `baselines` by name.
        report: classification report of the test part (`llabel.metrics.ReportRow`), [] with
            `--untested`.
        free_answers: with `--decode free`, else None.
        calibration: with `--calibrate`, else None. All metrics are of calibrated probabilities.
        abstention: with `--abstain-below` or `--target-precision`, else None. `metrics` and
            `report` are of all rows, answered or not, so that runs compare.
        model_note: what a reader must know of the model's weights, or None.
        seed: `random_state`.
        environment: versions and machine.
        command: the command line.
    """

    schema: int
    rung: str
    config: dict[str, Any]
    data: Data
    metrics: Metrics
    baselines: dict[str, Baseline]
    report: list[Any]
    free_answers: NotRequired[FreeAnswers | None]
    calibration: NotRequired[Calibration | None]
    abstention: NotRequired[Abstention | None]
    training: Training
    cost: Cost
    model_note: str | None
    seed: int
    environment: dict[str, Any]
    command: str


class TargetRecord(TypedDict):
    """What `run.json` says of one of several targets: the keys of `RunRecord` that differ."""

    data: Data
    metrics: Metrics
    baselines: dict[str, Baseline]
    report: list[Any]
    free_answers: NotRequired[FreeAnswers | None]
    calibration: NotRequired[Calibration | None]
    abstention: NotRequired[Abstention | None]


class JointRecord(TypedDict):
    """The whole of `run.json` where one model answers several targets.

    Attributes:
        data: of all targets together: `classes` are ``{"target": …, "label": …}``.
        targets: what there is to say of each, by the name of its column.
        schema, rung, config, training, cost, model_note, seed, environment, command: as in
            `RunRecord`. Validation losses in `training` are the mean over the targets; `cost` is of
            answering all of them.
    """

    schema: int
    rung: str
    config: dict[str, Any]
    data: Data
    targets: dict[str, TargetRecord]
    training: Training
    cost: Cost
    model_note: str | None
    seed: int
    environment: dict[str, Any]
    command: str


def joint_record(data: Data, records: Mapping[str, RunRecord]) -> JointRecord:
    """One record of a run from one for each of its targets; `cost` is the first's."""
    first: dict[str, Any] = dict(next(iter(records.values())))
    own = set(TargetRecord.__annotations__)
    targets = {
        name: {key: value for key, value in record.items() if key in own}
        for name, record in records.items()
    }
    shared = {key: value for key, value in first.items() if key not in own}
    return cast(JointRecord, shared | {"data": data, "targets": targets})


def target_records(record: RunRecord | JointRecord) -> dict[str, RunRecord]:
    """The record as it were of a run for each target alone; {} where there is one target only."""
    shared = {key: value for key, value in record.items() if key not in ("targets", "data")}
    targets: dict[str, Any] = cast(dict[str, Any], record).get("targets", {})
    return {name: cast(RunRecord, shared | own) for name, own in targets.items()}


def environment(device: str, precision: str) -> dict[str, Any]:
    """Versions, machine and numeric set-up; no host or user names."""
    packages = ("llabel", "torch", "transformers", "peft", "tokenizers", "scikit-learn", "numpy")
    torch = sys.modules.get("torch")  # not imported for a rung that does without
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else 1,
        "device": device_name(device),
        "precision": precision,
        "packages": {name: version(name) for name in (*packages, *_loaded("bitsandbytes"))},
    }


def device_name(device: str) -> str:
    """What stands behind `cuda`; the CPU is only called so."""
    torch = sys.modules.get("torch")
    if torch and device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return device


def _loaded(*names: str) -> list[str]:
    """Packages that few runs need, where this one did."""
    return [name for name in names if name in sys.modules]


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, MiB."""
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**20
    if (high := _high_water_kib()) is not None:
        return high / 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _high_water_kib() -> int | None:
    """What Linux says, if it does.

    `getrusage` is of no use there: its maximum outlives exec, so that a process begins with the
    memory of the one that started it.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return None
