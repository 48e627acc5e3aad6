"""Comparisons of several targets: one a target, whose tuned LLMs are trained once for all of them.

A rung that learns all targets together has its run in the folder that the comparisons share. Each
comparison has what the run says of its own target, laid out like a run of that target alone.
"""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from llabel import run
from llabel.compare.draws import DRAWS
from llabel.compare.plan import CURVE, RUNGS, PlannedRun
from llabel.config import RunConfig
from llabel.data import LoadedTask
from llabel.errors import InputError
from llabel.folder import (
    SHARED_RUN,
    finished_run,
    is_started,
    read_record,
    write_json,
    write_json_lines,
)
from llabel.ladder.targets import target_folder
from llabel.paths import visible_names
from llabel.record import RunRecord, target_records
from llabel.rung_settings import ADAPTED
from llabel.settings import CompareSettings, DataSettings
from llabel.target_runs import target_lines

_TAKEN = {RUNGS, CURVE, DRAWS, "compare.json", "report.html"}


@dataclass(slots=True)
class Joint:
    """How the comparison of one target shares runs with the others.

    Attributes:
        target: its name.
        folder: of its own comparison.
        shared: of all.
        failed: why runs for all targets came to no result, by folder, so that none is tried again
            for every target.
    """

    target: str
    folder: Path
    shared: Path
    failed: dict[Path, str]
    _rows: dict[tuple[DataSettings, int], LoadedTask] = field(default_factory=dict, init=False)

    def run_of(self, planned: PlannedRun) -> PlannedRun | None:
        """The run for all targets that stands for `planned`; None where each target has its own."""
        if planned.rung not in ADAPTED:
            return None
        config = replace(planned.config, data=replace(planned.config.data, target=None))
        return replace(
            planned, config=config, folder=self.shared / planned.folder.relative_to(self.folder)
        )

    def rows(self, planned: PlannedRun) -> LoadedTask:
        """The rows of a run for all targets."""
        key = planned.config.data, planned.config.llm.seed
        if key not in self._rows:
            self._rows[key] = run.load(planned.config)
        return self._rows[key]

    def finished(self, planned: PlannedRun) -> bool:
        """Whether the run for all targets is there.

        Raises:
            InputError: its folder holds another run.
        """
        fingerprint = self.rows(planned).task.fingerprint
        return finished_run(planned.folder, planned.config, fingerprint) is not None

    def take(self, joint: PlannedRun, folder: Path) -> RunRecord:
        """Lay out what the finished run for all targets says of this one in `folder`.

        Raises:
            InputError: `folder` holds a run of its own.
        """
        if is_started(folder):
            raise InputError(
                f"--out: {folder} holds a run of {self.target} alone. Name another --out."
            )
        record = target_records(read_record(joint.folder))[self.target]
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SHARED_RUN, {"run": joint.folder.as_posix()})
        write_json_lines(folder / "predictions.jsonl", target_lines(joint.folder, self.target))
        if (joint.folder / "train.log.jsonl").is_file():
            shutil.copyfile(joint.folder / "train.log.jsonl", folder / "train.log.jsonl")
        write_json(folder / "run.json", record)
        return record


def each_target(config: RunConfig, asked: CompareSettings, out: Path) -> list[Joint]:
    """The comparisons that one command makes.

    Raises:
        InputError: something is asked that several targets cannot have, or `out` is taken.
    """
    if asked.reuse:
        raise InputError(
            f"--reuse: a comparison of several targets ({', '.join(config.targets)}) takes no "
            "other runs over. Leave it out, or compare one target: --target "
            f"{config.targets[0]}."
        )
    found: list[Joint] = []
    failed: dict[Path, str] = {}
    for target in config.targets:
        name = target_folder(out, target).name
        folder = out / (f"target-{name}" if name in _TAKEN else name)
        found.append(Joint(target, folder, out, failed))
    ours = {joint.folder.name for joint in found} | {RUNGS, CURVE, DRAWS}
    if foreign := visible_names(out) - ours:
        raise InputError(
            f"--out {out} holds {min(foreign)}, which is not of a comparison of "
            f"{' and '.join(config.targets)}. Name a new or empty folder."
        )
    return found
