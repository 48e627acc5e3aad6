"""What long work says of itself while it runs; consoles and logs listen, nobody has to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Note:
    """Something the user should know; the work goes on."""

    text: str


@dataclass(frozen=True, slots=True)
class Fetching:
    """A model or data set is on its way.

    Attributes:
        what: its name.
        share: how much of it is here, 0..1.
    """

    what: str
    share: float


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A piece of work of known size begins.

    Attributes:
        name: what is being done, for people.
        total: its size in rows.
        done: rows that an earlier, interrupted process did.
        steps: optimiser steps that it did.
    """

    name: str
    total: int
    done: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True)
class RowsDone:
    """So many more rows of the current stage are done."""

    rows: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """One optimiser step; one line of `train.log.jsonl`.

    Attributes:
        stage: which training.
        step, steps: how many of how many.
        epoch: epochs done, with a fraction.
        loss: mean over the step's rows (`answer`) or target tokens (`sft`, `all`), nats.
        learning_rate: of this step.
        rows, tokens: what the step read, padding not counted.
        seconds: how long it took.
    """

    stage: str
    step: int
    steps: int
    epoch: float
    loss: float
    learning_rate: float
    rows: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class EpochDone:
    """What validation said after an epoch; log loss of the right labels, nats."""

    stage: str
    epoch: int
    validation_loss: float
    best: bool


@dataclass(frozen=True, slots=True)
class RungStarted:
    """A system of a comparison begins.

    Attributes:
        rung: its name, with the seed or training size where there are several.
        number, total: which of how many.
    """

    rung: str
    number: int
    total: int


@dataclass(frozen=True, slots=True)
class RungDone:
    """A system of a comparison has its result.

    Attributes:
        rung: as in `RungStarted`.
        rows: that it was scored on.
        accuracy, accuracy_ci95, macro_f1, log_loss: on them.
        train_seconds: of all its trials.
        ms_per_text: in bulk.
        part: `test` or `validation`.
    """

    rung: str
    rows: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    macro_f1: float
    log_loss: float
    train_seconds: float
    ms_per_text: float
    part: str


@dataclass(frozen=True, slots=True)
class RungFailed:
    """A system of a comparison failed; the others go on."""

    rung: str
    reason: str


@dataclass(frozen=True, slots=True)
class SweepStarted:
    """A sweep begins, or goes on.

    Attributes:
        cells: in all; of a search, those it may try.
        done: of them, finished before.
        rows: that the others will train on, all epochs together, at most; 0 where none of them
            trains an adapter.
        uncounted: whether some of them train otherwise, which `rows` does not count.
    """

    cells: int
    done: int
    rows: int
    uncounted: bool = False


@dataclass(frozen=True, slots=True)
class CellStarted:
    """A cell of a sweep begins.

    Attributes:
        cell: its name.
        rows: that it will train on, all epochs together, at most.
    """

    cell: str
    rows: int


@dataclass(frozen=True, slots=True)
class CellSays:
    """What a cell that runs says of itself; several may run at once."""

    cell: str
    event: "Event"


@dataclass(frozen=True, slots=True)
class CellAgain:
    """All cells are done; one of them is needed once more.

    Attributes:
        cell: its name.
        doing: what for.
    """

    cell: str
    doing: str


@dataclass(frozen=True, slots=True)
class CellDone:
    """A cell has ended.

    Attributes:
        cell: its name.
        status: `done`, `pruned` or `failed`.
        reason: why, where it is not done.
        log_loss, accuracy: on the validation rows, where it is.
    """

    cell: str
    status: str
    reason: str
    log_loss: float | None
    accuracy: float | None


Event: TypeAlias = (
    Note
    | Fetching
    | StageStarted
    | RowsDone
    | StepDone
    | EpochDone
    | RungStarted
    | RungDone
    | RungFailed
    | SweepStarted
    | CellStarted
    | CellSays
    | CellAgain
    | CellDone
)
Listener: TypeAlias = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener of those who want none."""
