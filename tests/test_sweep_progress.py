"""What the bars of a sweep count: rows that are left to train on, and what comes after."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from llabel.events import (
    CellAgain,
    CellDone,
    CellSays,
    CellStarted,
    Event,
    RowsDone,
    StageStarted,
    StepDone,
    SweepStarted,
)
from llabel.ladder.trials import REFIT
from llabel.sweep.axes import read_axes
from llabel.sweep.cells import grid
from llabel.sweep_progress import _View

VARIED = {"data": "x.csv", "text": ("text",), "label": "label", "r": "1,2"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that goes on when it is told to."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr("llabel.sweep_progress.time.monotonic", lambda: now.seconds)
    return now


@pytest.fixture
def view(clock: SimpleNamespace) -> _View:
    return _View(Console(file=io.StringIO(), width=120))


def step(number: int, stage: str = "training") -> StepDone:
    return StepDone(stage, number, 10, number / 10, 0.5, 1e-3, 10, 1000, 1.0)


def tell(view: _View, clock: SimpleNamespace, *events: Event) -> None:
    for event in events:
        clock.seconds += 1
        view(event)


def says(cell: str, *events: Event) -> list[Event]:
    return [CellSays(cell, event) for event in events]


def done(cell: str) -> CellDone:
    return CellDone(cell, "done", "", 0.5, 0.8)


def whole(view: _View) -> tuple[float, float | None]:
    assert view.whole is not None
    task = view.task(view.whole)
    return task.completed, task.total


def test_rows_that_are_not_needed_are_no_speed(view: _View, clock: SimpleNamespace) -> None:
    tell(view, clock, SweepStarted(3, 0, 300), CellStarted("a", 100))
    tell(view, clock, *says("a", StageStarted("training", 100), *(step(n) for n in (1, 2, 3))))
    assert whole(view) == (30, 300)
    tell(view, clock, done("a"), CellStarted("b", 100))
    assert whole(view) == (30, 230), "it stopped early"
    tell(view, clock, *says("b", StageStarted("training", 100, done=80), step(9)))
    assert whole(view) == (40, 150), "an earlier process did 80"
    tell(view, clock, *says("b", step(10)), done("b"))
    assert whole(view) == (50, 150)
    assert view.whole is not None
    assert view.task(view.whole).speed == pytest.approx(40 / 7), "with the pauses"
    assert view.task(view.whole).time_remaining == 18
    tell(view, clock, CellStarted("c", 100), CellDone("c", "pruned", "behind", None, None))
    assert whole(view) == (50, 50)


def test_a_refit_begins_where_the_first_training_ended(view: _View, clock: SimpleNamespace) -> None:
    tell(view, clock, SweepStarted(1, 0, 220), CellStarted("a", 220))
    tell(view, clock, *says("a", StageStarted("training", 100), *(step(n) for n in (1, 2, 3, 4))))
    assert whole(view) == (40, 220)
    tell(view, clock, *says("a", StageStarted(REFIT, 44), step(1, REFIT)))
    assert whole(view) == (50, 84)


def test_rows_of_systems_that_are_not_counted_move_nothing(
    view: _View, clock: SimpleNamespace
) -> None:
    tell(view, clock, SweepStarted(2, 0, 100), CellStarted("encoder", 0))
    tell(view, clock, *says("encoder", StageStarted("training", 100), step(1), step(2)))
    assert whole(view) == (0, 100)


def test_where_no_rows_are_counted_cells_are(view: _View, clock: SimpleNamespace) -> None:
    tell(view, clock, SweepStarted(4, 1, 0, True), CellStarted("majority", 0))
    assert whole(view) == (1, 4)
    tell(view, clock, done("majority"), CellStarted("encoder", 0))
    clock.seconds += 300
    tell(view, clock, done("encoder"))
    assert whole(view) == (3, 4)
    assert view.whole is not None
    assert view.task(view.whole).time_remaining == 302, "as long as the last one"
    assert said(view)[0] == "4 cells, 1 finished before"


def test_that_time_is_left_for_uncounted_systems_is_told(
    view: _View, clock: SimpleNamespace
) -> None:
    tell(view, clock, SweepStarted(2, 0, 1200, True))
    assert whole(view) == (0, 1200)
    (line,) = said(view)
    assert line.startswith("2 cells; 1,200 rows to train on (of LoRA alone: the time left does")


def said(view: _View) -> list[str]:
    lines: list[str] = view.console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return lines


def test_what_comes_after_the_last_cell_is_shown(view: _View, clock: SimpleNamespace) -> None:
    tell(view, clock, SweepStarted(1, 0, 0), CellStarted("a", 0), done("a"))
    tell(view, clock, CellAgain("a", "testing the chosen one"))
    tell(view, clock, *says("a", StageStarted("scoring test rows", 16), RowsDone(12)))
    (bar,) = [task for task in view.progress.tasks if task.id != view.whole]
    assert (bar.completed, bar.total) == (12, 16)
    assert bar.fields["told"] == "scoring test rows"
    tell(view, clock, CellAgain("b", "training the recommended one again"))
    tell(view, clock, *says("b", StageStarted("training", 100), step(1), step(2)))
    (bar,) = [task for task in view.progress.tasks if task.id != view.whole]
    assert (bar.description, bar.completed, bar.total) == ("b", 2, 10)
    clock.seconds += 60
    tell(view, clock, *says("b", step(3)))
    lines = view.console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "testing the chosen one: a" in lines
    assert "training the recommended one again: b" in lines
    assert lines[-1] == "b: step 3 of 10"


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        ({"epochs": "3"}, 3 * 100),
        ({"max_steps": "5", "batch_size": "8"}, 38),  # 5 of 13 steps an epoch
        ({"epochs": "3", "refit": "true"}, 3 * 100 + 3 * 110),
        ({"lora_alpha": "0"}, 0),
        ({"rung": "encoder", "r": "1", "train_rows": "20,30"}, 0),
    ],
    ids=str,
)
def test_rows_of_a_cell_are_those_its_steps_read(values: dict[str, str], rows: int) -> None:
    cells = grid(read_axes(VARIED | values, searching=False))
    assert {cell.rows_to_train(100, 10) for cell in cells} == {rows}
