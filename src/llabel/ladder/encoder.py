"""The encoder rung: a pre-trained encoder with a classification head, all of it fine-tuned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch

from llabel.assets import resolve_encoder
from llabel.engine.checkpoint import CheckpointFolder
from llabel.engine.model import load_tokenizer, pick_device
from llabel.errors import InputError
from llabel.events import Fetching, Listener, ignore
from llabel.ladder.contract import FitRecord, FitSettings
from llabel.ladder.encoder_model import (
    DROPOUT,
    FOLDER,
    EncoderNetwork,
    check_padding,
    digest_of,
    lasting_name,
    load_config,
    load_encoder,
    max_length,
    save_encoder,
)
from llabel.ladder.neural import Recipe, Rows, fit_network, predict_texts
from llabel.ladder.pairs import PairTokeniser
from llabel.ladder.rung_folder import SavedRung, read_rung, write_rung
from llabel.task import Label, Probabilities, Split, Task, Text

RECIPE = Recipe(learning_rate=1e-4, epochs=4, patience=1, batch_size=16, min_steps=100)


class EncoderRung:
    """A pre-trained encoder, fine-tuned end to end.

    A row of several fields is read as a sentence pair: the first field, and the others joined by
    newlines. The head sees the mean of the last layer's states.

    After `fit` or `load`: `fields_`, `classes_`, `network_`; after `fit` also `record_` and
    `validation_proba_`.
    """

    name = "encoder"
    fields_: tuple[str, ...]
    classes_: tuple[Label, ...]
    record_: FitRecord
    validation_proba_: Probabilities

    def __init__(self, settings: FitSettings) -> None:
        self.settings = settings

    def prepare(
        self, fields: Sequence[str], classes: Sequence[Label], notify: Listener = ignore
    ) -> Self:
        """Fetch the encoder and check it; its weights are not read yet.

        Raises:
            InputError: there is no such encoder, it is of another kind, or the length asked for
                leaves no room for text.
        """
        self.fields_, self.classes_ = tuple(fields), tuple(classes)
        self.device_ = pick_device(self.settings.device)
        name = self.settings.encoder
        self.folder_ = resolve_encoder(
            name, progress=lambda what, share: notify(Fetching(what, share))
        )
        config = load_config(self.folder_, name)
        tokenizer = load_tokenizer(self.folder_)
        length = max_length(
            self.settings.max_seq_length, name, self.folder_, config, tokenizer, notify
        )
        self.tokeniser_ = PairTokeniser(tokenizer, length, pair=len(self.fields_) > 1)
        return self

    def fit(
        self, task: Task, *, checkpoints: CheckpointFolder | None = None, notify: Listener = ignore
    ) -> Self:
        """Fine-tune on `task.train`; learning rate and epoch are chosen on `task.validation`.

        Args:
            task: its test part is not looked at.
            checkpoints: where to keep snapshots; the same call with the same folder goes on there.
            notify: told of progress.
        """
        self.prepare(task.fields, task.classes, notify)
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
                "encoder": lasting_name(self.settings.encoder),
                "max_seq_length": self.tokeniser_.max_length,
                "pooling": "mean",
                "dropout": DROPOUT,
            },
            train,
            validation,
        )
        return self

    def _untrained(self) -> "EncoderNetwork":
        network = EncoderNetwork(load_encoder(self.folder_), len(self.classes_))
        texts = [("it",) * len(self.fields_), ("it is good, and it is new",) * len(self.fields_)]
        check_padding(network, self.settings.encoder, self.tokeniser_.encode(texts)[0])
        return network

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
        """Write `encoder/` (transformers' format, with its tokenizer), the head, `rung.json`."""
        network = self.network_
        assert isinstance(network, EncoderNetwork)
        save_encoder(folder, network.encoder, self.tokeniser_.tokenizer)
        saved = SavedRung(
            rung=self.name,
            fields=self.fields_,
            classes=self.classes_,
            settings={
                "encoder": lasting_name(self.settings.encoder),
                "max_seq_length": self.tokeniser_.max_length,
                "sha256": digest_of(folder / FOLDER),
            },
            arrays={
                "head.weight": network.head.weight.detach().cpu().numpy(),
                "head.bias": network.head.bias.detach().cpu().numpy(),
            },
        )
        write_rung(folder, saved)

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto") -> Self:
        """What `save` wrote, ready to predict, bit for bit.

        Raises:
            InputError: the folder holds no finished rung.
        """
        saved = read_rung(folder, cls.name)
        encoder = folder / FOLDER
        if digest_of(encoder) != saved.settings["sha256"]:
            raise InputError(
                f"{encoder / 'model.safetensors'} is missing, damaged, or of another training than "
                f"{folder / 'rung.json'}. Train the rung again."
            )
        length = int(saved.settings["max_seq_length"])
        rung = cls(
            FitSettings(encoder=saved.settings["encoder"], max_seq_length=length, device=device)
        )
        rung.fields_, rung.classes_ = saved.fields, saved.classes
        rung.device_ = pick_device(device)
        rung.tokeniser_ = PairTokeniser(load_tokenizer(encoder), length, pair=len(saved.fields) > 1)
        network = EncoderNetwork(load_encoder(encoder), len(saved.classes))
        head = {n: torch.from_numpy(saved.arrays[f"head.{n}"]) for n in ("weight", "bias")}
        network.head.load_state_dict(head)
        rung.network_ = network.to(rung.device_).eval()
        return rung
