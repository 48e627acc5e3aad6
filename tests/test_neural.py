import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from llabel.engine.batching import Batch
from llabel.engine.checkpoint import CheckpointFolder
from llabel.errors import InputError
from llabel.events import Event, Note, RowsDone, StageStarted, StepDone
from llabel.ladder import neural
from llabel.ladder.contract import FitSettings
from llabel.ladder.neural import (
    Fitted,
    Recipe,
    Rows,
    arrays_of,
    example,
    fit_network,
    predict,
    share_room,
)

CPU = torch.device("cpu")
RECIPE = Recipe(learning_rate=0.05, epochs=4, patience=2, batch_size=4, token_budget=24)


class Network(nn.Module):
    """Mean of learnt vectors, with dropout, → logits of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Embedding(12, 6)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(6, 3)

    def forward(self, batch: Batch) -> Tensor:
        lengths = batch.lengths.unsqueeze(1)
        inside = torch.arange(batch.input_ids.shape[1]) < lengths
        mean = (self.vectors(batch.input_ids) * inside.unsqueeze(2)).sum(1) / lengths
        return self.head(self.dropout(mean))


def rows(n: int, seed: int) -> Rows:
    """Rows of noise and one id that tells the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    examples = [
        example([int(label), *rng.integers(3, 12, size=rng.integers(1, 6)).tolist()], int(label))
        for label in y
    ]
    return Rows(examples, y, 0)


TRAIN, VALIDATION = rows(22, 0), rows(9, 1)


def fit(
    recipe: Recipe = RECIPE, build: Callable[[], nn.Module] = Network, **changes: Any
) -> Fitted:
    named = {key: changes.pop(key) for key in ("checkpoints", "notify", "train") if key in changes}
    return fit_network(
        build,
        named.pop("train", TRAIN),
        VALIDATION,
        recipe=recipe,
        settings=FitSettings(**({"trials": 3} | changes)),
        device=CPU,
        **({"checkpoints": None} | named),
    )


def stages(events: list[Event]) -> list[tuple[str, int]]:
    return [(e.name, e.total) for e in events if isinstance(e, StageStarted)]


# What a row may keep


@given(st.lists(st.integers(0, 50), min_size=1, max_size=5), st.integers(0, 120))
def test_room_is_used_and_the_longest_are_cut_first(lengths, room):
    keep = share_room(lengths, room)
    assert sum(keep) == min(sum(lengths), room)
    assert all(kept <= length for kept, length in zip(keep, lengths, strict=True))
    cut = [kept for kept, length in zip(keep, lengths, strict=True) if kept < length]
    whole = [kept for kept, length in zip(keep, lengths, strict=True) if kept == length]
    if cut:
        assert max(cut) - min(cut) <= 1
        assert max(whole, default=0) <= max(cut)


# How often few rows are gone through


@pytest.mark.parametrize(("n", "passes"), [(8, 13), (50, 2), (100, 1), (10_000, 1)])
def test_few_rows_are_gone_through_several_times(n, passes):
    recipe = replace(RECIPE, min_steps=100)
    assert recipe.passes(n) == passes
    assert recipe.epochs * recipe.steps(passes * n) >= 100


def test_epochs_count_passes():
    (trial,) = fit(replace(RECIPE, min_steps=60, patience=9), trials=1).trials
    passes = 3  # 60 steps of 4 rows, over 4 epochs of 22 rows
    assert (trial.steps, trial.rows) == (4 * 17, 4 * 22 * passes)
    assert trial.epochs in {passes, 2 * passes, 3 * passes, 4 * passes}


# The search


def test_each_trial_has_its_learning_rate_and_the_best_is_kept():
    events: list[Event] = []
    fitted = fit(notify=events.append)
    rates = [trial.settings["learning_rate"] for trial in fitted.trials]
    assert rates == pytest.approx([0.05, 0.05 / 3, 0.15])
    losses = [trial.validation_loss for trial in fitted.trials]
    assert losses[fitted.chosen] == min(losses)
    assert [min(trial.epoch_losses) for trial in fitted.trials] == losses
    again = predict(fitted.network, VALIDATION.examples, 100, CPU)
    np.testing.assert_allclose(again, fitted.validation_proba, atol=1e-6)
    trainings = [name for name, _ in stages(events) if name != "validating"]
    assert trainings == [f"training, trial {n} of 3" for n in (1, 2, 3)]


def test_what_lost_is_gone_before_the_next_trial_begins():
    made: list[weakref.ref[nn.Module]] = []
    alive: list[int] = []

    def build() -> nn.Module:
        gc.collect()
        alive.append(sum(ref() is not None for ref in made))
        network = Network()
        made.append(weakref.ref(network))
        return network

    fitted = fit(build=build, trials=4, refit=True)
    assert fitted.trials[1].validation_loss > fitted.trials[0].validation_loss, "one that lost"
    assert alive == [0, 1, 1, 1, 1]


