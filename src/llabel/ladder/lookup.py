"""Looking a text up among the training texts: how much of a score memory alone can reach."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from llabel.data.rows import folded
from llabel.engine.checkpoint import CheckpointFolder
from llabel.events import Listener, RowsDone, ignore
from llabel.ladder.contract import FitRecord, FitSettings, Trial
from llabel.ladder.majority import class_shares
from llabel.ladder.rung_folder import Array, SavedRung, read_rung, write_rung
from llabel.task import ClassIndices, Label, Probabilities, Task, Text

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

NO_KEY = b""  # of an empty text, which is shared with nobody
KEY_BYTES = 16
_CELLS = 1 << 21  # counts of rows by classes that are written out at a time; most of them are zero


def key_of(text: str, fold: Callable[[str], str] = folded) -> bytes:
    """What texts have in common that are the same, `folded`: a digest, not the text itself."""
    text = fold(text)
    if not text:
        return NO_KEY
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def _folded_in_any_form(text: str) -> str:
    """What `folded` was before it put texts into Unicode NFC: saved digests are of that."""
    return " ".join(text.split()).casefold()


@dataclass(frozen=True, slots=True)
class Memory:
    """How often each value of a field came with each class.

    Attributes:
        rows: key of a value → its row of `counts`.
        counts: (n_values, n_classes) sparse, rows in training.
    """

    rows: dict[bytes, int]
    counts: "csr_matrix"

    def rows_of(self, keys: Sequence[bytes]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """(n,) which keys are known, and (n_known,) the rows of those, in their order."""
        found = [self.rows.get(key, -1) for key in keys]
        rows = np.array(found, dtype=np.int64)
        return rows >= 0, rows[rows >= 0]

    def blocks(self, rows: npt.NDArray[np.int64]) -> Iterator[tuple[slice, npt.NDArray[np.int64]]]:
        """Which of (n,) rows, and their (≤ n, n_classes) counts: few at a time."""
        size = max(1, _CELLS // self.counts.shape[1])
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            yield part, self.counts[rows[part]].toarray()


def remember(keys: Iterable[bytes], y: ClassIndices, n_classes: int) -> Memory:
    """Count the labels by value; (n,) keys and class indices. Empty values are left out."""
    from scipy.sparse import csr_matrix

    rows: dict[bytes, int] = {}
    where = np.array(
        [-1 if key == NO_KEY else rows.setdefault(key, len(rows)) for key in keys], dtype=np.int64
    )
    kept = where >= 0
    ones = np.ones(int(kept.sum()), dtype=np.int64)
    shape = (len(rows), n_classes)
    counts = csr_matrix((ones, (where[kept], y[kept])), shape=shape)  # adds equal places up
    return Memory(rows, counts)


class LookupRung:
    """Answers with the labels of the training rows that share a text field, else the class shares.

    Which field tells most is judged on training alone: every row that shares its value is looked
    up among the others (leave one out). Validation could not judge a field by which it was held
    out, since it shares none of its values; yet the test part may. Fields that help are asked in
    the order of how often they are right, and the first that knows the value answers. Fields that
    no two training rows share could not be judged: they are asked first, longest texts first, as
    a value that never repeats can only return with a copy of its row.
    """

    name = "lookup"
    fields_: tuple[str, ...]
    classes_: tuple[Label, ...]
    record_: FitRecord
    validation_proba_: Probabilities

    def __init__(self, settings: FitSettings) -> None:
        self.settings = settings
        self.fold_: Callable[[str], str] = folded

    def prepare(
        self, fields: Sequence[str], classes: Sequence[Label], notify: Listener = ignore
    ) -> Self:
        """Nothing is needed."""
        self.fields_, self.classes_ = tuple(fields), tuple(classes)
        return self

    def fit(
        self, task: Task, *, checkpoints: CheckpointFolder | None = None, notify: Listener = ignore
    ) -> Self:
        """Remember train; validation too with `refit`. The fields are chosen on train."""
        self.prepare(task.fields, task.classes, notify)
        texts, y = task.train.texts, task.train.y
        self.shares_ = class_shares(y, len(self.classes_))
        keys = {field: self._keys(texts, field) for field in self.fields_}
        memories = {field: remember(keys[field], y, len(self.classes_)) for field in self.fields_}
        lengths = {
            field: float(np.median([len(row[position]) for row in texts]))
            for position, field in enumerate(self.fields_)
        }
        order = field_order(memories, keys, y, self.shares_, lengths)
        self.memories_ = {field: memories[field] for field in order}
        self.validation_proba_ = self.predict_proba(task.validation.texts)
        refit = self._refit(task, order) if self.settings.refit else None
        self.record_ = FitRecord(
            settings={"fields": list(order)},
            refit=refit,
            truncated={"train": 0, "validation": 0},
        )
        return self

    def _refit(self, task: Task, order: Sequence[str]) -> Trial:
        start = time.perf_counter()
        texts = (*task.train.texts, *task.validation.texts)
        y = np.concatenate([task.train.y, task.validation.y])
        n_classes = len(self.classes_)
        self.shares_ = class_shares(y, n_classes)
        self.memories_ = {
            field: remember(self._keys(texts, field), y, n_classes) for field in order
        }
        seconds = time.perf_counter() - start
        return Trial(settings={}, validation_loss=None, rows=len(y), seconds=seconds)

    def _keys(self, texts: Sequence[Text], field: str) -> list[bytes]:
        position = self.fields_.index(field)
        return [key_of(row[position], self.fold_) for row in texts]

    def predict_proba(self, texts: Sequence[Text], notify: Listener = ignore) -> Probabilities:
        """(n,) texts → (n, n_classes); where n rows share the value, (count + share) / (n + 1).

        The class share of training is worth one row, so a tie is decided by it and no probability
        is zero.
        """
        proba = np.tile(self.shares_, (len(texts), 1))
        open_rows = np.arange(len(texts))
        for field, memory in self.memories_.items():
            keys = self._keys([texts[row] for row in open_rows.tolist()], field)
            known, found = memory.rows_of(keys)
            answered = open_rows[known]
            for part, counts in memory.blocks(found):
                proba[answered[part]] = (counts + self.shares_) / (
                    counts.sum(axis=1, keepdims=True) + 1
                )
            open_rows = open_rows[~known]
        if texts:
            notify(RowsDone(len(texts)))
        return proba

    def save(self, folder: Path) -> None:
        """Write `rung.json` and `arrays.safetensors`; they hold digests, no texts."""
        arrays: dict[str, Array] = {"shares": self.shares_}
        for number, memory in enumerate(self.memories_.values()):
            keys = np.frombuffer(b"".join(memory.rows), dtype=np.uint8)
            arrays |= {
                f"{number}.keys": keys.reshape(-1, KEY_BYTES),
                f"{number}.counts": memory.counts.data,
                f"{number}.columns": memory.counts.indices,
                f"{number}.starts": memory.counts.indptr,
            }
        write_rung(
            folder,
            SavedRung(
                rung=self.name,
                fields=self.fields_,
                classes=self.classes_,
                settings={
                    "fields": list(self.memories_),
                    "unicode_form": "NFC" if self.fold_ is folded else None,
                },
                arrays=arrays,
            ),
        )

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto") -> Self:
        """What `save` wrote.

        Raises:
            InputError: the folder holds no such rung.
        """
        from scipy.sparse import csr_matrix

        saved = read_rung(folder, cls.name)
        rung = cls(FitSettings(device=device)).prepare(saved.fields, saved.classes)
        rung.shares_ = saved.arrays["shares"]
        if saved.settings.get("unicode_form") is None:
            rung.fold_ = _folded_in_any_form
        rung.memories_ = {}
        for number, field in enumerate(saved.settings["fields"]):
            keys, *parts = (
                saved.arrays[f"{number}.{part}"] for part in ("keys", "counts", "columns", "starts")
            )
            rows = {key.tobytes(): row for row, key in enumerate(keys)}
            shape = (len(rows), len(saved.classes))
            rung.memories_[field] = Memory(rows, csr_matrix(tuple(parts), shape=shape))
        return rung


def field_order(
    memories: Mapping[str, Memory],
    keys: Mapping[str, Sequence[bytes]],
    y: ClassIndices,
    shares: Probabilities,
    lengths: Mapping[str, float],
) -> tuple[str, ...]:
    """Which fields to look up by, and in which order, judged on training by leaving one out.

    Args:
        memories: by field, of all rows.
        keys: by field, (n,) of each row.
        y: (n,) class indices.
        shares: (n_classes,) what is answered without a look-up.
        lengths: by field, of its texts.

    Returns:
        Fields that no two rows share, longest first; then those whose look-up is right more often
        than the majority class on the rows that share a value, most often right first.
    """
    unjudged: list[str] = []
    judged: dict[str, float] = {}
    for field, memory in memories.items():
        known, rows = memory.rows_of(keys[field])
        shared = np.asarray(memory.counts.sum(axis=1)).ravel()[rows] > 1  # with others than itself
        if not shared.any():
            unjudged.append(field)
            continue
        rows, truth = rows[shared], y[known][shared]
        right = 0
        for part, others in memory.blocks(rows):
            others[np.arange(len(others)), truth[part]] -= 1
            proba = (others + shares) / (others.sum(axis=1, keepdims=True) + 1)
            right += int((proba.argmax(axis=1) == truth[part]).sum())
        accuracy = right / len(truth)
        if accuracy > (truth == shares.argmax()).mean():
            judged[field] = accuracy
    unjudged.sort(key=lengths.__getitem__, reverse=True)
    return (*unjudged, *sorted(judged, key=judged.__getitem__, reverse=True))
