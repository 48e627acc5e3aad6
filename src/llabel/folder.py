"""The run folder: claimed by one process, never mixed, every file whole."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout

from llabel.assets import own_vectors_digest, own_weights_digest
from llabel.config import RunConfig, defaults, option
from llabel.errors import InputError
from llabel.events import EpochDone, Event, Listener, Note, StepDone
from llabel.paths import at_home, visible_names
from llabel.record import RunRecord
from llabel.template import template_digest

_STARTED = "started.json"
# Settings that may name files which change, how these are told apart, and what to say of it.
_FILES: dict[str, tuple[Callable[[str], str | None], str]] = {
    "embeddings": (own_vectors_digest, "the word vectors in {} (--embeddings) have changed"),
    "encoder": (own_weights_digest, "the weights in {} (--encoder) have changed"),
    "model": (own_weights_digest, "the weights in {} (--model) have changed"),
    "template": (template_digest, "the file {} of --template has changed"),
}
SHARED_RUN = "shared.json"  # names the run for several targets whose answers are laid out here
_NEEDED = ("config", "cost", "data", "rung", "training")  # keys of a whole record
_OURS = (
    *("README.md", "adapter", "checkpoints", "predictions.jsonl", "run.json", "rung.json"),
    *("train.log.jsonl", ".new-adapter", ".old-adapter"),
    *("arrays.safetensors", "words.json", "encoder", "confidence.json"),
    *("tensorboard", "mlflow", "wandb", "trackio", "targets"),
    _STARTED,  # at last: it says that the others are ours
)


class InUseError(InputError):
    """Another llabel process is at work there."""


@contextmanager
def claimed(
    out: Path, config: RunConfig, fingerprint: str, *, overwrite: bool, notify: Listener
) -> Iterator[RunRecord | None]:
    """Hold `out` for this run alone; yields the record of the same run where it is finished.

    `overwrite` throws away a finished run and one with other settings; an unfinished one with the
    same settings goes on in any case.
    """
    with alone_with(
        out, f"{out} is in use by another llabel process. Wait, or choose another --out."
    ):
        yield _opened(out, config, fingerprint, overwrite, notify)


@contextmanager
def alone_with(path: Path, otherwise: str) -> Iterator[None]:
    """Keep other llabel processes away from `path`; the folder that it lies in is made.

    Raises:
        InUseError: one is there already; the message is `otherwise`.
        InputError: it is the root of all folders, lies where none can be made, or is a link that
            leads to itself.
    """
    try:
        path = path.resolve()  # "." has no name
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} cannot be written to ({error}). Name another folder.") from error
    if not path.name:
        raise InputError(f"{path} cannot be written to. Name a folder below it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(path)
    except Timeout as error:
        raise InUseError(otherwise) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{path} cannot be written to ({reason}: {path.parent}). Name a folder that you may "
            "write to."
        ) from error
    try:
        yield
    finally:
        # Before the release: whoever waits on the file sees that its name is gone, and starts over.
        with suppress(OSError):  # Windows keeps open files
            Path(lock.lock_file).unlink()
        lock.release()


def _locked(path: Path) -> FileLock:
    """Hold the lock of `path`: beside it, or in it where it is a folder in one that is closed.

    A mounted volume is such a folder.

    Raises:
        Timeout: another process holds it.
        OSError: it can be written to neither place.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise
    except OSError:
        if not path.is_dir():
            raise
        lock = FileLock(path / f".{path.name}.lock")
        lock.acquire(timeout=0)
    return lock


def finished_run(out: Path, config: RunConfig, fingerprint: str) -> RunRecord | None:
    """The record of this very run, where `out` holds it finished.

    Raises:
        InputError: `out` holds a run with other settings or rows, finished or half done.
    """
    then = _started(out)
    finished = (out / "run.json").is_file()
    if then is None or not (finished or (out / "checkpoints").is_dir()):
        return None
    _refuse_changes(out, _changes(then, _identity(config, fingerprint)))
    return read_record(out) if finished else None


def is_of_others(out: Path, config: RunConfig, fingerprint: str) -> bool:
    """Whether `out` holds a run, finished or not, with other settings or rows."""
    then = _started(out)
    return then is not None and bool(_changes(then, _identity(config, fingerprint)))


def _identity(config: RunConfig, fingerprint: str) -> dict[str, Any]:
    """What must not change within a folder, as JSON gives it back."""
    settings = config.flat()
    now = {"fingerprint": fingerprint, "config": settings}
    for name, (digest_of, _) in _FILES.items():
        if name in settings and (digest := digest_of(settings[name])):
            now[name] = digest
    return cast(dict[str, Any], json.loads(json.dumps(now)))


def _refuse_changes(out: Path, changes: list[str]) -> None:
    if changes:
        raise InputError(
            f"--out {out} holds a run with other settings: {'; '.join(changes)}. "
            "Choose another --out, or throw that run away with --overwrite."
        )


