import math
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llabel.engine.batching import Batch
from llabel.engine.checkpoint import CheckpointFolder
from llabel.events import EpochDone, Event, Note, StageStarted, StepDone
from test_training import SETTINGS, Stop, Training, same, validation

# Ending by the clock


def slow_training(limit: float, **fields: Any) -> Training:
    """Nine steps, each of 20 ms at least."""
    training = Training(replace(SETTINGS, time_limit=limit), **fields)

    def loss(batch: Batch) -> Tensor:
        time.sleep(0.02)
        return training.head.loss(batch)

    training.trainer.loss = loss
    return training


@pytest.mark.parametrize("limit", [0.001, 0.05])
def test_a_training_ends_when_its_time_is_up_and_is_judged_there(limit):
    training = slow_training(limit, validate=lambda: 0.5)
    progress = training.run()
    assert (progress.reason, progress.stopped) == ("budget", True)
    *before, last = training.steps()
    assert sum(step.seconds for step in before) < limit <= progress.seconds
    assert last.step < 9
    judged = [event for event in training.events if isinstance(event, EpochDone)]
    assert [event.epoch for event in judged] == list(range(1, math.ceil(last.step / 3) + 1))
    assert progress.epoch_losses == (0.5,) * len(judged)
    assert progress.best_epoch == 1
    assert progress.best_step == min(last.step, 3)
    assert isinstance(training.events[-1], EpochDone)


def test_the_learning_rate_has_run_down_by_the_time_limit():
    training = slow_training(0.1)
    training.run()
    seconds = 0.0
    for step in training.steps():
        at = max(step.step - 1, 9 * min(1.0, seconds / 0.1))
        warm = at if at < 1 else (1 + math.cos(math.pi * (at - 1) / 8)) / 2
        assert step.learning_rate == pytest.approx(warm * SETTINGS.learning_rate, abs=1e-9)
        seconds += step.seconds


def test_a_limit_that_is_not_reached_changes_nothing():
    with_limit, without = Training(replace(SETTINGS, time_limit=1e6)), Training()
    assert (with_limit.run().reason, without.run().reason) == ("epochs", "epochs")
    for name, value in without.weights().items():
        torch.testing.assert_close(with_limit.weights()[name], value, rtol=1e-4, atol=1e-6)


def test_what_the_time_limit_ended_is_not_gone_on_with(tmp_path):
    first = slow_training(0.05, validate=lambda: 0.5, checkpoints=CheckpointFolder(tmp_path))
    ended = first.run()
    again = slow_training(0.05, checkpoints=CheckpointFolder(tmp_path))
    assert again.run() == ended
    assert again.steps() == []
    assert same(again.weights(), first.weights())


