"""Train and test every rung on the same rows, one after the other, and write the comparison."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from llabel import run
from llabel.compare.answers import Outcome
from llabel.compare.derived import derive_calibrated, raw_run
from llabel.compare.draws import DRAWS, DrawnRuns, planned_draws, same_test_rows
from llabel.compare.joint import Joint, each_target
from llabel.compare.plan import CURVE, RUNGS, PlannedRun, curve_runs, ladder_runs
from llabel.compare.processes import RunFailedError, fit_apart
from llabel.compare.results import assemble, assemble_draws
from llabel.compare.reuse import adopt, is_reused
from llabel.comparison import CompareRecord
from llabel.config import RunConfig
from llabel.data import LoadedTask
from llabel.errors import FetchError, InputError
from llabel.events import Event, Listener, Note, RungDone, RungFailed, RungStarted, ignore
from llabel.folder import (
    alone_with,
    finished_run,
    is_of_others,
    read_record,
    write_json,
    write_text,
)
from llabel.ladder import registry
from llabel.paths import visible_names
from llabel.predictions import refuse_silent
from llabel.record import RunRecord
from llabel.report import render_comparison
from llabel.settings import CompareSettings


def compare(
    config: RunConfig,
    asked: CompareSettings,
    out: Path,
    *,
    command: str,
    overwrite: bool = False,
    notify: Listener = ignore,
) -> CompareRecord:
    """Run every rung on one locked split; leave runs, `compare.json` and `report.html` in `out`.

    The same call goes on where an interrupted one stopped. A rung that fails is a row with its
    reason; the next call tries it again.

    Args:
        config: the settings of all runs; its rung is not looked at.
        asked: rungs, seeds, margin, learning curve.
        out: folder of the comparison.
        command: what the user typed, for the record.
        overwrite: throw away runs in `out` with other settings or rows.
        notify: told of progress.

    Raises:
        InputError: the data or settings cannot be used, or `out` holds something else.
    """
    return _compare(config, out, _Job(asked, command, overwrite, notify))


def compare_each(
    config: RunConfig,
    asked: CompareSettings,
    out: Path,
    *,
    command: str,
    overwrite: bool = False,
    notify: Listener = ignore,
) -> dict[str, tuple[Path, CompareRecord]]:
    """`compare`, for each of several targets in a folder of its own below `out`.

    Rows and splits are the same for all. What learns all targets together is trained once, in
    `out` itself; of other rungs each target has its own.

    Returns:
        For each target, by name, its folder and its comparison; by "" where there is one.

    Raises:
        InputError: as `compare`.
    """
    if not config.joint:
        done = compare(config, asked, out, command=command, overwrite=overwrite, notify=notify)
        return {"": (out, done)}
    joints = each_target(config, asked, out)
    found = {}
    with alone_with(out, f"{out} is in use by another llabel process. Wait, or choose another."):
        for joint in joints:
            notify(Note(f"Comparing on the target {joint.target}."))
            own = replace(config, data=replace(config.data, target=joint.target))
            job = _Job(asked, command, overwrite, notify, joint)
            found[joint.target] = joint.folder, _compare(own, joint.folder, job)
    return found


def _compare(config: RunConfig, out: Path, job: "_Job") -> CompareRecord:
    asked, command = job.asked, job.command
    if config.run.untested:
        raise InputError(
            "untested: known to `llabel fit` only. A comparison reads the test part once a rung."
        )
    _refuse_foreign(out, asked)
    draws = list(planned_draws(config, asked, out)) if asked.draws > 1 else []
    busy = f"{out} is in use by another llabel process. Wait, or choose another --out."
    with alone_with(out, busy):
        if not draws:
            return job.compare(config, out).record
        loaded = [job.load(one) for one, _ in draws]  # what is wrong with rows is told first
        for text in same_test_rows(asked, loaded):
            job.notify(Note(text))
        drawn = []
        for number, (one, folder) in enumerate(draws, 1):
            done = job.compare(one, folder, loaded[number - 1], f"draw {number}, ")
            drawn.append(DrawnRuns(one, folder, done.loaded, done.outcomes))
        return job.written(assemble_draws(config, asked, drawn, out, command), out)


@dataclass(frozen=True, slots=True)
class _Compared:
    """A comparison on one draw of the rows."""

    record: CompareRecord
    loaded: LoadedTask
    outcomes: list[Outcome]


@dataclass(slots=True)
class _Job:
    """What is asked of every draw, and what was said of its rows."""

    asked: CompareSettings
    command: str
    overwrite: bool
    notify: Listener
    joint: Joint | None = None
    notes: set[str] = field(default_factory=set, init=False)

    def load(self, config: RunConfig) -> LoadedTask:
        """The rows; what is to be said of them once, however many draws there are."""
        loaded = run.load(config)
        run.refuse_single_rows(loaded.task, "validation", "test")
        for text in loaded.notes:
            if text not in self.notes:
                self.notify(Note(text))
        self.notes |= set(loaded.notes)
        return loaded

    def compare(
        self, config: RunConfig, out: Path, loaded: LoadedTask | None = None, label: str = ""
    ) -> _Compared:
        """Run every rung on one split and write it up in `out`."""
        loaded = loaded or self.load(config)
        asked = self.asked
        sizes = _smaller_sizes(asked, loaded)
        table = list(ladder_runs(config, asked, out))
        curve = list(curve_runs(config, replace(asked, curve=sizes), out))
        no_texts = config.run.no_texts
        adopt(asked.reuse, table, loaded, no_texts=no_texts, overwrite=self.overwrite)
        planned = [replace(one, label=label + one.label) for one in [*table, *curve]]
        progress = _Progress(loaded, planned, self.overwrite, self.notify, self.joint)
        progress.prepare()
        ended = [progress.carry_out(one) for one in planned]
        outcomes, points = ended[: len(table)], ended[len(table) :]
        self.notify(Note("Comparing the rungs' answers."))
        record = assemble(config, asked, loaded, outcomes, points, out, self.command)
        return _Compared(self.written(record, out), loaded, outcomes)

    def written(self, record: CompareRecord, out: Path) -> CompareRecord:
        """Leave the record and its page."""
        write_json(out / "compare.json", record)
        write_text(out / "report.html", render_comparison(record))
        return record


@dataclass(slots=True)
class _Progress:
    """Carries runs out, one by one."""

    whole: LoadedTask
    runs: list[PlannedRun]
    overwrite: bool
    notify: Listener
    joint: Joint | None = None
    begun: int = field(default=0, init=False)
    smaller: dict[int, LoadedTask] = field(default_factory=dict, init=False)

    def prepare(self) -> None:
        """Say what is wrong with settings or folders before the first hour of work.

        What cannot be fetched just now is left to the run that needs it, which then fails alone.

        Raises:
            InputError: something is.
        """
        task = self.whole.task
        open_runs = [planned for planned in self.runs if not self._is_done(planned)]
        for rung, planned in {planned.rung: planned for planned in open_runs}.items():
            whole, config = task, planned.config
            if self.joint and (shared := self.joint.run_of(planned)):
                whole, config = self.joint.rows(shared).task, shared.config
            try:
                made = registry.make(config).prepare(whole.fields, whole.classes, self.notify)
                if config.run.decode == "free":
                    refuse_silent(made)
            except FetchError as error:
                self.notify(Note(f"{rung}: {error}"))

    def _is_done(self, planned: PlannedRun) -> bool:
        """Whether its result is there; refuses a folder of another run.

        Raises:
            InputError: the folder holds one.
        """
        if self.joint and (shared := self.joint.run_of(planned)):
            return not self._to_be_replaced(shared) and self.joint.finished(shared)
        fingerprint = self._fingerprint(planned)
        if is_reused(planned.folder):
            return True
        if self.overwrite and is_of_others(planned.folder, planned.config, fingerprint):
            return False
        return finished_run(planned.folder, planned.config, fingerprint) is not None

    def carry_out(self, planned: PlannedRun) -> Outcome:
        """The run's record, or why there is none."""
        self.begun += 1
        self.notify(RungStarted(planned.label, self.begun, len(self.runs)))
        try:
            record = self._record(planned)
        except (RunFailedError, InputError) as error:
            self.notify(RungFailed(planned.label, str(error)))
            return Outcome(planned, None, str(error))
        self.notify(_done(planned, record))
        return Outcome(planned, record, "")

    def _record(self, planned: PlannedRun) -> RunRecord:
        folder, config = planned.folder, planned.config
        if self.joint and (shared := self.joint.run_of(planned)):
            return self._record_of_all(self.joint, shared, folder)
        if is_reused(folder):
            return read_record(folder)
        fingerprint = self._fingerprint(planned)
        if self.overwrite and is_of_others(folder, config, fingerprint):
            shutil.rmtree(folder)
        found = finished_run(folder, config, fingerprint)
        if found is not None:
            return found
        raw = raw_run(planned, self.runs)
        if raw and not is_reused(raw.folder):  # one made elsewhere may have other settings
            return derive_calibrated(raw, planned, self._loaded(planned), self.notify)
        fit_apart(config, folder, command=planned.command, overwrite=False, notify=self._pass_on)
        return read_record(folder)

    def _record_of_all(self, joint: Joint, shared: PlannedRun, folder: Path) -> RunRecord:
        """The record of this target from the run for all; trained by the first that needs it."""
        if self._to_be_replaced(shared):
            shutil.rmtree(shared.folder)
        if reason := joint.failed.get(shared.folder):
            raise RunFailedError(reason)
        if not joint.finished(shared):
            told = shared.command
            try:
                fit_apart(
                    shared.config,
                    shared.folder,
                    command=told,
                    overwrite=False,
                    notify=self._pass_on,
                )
            except RunFailedError as error:
                joint.failed[shared.folder] = str(error)
                raise
        return joint.take(shared, folder)

    def _to_be_replaced(self, shared: PlannedRun) -> bool:
        """Whether the folder of a run for all targets holds another, to be thrown away."""
        if not (self.overwrite and self.joint):
            return False
        fingerprint = self.joint.rows(shared).task.fingerprint
        return is_of_others(shared.folder, shared.config, fingerprint)

    def _pass_on(self, event: Event) -> None:
        """What a run says; the notes on the data were told before."""
        if not (isinstance(event, Note) and event.text in self.whole.notes):
            self.notify(event)

    def _fingerprint(self, planned: PlannedRun) -> str:
        return self._loaded(planned).task.fingerprint

    def _loaded(self, planned: PlannedRun) -> LoadedTask:
        """The rows of a run: all, or those of a point of the learning curve."""
        rows = planned.config.data.train_rows
        if not planned.config.run.untested or rows is None:
            return self.whole
        if rows not in self.smaller:
            try:
                self.smaller[rows] = run.load(planned.config)
            except InputError as error:  # of --train-rows, which was not given
                raise InputError(f"--curve {rows}, a run with {error}") from error
        return self.smaller[rows]