def _opened(
    out: Path, config: RunConfig, fingerprint: str, overwrite: bool, notify: Listener
) -> RunRecord | None:
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file. Name a folder.")
    if out.is_symlink() and not out.exists():
        raise InputError(f"--out {out} is a link that leads nowhere. Name a folder.")
    now = _identity(config, fingerprint)
    then = _started(out)
    if then is None and visible_names(out):
        raise InputError(
            f"--out {out} holds files that are not llabel's. Name a new or empty folder."
        )
    if then is not None:
        changes = _changes(then, now)
        finished = (out / "run.json").is_file()
        nothing_done = not finished and not (out / "checkpoints").is_dir()
        if nothing_done or (overwrite and (changes or finished)):
            _remove_run(out)
            changes, finished = [], False
        _refuse_changes(out, changes)
        if finished:
            return read_record(out)
        if (out / "checkpoints").is_dir():
            notify(Note(f"Going on with the run in {out}."))
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / _STARTED, {"llabel": 1} | now)
    return None


def _started(out: Path) -> dict[str, Any] | None:
    """What a run in `out` was started with; None where llabel never started one."""
    try:
        values = json.loads((out / _STARTED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) and values.get("llabel") == 1 else None


def _changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A folder is one run: other settings or other rows must not be mixed into it.

    A setting that there was not yet when the run began had what is the default now.
    """
    before = usual_settings() | then["config"]
    changed = [
        f"{option(name)} was {before.get(name)!r}, is {value!r}"
        for name, value in now["config"].items()
        if before.get(name) != value and not name.startswith(("checkpoint_", "track"))
    ]
    if not changed and then["fingerprint"] != now["fingerprint"]:
        changed = ["the rows of the data have changed"]
    if not changed:
        changed = [
            told.format(now["config"][name])
            for name, (_, told) in _FILES.items()
            if name in now and then.get(name, now[name]) != now[name]  # old runs have none
        ]
    return changed


def usual_settings() -> dict[str, Any]:
    """The default of every setting that has one, as JSON gives it back."""
    usual = {name: value for name, value in defaults().items() if value is not MISSING}
    return cast(dict[str, Any], json.loads(json.dumps(usual)))


def _remove_run(out: Path) -> None:
    """Remove what a run leaves, and nothing else that may have been put there."""
    for name in _OURS:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def refuse_own_file(folder: Path, path: Path, told: str) -> None:
    """Keep what is written about a run from replacing one of the run's own files.

    Args:
        folder: of the run.
        path: where something is to be written.
        told: the option that says so, for the message.

    Raises:
        InputError: `path` is one of these files, or lies in one of their folders.
    """
    place = path.resolve()
    if any(place.is_relative_to((folder / name).resolve()) for name in (*_OURS, SHARED_RUN)):
        raise InputError(f"{told} would replace a file of the run {folder}. Name another file.")


def refuse_data(path: Path, told: str, *sources: str | None) -> None:
    """Keep results from replacing what they are about.

    Args:
        path: where something is to be written.
        told: the option that says so, for the message.
        sources: data as the user named it; None is passed over.

    Raises:
        InputError: `path` is one of these files, or lies in one of these folders.
    """
    for source in filter(None, sources):
        if path.resolve().is_relative_to(at_home(source).resolve()):
            raise InputError(f"{told} would overwrite the data {source}. Name another file.")


def read_record(folder: Path) -> RunRecord:
    """The finished run at `folder`.

    Raises:
        InputError: there is none, or its record is damaged.
    """
    path = folder / "run.json"
    if not path.is_file():
        state = "no run" if _started(folder) is None else "an unfinished run"
        raise InputError(
            f"{folder} holds {state}: run.json is missing. Give the --out folder of a finished "
            "`llabel fit` (the same fit command finishes an interrupted run)."
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        needed = (*_NEEDED, "targets" if "targets" in record else "metrics")
        if missing := [name for name in needed if name not in record]:
            raise ValueError(f"{', '.join(missing)} missing")
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}). Remove the folder and train the run again."
        ) from error
    return cast(RunRecord, record)


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


def is_started(out: Path) -> bool:
    """Whether llabel started a run in `out`."""
    return _started(out) is not None


def write_json(path: Path, value: Any) -> None:
    """Write all of a JSON file or nothing."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> Iterator[Any]:
    """The lines of a JSONL file.

    A text may hold what `str.splitlines` takes for the end of a line (U+2028, U+0085).
    """
    with path.open(encoding="utf-8", newline="\n") as lines:
        yield from map(json.loads, lines)


def write_json_lines(path: Path, lines: Iterable[Any]) -> None:
    """Write all of a JSONL file or nothing."""
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def write_text(path: Path, text: str) -> None:
    """Write all of a file or nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
