"""Train a grid or a search of settings, choose on validation, test the chosen one."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llabel import run
from llabel.config import RunConfig, short
from llabel.data import LoadedTask
from llabel.errors import FetchError, InputError
from llabel.events import CellAgain, Listener, Note, SweepStarted, ignore
from llabel.folder import write_json, write_text
from llabel.ladder import registry
from llabel.report import render_sweep
from llabel.rung_settings import ADAPTED, UNTOUCHED
from llabel.settings import SweepSettings
from llabel.sweep.axes import Axes, read_axes
from llabel.sweep.cells import PlannedCell, distinct, grid, planned
from llabel.sweep.choose import choose
from llabel.sweep.crew import Crew, ProcessWorker, WorkerDiedError, one_at_a_time, threads_each
from llabel.sweep.folder import (
    RECORD,
    SweepFolder,
    is_finished,
    read_cell,
    read_test,
)
from llabel.sweep.on_ray import cluster, refuse_unreachable, require_ray
from llabel.sweep.outcome import Order
from llabel.sweep.plans import GridPlan, SearchPlan
from llabel.sweep.results import assemble, done_cells
from llabel.sweep.rows import Rows, load_all, rows_key
from llabel.sweep.runner import BUSY
from llabel.sweep.so_far import WrittenSoFar
from llabel.sweep.study import PRUNER, require_optuna
from llabel.sweep_record import Search, SweepRecord, Test
from llabel.tracking import refuse_missing_tracker

PAGE = "report.html"
_NUMBERS = (int, float)  # a bool is none of them: it says what is done, not how much
_CHECKED = ("max_seq_length", "adapt_layers")  # numbers that a model may be too small for
# What decides which frozen model a worker has to load, and how rows become prompts.
_OF_MODEL = (UNTOUCHED - {"token_budget"}) | {"rung", "compile", "gradient_checkpointing"}


def sweep(
    values: Mapping[str, Any],
    asked: SweepSettings,
    out: Path,
    *,
    command: str,
    notify: Listener = ignore,
) -> SweepRecord:
    """Train the cells of a sweep; leave them, `sweep.json` and `report.html` in `out`.

    The same call goes on where an interrupted one stopped, also beside others that are still at
    it. More values make a larger sweep of it; cells that are finished stay as they are. A cell
    that fails is a row with its reason; unless it diverged, the next call tries it again.

    Args:
        values: settings of `llabel fit` by name, those that vary with several values (see
            `llabel.sweep.axes.read_axes`).
        asked: search, seeds, jobs.
        out: folder of the sweep.
        command: what the user typed, for the record.
        notify: told of progress.

    Raises:
        InputError: the data or settings cannot be used, or `out` holds something else.
    """
    if asked.search:
        require_optuna()
    if asked.ray:
        require_ray()
        refuse_unreachable(asked.ray)
    axes = read_axes(values, searching=asked.search is not None, seeds=asked.seeds)
    job = _prepared(axes, asked, SweepFolder(out), one_at_a_time(notify))
    with job.crew() as crew:
        job.train(crew, command)
        return job.close(crew, command)


def _prepared(axes: Axes, asked: SweepSettings, folder: SweepFolder, notify: Listener) -> "_Sweep":
    """Say all that is wrong with settings, data and folder before the first hour of work."""
    cells = _corners(axes) if asked.search else grid(axes)
    if (one := next(iter(cells)).config).joint:
        raise InputError(
            f"--label {one.data.label}: a sweep judges its cells by one target. Add --target "
            f"{one.targets[0]}; rows and splits stay those of all."
        )
    for config in {cell.config.run.track: cell.config for cell in cells}.values():
        refuse_missing_tracker(config)
    rows = Rows()
    loaded = load_all(rows, cells)
    for one_of in loaded.values():
        run.refuse_single_rows(one_of.task, "validation")
    first = loaded[rows_key(cells[0].config)]
    for text in first.notes:
        notify(Note(text))
    kinds, missing = _kinds(cells), []
    for config in kinds:
        task = loaded[rows_key(config)].task
        try:
            registry.make(config).prepare(task.fields, task.classes, notify)
        except FetchError as error:
            missing.append((config, error))
    if len(missing) == len(kinds):  # no cell could run
        raise missing[0][1]
    for config, fault in missing:
        notify(Note(f"{config.run.rung}: {fault}"))
    job = _Sweep(axes, asked, folder, [] if asked.search else cells, loaded, rows, notify)
    folder.open(axes, asked.search, job.fingerprints)
    return job


def _corners(axes: Axes) -> list[PlannedCell]:
    """Of a search some cells that have every value, and the ends of all ranges: these are right.

    Of each rung one axis at a time is varied: all combinations may be more than can be counted.
    """
    values: dict[str, Sequence[Any]] = dict(axes.lists)
    for name, found in axes.ranges.items():
        ends = found["low"], found["high"]
        values[name] = [int(end) if found["whole"] else end for end in ends]
    rungs = [{"rung": rung} for rung in values.pop("rung", ())]
    combinations: list[dict[str, Any]] = []
    for rung in rungs or [{}]:
        first = {name: some[0] for name, some in values.items()} | rung
        combinations.append(first)
        combinations += [first | {n: value} for n, some in values.items() for value in some[1:]]
    return distinct(planned(axes, combination) for combination in combinations)


def _kinds(cells: list[PlannedCell]) -> list[RunConfig]:
    """One cell's settings of each kind: those that differ by most numbers are prepared alike."""
    found: dict[str, RunConfig] = {}
    for cell in cells:
        kind = {n: v for n, v in cell.identity.items() if type(v) not in _NUMBERS or n in _CHECKED}
        found.setdefault(str(sorted(kind.items())), cell.config)
    return list(found.values())


