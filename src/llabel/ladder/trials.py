"""A fair try for every trained rung: the same number of values, judged on validation."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import count

from llabel.errors import DivergedError
from llabel.events import Listener, Note
from llabel.ladder.contract import Trial

REFIT = "refitting on train + validation"  # the stage after the trials
FACTOR = 3.0  # between neighbours of the grid: a learning rate's optimum is flat within that


def around(usual: float, trials: int) -> tuple[float, ...]:
    """The usual value, then neighbours to both sides: usual × 1, 1/3, 3, 1/9, 9, …

    Args:
        usual: what the rung does well with on most tasks.
        trials: how many values, at least 1.
    """
    steps = [(-1) ** n * ((n + 1) // 2) for n in range(trials)]  # 0, -1, 1, -2, 2, …
    return tuple(usual * FACTOR**step for step in steps)


def stage(number: int, trials: int) -> str:
    """What a trial is called in events and in `train.log.jsonl`."""
    return "training" if trials == 1 else f"training, trial {number + 1} of {trials}"


def best_of(
    values: Iterable[float],
    train: Callable[[int, float, float | None], Trial],
    keep: Callable[[int], None],
    *,
    budget: float | None = None,
    further: Callable[[Sequence[Trial], int], float | None] = lambda trials, best: None,
) -> tuple[tuple[Trial, ...], int]:
    """Train once with each value and keep the one with the lowest validation loss.

    Args:
        values: to try, in this order.
        train: (number of the trial, value, seconds it may take or None) → what came of it. One
            that diverges before it was validated raises FloatingPointError; it is recorded, and
            never the best.
        keep: called with the trial's number after each trial that is the best so far.
        budget: seconds of training for all together; what is left is shared out evenly among the
            trials to come, and the first one is made in any case.
        further: (trials so far, index of the best) → one more value to try after `values`, and so
            on until it is None.

    Returns:
        The trials, in order, and the index of the best.

    Raises:
        DivergedError: every trial diverged.
    """
    values = list(values)
    trials: list[Trial] = []
    best: int | None = None
    spent, lowest, problem = 0.0, math.inf, ""
    for number in count():
        if number == len(values):
            value = None if best is None else further(trials, best)
            if value is None:
                break
            values.append(value)
        value = values[number]
        limit = None if budget is None else (budget - spent) / (len(values) - number)
        if trials and limit is not None and limit <= 0:
            break
        started = time.perf_counter()
        try:
            trial = replace(train(number, value, limit), number=number)
        except FloatingPointError as error:
            problem = str(error)
            trial = replace(_diverged(value, started), number=number)
        trials.append(trial)
        spent += trial.seconds
        loss = trial.validation_loss
        if loss is not None and loss < lowest:
            best, lowest = len(trials) - 1, loss
            keep(number)
    if best is None:
        raise DivergedError(
            f"Every trial diverged ({problem}). For an LLM, give a lower --learning-rate."
        )
    return tuple(trials), best


def refit_or_keep(train: Callable[[], Trial], rate: float, notify: Listener) -> Trial:
    """Train anew; the caller keeps what was chosen if that diverges.

    Args:
        train: does it, or raises FloatingPointError.
        rate: its learning rate.
        notify: told that it diverged.

    Returns:
        What came of it, or a trial that `stopped` as "diverged".
    """
    started = time.perf_counter()
    try:
        return train()
    except FloatingPointError as error:
        kept = "what was chosen on validation is kept, trained on train alone"
        notify(Note(f"{REFIT[0].upper()}{REFIT[1:]}: it diverged, {kept} ({error})."))
        return _diverged(rate, started)


def _diverged(rate: float, started: float) -> Trial:
    return Trial(
        settings={"learning_rate": rate},  # nothing else can diverge
        validation_loss=None,
        seconds=time.perf_counter() - started,
        stopped="diverged",
    )