def _done(planned: PlannedRun, record: RunRecord) -> RungDone:
    part = "validation" if planned.config.run.untested else "test"
    scores = record["metrics"]["validation" if part == "validation" else "test"]
    assert scores
    low, high = scores["accuracy_ci95"]
    cost = record["cost"]
    return RungDone(
        rung=planned.label,
        rows=scores["rows"],
        accuracy=scores["accuracy"],
        accuracy_ci95=(low, high),
        macro_f1=scores["macro_f1"],
        log_loss=scores["log_loss"],
        train_seconds=cost.get("search_seconds", cost["train_seconds"]),
        ms_per_text=1000 / cost["predict_rows_per_second"],
        part=part,
    )


def _refuse_foreign(out: Path, asked: CompareSettings) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file. Name a folder.")
    ours = {RUNGS, CURVE, DRAWS, "compare.json", "report.html"}
    there = visible_names(out)
    if there and not there & ours:
        raise InputError(
            f"--out {out} holds files that are no comparison of llabel's. Name a new or empty "
            "folder."
        )
    if there & ({RUNGS} if asked.draws > 1 else {DRAWS}):
        held = "one draw of the rows" if asked.draws > 1 else "several draws of the rows"
        raise InputError(
            f"--out {out} holds a comparison on {held}, and --draws {asked.draws} asks for "
            "another. Name another folder."
        )


def _smaller_sizes(asked: CompareSettings, loaded: LoadedTask) -> tuple[int, ...]:
    """The sizes of the learning curve below the whole, which the table's own runs stand for."""
    rows = len(loaded.task.train)
    if too_many := [size for size in asked.curve if size > rows]:
        raise InputError(
            f"--curve {too_many[0]}: there are {rows:,} training rows. Name smaller sizes; the "
            "whole is on the curve in any case."
        )
    return tuple(size for size in asked.curve if size < rows)
