from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llabel.errors import InputError
from llabel.ladder.contract import Trial
from llabel.ladder.trials import FACTOR, around, best_of


def test_the_usual_value_comes_first():
    assert around(1.0, 1) == (1.0,)
    assert around(9.0, 5) == pytest.approx((9, 3, 27, 1, 81))


@given(st.floats(1e-6, 1e3), st.integers(1, 9))
def test_around_is_an_unbroken_grid(usual: float, trials: int):
    values = sorted(around(usual, trials))
    assert len(values) == trials
    for low, high in pairwise(values):
        assert high / low == pytest.approx(FACTOR)


class Trainer:
    """Trainings with given losses (None diverges), each of which takes its seconds."""

    def __init__(self, losses, seconds=10.0):
        self.losses, self.seconds = losses, seconds
        self.limits, self.kept = [], []

    def __call__(self, number, value, limit):
        self.limits.append(limit)
        loss = self.losses[number]
        if loss is None:
            raise FloatingPointError(f"loss is nan at {value}")
        return Trial(
            settings={"C": value}, validation_loss=loss, seconds=min(self.seconds, limit or 1e9)
        )

    def search(self, **more):
        return best_of(range(len(self.losses)), self, self.kept.append, **more)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=6))
def test_the_lowest_loss_is_kept_and_the_first_of_equals(losses):
    trainer = Trainer(losses)
    trials, best = trainer.search()
    assert [trial.validation_loss for trial in trials] == losses
    assert best == losses.index(min(losses))
    assert trainer.kept[-1] == best  # what was last kept is what is returned
    assert trainer.limits == [None] * len(losses)


def test_a_trial_that_diverges_is_recorded_and_never_kept():
    trainer = Trainer([None, 0.5, None, 0.4])
    trials, best = trainer.search()
    assert [trial.validation_loss for trial in trials] == [None, 0.5, None, 0.4]
    assert [trial.stopped for trial in trials] == ["diverged", "epochs", "diverged", "epochs"]
    assert (best, trainer.kept) == (3, [1, 3])


def test_all_diverge():
    with pytest.raises(InputError, match=r"Every trial diverged \(loss is nan at 1\)"):
        Trainer([None, None]).search()


def test_the_budget_is_shared_among_the_trials_to_come():
    trainer = Trainer([3.0, 2.0, 1.0], seconds=5.0)
    trials, best = trainer.search(budget=60.0)
    assert trainer.limits == [20.0, 27.5, 50.0]  # what one leaves, the next may use
    assert (len(trials), best) == (3, 2)


def test_a_spent_budget_ends_the_search_after_one_trial_at_least():
    class Late(Trainer):
        def __call__(self, number, value, limit):
            self.limits.append(limit)
            return Trial(settings={"C": value}, validation_loss=0.1, seconds=100.0)

    trainer = Late([0.3, 0.2])
    trials, best = trainer.search(budget=1.0)
    assert (len(trials), best, trainer.limits) == (1, 0, [0.5])
