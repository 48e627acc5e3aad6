"""TF-IDF of words and characters with logistic regression: the baseline every reviewer asks for."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from llabel.engine.checkpoint import CheckpointFolder
from llabel.events import Listener, RowsDone, StageStarted, ignore
from llabel.ladder.contract import FitRecord, FitSettings
from llabel.ladder.logistic import Logistic, fit_logistic, search_c
from llabel.ladder.rung_folder import Array, SavedRung, read_rung, write_rung
from llabel.task import Label, Probabilities, Task, Text

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

USUAL_C = 30.0  # the rows have length 1 in each block of features
FEATURES = 50_000  # most frequent n-grams kept of each kind and field
VOCABULARY_ROWS = 20_000  # n-grams and their idf are learnt from so many rows, to bound memory
VOCABULARY_SEED = 0  # draws them; fixed, so that nothing here depends on the seed of the run
FEW_ROWS = 500  # from so many on an n-gram that occurs in one row only is left out
WINDOW = 512  # rows predicted at a time

# Words of one letter count, and so do characters of scripts that leave no space between words.
_KINDS: dict[str, dict[str, Any]] = {
    "words": {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"},
    "characters": {"analyzer": "char_wb", "ngram_range": (2, 5)},
}


@dataclass(frozen=True, slots=True)
class Block:
    """One kind of n-grams of one text field."""

    field: int
    kind: str
    vectoriser: "TfidfVectorizer"

    def transform(self, texts: Sequence[Text]) -> "csr_matrix":
        """(n,) texts → (n, n_terms) float32, rows of length 1, or 0 where no n-gram is known."""
        return self.vectoriser.transform(row[self.field] for row in texts)


class BagOfWordsRung:
    """Word 1–2-grams and character 2–5-grams (within words) of each field apart, sublinear TF-IDF.

    Multinomial logistic regression stands on top; its C is chosen by log loss on validation.
    """

    name = "bag-of-words"
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
        """Learn n-grams and weights from train, C from validation."""
        self.prepare(task.fields, task.classes, notify)
        n_classes = len(self.classes_)
        features, spent = self._learn_features(task.train.texts, notify)
        search = search_c(
            (features, task.train.y),
            (self._features(task.validation.texts), task.validation.y),
            n_classes,
            usual=USUAL_C,
            trials=self.settings.trials,
            budget=self.settings.budget,
            class_weight=self.settings.class_weight,
            spent=spent,
            notify=notify,
        )
        self.model_ = search.chosen
        self.validation_proba_ = search.validation_proba
        refit = None
        if self.settings.refit:
            texts = (*task.train.texts, *task.validation.texts)
            y = np.concatenate([task.train.y, task.validation.y])
            features, spent = self._learn_features(texts, notify)
            weight = self.settings.class_weight
            self.model_, refit = fit_logistic(
                features, y, n_classes, search.C, class_weight=weight, spent=spent
            )
        terms = {
            f"{kind} of {field}": len(block.vectoriser.vocabulary_)
            for block in self.blocks_
            for kind, field in [(block.kind, self.fields_[block.field])]
        }
        self.record_ = FitRecord(
            settings={
                "C": search.C,
                "class_weight": self.settings.class_weight,
                "word_ngrams": [1, 2],
                "character_ngrams": [2, 5],
                "max_features": FEATURES,
                "features": terms,
            },
            trials=search.trials,
            chosen=search.best,
            refit=refit,
            trainable_parameters=self.model_.parameters,
            parameters=self.model_.parameters + sum(terms.values()),
            truncated={"train": 0, "validation": 0},
        )
        return self

    def _learn_features(
        self, texts: Sequence[Text], notify: Listener
    ) -> tuple["csr_matrix", float]:
        """Learn the n-grams; (n, n_features) of the same texts, and the seconds it took."""
        start = time.perf_counter()
        notify(StageStarted("counting words and characters", len(texts)))
        sample: Sequence[Text] = texts
        if len(texts) > VOCABULARY_ROWS:
            rng = np.random.default_rng(VOCABULARY_SEED)
            rows = np.sort(rng.choice(len(texts), VOCABULARY_ROWS, replace=False))
            sample = [texts[row] for row in rows.tolist()]
        self.blocks_ = [
            block
            for field in range(len(self.fields_))
            for kind in _KINDS
            for block in [_learn_block(field, kind, sample)]
            if block is not None
        ]
        features = self._features(texts)
        notify(RowsDone(len(texts)))
        return features, time.perf_counter() - start

    def _features(self, texts: Sequence[Text]) -> "csr_matrix":
        """(n,) texts → (n, n_features) float32; the blocks side by side."""
        from scipy.sparse import csr_matrix, hstack

        if not self.blocks_ or not texts:
            width = sum(len(block.vectoriser.vocabulary_) for block in self.blocks_)
            return csr_matrix((len(texts), width), dtype=np.float32)
        return hstack([block.transform(texts) for block in self.blocks_], format="csr")

    def predict_proba(self, texts: Sequence[Text], notify: Listener = ignore) -> Probabilities:
        """(n,) texts → (n, n_classes); n-grams that training lacked count for nothing."""
        parts = list(self._windows(texts, notify))
        return np.concatenate(parts) if parts else np.empty((0, len(self.classes_)))

    def _windows(self, texts: Sequence[Text], notify: Listener) -> Iterator[Probabilities]:
        for start in range(0, len(texts), WINDOW):
            window = texts[start : start + WINDOW]
            yield self.model_.predict_proba(self._features(window))
            notify(RowsDone(len(window)))

    def save(self, folder: Path) -> None:
        """Write `rung.json`, `words.json` (the n-grams) and `arrays.safetensors`."""
        arrays: dict[str, Array] = self.model_.arrays()
        words: dict[str, list[str]] = {}
        blocks = []
        for number, block in enumerate(self.blocks_):
            terms = block.vectoriser.vocabulary_
            words[str(number)] = sorted(terms, key=terms.__getitem__)
            arrays[f"{number}.idf"] = block.vectoriser.idf_
            blocks.append({"field": block.field, "kind": block.kind})
        write_rung(
            folder,
            SavedRung(
                rung=self.name,
                fields=self.fields_,
                classes=self.classes_,
                settings={"blocks": blocks},
                arrays=arrays,
                words=words,
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
        rung.model_ = Logistic.from_arrays(saved.arrays, len(saved.classes))
        rung.blocks_ = []
        for number, block in enumerate(saved.settings["blocks"]):
            vectoriser = _vectoriser(block["kind"], vocabulary=saved.words[str(number)])
            vectoriser.idf_ = saved.arrays[f"{number}.idf"]
            rung.blocks_.append(Block(block["field"], block["kind"], vectoriser))
        return rung


def _vectoriser(kind: str, **more: Any) -> "TfidfVectorizer":
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **(_KINDS[kind] | more))


def _learn_block(field: int, kind: str, texts: Sequence[Text]) -> Block | None:
    """Learn the n-grams of a field; None where its texts hold none."""
    vectoriser = _vectoriser(kind, max_features=FEATURES, min_df=1 if len(texts) < FEW_ROWS else 2)
    try:
        vectoriser.fit(row[field] for row in texts)
    except ValueError:  # of scikit-learn, where no n-gram is left
        return None
    return Block(field, kind, vectoriser)
