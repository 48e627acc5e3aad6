"""A bidirectional LSTM over pre-trained word vectors, trained with early stopping."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from llabel.engine.batching import Batch
from llabel.engine.checkpoint import CheckpointFolder
from llabel.engine.model import pick_device
from llabel.events import Listener, ignore
from llabel.ladder.contract import FitRecord, FitSettings
from llabel.ladder.glove import Glove, fetch_glove, lasting_name, load_glove
from llabel.ladder.neural import (
    Recipe,
    Rows,
    arrays_of,
    fit_network,
    predict_texts,
    set_arrays,
)
from llabel.ladder.rung_folder import SavedRung, read_rung, write_rung
from llabel.ladder.words import MAX_LENGTH, PAD, WordTokeniser, frequent_words
from llabel.task import Label, Probabilities, Split, Task, Text

HIDDEN = 96  # of each direction
DROPOUT = 0.3
RECIPE = Recipe(
    learning_rate=1e-3,
    epochs=15,
    patience=3,
    batch_size=32,
    min_steps=100,
    warmup_ratio=0.05,
    schedule="cosine",
    token_budget=4096,
)


class RNNRung:
    """A bidirectional LSTM (Hochreiter & Schmidhuber 1997) over GloVe vectors.

    A row's fields are read as one text with a separator between them. Each frequent word of the
    training rows has a learnt vector that is added to its pre-trained one; other words keep their
    pre-trained vector, and words without any share learnt ones by their hash. Maximum and mean of
    the states over the words go to a linear head.
    """

    name = "rnn"
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
            InputError: there are none of that name, or the device does not exist.
        """
        self.device_ = pick_device(self.settings.device)
        self.base_folder_ = fetch_glove(self.settings.embeddings, notify)
        self.fields_, self.classes_ = tuple(fields), tuple(classes)
        return self

    def fit(
        self, task: Task, *, checkpoints: CheckpointFolder | None = None, notify: Listener = ignore
    ) -> Self:
        """Train on `task.train`; learning rate and epoch are chosen on `task.validation`.

        Args:
            task: its test part is not looked at.
            checkpoints: where to keep snapshots; the same call with the same folder goes on there.
            notify: told of progress.
        """
        self.prepare(task.fields, task.classes, notify)
        glove = load_glove(self.settings.embeddings, notify)
        self._read(
            glove,
            frequent_words(task.train.texts, glove.words),
            self.settings.max_seq_length or MAX_LENGTH,
        )
        train, validation = self._rows(task.train), self._rows(task.validation)
        fitted = fit_network(
            self._untrained,
            train,
            validation,
            recipe=RECIPE,
            settings=self.settings,
            device=self.device_,
            checkpoints=checkpoints,
            notify=notify,
        )
        self.network_ = fitted.network
        self.validation_proba_ = fitted.validation_proba
        self.record_ = fitted.record(
            RECIPE,
            {
                "embeddings": lasting_name(self.settings.embeddings),
                "max_seq_length": self.tokeniser_.max_length,
                "words": len(self.tokeniser_.vocabulary),
                "hidden": HIDDEN,
                "dropout": DROPOUT,
            },
            train,
            validation,
            frozen=self.glove_.vectors.size,
        )
        return self

    def _read(self, glove: Glove, vocabulary: Sequence[str], max_length: int) -> None:
        self.glove_ = glove
        self.tokeniser_ = WordTokeniser(vocabulary, glove.words, max_length=max_length)
        self.frozen_ = _frozen(self.tokeniser_, glove)

    def _untrained(self) -> "LSTMNetwork":
        return LSTMNetwork(self.frozen_, self.tokeniser_.own_ids, len(self.classes_))

    def _rows(self, split: Split) -> Rows:
        examples, truncated = self.tokeniser_.encode(split.texts, split.y.tolist())
        return Rows(examples, split.y, truncated)

    def predict_proba(self, texts: Sequence[Text], notify: Listener = ignore) -> Probabilities:
        """(n,) texts → (n, n_classes) probabilities in the order of `classes_`."""
        return predict_texts(
            self.network_,
            lambda window: self.tokeniser_.encode(window)[0],
            texts,
            n_classes=len(self.classes_),
            token_budget=RECIPE.predict_budget(self.device_),
            device=self.device_,
            notify=notify,
        )

    def save(self, folder: Path) -> None:
        """Write `rung.json`, weights and words; the word vectors are named, not copied."""
        saved = SavedRung(
            rung=self.name,
            fields=self.fields_,
            classes=self.classes_,
            settings={
                "embeddings": lasting_name(self.settings.embeddings),
                **self.glove_.digests(),
                "max_seq_length": self.tokeniser_.max_length,
            },
            arrays=arrays_of(self.network_),
            words={"vocabulary": self.tokeniser_.vocabulary},
        )
        write_rung(folder, saved)

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto") -> Self:
        """What `save` wrote, ready to predict, bit for bit.

        Raises:
            InputError: the folder holds no finished rung, or its word vectors are gone or changed.
        """
        saved = read_rung(folder, cls.name)
        name = str(saved.settings["embeddings"])
        rung = cls(replace(FitSettings(device=device), embeddings=name))
        rung.prepare(saved.fields, saved.classes)
        glove = load_glove(name)
        glove.check(saved.settings, folder, name)
        vocabulary = saved.words.get("vocabulary", ())
        rung._read(glove, vocabulary, int(saved.settings["max_seq_length"]))
        network = rung._untrained()
        set_arrays(network, saved.arrays)
        rung.network_ = network.to(rung.device_).eval()
        return rung


