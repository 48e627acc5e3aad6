"""One loop: module + examples + optimiser settings → trained weights, resumable bit for bit."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from llabel.engine.batching import FULL_VOCABULARY, Batch, Example, collate, micro_batches
from llabel.engine.checkpoint import CheckpointFolder, Snapshot
from llabel.events import EpochDone, Listener, StageStarted, StepDone, ignore


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How to train.

    Attributes:
        learning_rate: peak of the schedule.
        schedule: `cosine`, `linear` or `constant`, after the warm-up.
        warmup_ratio: share of all steps with a rising learning rate.
        epochs: passes over the rows.
        batch_size: rows of one step, however many micro-batches it takes.
        token_budget: most padded tokens of one micro-batch; it bounds memory, not the result.
        weight_decay, betas, max_grad_norm: AdamW's (Loshchilov & Hutter 2019) and clipping.
        patience: epochs without a better validation loss before stopping; None never stops early.
        seed: order of the rows, adapter initialisation, dropout.
    """

    learning_rate: float
    schedule: str
    warmup_ratio: float
    epochs: int
    batch_size: int
    token_budget: int
    weight_decay: float
    max_grad_norm: float
    patience: int | None
    seed: int
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands; travels with each checkpoint."""

    step: int = 0
    seconds: float = 0.0
    rows: int = 0
    tokens: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf
    stopped: bool = False
    epoch_losses: tuple[float, ...] = ()


@dataclass(slots=True)
class Trainer:
    """Trains the parameters of `module` that require gradients.

    Args:
        module: put into training mode by `run`.
        loss: batch → sum of the losses of its choices.
        settings: optimiser settings.
        validate: called after each epoch in evaluation mode → validation loss; None trains on
            to the last epoch and keeps it.
        checkpoints: where to keep snapshots; None keeps none.
        notify: told of the start, each step and each validation.
        stage: what the training is called there.
    """

    module: nn.Module
    loss: Callable[[Batch], Tensor]
    settings: TrainingSettings
    validate: Callable[[], float] | None = None
    checkpoints: CheckpointFolder | None = None
    notify: Listener = ignore
    stage: str = "training"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def run(self, examples: Sequence[Example]) -> Progress:
        """Train, or go on from the newest checkpoint, and leave the best weights in the module."""
        settings = self.settings
        steps_per_epoch = math.ceil(len(examples) / settings.batch_size)
        steps = steps_per_epoch * settings.epochs
        parameters = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(
            parameters.values(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        schedule = _schedule(optimizer, settings, steps)
        torch.manual_seed(settings.seed)
        progress, best = self._resume(parameters, optimizer, schedule)
        self.notify(StageStarted(self.stage, len(examples) * settings.epochs, progress.rows))
        while progress.step < steps and not progress.stopped:
            epoch, at = divmod(progress.step, steps_per_epoch)
            rows = _row_order(len(examples), settings.seed, epoch)
            rows = rows[at * settings.batch_size : (at + 1) * settings.batch_size]
            started = time.perf_counter()
            self.module.train()
            step_examples = [examples[row] for row in rows]
            loss = self._step(step_examples, optimizer)
            rate = float(schedule.get_last_lr()[0])
            schedule.step()
            seconds = time.perf_counter() - started
            tokens = sum(len(example.input_ids) for example in step_examples)
            progress = replace(
                progress,
                step=progress.step + 1,
                seconds=progress.seconds + seconds,
                rows=progress.rows + len(rows),
                tokens=progress.tokens + tokens,
            )
            self.notify(
                StepDone(
                    self.stage, progress.step, steps, progress.step / steps_per_epoch, loss, rate,
                    len(rows), tokens, seconds,
                )
            )  # fmt: skip
            if progress.step % steps_per_epoch == 0:
                progress, best = self._end_of_epoch(progress, epoch + 1, parameters, best)
            done = progress.step == steps or progress.stopped
            if self.checkpoints and (done or self.checkpoints.due(progress.step)):
                self.checkpoints.save(
                    progress.step, self._snapshot(progress, parameters, optimizer, best)
                )
        _copy_into(parameters, best)
        self.module.eval()
        return progress

    def _step(self, examples: Sequence[Example], optimizer: torch.optim.Optimizer) -> float:
        """One optimiser step over exactly these rows; returns their mean loss."""
        total = sum(_loss_terms(example) for example in examples)
        optimizer.zero_grad(set_to_none=True)
        summed = 0.0
        lengths = [len(example.input_ids) for example in examples]
        for group in micro_batches(lengths, self.settings.token_budget):
            batch = collate([examples[row] for row in group]).to(self.device)
            loss = self.loss(batch) / total
            loss.backward()
            summed += loss.item()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        optimizer.step()
        if not math.isfinite(summed):
            raise FloatingPointError(f"the loss became {summed}: lower the learning rate")
        return summed

    def _end_of_epoch(
        self, progress: Progress, epoch: int, parameters: dict[str, Any], best: dict[str, Tensor]
    ) -> tuple[Progress, dict[str, Tensor]]:
        if self.validate is None:
            return replace(progress, best_epoch=epoch), best
        self.module.eval()
        loss = self.validate()
        if not math.isfinite(loss):  # else no epoch would be the best, and none be kept
            raise FloatingPointError(f"the validation loss became {loss}: lower the learning rate")
        better = loss < progress.best_loss
        if better:
            best = {name: p.detach().clone() for name, p in parameters.items()}
            progress = replace(progress, best_epoch=epoch, best_loss=loss)
        patience = self.settings.patience
        progress = replace(
            progress,
            stopped=patience is not None and epoch - progress.best_epoch >= patience,
            epoch_losses=(*progress.epoch_losses, loss),
        )
        self.notify(EpochDone(self.stage, epoch, loss, better))
        return progress, best

    def _snapshot(
        self,
        progress: Progress,
        parameters: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        best: dict[str, Tensor],
    ) -> Snapshot:
        tensors: dict[str, Tensor] = {"rng.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        for name, parameter in parameters.items():
            tensors[f"parameter.{name}"] = parameter.detach()
            for key, value in optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        tensors |= {f"best.{name}": value for name, value in best.items()}
        return Snapshot(tensors, {n: getattr(progress, n) for n in Progress.__slots__})

    def _resume(
        self,
        parameters: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> tuple[Progress, dict[str, Tensor]]:
        """Go on from the newest checkpoint, if there is one."""
        snapshot = self.checkpoints.newest() if self.checkpoints else None
        if snapshot is None:
            return Progress(), {}
        state = {**snapshot.state, "epoch_losses": tuple(snapshot.state["epoch_losses"])}
        progress = Progress(**state)
        tensors = snapshot.tensors
        _copy_into(parameters, _below("parameter.", tensors))
        for name, parameter in parameters.items():
            optimizer.state[parameter] = {
                key: tensors[f"optimizer.{key}.{name}"].to(
                    "cpu" if key == "step" else parameter.device
                )
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        # The schedule is a function of the step alone. LambdaLR counts from its first call.
        schedule.last_epoch = progress.step
        for group, rate in zip(optimizer.param_groups, _rates(schedule), strict=True):
            group["lr"] = rate
        schedule._last_lr = [group["lr"] for group in optimizer.param_groups]
        torch.set_rng_state(tensors["rng.cpu"])
        if "rng.cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng.cuda"], self.device)
        best = {n: t.to(self.device) for n, t in _below("best.", tensors).items()}
        return progress, best


def _schedule(
    optimizer: torch.optim.Optimizer, settings: TrainingSettings, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    from transformers import get_scheduler

    name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
    warmup = math.ceil(settings.warmup_ratio * steps)
    return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)


def _rates(schedule: Any) -> list[float]:
    return [
        base * function(schedule.last_epoch)
        for base, function in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]


def _row_order(rows: int, seed: int, epoch: int) -> list[int]:
    """A fresh order each epoch: a function of seed and epoch, so that nothing need be saved."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(rows, generator=generator).tolist()


def _loss_terms(example: Example) -> int:
    """What a row counts in the step's mean: label choices make one term, tokens one each."""
    return sum(b == FULL_VOCABULARY for b in example.branchings) or 1


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


@torch.no_grad()
def _copy_into(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)
