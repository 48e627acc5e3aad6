from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llabel.engine.answer import AnswerHead
from llabel.engine.checkpoint import CheckpointFolder
from llabel.errors import InputError
from llabel.events import Event, Note, StageStarted, StepDone
from llabel.ladder.llm import LLMRung
from llabel.ladder.trials import around
from tiny_rungs import TASK

RATES = around(1e-2, 3)


def adapter(rung: LLMRung, folder: Path) -> bytes:
    rung.save(folder)
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_each_trial_is_a_fit_of_its_own(llm_settings, tmp_path):
    """One base model serves all, and none sees what another left behind."""
    chosen = llm_settings(lora_dropout=0.1, epochs=2)
    together = LLMRung(replace(chosen, trials=3)).fit(TASK)
    record = together.record_
    assert [trial.settings for trial in record.trials] == [{"learning_rate": r} for r in RATES]
    for trial in record.trials:
        alone = LLMRung(replace(chosen, **trial.settings)).fit(TASK)
        assert alone.record_.trials[0].epoch_losses == trial.epoch_losses
        if trial is record.trials[record.chosen]:
            assert adapter(alone, tmp_path / "alone") == adapter(together, tmp_path / "together")
            assert np.array_equal(alone.validation_proba_, together.validation_proba_)
            assert together.progress_.epoch_losses == trial.epoch_losses
            assert record.settings["learning_rate"] == trial.settings["learning_rate"]
    losses = [trial.validation_loss for trial in record.trials]
    assert record.chosen == int(np.argmin(losses))
    assert len(set(losses)) == 3


def test_the_record_of_a_single_training(llm_settings):
    rung = LLMRung(llm_settings()).fit(TASK)
    [trial] = rung.record_.trials
    assert (rung.record_.chosen, rung.record_.refit) == (0, None)
    assert (trial.steps, trial.rows, trial.epochs) == (10, 40, rung.progress_.best_epoch)
    assert trial.validation_loss == min(trial.epoch_losses) == rung.progress_.best_loss
    assert (trial.seconds, trial.tokens) == (rung.progress_.seconds, rung.progress_.tokens)
    assert rung.record_.truncated == {"train": 0, "validation": 0}
    trainable, all_of_them = rung.record_.trainable_parameters, rung.record_.parameters
    assert 0 < trainable < all_of_them
    assert rung.record_.settings["precision"] == "float32"


def test_steps_that_end_within_an_epoch_are_a_part_of_it(llm_settings):
    rung = LLMRung(llm_settings(max_steps=7, learning_rate=1e-3, patience=None)).fit(TASK)
    (trial,) = rung.record_.trials
    assert len(trial.epoch_losses) == 2
    assert trial.epoch_losses[1] < trial.epoch_losses[0]
    assert trial.epochs == 7 / 5  # 20 rows, 4 a step


def test_a_refit_takes_the_chosen_rate_and_epochs(llm_settings):
    events: list[Event] = []
    chosen = llm_settings(trials=2, learning_rate=3e-2, refit=True, epochs=3, patience=None)
    rung = LLMRung(chosen).fit(TASK, notify=events.append)
    best = rung.record_.trials[rung.record_.chosen]
    refit = rung.record_.refit
    assert refit.settings == best.settings
    assert (refit.validation_loss, refit.rows) == (None, best.epochs * (20 + 6))
    stages = [e.name for e in events if isinstance(e, StageStarted) and e.name != "validating"]
    assert stages == [
        "training, trial 1 of 2",
        "training, trial 2 of 2",
        "refitting on train + validation",
    ]


@pytest.mark.parametrize("stop", [("trial 1 of 2", 3), ("trial 2 of 2", 7), ("refitting", 2)])
def test_a_search_goes_on_where_it_was_killed(llm_settings, tmp_path, stop):
    chosen = llm_settings(trials=2, refit=True, lora_dropout=0.1, epochs=2, patience=None)

    def killed(event: Event) -> None:
        if isinstance(event, StepDone) and stop[0] in event.stage and event.step == stop[1]:
            raise KeyboardInterrupt

    checkpoints = CheckpointFolder(tmp_path / "training", every_steps=2)
    with pytest.raises(KeyboardInterrupt):
        LLMRung(chosen).fit(TASK, checkpoints=checkpoints, notify=killed)
    events: list[Event] = []
    again = LLMRung(chosen).fit(TASK, checkpoints=checkpoints, notify=events.append)
    steps = [(event.stage, event.step) for event in events if isinstance(event, StepDone)]
    assert stop[0] in steps[0][0]  # what was finished is not done again
    assert steps[0][1] == stop[1] // 2 * 2 + (stop[1] % 2 or -1)
    undisturbed = LLMRung(chosen).fit(TASK)
    assert adapter(again, tmp_path / "1") == adapter(undisturbed, tmp_path / "2")
    assert np.array_equal(again.validation_proba_, undisturbed.validation_proba_)
    told = [replace(trial, seconds=0.0) for trial in again.record_.trials]
    assert told == [replace(trial, seconds=0.0) for trial in undisturbed.record_.trials]


