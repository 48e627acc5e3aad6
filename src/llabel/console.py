"""What long work looks like: live bars in a terminal, a line now and then in a log or a pipe."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich import box
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from llabel.events import (
    EpochDone,
    Event,
    Fetching,
    Listener,
    Note,
    RowsDone,
    RungDone,
    RungFailed,
    RungStarted,
    StageStarted,
    StepDone,
)
from llabel.numbers import duration, milliseconds

LINE_SECONDS = 10.0  # in a log, a line after so much time
LINE_SHARE = 0.1  # or after so much of the work
LOSSES = 20  # steps over whose mean the shown loss is smoothed
SPEED_SECONDS = 120.0  # rows/s and time left look back so far: steps vary with the rows' lengths
PIPE_WIDTH = 120  # columns of a table that goes to a file, where Rich assumes 80


def output() -> Console:
    """Standard output: results."""
    return _console(stderr=False)


def messages() -> Console:
    """Standard error: progress, notes and errors, so that results can be piped."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    # FORCE_COLOR colours what goes to a file, too; bars that move are for terminals alone.
    moves = (sys.stderr if stderr else sys.stdout).isatty()
    console = Console(stderr=stderr, highlight=False, force_interactive=None if moves else False)
    if not moves and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


def notes(console: Console, texts: Iterable[str]) -> None:
    """A line for each."""
    for text in texts:
        console.print(Text(text), soft_wrap=True)


@contextmanager
def listen(console: Console) -> Iterator[Listener]:
    """Show the events of long work on `console` for as long as the block lasts.

    A terminal gets bars (training with loss, rows/s and the time left) under which nothing
    scrolls; notes stand above them. Elsewhere (CI, pipes, TERM=dumb) plain lines are printed.
    """
    view = _View(console)
    try:
        yield view
        view.clear_results()
    finally:
        view.close()


@contextmanager
def fetching(console: Console) -> Iterator[Callable[[str, float], None]]:
    """Show downloads; yields what `llabel.assets` wants as `progress`."""
    view = _View(console)
    try:
        yield view.share
    finally:
        view.close()


class _Measures(ProgressColumn):
    """Rows done, rows/s, loss."""

    def render(self, task: Task) -> Text:
        """One task's."""
        return Text(_measures(task), style="progress.data.speed")


class _TimeLeft(TimeRemainingColumn):
    """Time left of what runs; of what waits or was ended early there is none to tell."""

    def render(self, task: Task) -> Text:
        """One task's."""
        shown = task.fields["active"] or task.finished
        return super().render(task) if shown else Text()


@dataclass(slots=True)
class _Stage:
    """A piece of work on the screen.

    Attributes:
        id: Rich's number of it.
        said_share, said_at: what the last line of a log told, and when.
        by_rows: whether it was seen to advance by rows; a training advances by steps.
        losses: of the last steps.
    """

    id: TaskID
    said_share: float
    said_at: float
    by_rows: bool = False
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=LOSSES))


class _Bars(Progress):
    """Bars, and above them the results of a comparison as they come."""

    results: Table | None = None

    def get_renderables(self) -> Iterator[RenderableType]:
        """The table, if there is one, and the bars."""
        if self.results is not None:
            yield self.results
        yield self.make_tasks_table(self.tasks)


