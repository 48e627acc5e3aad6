"""What a sweep looks like while it runs: a bar for all of it, and one for each running cell."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from llabel.console import LINE_SECONDS, SPEED_SECONDS, notes
from llabel.events import (
    CellAgain,
    CellDone,
    CellSays,
    CellStarted,
    Event,
    Fetching,
    Listener,
    Note,
    RowsDone,
    StageStarted,
    StepDone,
    SweepStarted,
)
from llabel.ladder.trials import REFIT
from llabel.numbers import duration


@contextmanager
def listen(console: Console) -> Iterator[Listener]:
    """Show the events of a sweep on `console` for as long as the block lasts.

    A terminal gets bars; the time left comes from the rows/s of all running cells together.
    Elsewhere a line tells of each cell that begins or ends, and one now and then how far it is.
    """
    view = _View(console)
    try:
        yield view
    finally:
        view.progress.stop()


@dataclass(slots=True)
class _Running:
    """A cell that runs.

    Attributes:
        name: its name.
        task: Rich's number of its bar.
        rows: that this process will train on, at most, as they count for the whole; 0 where its
            bar shows one stage after the other.
        trained: of them, so far.
    """

    name: str
    task: TaskID
    rows: int
    trained: int = 0


@dataclass(slots=True)
class _Count:
    cells: int = 0
    done: int = 0
    rows: int = 0
    told_at: float = 0.0


class _View:
    """Rich's `Progress` keeps the books; it is shown only where it can move."""

    def __init__(self, console: Console) -> None:
        self.console, self.live = console, console.is_interactive
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(12),
            TaskProgressColumn(),
            TextColumn("{task.fields[told]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=console,
            speed_estimate_period=SPEED_SECONDS,
            get_time=time.monotonic,
        )
        self.whole: TaskID | None = None
        self.count = _Count(told_at=time.monotonic())
        self.running: dict[str, _Running] = {}
        self.noted: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Note(text):
                self.note(text)
            case Fetching(what, share) if share in {0, 1}:
                self.note(f"{what}: {'fetched' if share else 'being fetched'}")
            case SweepStarted():
                self.begin(event)
            case CellStarted(cell, rows):
                self.start(cell, rows)
            case CellSays(cell, inner) if cell in self.running:
                self.hear(self.running[cell], inner)
            case CellAgain(cell, doing):
                self.again(cell, doing)
            case CellDone():
                self.end(event)

    def note(self, text: str) -> None:
        """Once: every cell says the same of its rows."""
        if text not in self.noted:
            self.noted.add(text)
            notes(self.console, [text])

    def begin(self, event: SweepStarted) -> None:
        """The whole begins; where no rows are counted, its cells are."""
        cells, done, rows = event.cells, event.done, event.rows
        self.count = _Count(cells, done, rows, time.monotonic())
        total, before = (rows, 0) if rows else (cells, done)
        if not rows:  # one cell may take longer than what is looked back on else
            self.progress.speed_estimate_period = math.inf
        self.whole = self.progress.add_task(
            "sweep", total=total, completed=before, told=self.counted()
        )
        if self.live:
            self.progress.start()
        told = f"{cells} cells" + (f", {done} finished before" if done else "")
        if rows:
            told += f"; {rows:,} rows to train on"
        if rows and event.uncounted:
            told += " (of LoRA alone: the time left does not count the other systems)"
        notes(self.console, [told])

    def counted(self) -> str:
        """How many cells are done."""
        return f"{self.count.done} of {self.count.cells} cells"

    def start(self, cell: str, rows: int) -> None:
        """A cell's bar."""
        task = self.progress.add_task(cell, total=rows or None, told="")
        self.running[cell] = _Running(cell, task, rows)

    def again(self, cell: str, doing: str) -> None:
        """A bar for what comes after the last cell; the one before has ended."""
        for last in self.running.values():
            self.progress.remove_task(last.task)
        self.running.clear()
        notes(self.console, [f"{doing}: {cell}"])
        self.start(cell, 0)

    def hear(self, cell: _Running, event: Event) -> None:
        """What a cell says of itself."""
        match event:
            case Note(text):
                self.note(text)
            case StageStarted(name, total, done):
                if not cell.rows:
                    self.progress.reset(cell.task, total=total, completed=done, told=name)
                elif name == REFIT:  # the training before it has ended, maybe early
                    self.settle(cell, total - done)
                elif done:  # by an earlier process
                    self.settle(cell, cell.rows - cell.trained - done)
                self.progress.update(cell.task, told=name)
            case StepDone(loss=loss, rows=rows):
                self.train(cell, rows) if cell.rows else self.step(cell, event)
                self.progress.update(cell.task, told=f"loss {loss:.3f}")
            case RowsDone(rows) if not cell.rows:
                self.progress.advance(cell.task, rows)
            case RowsDone():
                self.progress.refresh() if self.live else None

    def step(self, cell: _Running, event: StepDone) -> None:
        """Of a training whose rows do not count for the whole."""
        self.progress.update(cell.task, total=event.steps, completed=event.step)
        if not self.live and time.monotonic() - self.count.told_at >= LINE_SECONDS:
            self.count.told_at = time.monotonic()
            notes(self.console, [f"{cell.name}: step {event.step} of {event.steps}"])

    def settle(self, cell: _Running, left: int) -> None:
        """A cell has so many rows left to train on: those beyond are counted no more.

        They are not counted as trained: the speed would be far too high for a while. Nor is the
        speed forgotten, as Rich's `update` would: it tells of the pauses between cells, too.
        """
        dropped = cell.rows - cell.trained - max(0, left)
        if dropped <= 0:
            return
        cell.rows -= dropped
        for number in (cell.task, self.whole):
            if number is not None and (task := self.task(number)).total:
                task.total = max(0, task.total - dropped)

    def train(self, cell: _Running, rows: int) -> None:
        """So many more rows were trained on."""
        counted = max(0, min(rows, cell.rows - cell.trained))
        cell.trained += counted
        self.progress.advance(cell.task, counted)
        if self.whole is None:
            return
        self.progress.advance(self.whole, counted)
        if not self.live and time.monotonic() - self.count.told_at >= LINE_SECONDS:
            self.tell_whole()

    def tell_whole(self) -> None:
        """In a log: how far the sweep is."""
        self.count.told_at = time.monotonic()
        assert self.whole is not None
        task, told = self.task(self.whole), [self.counted()]
        if task.speed:
            told.append(f"{task.speed:.1f} rows/s")
        if task.time_remaining:
            told.append(f"{duration(task.time_remaining)} left")
        notes(self.console, ["sweep: " + ", ".join(told)])

    def task(self, number: TaskID) -> Task:
        """Rich's own record of a bar."""
        return next(task for task in self.progress.tasks if task.id == number)

    def end(self, event: CellDone) -> None:
        """Its bar goes; rows that it did not need are counted no more."""
        cell = self.running.pop(event.cell, None)
        self.count.done += 1
        if cell is not None:
            self.settle(cell, 0)
            self.progress.remove_task(cell.task)
        if self.whole is not None:
            self.progress.update(
                self.whole, told=self.counted(), advance=0 if self.count.rows else 1
            )
        line = f"{event.cell}: {event.status}"
        if event.log_loss is not None:
            line += f", log loss {event.log_loss:.4f}, accuracy {event.accuracy:.4f}"
        notes(self.console, [line + (f": {event.reason}" if event.reason else "")])
