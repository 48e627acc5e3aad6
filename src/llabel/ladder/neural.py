"""What the neural rungs share: one search over learning rates, one way to train and to predict."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from llabel.engine.allocator import keep_freed_memory
from llabel.engine.answer import weighted_cross_entropy
from llabel.engine.batching import Batch, Example, collate, micro_batches
from llabel.engine.checkpoint import CheckpointFolder
from llabel.engine.training import Progress, Trainer, TrainingSettings, seeded
from llabel.events import Listener, Note, RowsDone, StageStarted, ignore
from llabel.ladder.class_weight import weigh
from llabel.ladder.contract import FitRecord, FitSettings, Trial
from llabel.ladder.trials import REFIT, around, best_of, refit_or_keep, stage
from llabel.metrics import log_loss
from llabel.settings import ClassWeight
from llabel.task import ClassIndices, Probabilities, Text

# Rows are encoded and sorted by length within such windows when predicting.
PREDICT_WINDOW = 4096
# No text that fits has more characters a token than this on average; what lies beyond is cut
# before it is tokenised, which takes time and memory in proportion to the text.
CHARACTERS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a kind of network is trained; only the learning rate is searched.

    Attributes:
        learning_rate: the usual one; the first trial's.
        epochs, patience, batch_size, warmup_ratio, weight_decay, schedule: see
            `TrainingSettings`.
        min_steps: fewest steps of all epochs together: few rows are gone through several times an
            epoch, since a network needs its steps however few they are (Mosbach et al. 2021,
            arXiv:2006.04884, section 6).
        token_budget: most tokens of a micro-batch on the CPU, where small ones stay in its cache.
        token_budget_cuda: the same on a GPU.
    """

    learning_rate: float
    epochs: int
    patience: int
    batch_size: int
    min_steps: int = 0
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    schedule: str = "linear"
    token_budget: int = 512
    token_budget_cuda: int = 32_768

    def budget(self, device: torch.device) -> int:
        """Most tokens of a micro-batch on `device`."""
        return self.token_budget_cuda if device.type == "cuda" else self.token_budget

    def predict_budget(self, device: torch.device) -> int:
        """The same without gradients, which keeps far less in memory."""
        return 4 * self.budget(device)

    def passes(self, rows: int) -> int:
        """How often an epoch goes through so many rows."""
        return max(1, math.ceil(self.min_steps * self.batch_size / (self.epochs * rows)))

    def steps(self, rows: int) -> int:
        """Steps of going through so many rows once."""
        return math.ceil(rows / self.batch_size)

    def record(self) -> dict[str, Any]:
        """What of it decides the result, JSON-ready."""
        return {n: v for n, v in asdict(self).items() if not n.startswith("token_budget")}


