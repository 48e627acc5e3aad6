"""What every rung is to the rest of llabel: texts in, label probabilities out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from llabel.engine.checkpoint import CheckpointFolder
from llabel.events import Listener, ignore
from llabel.settings import ClassWeight
from llabel.task import Label, Probabilities, Task, Text


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """What the simpler rungs are told; each reads what concerns it.

    Attributes:
        seed: row order, initialisation, dropout; the same seed gives the same rung.
        trials: how many values of its one setting (learning rate, C) a trained rung may try.
        budget: seconds of training for all trials together; None is without limit.
        refit: train anew on train + validation with what was chosen.
        device: auto, cpu, cuda or cuda:N.
        max_seq_length: most tokens a text; None leaves it to the rung.
        embeddings: GloVe vectors: built-in name or file.
        encoder: built-in name, local folder or Hub id of a pre-trained encoder.
        class_weight: `balanced` lets every class count alike in the training loss.
    """

    seed: int = 0
    trials: int = 3
    budget: float | None = None
    refit: bool = False
    device: str = "auto"
    max_seq_length: int | None = None
    embeddings: str = "glove-6b-50d"
    encoder: str = "minilm-l6"
    class_weight: ClassWeight | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One training with one value of the setting that is searched.

    Attributes:
        settings: the value, by name: ``{"learning_rate": 0.001}`` or ``{"C": 1.0}``.
        number: its place among the values to try, from 0.
        validation_loss: log loss of its best epoch on validation, nats; None of a refit and of a
            training that diverged before an epoch was validated.
        epochs: passes over the rows up to that epoch; 0 where there are none (closed form).
        epoch_losses: validation log loss after each epoch.
        steps, rows, tokens, seconds: what the training took; validation not counted.
        stopped: why it ended: `epochs` (all were done), `patience`, `budget`, `diverged`, or
            `converged` where there are no epochs.
    """

    settings: dict[str, Any]
    validation_loss: float | None
    epochs: float = 0
    epoch_losses: tuple[float, ...] = ()
    steps: int = 0
    training_loss: float | None = None
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    stopped: str = "epochs"
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRecord:
    """What fitting did.

    Attributes:
        settings: everything that decides the kept rung, JSON-ready.
        trials: in the order they were made; empty for rungs that learn nothing.
        chosen: index of the trial with the lowest validation loss; None without trials.
        refit: the training on train + validation, if it was asked for; where it diverged, what was
            chosen is kept without it.
        trainable_parameters: numbers that training changed.
        parameters: numbers the rung computes with; both 0 for look-up tables.
        computing_parameters: those of them that stand in products: no embedding table (a tied head
            is one); 0 where they are not counted.
        weight_bytes: memory of a language model's weights, adapters included; 0 for other rungs.
        truncated: rows of train and validation whose texts were cut to fit. Of train, rungs that
            are only prompted count those that they read: examples, and a sample for the prior.
    """

    settings: dict[str, Any]
    trials: tuple[Trial, ...] = ()
    chosen: int | None = None
    refit: Trial | None = None
    trainable_parameters: int = 0
    parameters: int = 0
    computing_parameters: int = 0
    weight_bytes: int = 0
    truncated: dict[str, int]

    @property
    def kept_refit(self) -> Trial | None:
        """The refit, if the rung is what it made."""
        diverged = self.refit is not None and self.refit.stopped == "diverged"
        return None if diverged else self.refit


class Rung(Protocol):
    """A system of the ladder.

    After `fit`: `fields_`, `classes_`, `record_`, and `validation_proba_` (n_validation,
    n_classes), which is of the rung that was chosen, before any refit. After `load`: `fields_`,
    `classes_`. A rung that predicts with files outside its own folder (a base model, word vectors)
    tells them in `base_folder_`.
    """

    name: str
    fields_: tuple[str, ...]
    classes_: tuple[Label, ...]
    record_: FitRecord
    validation_proba_: Probabilities

    def prepare(
        self, fields: Sequence[str], classes: Sequence[Label], notify: Listener = ignore
    ) -> Self:
        """Fetch what it needs and check the settings, before any work; cheap.

        Raises:
            InputError: a setting cannot be used.
        """
        ...

    def fit(
        self, task: Task, *, checkpoints: CheckpointFolder | None = None, notify: Listener = ignore
    ) -> Self:
        """Learn from train, choose on validation; the test part is not looked at.

        Args:
            task: fields, classes, rows.
            checkpoints: where to keep snapshots; the same call with the same folder goes on there
                and ends with the same rung.
            notify: told of progress.
        """
        ...

    def predict_proba(self, texts: Sequence[Text], notify: Listener = ignore) -> Probabilities:
        """(n,) texts → (n, n_classes) probabilities in the order of `classes_`; rows sum to 1.

        Sends `RowsDone` events whose rows sum to n.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write `rung.json` and what belongs to it, each file whole or not at all."""
        ...

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto") -> Self:
        """What `save` wrote, ready to predict, bit for bit.

        Raises:
            InputError: the folder holds no finished rung.
        """
        ...
