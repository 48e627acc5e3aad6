"""Pre-trained word vectors, pooled over each text, with logistic regression."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from llabel.engine.checkpoint import CheckpointFolder
from llabel.events import Listener, RowsDone, StageStarted, ignore
from llabel.ladder.contract import FitRecord, FitSettings
from llabel.ladder.glove import Glove, fetch_glove, lasting_name, load_glove
from llabel.ladder.logistic import Logistic, fit_logistic, search_c
from llabel.ladder.rung_folder import SavedRung, read_rung, write_rung
from llabel.ladder.word_cutting import words_of
from llabel.task import Label, Probabilities, Task, Text

USUAL_C = 0.01  # features have variance 1, and a few hundred of them speak at once
WINDOW = 512  # rows predicted at a time


class WordEmbeddingsRung:
    """Each text field is embedded apart: mean, maximum and minimum of its words' vectors.

    Of two fields a and b the absolute difference and the product are added (Conneau et al. 2017,
    arXiv:1705.02364, section 3.1). Features are standardised by training; multinomial logistic
    regression stands on top, its C chosen by log loss on validation. Words without a vector are
    left out; a text of such words only is the zero vector.
    """

    name = "word-embeddings"
    fields_: tuple[str, ...]
    classes_: tuple[Label, ...]
    record_: FitRecord
    validation_proba_: Probabilities

    def __init__(self, settings: FitSettings) -> None:
        self.settings = settings

    def prepare(
        self, fields: Sequence[str], classes: Sequence[Label], notify: Listener = ignore
    ) -> Self:
        """Fetch the word vectors if need be.

        Raises:
            InputError: there are none of that name.
        """
        self.base_folder_ = fetch_glove(self.settings.embeddings, notify)
        self.fields_, self.classes_ = tuple(fields), tuple(classes)
        return self

    def fit(
        self, task: Task, *, checkpoints: CheckpointFolder | None = None, notify: Listener = ignore
    ) -> Self:
        """Learn weights from train, C from validation; the word vectors stay as they are."""
        self.prepare(task.fields, task.classes, notify)
        self.glove_ = load_glove(self.settings.embeddings, notify)
        n_classes = len(self.classes_)
        start = time.perf_counter()
        notify(StageStarted("embedding the texts", len(task.train)))
        pooled = self._pooled(task.train.texts)
        notify(RowsDone(len(task.train)))
        self._learn_scale(pooled)
        features = self._scaled(pooled)
        held_out = self._pooled(task.validation.texts)
        search = search_c(
            (features, task.train.y),
            (self._scaled(held_out), task.validation.y),
            n_classes,
            usual=USUAL_C,
            trials=self.settings.trials,
            budget=self.settings.budget,
            class_weight=self.settings.class_weight,
            spent=time.perf_counter() - start,
            notify=notify,
        )
        self.model_ = search.chosen
        self.validation_proba_ = search.validation_proba
        refit = None
        if self.settings.refit:
            both = np.concatenate([pooled, held_out])
            y = np.concatenate([task.train.y, task.validation.y])
            self._learn_scale(both)
            weight = self.settings.class_weight
            self.model_, refit = fit_logistic(
                self._scaled(both), y, n_classes, search.C, class_weight=weight
            )
        self.record_ = FitRecord(
            settings={
                "C": search.C,
                "class_weight": self.settings.class_weight,
                "embeddings": self.settings.embeddings,
                "pooling": ["mean", "max", "min"],
                "features": features.shape[1],
            },
            trials=search.trials,
            chosen=search.best,
            refit=refit,
            trainable_parameters=self.model_.parameters,
            parameters=self.model_.parameters + self.glove_.vectors.size,
            truncated={"train": 0, "validation": 0},
        )
        return self

    def _pooled(self, texts: Sequence[Text]) -> npt.NDArray[np.float32]:
        """(n,) texts → (n, n_features), not yet standardised."""
        fields = [
            np.stack([_pool(self.glove_, row[field]) for row in texts])
            for field in range(len(self.fields_))
        ]
        if len(fields) == 2:
            a, b = fields
            fields += [np.abs(a - b), a * b]
        return np.concatenate(fields, axis=1)

    def _learn_scale(self, pooled: npt.NDArray[np.float32]) -> None:
        # In float32 the rounding of the mean alone would pass for a spread.
        self.mean_ = pooled.mean(axis=0, dtype=np.float64).astype(np.float32)
        deviation = pooled.std(axis=0, dtype=np.float64)
        # A feature that hardly varies in training would blow up any other value.
        self.scale_ = np.where(deviation > 1e-6, deviation, 1).astype(np.float32)

    def _scaled(self, pooled: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return (pooled - self.mean_) / self.scale_

    def predict_proba(self, texts: Sequence[Text], notify: Listener = ignore) -> Probabilities:
        """(n,) texts → (n, n_classes)."""
        parts = list(self._windows(texts, notify))
        return np.concatenate(parts) if parts else np.empty((0, len(self.classes_)))

    def _windows(self, texts: Sequence[Text], notify: Listener) -> Iterator[Probabilities]:
        for start in range(0, len(texts), WINDOW):
            window = texts[start : start + WINDOW]
            yield self.model_.predict_proba(self._scaled(self._pooled(window)))
            notify(RowsDone(len(window)))

    def save(self, folder: Path) -> None:
        """Write `rung.json` and `arrays.safetensors`; the word vectors are named, not copied."""
        write_rung(
            folder,
            SavedRung(
                rung=self.name,
                fields=self.fields_,
                classes=self.classes_,
                settings={
                    "embeddings": lasting_name(self.settings.embeddings),
                    **self.glove_.digests(),
                },
                arrays={"mean": self.mean_, "scale": self.scale_} | self.model_.arrays(),
            ),
        )

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto") -> Self:
        """What `save` wrote.

        Raises:
            InputError: the folder holds no such rung, or its word vectors are gone or changed.
        """
        saved = read_rung(folder, cls.name)
        name = saved.settings["embeddings"]
        rung = cls(replace(FitSettings(device=device), embeddings=name))
        rung.prepare(saved.fields, saved.classes)
        rung.glove_ = load_glove(name)
        rung.glove_.check(saved.settings, folder, name)
        rung.mean_, rung.scale_ = saved.arrays["mean"], saved.arrays["scale"]
        rung.model_ = Logistic.from_arrays(saved.arrays, len(saved.classes))
        return rung


def _pool(glove: Glove, text: str) -> npt.NDArray[np.float32]:
    """(3 · dimensions,) mean, maximum and minimum over the words of a text that are known."""
    rows = glove.rows(words_of(text, lower=False))
    if not rows:
        return np.zeros(3 * glove.vectors.shape[1], dtype=np.float32)
    vectors = glove.vectors[rows]  # (n_words, dimensions)
    return np.concatenate([vectors.mean(axis=0), vectors.max(axis=0), vectors.min(axis=0)])