def _frozen(tokeniser: WordTokeniser, glove: Glove) -> Tensor:
    """(n_ids, dimensions) pre-trained vectors by id; zero where there is none."""
    dimensions = glove.vectors.shape[1]
    own = np.zeros((tokeniser.own_ids, dimensions), dtype=np.float32)
    first = tokeniser.own_ids - len(tokeniser.vocabulary)
    for row, word in enumerate(tokeniser.vocabulary, start=first):
        if word in glove.words:
            own[row] = glove.vectors[glove.words[word]]
    return torch.from_numpy(np.concatenate([own, glove.vectors]))


class LSTMNetwork(nn.Module):
    """Word vectors → LSTMs in both directions → maximum and mean of the states → linear head.

    The second LSTM reads each row backwards from its own last word, not from the padding's end:
    neither ever sees padding before a word, and a row's result does not depend on its neighbours.

    Args:
        frozen: (n_ids, dimensions) pre-trained vectors; not trained, not saved.
        own_ids: how many ids, the first ones, have learnt vectors that are added.
        n_classes: logits of a row.
    """

    frozen: Tensor

    def __init__(self, frozen: Tensor, own_ids: int, n_classes: int) -> None:
        super().__init__()
        dimensions = frozen.shape[1]
        self.register_buffer("frozen", frozen, persistent=False)
        self.own_ids = own_ids
        self.learnt = nn.Embedding(own_ids, dimensions, padding_idx=PAD)
        without = (frozen[:own_ids] == 0).all(dim=1)
        without[PAD] = False
        nn.init.zeros_(self.learnt.weight)
        with torch.no_grad():  # as large as the pre-trained ones
            self.learnt.weight[without] = torch.randn(int(without.sum()), dimensions) * 0.4
        self.forwards = nn.LSTM(dimensions, HIDDEN, batch_first=True)
        self.backwards = nn.LSTM(dimensions, HIDDEN, batch_first=True)
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(4 * HIDDEN, n_classes)

    def forward(self, batch: Batch) -> Tensor:
        """Batch of (rows, seq) → (rows, n_classes) logits."""
        ids, lengths = batch.input_ids, batch.lengths.unsqueeze(1)  # (rows, seq), (rows, 1)
        place = torch.arange(ids.shape[1], device=ids.device)  # (seq,)
        turned = ids.gather(1, (lengths - 1 - place).clamp(min=0))  # (rows, seq)
        states = torch.cat(
            [self.forwards(self._embed(ids))[0], self.backwards(self._embed(turned))[0]], dim=2
        )  # (rows, seq, 2 hidden); in the order each was read, which pooling does not mind
        outside = (place >= lengths).unsqueeze(2)  # (rows, seq, 1)
        mean = states.masked_fill(outside, 0.0).sum(dim=1) / lengths
        largest = states.masked_fill(outside, -1.0).amax(dim=1)  # states lie in (-1, 1)
        logits: Tensor = self.head(self.dropout(torch.cat([mean, largest], dim=1)))
        return logits

    def _embed(self, ids: Tensor) -> Tensor:
        """(rows, seq) ids → (rows, seq, dimensions)."""
        own = ids.masked_fill(ids >= self.own_ids, PAD)
        known = nn.functional.embedding(ids, self.frozen)
        return self.dropout(known + self.learnt(own))
