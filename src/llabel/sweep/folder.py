"""The sweep's folder: which sweep it is of, and what its cells left in theirs."""

import json
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from llabel.assets import own_vectors_digest, own_weights_digest
from llabel.config import RunConfig, defaults, option
from llabel.errors import InputError
from llabel.folder import InUseError, alone_with, usual_settings, write_json
from llabel.paths import visible_names
from llabel.sweep.axes import Axes
from llabel.sweep.cells import PlannedCell, apart
from llabel.template import template_digest

CELLS, UNTOUCHED, STUDY = "cells", "untouched", "study.log"
RECORD, TEST = "sweep.json", "test.json"
_LAST = "rung.json"  # of what a rung writes
CELL, RUNG, VALIDATION, LOG = "cell.json", "rung", "validation.safetensors", "train.log.jsonl"
_STARTED = "started.json"
# Keys in it.
_DEFAULTS, _TEMPLATES, _VECTORS, _WEIGHTS = "defaults", "templates", "vectors", "weights"
# Settings that may change between two calls: they decide no result.
_FREE = ("checkpoint_minutes", "checkpoint_steps", "track", "no_texts")


class SweepFolder:
    """One sweep's folder; several processes may work in it at once."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def open(self, axes: Axes, sampler: str | None, fingerprints: Mapping[str, str]) -> None:
        """Make the folder, or go on in it; of a grid, more values are an extension.

        Args:
            axes: what varies and what does not.
            sampler: of a search.
            fingerprints: of the rows, by what may vary of them.

        Raises:
            InputError: it holds something else, or another sweep.
        """
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"--out {self.out} is a file. Name a folder.")
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--out {self.out} cannot be made ({error.strerror}: {error.filename}). Name a "
                "folder that you may write to."
            ) from error
        with self.lock("started"):
            described, then = _described(axes, sampler, fingerprints), self._started()
            now = described | _beside(described["values"])
            if then is None and visible_names(self.out):
                raise InputError(
                    f"--out {self.out} holds files that are no sweep of llabel's. Name a new or "
                    "empty folder."
                )
            if then is not None and (changes := _changes(then, now)):
                may = (
                    "A search may be given more --trials, but no other values"
                    if then["sampler"]
                    else "A sweep may be given more values, not fewer or others"
                )
                raise InputError(
                    f"--out {self.out} holds another sweep: {'; '.join(changes)}. {may}. Choose "
                    "another --out."
                )
            write_json(self.out / _STARTED, now)
        (self.out / CELLS).mkdir(exist_ok=True)

    def lock(self, name: str) -> FileLock:
        """Held by one process at a time, for moments."""
        return FileLock(self.out / f".{name}.lock")

    def is_still(self, axes: Axes, sampler: str | None, fingerprints: Mapping[str, str]) -> bool:
        """Whether nobody extended the sweep meanwhile."""
        then, now = self._started(), _described(axes, sampler, fingerprints)
        return then is not None and all(then.get(name) == value for name, value in now.items())

    def is_written_up(self) -> bool:
        """Whether the record of a sweep that has ended is there, maybe of fewer values."""
        try:
            record = json.loads((self.out / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return "unfinished" not in record

    def refuse_changed(self, template: str) -> None:
        """Keep a prompt that was edited while the sweep runs out of it.

        Raises:
            InputError: the template's file is not what it was when the sweep was started.
        """
        known = (self._started() or {}).get(_TEMPLATES, {}).get(template)
        if known and template_digest(template) not in {None, known}:
            raise InputError(f"the file {template} of --template has changed since the sweep began")

    def refuse_other_weights(self, config: RunConfig) -> None:
        """Keep weights that were replaced while the sweep runs out of it; the Hub's may be.

        Raises:
            InputError: a model's weights are not what they were when the sweep was started.
        """
        then, flat = (self._started() or {}).get(_WEIGHTS, {}), config.flat()
        for setting in ("model", "encoder"):
            name = flat.get(setting, "")
            if name in then and own_weights_digest(name) not in {None, then[name]}:
                raise InputError(
                    f"the weights in {name} (--{setting}) have changed since the sweep began"
                )

    def _started(self) -> dict[str, Any] | None:
        try:
            values = json.loads((self.out / _STARTED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return values if isinstance(values, dict) and values.get("llabel-sweep") == 1 else None

    def place(self, cell: PlannedCell) -> Path:
        """The cell's folder: the one that holds it, or a new one."""
        return self.placed([cell])[0]

    def placed(self, cells: Sequence[PlannedCell]) -> list[Path]:
        """The same of several cells."""
        known = self.places()
        others = {place.name: text for text, place in known.items()}
        found = []
        for cell in cells:
            text = _text(cell.identity)
            own = cell if others.setdefault(cell.name, text) == text else apart(cell)
            found.append(known.get(text, self.out / CELLS / own.name))
        return found

    def is_kept(self, name: str) -> bool:
        """Whether what a cell learned is there, and whole: `rung.json` is written last."""
        return (self.out / CELLS / name / RUNG / _LAST).is_file()

    def remove_rungs(self, kept: Collection[str]) -> None:
        """Remove what cells learned, but for those that are named; each at once or not at all.

        Cells that another process is at are left to it.
        """
        for place in [path for path in (self.out / CELLS).iterdir() if path.is_dir()]:
            with suppress(InUseError), alone_with(place, place.name):
                gone = place / f".old-{RUNG}"
                shutil.rmtree(gone, ignore_errors=True)  # of a process that was killed meanwhile
                if place.name not in kept and (place / RUNG).is_dir():
                    (place / RUNG).replace(gone)
                    shutil.rmtree(gone, ignore_errors=True)

    def places(self) -> dict[str, Path]:
        """Folder by what its cell is."""
        found = {}
        for path in sorted((self.out / CELLS).glob(f"*/{CELL}")):
            with suppress(OSError, ValueError, KeyError):
                found[_text(json.loads(path.read_text(encoding="utf-8"))["config"])] = path.parent
        return found