def test_time_of_an_interrupted_process_counts(tmp_path):
    checkpoints = CheckpointFolder(tmp_path, every_steps=1)

    def stop(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            raise Stop

    with pytest.raises(Stop):
        slow_training(1e6, checkpoints=checkpoints, notify=stop).run()
    snapshot = checkpoints.newest()
    checkpoints.save(2, replace(snapshot, state=snapshot.state | {"seconds": 2e6}))
    progress = slow_training(1e6, checkpoints=checkpoints).run()
    assert (progress.step, progress.reason) == (3, "budget")
    assert progress.seconds > 2e6


# Diverging


def diverging(at: int, **fields: Any) -> Training:
    """The loss becomes NaN in step `at` of nine; three are an epoch."""
    training = Training(replace(SETTINGS, token_budget=10_000), **fields)
    calls = [0]

    def loss(batch: Batch) -> Tensor:
        calls[0] += 1
        return training.head.loss(batch) * (math.nan if calls[0] == at else 1)

    training.trainer.loss = loss
    return training


@pytest.mark.parametrize("at", [4, 8])
def test_a_training_that_diverges_keeps_the_best_epoch_before(tmp_path, at):
    checkpoints = CheckpointFolder(tmp_path, every_steps=1)
    training = diverging(at, validate=validation([0.6, 0.7]), checkpoints=checkpoints)
    kept: list[dict[str, Tensor]] = []

    def notify(event: Event) -> None:
        training.events.append(event)
        if isinstance(event, EpochDone):
            kept.append(training.weights())

    training.trainer.notify = notify
    progress = training.run()
    assert (progress.reason, progress.stopped, progress.step) == ("diverged", True, at - 1)
    assert (progress.best_epoch, progress.best_step, progress.best_loss) == (1, 3, 0.6)
    assert same(training.weights(), kept[0])
    assert not training.model.training
    [told] = [event.text for event in training.events if isinstance(event, Note)]
    assert "diverged, the best epoch before, 1, is kept (the loss became nan: lower the" in told
    again = Training(validate=validation([]), checkpoints=CheckpointFolder(tmp_path))
    assert again.run() == progress
    assert again.steps() == []
    assert same(again.weights(), kept[0])


def test_a_validation_loss_that_is_no_number_ends_it_the_same_way():
    progress = Training(validate=validation([0.6, math.inf])).run()
    assert (progress.reason, progress.best_epoch, progress.epoch_losses) == ("diverged", 1, (0.6,))


@pytest.mark.parametrize(
    "training",
    [
        lambda: diverging(2, validate=validation([0.6])),
        lambda: diverging(7),  # nothing says which weights were good
        lambda: Training(validate=validation([math.nan])),
    ],
)
def test_without_a_validated_epoch_nothing_is_kept(training):
    with pytest.raises(FloatingPointError, match=r"loss became nan: lower the learning rate"):
        training().run()


# Parts of an epoch, and what is left behind


def test_the_last_epoch_may_be_a_part():
    training = Training(replace(SETTINGS, epochs=5 / 3), validate=validation([0.6, 0.5]))
    progress = training.run()
    assert (progress.step, progress.best_epoch, progress.best_step) == (5, 2, 5)
    assert progress.epoch_losses == (0.6, 0.5)
    assert training.events[0] == StageStarted("training", 17)
    start, whole = Training(replace(SETTINGS, epochs=5 / 3)), Training()
    start.run()
    whole.run()
    assert [s.rows for s in start.steps()] == [s.rows for s in whole.steps()[:5]]


@pytest.mark.parametrize(("patience", "reason"), [(1, "patience"), (None, "epochs")])
def test_it_tells_why_it_ended(patience, reason):
    settings = replace(SETTINGS, patience=patience)
    assert Training(settings, validate=validation([0.5, 0.6, 0.7])).run().reason == reason


def test_a_finished_training_keeps_only_the_weights_it_ended_with(tmp_path):
    for name, validate in (("judged", validation([0.9, 0.5, 0.7])), ("not", None)):
        training = Training(validate=validate, checkpoints=CheckpointFolder(tmp_path / name))
        training.run()
        tensors = CheckpointFolder(tmp_path / name).newest().tensors
        kept = [tensor for key, tensor in tensors.items() if not key.startswith("rng.")]
        assert len(kept) == len(training.weights())
        again = Training(checkpoints=CheckpointFolder(tmp_path / name))
        again.run()
        assert same(again.weights(), training.weights())


@pytest.mark.parametrize("fused", [False, True])
def test_a_parameter_without_gradient_is_no_obstacle_to_going_on(tmp_path, fused):
    def make(**fields: Any) -> Training:
        training = Training(replace(SETTINGS, fused=fused, weight_decay=0.0), **fields)
        training.model.register_parameter("idle", torch.nn.Parameter(torch.ones(2)))
        return training

    def stop(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 5:
            raise Stop

    checkpoints = CheckpointFolder(tmp_path, every_steps=2)
    undisturbed = make()
    undisturbed.run()
    with pytest.raises(Stop):
        make(checkpoints=checkpoints, notify=stop).run()
    again = make(checkpoints=checkpoints)
    again.run()
    assert same(again.weights(), undisturbed.weights())
    assert torch.equal(again.weights()["idle"], torch.ones(2))