@dataclass(frozen=True, slots=True)
class Rows:
    """Encoded rows of one part.

    Attributes:
        examples: (n,) with the class as the only target.
        y: (n,) class indices.
        truncated: how many texts were cut to fit.
    """

    examples: list[Example]
    y: ClassIndices
    truncated: int


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a search came to.

    Attributes:
        network: the chosen one, or what the refit made; in evaluation mode.
        trials, chosen, refit: see `FitRecord`.
        validation_proba: (n_validation, n_classes) of the chosen one, before any refit.
        class_weight: that it was trained with.
    """

    network: nn.Module
    trials: tuple[Trial, ...]
    chosen: int
    refit: Trial | None
    validation_proba: Probabilities
    class_weight: ClassWeight | None

    def record(
        self,
        recipe: Recipe,
        settings: Mapping[str, Any],
        train: Rows,
        validation: Rows,
        *,
        frozen: int = 0,
    ) -> FitRecord:
        """What a rung tells of its fit.

        Args:
            recipe: that it was trained by.
            settings: what else decides the rung.
            train, validation: what it was trained and chosen on.
            frozen: numbers it computes with beside the network's parameters.
        """
        trainable, parameters = count(self.network)
        chosen = self.trials[self.chosen].settings
        return FitRecord(
            settings={
                **recipe.record(),
                **chosen,
                "class_weight": self.class_weight,
                **settings,
            },
            trials=self.trials,
            chosen=self.chosen,
            refit=self.refit,
            trainable_parameters=trainable,
            parameters=parameters + frozen,
            truncated={"train": train.truncated, "validation": validation.truncated},
        )


def example(input_ids: Sequence[int], label: int = 0, position: int = 0) -> Example:
    """A row for a classifier: one choice, its right class as the target.

    Args:
        input_ids: (seq,) at least one.
        label: class index; not read when predicting.
        position: where the second text begins, for networks that tell two texts apart.
    """
    return Example(tuple(input_ids), (position,), (0,), (label,))


def share_room(lengths: Sequence[int], room: int) -> list[int]:
    """How many tokens to keep of each text, so that they fit: the longest ones are cut first."""
    keep = list(lengths)
    order = sorted(range(len(keep)), key=keep.__getitem__)
    for left, text in zip(range(len(order), 0, -1), order, strict=True):
        keep[text] = min(keep[text], room // left)
        room -= keep[text]
    return keep


def fit_network(
    build: Callable[[], nn.Module],
    train: Rows,
    validation: Rows,
    *,
    recipe: Recipe,
    settings: FitSettings,
    device: torch.device,
    checkpoints: CheckpointFolder | None,
    notify: Listener = ignore,
) -> Fitted:
    """Train with every learning rate that may be tried, keep the best, refit if asked to.

    Args:
        build: makes an untrained network on the CPU, batch → (rows, n_classes) logits; called
            with a seeded random state.
        train, validation: rows to learn from and to choose on.
        recipe, settings: how.
        device: where.
        checkpoints: of the first trial; those of the others and of the refit lie beside it.
        notify: told of progress.

    Raises:
        InputError: every trial diverged.
    """
    if device.type == "cpu":
        keep_freed_memory()
    if cut := train.truncated + validation.truncated:
        total = len(train.examples) + len(validation.examples)
        notify(Note(f"{cut} of {total} rows are longer than the rung reads: their end was cut."))
    rates = around(recipe.learning_rate, settings.trials)
    passes = recipe.passes(len(train.examples))
    session = _Session(build, recipe, passes, settings, device, notify)
    trained: dict[int, _Trained] = {}  # the best so far, and the latest until the next one begins

    def run(number: int, rate: float, limit: float | None) -> Trial:
        drop_losers()  # each holds a whole network
        folder = checkpoints and (checkpoints.beside(f"trial-{number}") if number else checkpoints)
        name = stage(number, len(rates))
        trained[number] = session.train(train, validation, rate, recipe.epochs, limit, folder, name)
        return _trial(rate, trained[number].progress, passes)

    def keep(number: int) -> None:
        for other in set(trained) - {number}:
            del trained[other]

    def drop_losers() -> None:
        for other in list(trained)[1:]:
            del trained[other]

    trials, chosen = best_of(rates, run, keep, budget=settings.budget)
    drop_losers()
    best, rate = trained[trials[chosen].number], trials[chosen].settings["learning_rate"]
    proba = best.proba
    if proba is None:  # it was trained by an earlier process
        notify(StageStarted("scoring validation rows", len(validation.examples)))
        budget = recipe.predict_budget(device)
        proba = predict(best.network, validation.examples, budget, device, notify)
    if not settings.refit:
        return Fitted(best.network, trials, chosen, None, proba, settings.class_weight)
    epochs = best.progress.best_step / recipe.steps(passes * len(train.examples))
    both = Rows(train.examples + validation.examples, np.concatenate([train.y, validation.y]), 0)
    folder = checkpoints and checkpoints.beside("refit")
    network = best.network

    def train_anew() -> Trial:
        nonlocal network
        again = session.train(both, None, rate, epochs, None, folder, REFIT)
        network = again.network
        return _trial(rate, again.progress, passes)

    refit = refit_or_keep(train_anew, rate, notify)
    return Fitted(network, trials, chosen, refit, proba, settings.class_weight)


@dataclass(frozen=True, slots=True)
class _Trained:
    """What came of one training; `proba` of validation where this process saw its best epoch."""

    network: nn.Module
    progress: Progress
    proba: Probabilities | None


@dataclass(frozen=True, slots=True)
class _Session:
    """What all trainings of a search have in common."""

    build: Callable[[], nn.Module]
    recipe: Recipe
    passes: int
    settings: FitSettings
    device: torch.device
    notify: Listener

    def train(
        self,
        rows: Rows,
        validation: Rows | None,
        rate: float,
        epochs: float,
        limit: float | None,
        checkpoints: CheckpointFolder | None,
        stage: str,
    ) -> _Trained:
        recipe, device, seed = self.recipe, self.device, self.settings.seed
        with seeded(seed, device):
            network = self.build().to(device)

        seen: dict[float, Probabilities] = {}  # by loss, the best so far

        def validation_loss() -> float:
            assert validation is not None
            self.notify(StageStarted("validating", len(validation.examples)))
            budget = recipe.predict_budget(device)
            proba = predict(network, validation.examples, budget, device, self.notify)
            loss = log_loss(validation.y, proba)
            if loss < min(seen, default=math.inf):
                seen.clear()
                seen[loss] = proba
            return loss

        trainer = Trainer(
            module=network,
            loss=lambda batch: class_loss(network, batch),
            settings=TrainingSettings(
                learning_rate=rate,
                schedule=recipe.schedule,
                warmup_ratio=recipe.warmup_ratio,
                epochs=epochs,
                batch_size=recipe.batch_size,
                token_budget=recipe.budget(device),
                weight_decay=recipe.weight_decay,
                max_grad_norm=1.0,
                patience=None if validation is None else recipe.patience,
                seed=seed,
                betas=(0.9, 0.999),
                time_limit=limit,
                fused=True,
            ),
            validate=None if validation is None else validation_loss,
            checkpoints=checkpoints,
            notify=self.notify,
            stage=stage,
            device=device,
        )
        examples = weigh(rows.examples, rows.y, self.settings.class_weight)
        with seeded(seed, device):
            progress = trainer.run(examples * self.passes)
        return _Trained(network, progress, seen.get(progress.best_loss))


def _trial(rate: float, progress: Progress, passes: int) -> Trial:
    judged = bool(progress.epoch_losses)
    return Trial(
        settings={"learning_rate": rate},
        validation_loss=progress.best_loss if judged else None,
        epochs=progress.best_epoch * passes,
        epoch_losses=progress.epoch_losses,
        steps=progress.step,
        training_loss=progress.loss_sum / progress.step if progress.step else None,
        rows=progress.rows,
        tokens=progress.tokens,
        seconds=progress.seconds,
        stopped=progress.reason,
    )


def class_loss(network: nn.Module, batch: Batch) -> Tensor:
    """Sum over the batch's rows of the cross-entropy of their class, nats, times their weight."""
    return weighted_cross_entropy(network(batch).float(), batch.targets, batch.weights)


