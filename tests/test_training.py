import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llabel.engine.answer import AnswerHead
from llabel.engine.batching import FULL_VOCABULARY, Batch, Example, collate
from llabel.engine.checkpoint import CheckpointFolder
from llabel.engine.model import LoraSettings, add_lora
from llabel.engine.training import Progress, Trainer, TrainingSettings
from llabel.events import EpochDone, Event, StageStarted, StepDone
from llabel.labels import compile_labels
from tiny_models import llama_config, random_model

ROWS, BATCH = 10, 4  # three steps an epoch, the last of two rows
SETTINGS = TrainingSettings(
    learning_rate=1e-2,
    schedule="cosine",
    warmup_ratio=0.1,
    epochs=3,
    batch_size=BATCH,
    token_budget=40,
    weight_decay=0.01,
    max_grad_norm=1.0,
    patience=None,
    seed=3,
)
LABELS = compile_labels(["5 6", "5 7", "8"], lambda word: [int(t) for t in word.split()], 0)


def prompt(row: int) -> tuple[int, ...]:
    return tuple(range(10 + row, 14 + row + 2 * (row % 4)))


def example(row: int, loss: str = "answer") -> Example:
    ids, last = prompt(row), len(prompt(row)) - 1
    if loss == "answer":
        path = LABELS.steps[row % 3]
        depths = tuple(len(LABELS.branchings[number].prefix) for number, _ in path)
        answer = LABELS.tokens[row % 3][: max(depths)]
        numbers, children = zip(*path, strict=True)
        return Example((*ids, *answer), tuple(last + d for d in depths), numbers, children)
    whole = (*ids, *LABELS.tokens[row % 3], 0)
    start = 0 if loss == "all" else last
    positions = tuple(range(start, len(whole) - 1))
    return Example(whole[:-1], positions, (FULL_VOCABULARY,) * len(positions), whole[start + 1 :])


EXAMPLES = [example(row) for row in range(ROWS)]


class Stop(Exception):
    """Stands for a kill."""


class Training:
    """A trainer over a small Llama with fresh adapters, as a new process would make it."""

    def __init__(self, settings: TrainingSettings = SETTINGS, dropout: float = 0.0, **fields: Any):
        lora = LoraSettings(4, 8, dropout, "all-linear", use_rslora=False)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.model = add_lora(random_model(llama_config(60)), lora)
        self.head = AnswerHead(self.model.get_base_model(), LABELS)
        self.events: list[Event] = []
        self.trainer = Trainer(
            module=self.model,
            settings=settings,
            **({"loss": self.head.loss, "notify": self.events.append} | fields),
        )

    def run(self, examples: list[Example] = EXAMPLES) -> Progress:
        with torch.random.fork_rng():
            return self.trainer.run(examples)

    def weights(self) -> dict[str, Tensor]:
        parameters = self.model.named_parameters()
        return {n: p.detach().clone() for n, p in parameters if p.requires_grad}

    def steps(self) -> list[StepDone]:
        return [event for event in self.events if isinstance(event, StepDone)]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# What a step does


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("answer", [2.02458, 0.76455, 1.12163]),
        ("sft", [4.84101, 3.99947, 4.10173]),
        ("all", [4.72924, 4.40484, 3.99348]),
    ],
)
def test_the_first_losses_are_pinned(loss, expected):
    training = Training(replace(SETTINGS, learning_rate=2e-3, warmup_ratio=0.0))
    training.run([example(row, loss) for row in range(ROWS)])
    assert [step.loss for step in training.steps()[:3]] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("loss", ["answer", "sft", "all"])