def _by_model(cells: list[PlannedCell]) -> list[PlannedCell]:
    """Cells of a model one after the other: a worker keeps one, and the prompts of it."""
    found: dict[str, list[PlannedCell]] = {}
    for cell in cells:
        model = {n: v for n, v in cell.identity.items() if n in _OF_MODEL}
        found.setdefault(str(sorted(model.items())), []).append(cell)
    return [cell for some in found.values() for cell in some]


@dataclass(slots=True)
class _Sweep:
    """A sweep that is known to be possible.

    Attributes:
        loaded: rows that were read beforehand, by `rows_key`.
        read: reads those that a search comes to.
    """

    axes: Axes
    asked: SweepSettings
    folder: SweepFolder
    cells: list[PlannedCell]
    loaded: dict[str, LoadedTask]
    read: Rows
    notify: Listener

    @property
    def fingerprints(self) -> dict[str, str]:
        return {rows: loaded.task.fingerprint for rows, loaded in self.loaded.items()}

    @contextmanager
    def crew(self) -> Iterator[Crew]:
        """Who does the work."""
        asked, out = self.asked, self.folder.out
        if asked.ray:
            with (
                cluster(asked.ray, out, self.loaded, asked.jobs) as machines,
                Crew(machines.hire, machines.jobs) as crew,
            ):
                yield crew
            return
        jobs = asked.jobs or 1
        with Crew(lambda: ProcessWorker(out, threads_each(jobs)), jobs) as crew:
            yield crew

    def train(self, crew: Crew, command: str) -> None:
        """All cells, or all trials; what there is so far is written now and then."""
        asked, others = self.asked, not set(self.axes.rungs).issubset(ADAPTED)
        plan: GridPlan
        if asked.search:
            plan = search = SearchPlan(
                self.folder, self.axes, self.order, self.rows, self.notify,
                sampler=asked.search, trials=asked.trials, seed=self._seed,
            )  # fmt: skip
            done = len(search.settled())
            most = self._most_rows() * max(0, asked.trials - done)
            self.notify(SweepStarted(asked.trials, done, most, others))
        else:
            places = self.folder.placed(self.cells)
            left = [
                cell
                for cell, place in zip(self.cells, places, strict=True)
                if not is_finished(place)
            ]
            plan = GridPlan(self.folder, _by_model(left), self.order, self.rows, self.notify)
            done = len(self.cells) - len(left)
            rows = sum(map(self.rows, left))
            self.notify(SweepStarted(len(self.cells), done, rows, others))
        watched = WrittenSoFar(plan, lambda: self._write_so_far(plan, command), self.notify)
        try:
            crew.carry_out(watched, self.notify)
        except KeyboardInterrupt:
            watched.now()
            raise
        if asked.search:
            self.cells = distinct(search.tried())

    def _write_so_far(self, plan: GridPlan, command: str) -> None:
        """Record and page of the cells that have ended, without a choice or a look at the test.

        Those of a sweep that has ended stay until a larger one has, too.
        """
        cells, left = self.cells, 0
        if isinstance(plan, SearchPlan):
            cells = distinct(plan.tried())
            left = max(0, self.asked.trials - len(plan.settled()))
        places = zip(cells, self.folder.placed(cells), strict=True)
        ended = [cell for cell, place in places if read_cell(place) is not None]
        if not ended:
            return
        loaded = self.read(ended[0].config)
        search = self._search() if self.asked.search else None
        record = assemble(self.axes, search, loaded, ended, self.folder, None, None, command)
        record["unfinished"] = left or len(cells) - len(ended)
        with self.folder.lock("record"):
            if self._is_still() and not self.folder.is_written_up():
                self._write(record)

    def _write(self, record: SweepRecord) -> None:
        write_json(self.folder.out / RECORD, record)
        write_text(self.folder.out / PAGE, render_sweep(record))

    def close(self, crew: Crew, command: str) -> SweepRecord:
        """Choose, read the test part once, write it all up.

        Another process may do so at the same time, have more cells, or end one that failed here:
        from the look at what is done to the record no other chooses or tests.
        """
        with self.folder.lock("choice"):
            record = None
            while record is None:
                record = self._written_up(crew, command)
        return record

    def _written_up(self, crew: Crew, command: str) -> SweepRecord | None:
        """The record, written unless the sweep was extended; None where more cells are done now."""
        loaded, still = self.read(self.cells[0].config), self._is_still()
        done = done_cells(self.folder, self.cells)
        chosen = choose(done, self.cells, loaded.task.validation) if still else None
        test: Test | None = None
        if chosen:
            best = next(one.cell for one in done if one.name == chosen["cell"])
            test = self._tested(best, crew)
            self._restored([one.cell for one in done if one.name == chosen["recommended"]], crew)
        search = self._search() if self.asked.search else None
        record = assemble(self.axes, search, loaded, self.cells, self.folder, chosen, test, command)
        with self.folder.lock("record"):
            if not (still and self._is_still()):
                self.notify(Note("Another process extended this sweep and will write it up."))
                return record
            now = done_cells(self.folder, self.cells)
            if [one.name for one in now] != [one.name for one in done]:
                return None
            self._write(record)
            if chosen and not self.asked.keep_adapters:
                self.folder.remove_rungs({chosen["cell"], chosen["recommended"]})
        return record

    def _is_still(self) -> bool:
        """Whether nobody extended the sweep meanwhile."""
        return self.folder.is_still(self.axes, self.asked.search, self.fingerprints)

    def order(self, cell: PlannedCell, trial: int | None) -> Order:
        """What a worker is told of a cell."""
        config = cell.config
        free = {
            name: getattr(config.run, name)
            for name in ("checkpoint_minutes", "checkpoint_steps", "track", "no_texts")
        }
        return Order(
            name=self.folder.place(cell).name,
            values=cell.identity,
            fingerprint=self.read(config).task.fingerprint,
            free=free,
            trial=trial,
        )

    def rows(self, cell: PlannedCell) -> int:
        """That the cell trains on, all epochs together, at most."""
        return cell.rows_to_train(*self._sizes(cell))

    def _most_rows(self) -> int:
        """That a cell of the search trains on, at most: most rows, most often."""
        corners = _corners(self.axes)
        sizes = set(map(self._sizes, corners))
        return max(cell.rows_to_train(*rows) for cell in corners for rows in sizes)

    def _sizes(self, cell: PlannedCell) -> tuple[int, int]:
        """Rows of train and of validation."""
        task = self.read(cell.config).task
        return len(task.train), len(task.validation)

    @property
    def _seed(self) -> int:
        return int(self.axes.shared.get("seed", 0))

    def _tested(self, cell: PlannedCell, crew: Crew) -> Test:
        order = self.order(cell, None)
        known = read_test(self.folder.out)
        if known is None or known["cell"] != order.name:
            self._insist(replace(order, test=True), crew, "testing the chosen one")
            known = read_test(self.folder.out)
        assert known
        return Test(cell=known["cell"], metrics=known["metrics"], earlier=known["earlier"])

    def _restored(self, cells: Sequence[PlannedCell], crew: Crew) -> None:
        """See that what the user is told to use is there: an earlier call may have removed it."""
        for cell in cells:
            order = self.order(cell, None)
            if not cell.control and not self.folder.is_kept(order.name):
                again = "training the recommended one again"
                self._insist(replace(order, restore=True), crew, again)

    def _insist(self, order: Order, crew: Crew, doing: str) -> None:
        """Have it done, however long another process is at it.

        Raises:
            InputError: the worker died, or could not do it.
        """
        self.notify(CellAgain(order.name, doing))
        try:
            while crew.do(order, self.notify) == BUSY:
                time.sleep(1)
        except (WorkerDiedError, InputError) as error:
            reason = str(error).rstrip(".")
            raise InputError(
                f"All cells are done, but {doing}, {order.name}, failed: {reason}. The same "
                "command tries it again."
            ) from error

    def _search(self) -> Search:
        assert self.asked.search
        return Search(
            sampler=self.asked.search,
            trials=self.asked.trials,
            ranges={short(name): values for name, values in self.axes.ranges.items()},
            pruner=PRUNER,
        )