def read_cell(folder: Path) -> dict[str, Any] | None:
    """What a finished cell left; None where it is not finished, or is to be tried again.

    Raises:
        InputError: it is damaged.
    """
    path = folder / CELL
    if not path.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return values if values["status"] else None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}). Remove {folder} and give the same command again."
        ) from error


def is_finished(folder: Path) -> bool:
    """Whether there is nothing left to do: it failed for good, was given up, or is done."""
    values = read_cell(folder)
    return values is not None and not values["again"]


def read_test(out: Path) -> dict[str, Any] | None:
    """What the test part said of the cell that was chosen; None where it was not yet read."""
    path = out / TEST
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _described(axes: Axes, sampler: str | None, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What a sweep is, as JSON gives it back: every setting's values."""
    values = {name: [value] for name, value in axes.shared.items() if name not in _FREE}
    values |= {name: list(some) for name, some in axes.lists.items()}
    described = {
        "llabel-sweep": 1,
        "fingerprints": dict(fingerprints),
        "values": values,
        "ranges": {name: dict(values) for name, values in axes.ranges.items()},
        "sampler": sampler,
    }
    found: dict[str, Any] = json.loads(json.dumps(described))
    return found


def _beside(values: Mapping[str, list[Any]]) -> dict[str, Any]:
    """What must not change meanwhile: the defaults, which cells are told apart from, and files."""
    models = [*values.get("model", ()), *values.get("encoder", ())]
    return {
        _DEFAULTS: usual_settings(),
        _TEMPLATES: _digests(template_digest, values.get("template", ())),
        _VECTORS: _digests(own_vectors_digest, values.get("embeddings", ())),
        _WEIGHTS: _digests(own_weights_digest, models),
    }


def _digests(digest_of: Callable[[str], str | None], names: Iterable[str]) -> dict[str, str]:
    """By name, of those that are files."""
    return {name: digest for name in names if (digest := digest_of(name)) is not None}


def _changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not merely an extension."""
    found, usual = [], defaults()
    for name in sorted(then["values"].keys() | now["values"].keys()):
        if name in now["ranges"] or name in then["ranges"]:
            continue
        old, new = (each["values"].get(name, [_json(usual.get(name))]) for each in (then, now))
        if any(value not in new for value in old) or (now["sampler"] and old != new):
            found.append(f"{option(name)} was {_shown(old)}, is {_shown(new)}")
    found += [
        f"{option(name)} is not given, and its default was {_shown([value])}, is "
        f"{_shown([now[_DEFAULTS][name]])}"
        for name, value in then.get(_DEFAULTS, {}).items()
        if name not in now["values"] and now[_DEFAULTS].get(name, value) != value
    ]
    if then["ranges"] != now["ranges"] or then["sampler"] != now["sampler"]:
        found.append(f"--search was over {_search(then)}, is over {_search(now)}")
    for files, what in (
        (_TEMPLATES, "the file {} of --template has changed"),
        (_VECTORS, "the word vectors in {} have changed"),
        (_WEIGHTS, "the weights in {} have changed"),
    ):
        before = then.get(files, {})  # sweeps of old do not know them
        found += [
            what.format(name)
            for name, digest in now[files].items()
            if before.get(name, digest) != digest
        ]
    old, new = then["fingerprints"], now["fingerprints"]
    if not found and any(old[rows] != new[rows] for rows in old.keys() & new.keys()):
        found.append("the rows of the data have changed")
    return found


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _search(described: Mapping[str, Any]) -> str:
    ranges = [
        f"{option(name)} {values['low']:g}..{values['high']:g}"
        for name, values in described["ranges"].items()
    ]
    return " ".join([str(described["sampler"]), *ranges])


def _shown(values: list[Any]) -> str:
    return ",".join(map(str, values))


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