def test_all_trials_begin_alike():
    starts = []

    def build() -> Network:
        network = Network()
        starts.append(arrays_of(network)["vectors.weight"].copy())
        return network

    fit(build=build, refit=True)
    assert len(starts) == 4
    assert all(np.array_equal(start, starts[0]) for start in starts)


def test_a_refit_takes_both_parts_and_as_many_epochs():
    events: list[Event] = []
    without, fitted = fit(), fit(refit=True, notify=events.append)
    assert np.array_equal(without.validation_proba, fitted.validation_proba)
    assert fitted.refit is not None
    best = fitted.trials[fitted.chosen]
    assert fitted.refit.settings == best.settings
    assert fitted.refit.validation_loss is None
    assert (fitted.refit.rows, fitted.refit.epochs) == (best.epochs * 31, best.epochs)
    assert stages(events)[-1] == ("refitting on train + validation", best.epochs * 31)
    assert not np.array_equal(
        arrays_of(fitted.network)["head.weight"], arrays_of(without.network)["head.weight"]
    )


def test_a_budget_is_shared_and_ends_trainings():
    fitted = fit(replace(RECIPE, epochs=10_000, patience=10_000), budget=0.3)
    assert [trial.stopped for trial in fitted.trials] == ["budget"] * len(fitted.trials)
    assert all(trial.seconds < 0.3 for trial in fitted.trials[1:])


def test_a_trial_that_diverges_does_not_count():
    diverging = replace(RECIPE, learning_rate=1e38, weight_decay=0.0)
    with pytest.raises(InputError, match=r"Every trial diverged \(the .*loss became"):
        fit(diverging, trials=1)


def test_a_refit_that_diverges_does_not_lose_what_was_chosen(monkeypatch):
    expected, stage, loss = fit(), [""], neural.class_loss

    def watch(event: Event) -> None:
        if isinstance(event, StageStarted):
            stage[0] = event.name

    def broken(network, batch):
        return loss(network, batch) * (float("nan") if "refitting" in stage[0] else 1)

    monkeypatch.setattr(neural, "class_loss", broken)
    fitted = fit(refit=True, notify=watch)
    assert fitted.refit is not None
    assert fitted.refit.stopped == "diverged"
    assert expected.chosen == fitted.chosen
    found, kept = arrays_of(fitted.network), arrays_of(expected.network)
    assert all(np.array_equal(found[name], kept[name]) for name in kept)


def test_the_callers_random_state_is_left_alone():
    before = torch.get_rng_state()
    fit(refit=True)
    assert torch.equal(before, torch.get_rng_state())


def test_cut_rows_are_told():
    events: list[Event] = []
    fit(train=replace(TRAIN, truncated=2), notify=events.append, trials=1)
    assert Note("2 of 31 rows are longer than the rung reads: their end was cut.") in events


# Going on after a kill


class Stop(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("at", [1, 7, 24, 26, 40, 60, 73, 80])
def test_an_interrupted_search_ends_as_an_undisturbed_one(tmp_path: Path, at: int):
    recipe = replace(RECIPE, patience=4)  # 4 epochs of 6 steps a trial, then the refit
    undisturbed = fit(recipe, refit=True)
    checkpoints = CheckpointFolder(tmp_path / "training", every_steps=2)
    taken = 0

    def stop(event: Event) -> None:
        nonlocal taken
        taken += isinstance(event, StepDone)
        if taken == at:
            raise Stop

    with pytest.raises(Stop):
        fit(recipe, refit=True, checkpoints=checkpoints, notify=stop)
    again = fit(recipe, refit=True, checkpoints=checkpoints)
    one, other = arrays_of(undisturbed.network), arrays_of(again.network)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert np.array_equal(undisturbed.validation_proba, again.validation_proba)
    for a, b in zip(undisturbed.trials, again.trials, strict=True):
        assert replace(a, seconds=0.0) == replace(b, seconds=0.0)
    assert {path.name for path in tmp_path.iterdir()} == {"training", "trial-1", "trial-2", "refit"}


def test_a_finished_search_takes_no_further_step(tmp_path: Path):
    checkpoints = CheckpointFolder(tmp_path / "training")
    first = fit(refit=True, checkpoints=checkpoints)
    events: list[Event] = []
    again = fit(refit=True, checkpoints=checkpoints, notify=events.append)
    assert not any(isinstance(event, StepDone) for event in events)
    assert (again.trials, again.chosen, again.refit) == (first.trials, first.chosen, first.refit)
    assert np.array_equal(first.validation_proba, again.validation_proba)


# Predicting


def test_predictions_stand_in_the_rows_order_and_are_told():
    fitted = fit(trials=1)
    told: list[Event] = []
    together = predict(fitted.network, TRAIN.examples, 12, CPU, told.append)
    alone = [predict(fitted.network, [row], 12, CPU)[0] for row in TRAIN.examples]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-12)
    assert sum(event.rows for event in told if isinstance(event, RowsDone)) == len(TRAIN.examples)
    assert len(told) > 1
