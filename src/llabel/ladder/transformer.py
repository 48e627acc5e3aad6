"""A small Transformer encoder, trained from scratch on the task's own words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from llabel.engine.batching import Batch
from llabel.engine.checkpoint import CheckpointFolder
from llabel.engine.model import pick_device
from llabel.events import Listener, ignore
from llabel.ladder.contract import FitRecord, FitSettings
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

LAYERS, WIDTH, HEADS = 2, 128, 4
DROPOUT = 0.1
RECIPE = Recipe(
    learning_rate=5e-4,
    epochs=15,
    patience=3,
    batch_size=32,
    min_steps=100,
    schedule="cosine",
    token_budget=1024,
)


class TransformerRung:
    """A Transformer encoder (Vaswani et al. 2017, arXiv:1706.03762) that knows nothing beforehand.

    A row's fields are read as one text with a separator between them. The vocabulary is made of
    the frequent words of the training rows; other words share vectors by their hash. The head
    sees the mean of the last states.
    """

    name = "transformer"
    fields_: tuple[str, ...]
    classes_: tuple[Label, ...]
    record_: FitRecord
    validation_proba_: Probabilities

    def __init__(self, settings: FitSettings) -> None:
        self.settings = settings

    def prepare(
        self, fields: Sequence[str], classes: Sequence[Label], notify: Listener = ignore
    ) -> Self:
        """Check the settings; there is nothing to fetch.

        Raises:
            InputError: the device does not exist.
        """
        self.device_ = pick_device(self.settings.device)
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
        length = self.settings.max_seq_length or MAX_LENGTH
        self.tokeniser_ = WordTokeniser(frequent_words(task.train.texts), max_length=length)
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
                "max_seq_length": length,
                "words": len(self.tokeniser_.vocabulary),
                "layers": LAYERS,
                "width": WIDTH,
                "heads": HEADS,
                "dropout": DROPOUT,
            },
            train,
            validation,
        )
        return self

    def _untrained(self) -> "TransformerNetwork":
        tokeniser = self.tokeniser_
        return TransformerNetwork(tokeniser.own_ids, tokeniser.max_length, len(self.classes_))

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
        """Write `rung.json`, weights and words."""
        saved = SavedRung(
            rung=self.name,
            fields=self.fields_,
            classes=self.classes_,
            settings={"max_seq_length": self.tokeniser_.max_length},
            arrays=arrays_of(self.network_),
            words={"vocabulary": self.tokeniser_.vocabulary},
        )
        write_rung(folder, saved)

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto") -> Self:
        """What `save` wrote, ready to predict, bit for bit.

        Raises:
            InputError: the folder holds no finished rung.
        """
        saved = read_rung(folder, cls.name)
        rung = cls(FitSettings(device=device)).prepare(saved.fields, saved.classes)
        rung.tokeniser_ = WordTokeniser(
            saved.words.get("vocabulary", ()), max_length=int(saved.settings["max_seq_length"])
        )
        network = rung._untrained()
        set_arrays(network, saved.arrays)
        rung.network_ = network.to(rung.device_).eval()
        return rung


class TransformerNetwork(nn.Module):
    """Word and position vectors → pre-norm Transformer layers → mean → linear head.

    Args:
        n_ids: word ids.
        max_length: positions.
        n_classes: logits of a row.
    """

    def __init__(self, n_ids: int, max_length: int, n_classes: int) -> None:
        super().__init__()
        self.words = nn.Embedding(n_ids, WIDTH, padding_idx=PAD)
        self.positions = nn.Embedding(max_length, WIDTH)
        for embedding in (self.words, self.positions):
            nn.init.normal_(embedding.weight, std=0.1)
        self.dropout = nn.Dropout(DROPOUT)
        self.layers = nn.ModuleList(_layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, n_classes)

    def forward(self, batch: Batch) -> Tensor:
        """Batch of (rows, seq) → (rows, n_classes) logits."""
        lengths = batch.lengths.unsqueeze(1)  # (rows, 1)
        place = torch.arange(batch.input_ids.shape[1], device=lengths.device)  # (seq,)
        outside = place >= lengths  # (rows, seq)
        states = self.dropout(self.words(batch.input_ids) + self.positions(place))
        mask = outside if bool(outside.any()) else None  # attention is faster without
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=mask)
        states = self.norm(states)  # (rows, seq, width)
        mean = states.masked_fill(outside.unsqueeze(2), 0.0).sum(dim=1) / lengths
        logits: Tensor = self.head(self.dropout(mean))
        return logits


def _layer() -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 2 * WIDTH, DROPOUT, activation="gelu", batch_first=True, norm_first=True
    )
    layer.self_attn.dropout = 0.0  # PyTorch's fast attention on the CPU has none
    return layer
