"""One loop: module + examples + optimiser settings → trained weights, resumable bit for bit."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from llabel.engine.batching import (
    FULL_VOCABULARY,
    Batch,
    Example,
    collate,
    micro_batches,
    shared_start,
)
from llabel.engine.checkpoint import CheckpointFolder, Snapshot
from llabel.engine.optimisers import STATE, make_optimizer, packed_state, unpacked_state
from llabel.engine.prefix import pays
from llabel.events import EpochDone, Listener, Note, StageStarted, StepDone, ignore
from llabel.settings import steps_per_epoch


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How to train.

    Attributes:
        learning_rate: peak of the schedule.
        schedule: `cosine`, `linear` or `constant`, after the warm-up.
        warmup_ratio: share of all steps with a rising learning rate, all but the last at most.
        epochs: passes over the rows; the last one may be a part.
        max_steps: steps in place of epochs.
        warmup_steps: steps in place of `warmup_ratio`.
        optim: `adamw`, or bitsandbytes' `adamw_8bit` or `paged_adamw_8bit` (see
            `llabel.engine.optimisers`).
        batch_size: rows of one step, however many micro-batches it takes.
        token_budget: most padded tokens of one micro-batch; it bounds memory, not the result.
        weight_decay, betas, max_grad_norm: AdamW's (Loshchilov & Hutter 2019) and clipping.
        patience: epochs without a better validation loss before stopping; None never stops early.
        seed: order of the rows, adapter initialisation, dropout.
        time_limit: seconds of training, validation not counted, after which it ends as if at the
            end of an epoch; the learning rate has run through its schedule by then.
        fused: PyTorch's fused AdamW, for where all weights are trained: on the CPU it reads and
            writes each of them once a step; rounding differs.
    """

    learning_rate: float
    schedule: str
    warmup_ratio: float
    epochs: float
    batch_size: int
    token_budget: int
    weight_decay: float
    max_grad_norm: float
    patience: int | None
    seed: int
    betas: tuple[float, float] = (0.9, 0.99)
    time_limit: float | None = None
    fused: bool = False
    max_steps: int | None = None
    warmup_steps: int | None = None
    optim: str = "adamw"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands; travels with each checkpoint.

    Attributes:
        step, rows, tokens: done so far, padding not counted.
        seconds: that it took; validation not counted.
        loss_sum: of the steps' losses.
        best_epoch: the epoch with the lowest validation loss, from 1; one that `time_limit` cut
            short counts.
        best_step: the step after which that was.
        best_loss: that loss, nats.
        stopped: whether it ended before its last step.
        reason: why it ends: `epochs` (all were done), `patience`, `budget` (`time_limit`) or
            `diverged` (a loss was no number any more; an epoch before had been validated).
        epoch_losses: validation loss after each epoch.
    """

    step: int = 0
    seconds: float = 0.0
    rows: int = 0
    tokens: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf
    stopped: bool = False
    epoch_losses: tuple[float, ...] = ()
    best_step: int = 0
    reason: str = "epochs"
    loss_sum: float = 0.0


Watch: TypeAlias = Callable[[int, int, Callable[[], float]], None]
"""(step, all steps, a way to ask for the validation loss now) → nothing, or an exception that ends
the training. Once a step's loss was asked for, the next step has its weights and random numbers as
if it had not been."""


@dataclass(slots=True)
class Trainer:
    """Trains the parameters of `module` that require gradients.

    On CUDA, going on is as exact as PyTorch's kernels are: flash attention's backward pass adds up
    long rows in whatever order they come. Where `loss` keeps what it made of a row (see
    `llabel.engine.lower_states`), it makes it anew, beside other rows, which in float32 may round
    otherwise.

    Args:
        module: put into training mode by `run`.
        loss: batch → sum of the losses of its choices.
        settings: optimiser settings.
        validate: called after each epoch in evaluation mode → validation loss; None trains on
            to the last epoch and keeps it.
        checkpoints: where to keep snapshots; None keeps none.
        notify: told of the start, each step and each validation.
        stage: what the training is called there.
        watch: called after each step; what it asks decides nothing here.
        reads_start_once: whether `loss` spares work where all rows of a batch begin alike.
    """

    module: nn.Module
    loss: Callable[[Batch], Tensor]
    settings: TrainingSettings
    validate: Callable[[], float] | None = None
    checkpoints: CheckpointFolder | None = None
    notify: Listener = ignore
    stage: str = "training"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    watch: Watch | None = None
    reads_start_once: bool = False

    def run(self, examples: Sequence[Example]) -> Progress:
        """Train, or go on from the newest checkpoint, and leave the best weights in the module.

        Raises:
            FloatingPointError: the loss became infinite or NaN before any epoch was validated.
        """
        settings = self.settings
        per_epoch = steps_per_epoch(len(examples), settings.batch_size)
        steps = settings.max_steps or max(1, round(per_epoch * settings.epochs))
        parameters = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        optimizer = make_optimizer(
            settings.optim,
            parameters.values(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=settings.fused,
        )
        rate_at = _schedule(optimizer, settings, steps)
        torch.manual_seed(settings.seed)
        progress, best = self._resume(parameters, optimizer)
        rows_in_all = round(len(examples) * steps / per_epoch)
        self.notify(StageStarted(self.stage, rows_in_all, progress.rows, progress.step))
        while progress.step < steps and not progress.stopped:
            epoch, at = divmod(progress.step, per_epoch)
            rows = row_order(len(examples), settings.seed, epoch)
            rows = rows[at * settings.batch_size : (at + 1) * settings.batch_size]
            started = time.perf_counter()
            self.module.train()
            step_examples = [examples[row] for row in rows]
            rate = rate_at(progress)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = self._step(step_examples, optimizer)
            if not math.isfinite(loss):
                progress = self._diverged(progress, f"the loss became {loss}")
                if self.checkpoints:
                    snapshot = self._snapshot(progress, parameters, None, best)
                    self.checkpoints.save(progress.step, snapshot)
                break
            seconds = time.perf_counter() - started
            tokens = sum(len(example.input_ids) for example in step_examples)
            progress = replace(
                progress,
                step=progress.step + 1,
                seconds=progress.seconds + seconds,
                loss_sum=progress.loss_sum + loss,
                rows=progress.rows + len(rows),
                tokens=progress.tokens + tokens,
            )
            self.notify(
                StepDone(
                    self.stage, progress.step, steps, progress.step / per_epoch, loss, rate,
                    len(rows), tokens, seconds,
                )
            )  # fmt: skip
            out_of_time = self._out_of_time(progress) and progress.step < steps
            ended = out_of_time or progress.step == steps or progress.step % per_epoch == 0
            if ended:
                progress, best = self._end_of_epoch(progress, epoch + 1, parameters, best)
            if progress.reason != "diverged":
                self._look(progress, steps, ended=ended)
                if out_of_time:
                    progress = replace(progress, stopped=True, reason="budget")
            done = progress.step == steps or progress.stopped
            if self.checkpoints and (done or self.checkpoints.due(progress.step)):
                snapshot = self._snapshot(progress, parameters, None if done else optimizer, best)
                self.checkpoints.save(progress.step, snapshot)
        _copy_into(parameters, best)
        self.module.eval()
        return progress

    def _step(self, examples: Sequence[Example], optimizer: torch.optim.Optimizer) -> float:
        """One optimiser step over exactly these rows; returns their mean loss.

        Weighted losses are added up and divided by how many there are in the whole step: however it
        is cut into micro-batches, the mean is the same. Dividing by the sum of the step's weights
        would take away what a step of frequent classes alone must count less.
        """
        total = sum(_loss_terms(example) for example in examples)
        optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        shared = shared_start(examples) if self.reads_start_once else 0
        if not pays(shared, len(examples)):
            shared = 0
        lengths = [len(example.input_ids) - shared for example in examples]
        for group in micro_batches(lengths, self.settings.token_budget - shared):
            batch = collate([examples[row] for row in group], shared=shared).to(self.device)
            loss = self.loss(batch) / total
            loss.backward()
            losses.append(loss.detach())
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        optimizer.step()
        # bitsandbytes writes past PyTorch's count of changes, by which the packed engine knows
        # that its copies of the adapters are old.
        torch.autograd.graph.increment_version(parameters)
        return sum(torch.stack(losses).tolist())  # a GPU is waited for once a step

    def _diverged(self, progress: Progress, problem: str) -> Progress:
        """Stop, as the weights are spoilt, with those of the best epoch.

        Raises:
            FloatingPointError: no epoch was validated before.
        """
        problem += ": lower the learning rate"
        if not progress.epoch_losses:
            raise FloatingPointError(problem)
        kept = f"the best epoch before, {progress.best_epoch}, is kept"
        self.notify(Note(f"{self.stage}: it diverged, {kept} ({problem})."))
        return replace(progress, stopped=True, reason="diverged")

    def _end_of_epoch(
        self, progress: Progress, epoch: int, parameters: dict[str, Any], best: dict[str, Tensor]
    ) -> tuple[Progress, dict[str, Tensor]]:
        if self.validate is None:
            return replace(progress, best_epoch=epoch, best_step=progress.step), best
        self.module.eval()
        loss = self.validate()
        if not math.isfinite(loss):
            return self._diverged(progress, f"the validation loss became {loss}"), best
        better = loss < progress.best_loss
        if better:
            best = {name: p.detach().clone() for name, p in parameters.items()}
            progress = replace(progress, best_epoch=epoch, best_step=progress.step, best_loss=loss)
        patience = self.settings.patience
        stopped = patience is not None and epoch - progress.best_epoch >= patience
        progress = replace(
            progress,
            stopped=stopped,
            reason="patience" if stopped else progress.reason,
            epoch_losses=(*progress.epoch_losses, loss),
        )
        self.notify(EpochDone(self.stage, epoch, loss, better))
        return progress, best

    def _look(self, progress: Progress, steps: int, *, ended: bool) -> None:
        """Let `watch` see where the training stands."""
        if self.watch is None or self.validate is None:
            return
        validate = self.validate

        def loss() -> float:
            if ended:  # it was validated just now
                return progress.epoch_losses[-1]
            self.module.eval()
            return validate()

        self.watch(progress.step, steps, loss)

    def _out_of_time(self, progress: Progress) -> bool:
        limit = self.settings.time_limit
        return limit is not None and progress.seconds >= limit

    def _snapshot(
        self,
        progress: Progress,
        parameters: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer | None,
        best: dict[str, Tensor],
    ) -> Snapshot:
        """All that is needed to go on; without an optimiser, of a training that is done."""
        tensors: dict[str, Tensor] = {"rng.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        for name, parameter in parameters.items():
            if optimizer or not best:
                tensors[f"parameter.{name}"] = parameter.detach()
            if optimizer:
                state = packed_state(optimizer.state[parameter])
                tensors |= {f"optimizer.{key}.{name}": value for key, value in state.items()}
        tensors |= {f"best.{name}": value for name, value in best.items()}
        return Snapshot(tensors, {n: getattr(progress, n) for n in Progress.__slots__})

    def _resume(
        self,
        parameters: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
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
            state = {
                key: tensors[f"optimizer.{key}.{name}"]
                for key in STATE
                if f"optimizer.{key}.{name}" in tensors
            }
            if state:  # else it never had a gradient, or all is done
                optimizer.state[parameter] = unpacked_state(
                    state, parameter, optimizer, on_gpu=self.settings.fused
                )
        torch.set_rng_state(tensors["rng.cpu"])
        if "rng.cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng.cuda"], self.device)
        best = {n: t.to(self.device) for n, t in _below("best.", tensors).items()}
        return progress, best


def _schedule(
    optimizer: torch.optim.Optimizer, settings: TrainingSettings, steps: int
) -> Callable[[Progress], float]:
    """Progress → learning rate of the next step: a function of steps done and, if limited, time."""
    from transformers import get_scheduler

    name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
    warmup = settings.warmup_steps
    if warmup is None:
        # The rate starts from 0: a training of one step would else change nothing.
        warmup = min(math.ceil(settings.warmup_ratio * steps), steps - 1)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    (factor,) = schedule.lr_lambdas

    def rate_at(progress: Progress) -> float:
        at: float = progress.step
        if settings.time_limit is not None:
            at = max(at, steps * min(1.0, progress.seconds / settings.time_limit))
        return settings.learning_rate * float(factor(at))

    return rate_at


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch within a block, and leave the caller's random state as it was.

    That of the CPU and of all CUDA devices, which are all seeded; before CUDA is in use there is
    nothing to leave.
    """
    in_use = device.type == "cuda" or torch.cuda.is_initialized()
    with torch.random.fork_rng(range(torch.cuda.device_count()) if in_use else []):
        torch.manual_seed(seed)
        yield


def row_order(rows: int, seed: int, epoch: int) -> list[int]:
    """A fresh order each epoch: a function of seed and epoch, so that nothing need be saved."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(rows, generator=generator).tolist()


def _loss_terms(example: Example) -> int:
    """How many a row adds to the step's loss: label choices make one a target, tokens one each."""
    return example.branchings.count(FULL_VOCABULARY) or max(1, len(example.tails))


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


@torch.no_grad()
def _copy_into(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)
