"""The run folder: claimed by one process, never mixed, every file whole."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout

from llabel.config import RunConfig
from llabel.errors import InputError
from llabel.events import EpochDone, Event, Listener, StepDone
from llabel.record import RunRecord


@contextmanager
def claimed(
    out: Path, config: RunConfig, fingerprint: str, overwrite: bool
) -> Iterator[RunRecord | None]:
    """Hold `out` for this run alone; yields the record of the same run where it is finished."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out.parent / f".{out.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"{out} is in use by another llabel process. Wait for it, or choose another --out."
        ) from error
    try:
        yield _opened(out, config, fingerprint, overwrite)
    finally:
        # Before the release: whoever waits on the file sees that its name is gone, and starts over.
        with suppress(OSError):  # Windows keeps open files
            Path(lock.lock_file).unlink()
        lock.release()


def _opened(out: Path, config: RunConfig, fingerprint: str, overwrite: bool) -> RunRecord | None:
    started = out / "config.json"
    if overwrite and started.is_file():
        shutil.rmtree(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file. Name a folder.")
    if out.is_dir() and any(out.iterdir()) and not started.is_file():
        raise InputError(
            f"--out {out} holds files that are not llabel's. Name a new or empty folder."
        )
    now = json.loads(json.dumps({"fingerprint": fingerprint, "config": config.flat()}))
    if started.is_file():
        then = json.loads(started.read_text(encoding="utf-8"))
        _refuse_other_run(out, then, now)
        return read_record(out) if (out / "run.json").is_file() else None
    out.mkdir(parents=True, exist_ok=True)
    write_json(started, now)
    return None


def _refuse_other_run(out: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """A folder is one run: other settings or other rows must not be mixed into it."""
    changed = [
        f"--{name.replace('_', '-')} was {then['config'].get(name)!r}, is {value!r}"
        for name, value in now["config"].items()
        if then["config"].get(name) != value and not name.startswith("checkpoint_")
    ]
    if not changed and then["fingerprint"] != now["fingerprint"]:
        changed = ["the rows of the data have changed"]
    if changed:
        raise InputError(
            f"--out {out} holds a run with other settings: {'; '.join(changed)}. "
            "Choose another --out, or throw that run away with --overwrite."
        )


def read_record(folder: Path) -> RunRecord:
    """The finished run at `folder`.

    Raises:
        InputError: there is none.
    """
    path = folder / "run.json"
    if not path.is_file():
        state = "an unfinished run" if (folder / "config.json").is_file() else "no run"
        raise InputError(
            f"{folder} holds {state}: run.json is missing. Give the --out folder of a finished "
            "`llabel fit` (the same fit command finishes an interrupted run)."
        )
    return cast(RunRecord, json.loads(path.read_text(encoding="utf-8")))


class TrainingLog:
    """Passes events on and keeps steps and epochs as lines of `train.log.jsonl`.

    A resumed training takes some steps again: its first step of a stage drops the lines from there.
    """

    def __init__(self, path: Path, notify: Listener) -> None:
        self.path, self.notify = path, notify
        self._begun: set[str] = set()

    def __enter__(self) -> "TrainingLog":
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __call__(self, event: Event) -> None:
        """Log and pass on."""
        if isinstance(event, StepDone | EpochDone):
            if isinstance(event, StepDone) and event.stage not in self._begun:
                self._begun.add(event.stage)
                self._drop_from(event)
            values = {name: getattr(event, name) for name in event.__slots__}
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        self.notify(event)

    def _drop_from(self, first: StepDone) -> None:
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:  # the process was killed while it wrote this line
                continue
            if values["stage"] == first.stage and values.get("step", 0) >= first.step:
                break
            kept.append(line + "\n")
        self._file.close()
        write_text(self.path, "".join(kept))
        self._file = self.path.open("a", encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write all of a JSON file or nothing."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write all of a file or nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