def test_neither_loss_nor_gradient_depend_on_the_cut(loss):
    ends = []
    for budget in (1, 25, 10_000):  # rows alone, groups, all at once
        settings = replace(SETTINGS, epochs=1, schedule="constant", token_budget=budget)
        training = Training(replace(settings, warmup_ratio=0.0, batch_size=ROWS, max_grad_norm=1e9))
        training.run([example(row, loss) for row in range(ROWS)])
        gradients = {n: p.grad for n, p in training.model.named_parameters() if p.requires_grad}
        ends.append((training.steps()[0].loss, gradients))
    (loss_0, gradients_0), *others = ends
    for loss_n, gradients_n in others:
        assert loss_n == pytest.approx(loss_0, abs=1e-6)
        for name, gradient in gradients_0.items():
            torch.testing.assert_close(gradients_n[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_step_is_exactly_the_batch_and_an_epoch_every_row_once():
    seen: list[Tensor] = []
    training = Training()

    def loss(batch: Batch) -> Tensor:
        seen.extend(batch.input_ids[:, 0])
        return training.head.loss(batch)

    training.trainer.loss = loss
    training.run()
    rows = [int(token) - 10 for token in seen]
    assert [step.rows for step in training.steps()] == [4, 4, 2] * 3
    epochs = [rows[ROWS * epoch :][:ROWS] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(ROWS)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3  # in another order each time
    tokens = [sum(len(EXAMPLES[row].input_ids) for row in rows[:4])]
    assert [step.tokens for step in training.steps()[:1]] == tokens


def test_the_loss_is_the_mean_over_rows():
    training = Training(replace(SETTINGS, batch_size=ROWS))
    expected = float(training.head.loss(collate(EXAMPLES)).detach()) / ROWS
    training.run()
    assert training.steps()[0].loss == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("constant", lambda share: 1.0),
        ("linear", lambda share: 1 - share),
        ("cosine", lambda share: (1 + math.cos(math.pi * share)) / 2),
    ],
)
def test_schedules(schedule, after):
    """Nine steps, a fifth of them (rounded up: two) with a rising rate."""
    training = Training(replace(SETTINGS, schedule=schedule, warmup_ratio=0.2))
    training.run()
    expected = [0.0, 0.5, *(after(step / 7) for step in range(7))]
    rates = [step.learning_rate / SETTINGS.learning_rate for step in training.steps()]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(("ratio", "steps"), [(0.05, 1), (1.0, 3), (0.5, 3)])
def test_a_warm_up_is_over_at_the_last_step(ratio, steps):
    settings = replace(SETTINGS, warmup_ratio=ratio, max_steps=steps, schedule="constant")
    training = Training(settings)
    before = training.weights()
    training.run()
    assert training.steps()[-1].learning_rate == SETTINGS.learning_rate
    assert not same(before, training.weights())


def test_only_adapters_are_trained():
    training = Training()
    frozen = {n: p.clone() for n, p in training.model.named_parameters() if not p.requires_grad}
    before = training.weights()
    training.run()
    assert all("lora_" in name for name in before)
    assert not any(torch.equal(before[name], new) for name, new in training.weights().items())
    after = dict(training.model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert not training.model.training


# Choosing an epoch


def validation(losses: list[float]):
    left = iter(losses)
    return lambda: next(left)


@pytest.mark.parametrize(
    ("losses", "patience", "best", "epochs"),
    [
        ([0.5, 0.7, 0.6, 0.4], 2, 1, 3),
        ([0.5, 0.7, 0.4, 0.6], 2, 3, 4),
        ([0.5, 0.5, 0.4, 0.3], 1, 1, 2),
        ([0.5, 0.7, 0.6, 0.8], None, 1, 4),
        ([0.5, 0.4, 0.3, 0.2], 1, 4, 4),
    ],
)
def test_early_stopping_keeps_the_best_epoch(losses, patience, best, epochs):
    training = Training(replace(SETTINGS, epochs=4, patience=patience), validate=validation(losses))
    kept: dict[int, dict[str, Tensor]] = {}

    def notify(event: Event) -> None:
        training.events.append(event)
        if isinstance(event, EpochDone):
            kept[event.epoch] = training.weights()

    training.trainer.notify = notify
    progress = training.run()
    assert (progress.best_epoch, progress.best_loss) == (best, losses[best - 1])
    assert progress.epoch_losses == tuple(losses[:epochs])
    assert progress.stopped == (epochs < 4)
    assert same(training.weights(), kept[best])
    bests = [
        event.epoch for event in training.events if isinstance(event, EpochDone) and event.best
    ]
    assert bests[-1] == best


def test_without_validation_the_last_epoch_is_kept():
    training = Training()
    progress = training.run()
    assert (progress.step, progress.best_epoch, progress.rows) == (9, 3, 30)
    assert training.steps()[-1].epoch == 3


def test_validation_happens_in_evaluation_mode():
    modes = []
    training = Training(dropout=0.5, validate=lambda: modes.append(training.model.training) or 1.0)
    training.run()
    assert modes == [False] * 3


# Going on after a kill


def interrupted(folder: Path, stop: Any, every_steps: int, dropout: float) -> Training:
    """Train until `stop` says so, then start anew on the same folder and train to the end."""
    losses = [0.9, 0.5, 0.7]
    ran = [0]

    def validate() -> float:
        if stop == ("validating", ran[0]):
            raise Stop
        ran[0] += 1
        return losses[ran[0] - 1]

    def notify(event: Event) -> None:
        if stop == (type(event), getattr(event, "step", getattr(event, "epoch", None))):
            raise Stop

    first = Training(
        dropout=dropout,
        validate=validate,
        notify=notify,
        checkpoints=CheckpointFolder(folder, every_steps=every_steps),
    )
    with pytest.raises(Stop):
        first.run()
    done = CheckpointFolder(folder).newest()
    epochs_done = len(done.state["epoch_losses"]) if done else 0
    again = Training(
        dropout=dropout,
        validate=validation(losses[epochs_done:]),
        checkpoints=CheckpointFolder(folder, every_steps=every_steps),
    )
    again.run()
    return again


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("every_steps", [1, 2])
@pytest.mark.parametrize(
    "stop",
    [
        (StepDone, 1),
        (StepDone, 5),
        (StepDone, 9),
        ("validating", 0),
        ("validating", 2),
        (EpochDone, 2),
    ],
    ids=str,
)
def test_a_resumed_training_ends_as_an_undisturbed_one(tmp_path, stop, every_steps, dropout):
    undisturbed = Training(dropout=dropout, validate=validation([0.9, 0.5, 0.7]))
    expected = undisturbed.run()
    again = interrupted(tmp_path, stop, every_steps, dropout)
    found = again.trainer.run(EXAMPLES)  # a third time: there is nothing left to do
    assert same(again.weights(), undisturbed.weights())
    assert replace(found, seconds=0.0) == replace(expected, seconds=0.0)
    taken = again.steps()
    assert [(s.step, s.loss, s.learning_rate) for s in taken] == [
        (s.step, s.loss, s.learning_rate) for s in undisturbed.steps()[9 - len(taken) :]
    ]


def test_a_resumed_training_says_how_far_it_was(tmp_path):
    checkpoints = CheckpointFolder(tmp_path, every_steps=2)

    def stop(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 5:
            raise Stop

    with pytest.raises(Stop):
        Training(checkpoints=checkpoints, notify=stop).run()
    again = Training(checkpoints=checkpoints, stage="refitting")
    again.run()
    assert again.events[0] == StageStarted("refitting", 3 * ROWS, done=ROWS + BATCH, steps=4)
    assert sum(step.rows for step in again.steps()) == 3 * ROWS - (ROWS + BATCH)


def test_dropout_matters_here():
    """Else the resume tests would say nothing about random state."""
    with_dropout, without = Training(dropout=0.2), Training()
    with_dropout.run()
    without.run()
    assert not same(with_dropout.weights(), without.weights())


CHILD = """
import sys, time
sys.path.insert(0, {tests!r})
from test_training import *
def notify(event):
    if isinstance(event, StepDone):
        print(event.step, flush=True)
        time.sleep(0.2)
torch.set_num_threads({threads})
folder = CheckpointFolder(Path({folder!r}), every_steps=1)
losses = validation([0.9, 0.5, 0.7])
Training(dropout=0.2, validate=losses, checkpoints=folder, notify=notify).run()
"""


def test_kill_9_and_start_again(tmp_path):
    child = CHILD.format(
        tests=str(Path(__file__).parent), threads=torch.get_num_threads(), folder=str(tmp_path)
    )
    process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True)
    try:
        assert any(line.strip() == "5" for line in process.stdout)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert CheckpointFolder(tmp_path).newest().state["step"] in {4, 5}
    again = Training(
        dropout=0.2,
        validate=validation([0.5, 0.7]),
        checkpoints=CheckpointFolder(tmp_path, every_steps=1),
    )
    again.run()
    undisturbed = Training(dropout=0.2, validate=validation([0.9, 0.5, 0.7]))
    undisturbed.run()
    assert same(again.weights(), undisturbed.weights())


# What goes wrong


def test_a_loss_that_is_no_number_is_an_error():
    training = Training()
    training.trainer.loss = lambda batch: training.head.loss(batch) * math.nan
    with pytest.raises(FloatingPointError, match="the loss became nan: lower the learning rate"):
        training.run()


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_no_number_is_an_error(loss):
    with pytest.raises(FloatingPointError, match=f"validation loss became {loss}"):
        Training(validate=lambda: loss).run()


@pytest.mark.gpu
def test_a_resumed_training_on_cuda_ends_as_an_undisturbed_one(tmp_path):
    cuda = torch.device("cuda")

    def on_cuda(**fields: Any) -> Training:
        training = Training(dropout=0.2, device=cuda, **fields)
        training.model.cuda()
        training.trainer.loss = AnswerHead(training.model.get_base_model(), LABELS).loss
        return training

    def stop(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 5:
            raise Stop

    checkpoints = CheckpointFolder(tmp_path, every_steps=2)
    undisturbed = on_cuda()
    undisturbed.run()
    with pytest.raises(Stop):
        on_cuda(checkpoints=checkpoints, notify=stop).run()
    again = on_cuda(checkpoints=checkpoints)
    again.run()
    assert same(again.weights(), undisturbed.weights())
