"""What a sweep looks like while it runs: a bar for all of it, and one for each running cell."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from llabel.check.view import duration
from llabel.console import LINE_SECONDS, SPEED_SECONDS, notes
from llabel.events import (
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
        task: Rich's number of its bar.
        rows: that it will train on, at most.
        trained: of them, so far.
        stage: what it does.
    """

    task: TaskID
    rows: int
    trained: int = 0
    stage: str = ""


@dataclass(slots=True)
class _Count:
    cells: int = 0
    done: int = 0
    rows: int = 0
    told_at: float = field(default_factory=time.monotonic)


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
        self.count = _Count()
        self.running: dict[str, _Running] = {}
        self.noted: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Note(text):
                self.note(text)
            case Fetching(what, share) if share in {0, 1}:
                self.note(f"{what}: {'fetched' if share else 'being fetched'}")
            case SweepStarted(cells, done, rows):
                self.begin(cells, done, rows)
            case CellStarted(cell, rows):
                self.start(cell, rows)
            case CellSays(cell, inner) if cell in self.running:
                self.hear(self.running[cell], inner)
            case CellDone():
                self.end(event)

    def note(self, text: str) -> None:
        """Once: every cell says the same of its rows."""
        if text not in self.noted:
            self.noted.add(text)
            notes(self.console, [text])

    def begin(self, cells: int, done: int, rows: int) -> None:
        """The whole begins."""
        self.count = _Count(cells, done, rows)
        self.whole = self.progress.add_task("sweep", total=rows or None, told=self.counted())
        if self.live:
            self.progress.start()
        before = f", {done} finished before" if done else ""
        notes(self.console, [f"{cells} cells{before}; {rows:,} rows to train on"])

    def counted(self) -> str:
        """How many cells are done."""
        return f"{self.count.done} of {self.count.cells} cells"

    def start(self, cell: str, rows: int) -> None:
        """A cell's bar."""
        task = self.progress.add_task(cell, total=rows or None, told="")
        self.running[cell] = _Running(task, rows)

    def hear(self, cell: _Running, event: Event) -> None:
        """What a cell says of itself."""
        match event:
            case Note(text):
                self.note(text)
            case StageStarted(name, _, done):
                cell.stage = name
                self.train(cell, max(0, min(cell.rows, done) - cell.trained))
                self.progress.update(cell.task, told=name)
            case StepDone(loss=loss, rows=rows):
                self.train(cell, rows)
                self.progress.update(cell.task, told=f"loss {loss:.3f}")
            case RowsDone():
                self.progress.refresh() if self.live else None

    def train(self, cell: _Running, rows: int) -> None:
        """So many more rows were trained on."""
        cell.trained += rows
        self.progress.update(cell.task, completed=cell.trained)
        if self.whole is None:
            return
        self.progress.advance(self.whole, rows)
        if not self.live and time.monotonic() - self.count.told_at >= LINE_SECONDS:
            self.tell_whole()

    def tell_whole(self) -> None:
        """In a log: how far the sweep is."""
        self.count.told_at = time.monotonic()
        task = next(task for task in self.progress.tasks if task.id == self.whole)
        told = [self.counted()]
        if task.speed:
            told.append(f"{task.speed:.1f} rows/s")
        if task.time_remaining:
            told.append(f"{duration(task.time_remaining)} left")
        notes(self.console, ["sweep: " + ", ".join(told)])

    def end(self, event: CellDone) -> None:
        """Its bar goes; rows that it did not need count as done."""
        cell = self.running.pop(event.cell, None)
        self.count.done += 1
        if cell is not None:
            self.progress.remove_task(cell.task)
            if self.whole is not None:
                self.progress.advance(self.whole, max(0, cell.rows - cell.trained))
        if self.whole is not None:
            self.progress.update(self.whole, told=self.counted())
        line = f"{event.cell}: {event.status}"
        if event.log_loss is not None:
            line += f", log loss {event.log_loss:.4f}, accuracy {event.accuracy:.4f}"
        notes(self.console, [line + (f": {event.reason}" if event.reason else "")])
