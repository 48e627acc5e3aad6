"""The share of each class in training: what can be said without reading the text."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from llabel.engine.checkpoint import CheckpointFolder
from llabel.events import Listener, RowsDone, ignore
from llabel.ladder.contract import FitRecord, FitSettings, Trial
from llabel.ladder.rung_folder import SavedRung, read_rung, write_rung
from llabel.task import ClassIndices, Label, Probabilities, Task, Text


def class_shares(y: ClassIndices, n_classes: int) -> Probabilities:
    """(n_classes,) the rule of succession (Laplace 1774): (count + 1) / (n + n_classes).

    One row more for every class keeps the log loss finite where a class is missing, and leaves
    the order of the classes as it is.
    """
    counts = np.bincount(y, minlength=n_classes) + 1.0
    return counts / counts.sum()


class MajorityRung:
    """Answers every text with the class shares of training; the most frequent class is on top."""

    name = "majority"
    fields_: tuple[str, ...]
    classes_: tuple[Label, ...]
    record_: FitRecord
    validation_proba_: Probabilities

    def __init__(self, settings: FitSettings) -> None:
        self.settings = settings

    def prepare(
        self, fields: Sequence[str], classes: Sequence[Label], notify: Listener = ignore
    ) -> Self:
        """Nothing is needed."""
        self.fields_, self.classes_ = tuple(fields), tuple(classes)
        return self

    def fit(
        self, task: Task, *, checkpoints: CheckpointFolder | None = None, notify: Listener = ignore
    ) -> Self:
        """Count the labels of train; of validation too with `refit`."""
        self.prepare(task.fields, task.classes, notify)
        self.shares_ = class_shares(task.train.y, len(task.classes))
        self.validation_proba_ = self.predict_proba(task.validation.texts)
        refit = None
        if self.settings.refit:
            start = time.perf_counter()
            y = np.concatenate([task.train.y, task.validation.y])
            self.shares_ = class_shares(y, len(task.classes))
            seconds = time.perf_counter() - start
            refit = Trial(settings={}, validation_loss=None, rows=len(y), seconds=seconds)
        self.record_ = FitRecord(settings={}, refit=refit, truncated={"train": 0, "validation": 0})
        return self

    def predict_proba(self, texts: Sequence[Text], notify: Listener = ignore) -> Probabilities:
        """(n,) texts → (n, n_classes), each row the same."""
        if texts:
            notify(RowsDone(len(texts)))
        return np.tile(self.shares_, (len(texts), 1))

    def save(self, folder: Path) -> None:
        """Write `rung.json` and `arrays.safetensors`."""
        write_rung(
            folder,
            SavedRung(
                rung=self.name,
                fields=self.fields_,
                classes=self.classes_,
                arrays={"shares": self.shares_},
            ),
        )

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto") -> Self:
        """What `save` wrote.

        Raises:
            InputError: the folder holds no such rung.
        """
        saved = read_rung(folder, cls.name)
        rung = cls(FitSettings(device=device)).prepare(saved.fields, saved.classes)
        rung.shares_ = saved.arrays["shares"]
        return rung
