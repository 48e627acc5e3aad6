"""Cells that a search gives up early: successive halving on the validation loss."""

import math
from collections.abc import Callable
from pathlib import Path

from llabel.sweep.study import KEEP, LOOKS, WHOLE, open_study, trial_of


class PrunedError(Exception):
    """The search gave the cell up; the message says why."""


class Halving:
    """Watches one training (see `llabel.engine.training.Watch`).

    Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934): a training that stands at
    1/9 or 1/3 of its steps goes on only if it is among the best third of those that came so far.

    Args:
        folder: of the sweep.
        number: of the trial in its study.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.trial = trial_of(open_study(folder), number)

    def __call__(self, step: int, steps: int, loss: Callable[[], float]) -> None:
        """Report the loss where it is time for it.

        Raises:
            PrunedError: others do better.
            FloatingPointError: the loss is no number.
        """
        looks = {max(1, round(steps * look / WHOLE)): look for look in LOOKS}
        if step not in looks or step == steps:
            return
        look = looks[step]
        decided = f"given up at look {look}"
        if reason := self.trial.user_attrs.get(decided):
            raise PrunedError(reason)
        value = loss()
        if not math.isfinite(value):
            raise FloatingPointError(f"the validation loss became {value}: lower the learning rate")
        self.trial.report(value, look)
        if self.trial.should_prune():
            reason = (
                f"given up after {step} of {steps} steps: its validation log loss, {value:.4f}, "
                f"was not among the best {KEEP} of those that came so far"
            )
            # Optuna decides once a look: asked again, after a kill, it would let the trial go on.
            self.trial.set_user_attr(decided, reason)
            raise PrunedError(reason)