@pytest.fixture
def diverge(monkeypatch):
    """Let the loss of the trainings whose names hold some words become NaN; returns a listener."""

    def start(words: str):
        stage, loss = [""], AnswerHead.loss

        def watch(event: Event) -> None:
            if isinstance(event, StageStarted):
                stage[0] = event.name

        def broken(head, batch):
            return loss(head, batch) * (float("nan") if words in stage[0] else 1)

        monkeypatch.setattr(AnswerHead, "loss", broken)
        return watch

    return start


@pytest.mark.parametrize("diverging", [1, 2])
def test_a_trial_that_diverges_does_not_lose_the_others(llm_settings, diverge, diverging):
    chosen = llm_settings(trials=2, lora_dropout=0.5)
    expected = LLMRung(replace(chosen, learning_rate=RATES[2 - diverging], trials=1)).fit(TASK)
    rung = LLMRung(chosen).fit(TASK, notify=diverge(f"trial {diverging} of"))
    trials = rung.record_.trials
    assert trials[diverging - 1].stopped == "diverged"
    assert trials[2 - diverging].settings == {"learning_rate": RATES[2 - diverging]}
    assert rung.record_.chosen == 2 - diverging
    assert np.array_equal(rung.validation_proba_, expected.validation_proba_)
    proba = rung.predict_proba(TASK.test.texts)
    assert np.array_equal(proba, expected.predict_proba(TASK.test.texts))  # no dropout is on


@pytest.mark.parametrize("trials", [1, 2])
def test_when_all_diverge(llm_settings, diverge, trials):
    listener = diverge("training")
    message = r"Every trial diverged \(the loss became nan.* give a lower --learning-rate"
    with pytest.raises(InputError, match=message):
        LLMRung(llm_settings(trials=trials)).fit(TASK, notify=listener)


def test_a_trial_that_diverges_later_is_judged_by_its_best_epoch(llm_settings, monkeypatch):
    calls, loss = [0], AnswerHead.loss

    def broken(head, batch):
        calls[0] += 1
        return loss(head, batch) * (float("nan") if calls[0] == 8 else 1)

    monkeypatch.setattr(AnswerHead, "loss", broken)
    rung = LLMRung(llm_settings(epochs=3, patience=None, token_budget=4096)).fit(TASK)
    [trial] = rung.record_.trials
    assert (trial.stopped, trial.epochs, trial.steps) == ("diverged", 1, 7)  # 5 steps an epoch
    assert (trial.validation_loss,) == trial.epoch_losses
    again = rung.predict_proba(TASK.validation.texts)
    assert np.array_equal(rung.validation_proba_, again)


def test_a_refit_that_diverges_does_not_lose_what_was_chosen(llm_settings, diverge):
    chosen = llm_settings(lora_dropout=0.1)
    expected = LLMRung(chosen).fit(TASK)
    events: list[Event] = []
    watch = diverge("refitting")

    def listen(event: Event) -> None:
        watch(event)
        events.append(event)

    rung = LLMRung(replace(chosen, refit=True)).fit(TASK, notify=listen)
    assert (rung.record_.refit.stopped, rung.record_.kept_refit) == ("diverged", None)
    assert rung.progress_.epoch_losses == expected.progress_.epoch_losses
    [told] = [event.text for event in events if isinstance(event, Note) and "Refit" in event.text]
    assert "it diverged, what was chosen on validation is kept, trained on train alone" in told
    proba = rung.predict_proba(TASK.test.texts)
    assert np.array_equal(proba, expected.predict_proba(TASK.test.texts))


def test_a_budget_ends_trials_early(llm_settings):
    rung = LLMRung(llm_settings(trials=2, budget=1e-9, epochs=5)).fit(TASK)
    [trial] = rung.record_.trials  # the first is made in any case, the others would have no time
    assert (trial.stopped, trial.steps) == ("budget", 1)
    assert rung.predict_proba(TASK.test.texts).shape == (4, 2)