class _View:
    """Rich's `Progress` keeps the books either way; it is shown only where it can move."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_interactive
        self.progress = _Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(12),
            TaskProgressColumn(),
            _Measures(),
            _TimeLeft(compact=True, elapsed_when_finished=True),
            console=console,
            speed_estimate_period=SPEED_SECONDS,
            get_time=time.monotonic,
        )
        self.stage: _Stage | None = None
        self.training: _Stage | None = None
        self.downloads: dict[str, _Stage] = {}
        self.rung = ""

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Note(text):
                self.say(text)
            case Fetching(what, share):
                self.share(what, share)
            case StageStarted(name, total, done):
                self.begin(name, total, done, unit="rows")
                before = f", {done:,} done before" if done else ""
                if not self.live:
                    self.say(f"{name}: {total:,} rows{before}")
            case RowsDone(rows) if self.stage:
                self.stage.by_rows = True
                self.advance(self.stage, self.task(self.stage).completed + rows)
            case StepDone() if self.stage:
                self.step(event)
            case EpochDone(epoch=epoch, validation_loss=loss, best=best):
                verdict = "the best so far" if best else "no better than before"
                self.say(f"epoch {epoch}: validation loss {loss:.4f}, {verdict}")
            case RungStarted():
                self.begin_rung(event)
            case RungDone():
                self.end_rung(result_cells(event))
            case RungFailed(rung, reason):
                self.end_rung((rung, "failed", "", "", "", ""))
                self.say(f"{rung} failed: {reason}")

    def begin_rung(self, event: RungStarted) -> None:
        """A new system: its bars take the place of the last one's."""
        self.rung = f"{event.rung} ({event.number} of {event.total})"
        if self.progress.results is None:
            self.progress.results = results_table()
        if not self.live:
            self.say(self.rung)

    def end_rung(self, cells: Sequence[str]) -> None:
        """Its bars go, its result stays."""
        for task in list(self.progress.tasks):
            self.progress.remove_task(task.id)
        self.stage = self.training = None
        self.downloads.clear()
        self.rung = ""
        assert self.progress.results
        self.progress.results.add_row(*map(Text, cells))
        if not self.live:
            self.say(f"{cells[0]}: {result_line(cells)}")

    def clear_results(self) -> None:
        """The whole table comes next: this one need not stay on the screen."""
        if self.progress.results is not None:
            self.progress.results = None
            for task in list(self.progress.tasks):
                self.progress.remove_task(task.id)

    def share(self, what: str, share: float) -> None:
        """Show that so much (0 to 1) of a download is done."""
        if what not in self.downloads:
            self.downloads[what] = self.begin(what, 1, 0, unit="")
            if not self.live:
                self.say(what)
        self.advance(self.downloads[what], share)

    def say(self, text: str) -> None:
        """One line above the bars."""
        notes(self.console, [text])

    def begin(self, name: str, total: int, done: int, unit: str) -> _Stage:
        """A new bar; the one before waits or has ended, maybe early."""
        if self.live:
            self.progress.start()
        if self.stage:
            self.progress.update(self.stage.id, active=False)
        shown = f"{self.rung}: {name}" if self.rung and self.live else name
        number = self.progress.add_task(
            shown, total=total, completed=done, active=True, unit=unit, loss=""
        )
        self.stage = _Stage(number, done / total if total else 1, time.monotonic())
        return self.stage

    def step(self, event: StepDone) -> None:
        """A training goes by its own count of steps, since it may have been resumed."""
        assert self.stage
        if self.stage.by_rows and self.training:  # it was interrupted to validate
            self.progress.remove_task(self.stage.id)
            self.stage = self.training
            self.progress.update(self.stage.id, active=True)
        self.training = self.stage
        self.stage.losses.append(event.loss)
        mean = sum(self.stage.losses) / len(self.stage.losses)
        self.progress.update(self.stage.id, loss=f"loss {mean:.3f}")
        self.advance(self.stage, (self.task(self.stage).total or 0) * event.step / event.steps)

    def advance(self, stage: _Stage, completed: float) -> None:
        """Move a bar; in a log, say so now and then."""
        self.progress.update(stage.id, completed=completed)
        task = self.task(stage)
        if self.live or not task.total:
            return
        waited = time.monotonic() - stage.said_at
        share = completed / task.total
        many = waited >= 1 and share - stage.said_share >= LINE_SHARE
        if waited >= LINE_SECONDS or many or share >= 1 > stage.said_share:
            stage.said_at, stage.said_share = time.monotonic(), share
            left = task.time_remaining
            told = [f"{share:.0%}", _measures(task), f"{duration(left)} left" if left else ""]
            self.say(f"{task.description}: " + ", ".join(filter(None, told)))

    def task(self, stage: _Stage) -> Task:
        """Rich's own record of a stage."""
        return next(task for task in self.progress.tasks if task.id == stage.id)

    def close(self) -> None:
        """Leave the bars as they stand."""
        if self.live:
            self.progress.stop()


def results_table() -> Table:
    """Systems as they come."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("rung")
    for name in ("accuracy (95 %)", "macro-F1", "log loss", "training", "ms/text"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def result_cells(event: RungDone) -> tuple[str, ...]:
    """One system's result in the columns of `results_table`."""
    low, high = event.accuracy_ci95
    on = "" if event.part == "test" else f", {event.part}"
    return (
        event.rung,
        f"{event.accuracy:.4f} ({low:.4f}–{high:.4f}{on})",
        f"{event.macro_f1:.4f}",
        f"{event.log_loss:.4f}",
        duration(event.train_seconds) if event.train_seconds else "–",
        milliseconds(event.ms_per_text),
    )


def result_line(cells: Sequence[str]) -> str:
    """The same as a line of a log."""
    if cells[1] == "failed":
        return "failed"
    names = ("accuracy", "macro-F1", "log loss", "training", "ms a text")
    return ", ".join(f"{name} {cell}" for name, cell in zip(names, cells[1:], strict=True))


def _measures(task: Task) -> str:
    if task.fields["unit"] != "rows":
        return ""
    told = [f"{int(task.completed):,}/{int(task.total or 0):,} rows"]
    if task.speed:
        told.append(f"{task.speed:.{1 if task.speed < 100 else 0}f} rows/s")
    return ", ".join(filter(None, [*told, task.fields["loss"]]))