@torch.inference_mode()
def predict(
    network: nn.Module,
    examples: Sequence[Example],
    token_budget: int,
    device: torch.device,
    notify: Listener = ignore,
) -> Probabilities:
    """Class probabilities of a network in evaluation mode: (n, n_classes), rows sum to 1.

    Args:
        network: batch → (rows, n_classes) logits.
        examples: (n,) rows; their targets are not read.
        token_budget: most padded tokens of a micro-batch.
        device: where the network is.
        notify: told of `RowsDone` after each micro-batch.
    """
    network.eval()
    parts: list[tuple[list[int], np.ndarray]] = []
    for rows in micro_batches([len(row.input_ids) for row in examples], token_budget):
        batch = collate([examples[row] for row in rows]).to(device)
        parts.append((rows, network(batch).double().softmax(dim=1).cpu().numpy()))
        notify(RowsDone(len(rows)))
    out = np.empty((len(examples), parts[0][1].shape[1] if parts else 0))
    for rows, proba in parts:
        out[rows] = proba
    return out / out.sum(axis=1, keepdims=True)


def predict_texts(
    network: nn.Module,
    encode: Callable[[Sequence[Text]], Sequence[Example]],
    texts: Sequence[Text],
    *,
    n_classes: int,
    token_budget: int,
    device: torch.device,
    notify: Listener = ignore,
) -> Probabilities:
    """Encode and predict window by window: (n,) texts → (n, n_classes)."""
    parts = [np.empty((0, n_classes))]
    for start in range(0, len(texts), PREDICT_WINDOW):
        rows = encode(texts[start : start + PREDICT_WINDOW])
        parts.append(predict(network, rows, token_budget, device, notify))
    return np.concatenate(parts)


def arrays_of(network: nn.Module) -> dict[str, npt.NDArray[Any]]:
    """What a network is saved by: its parameters."""
    return {name: p.detach().cpu().numpy() for name, p in network.named_parameters()}


def set_arrays(network: nn.Module, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Put back what `arrays_of` gave."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    network.load_state_dict(tensors)


def count(network: nn.Module) -> tuple[int, int]:
    """Numbers that training changes, and numbers in all."""
    sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)
