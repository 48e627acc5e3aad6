"""`run.json`: the one record of a run. Tables, cards and comparisons read this and nothing else.

Keys are added, never renamed; `schema` counts changes that readers must know of.
"""

import os
import platform
import sys
from importlib.metadata import version
from typing import Any, TypedDict

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
        truncated: rows of train and validation whose texts were cut to fit.
        notes: how the parts came about, in words.
    """

    source: str
    fields: list[str]
    classes: list[Any]
    fingerprint: str
    rows: Rows
    truncated: dict[str, int]
    notes: list[str]


class Metrics(TypedDict):
    """Scores on each part (see `llabel.metrics.Scores`).

    Attributes:
        train: on a stratified sample of at most `run.TRAIN_SAMPLE` training rows.
        validation: of the model whose epoch was chosen there (before any refit).
        test: on all test rows, read once.
        test_unseen: on the test rows none of whose long text fields occurs in train or
            validation; None where there are none.
    """

    train: Scores
    validation: Scores
    test: Scores
    test_unseen: Scores | None


class Baseline(TypedDict):
    """A reference without a model, on the test rows."""

    accuracy: float
    accuracy_ci95: list[float]
    accuracy_unseen: float | None
    column: str | None


class Cost(TypedDict):
    """What the run took on this machine.

    Attributes:
        train_seconds: optimiser steps only, interruptions not counted; with `--refit` of both
            trainings.
        train_rows_per_second, train_tokens_per_second: over those seconds, padding not counted.
        predict_rows_per_second: on the test rows, tokenising included.
        peak_rss_mb: largest resident memory of the process, MiB.
        peak_gpu_mb: largest GPU memory in use, MiB; None on the CPU.
        trainable_parameters: weights that training may change.
    """

    train_seconds: float
    train_rows_per_second: float
    train_tokens_per_second: float
    predict_rows_per_second: float
    peak_rss_mb: float
    peak_gpu_mb: float | None
    trainable_parameters: int


class Training(TypedDict):
    """How the training went.

    Attributes:
        epochs: that the kept adapter was trained for.
        epoch_losses: validation log loss after each epoch of the choosing run.
        steps: optimiser steps of the kept adapter's training.
        refit: whether it was trained anew on train + validation.
    """

    epochs: int
    epoch_losses: list[float]
    steps: int
    refit: bool


class RunRecord(TypedDict):
    """The whole of `run.json`.

    Attributes:
        schema: `SCHEMA`.
        rung: name of the system.
        config: every setting, one level (what `--config` takes).
        data, metrics, baselines, training, cost: see there; `baselines` by name.
        report: classification report of the test part (`llabel.metrics.ReportRow`).
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
    training: Training
    cost: Cost
    model_note: str | None
    seed: int
    environment: dict[str, Any]
    command: str


def environment(device: str, precision: str) -> dict[str, Any]:
    """Versions, machine and numeric set-up; no host or user names."""
    packages = ("llabel", "torch", "transformers", "peft", "tokenizers", "scikit-learn", "numpy")
    import torch

    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "precision": precision,
        "packages": {name: version(name) for name in packages},
    }


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, MiB."""
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**20
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
