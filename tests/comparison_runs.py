"""Small comparisons for the tests: real processes, cheap rungs, a hundred rows."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llabel import run
from llabel.compare.compare import compare
from llabel.compare.processes import RunFailedError
from llabel.comparison import ComparedRung, CompareRecord
from llabel.config import RunConfig
from llabel.errors import InputError
from llabel.events import Event, Listener, RungStarted, StageStarted, ignore
from llabel.settings import CompareSettings, DataSettings, LLMSettings, RunSettings

CHEAP = ("majority", "lookup", "bag-of-words")
COMMAND = "llabel compare weather.jsonl"


def cheap(data: Path, settings: RunSettings | None = None, **llm: Any) -> RunConfig:
    """Settings of a comparison that needs no model."""
    return RunConfig(
        source=str(data),
        data=DataSettings(text=("text", "note"), label="label"),
        run=settings or RunSettings(),
        llm=LLMSettings(**llm),
    )


def climb(
    config: RunConfig,
    out: Path,
    *,
    notify: Listener = ignore,
    overwrite: bool = False,
    **asked: Any,
) -> CompareRecord:
    """Compare the cheap rungs, unless told otherwise."""
    told = replace(CompareSettings(rungs=CHEAP), **asked)
    return compare(config, told, out, command=COMMAND, overwrite=overwrite, notify=notify)


@contextmanager
def in_this_process() -> Iterator[None]:
    """Runs are made in this process: starting others takes longer than these trainings."""

    def fit_here(config: RunConfig, out: Path, **told: Any) -> None:
        try:
            run.fit(config, out, **told)
        except (InputError, FloatingPointError) as error:  # as the other process would tell it
            raise RunFailedError(str(error)) from error

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("llabel.compare.compare.fit_apart", fit_here)
        yield


def copied(finished: Path, out: Path, *without: str) -> Path:
    """A comparison's folder without the runs of some rungs, as an interruption leaves it."""
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns(*without, "*.json.*"))
    for name in ("compare.json", "report.html"):
        (out / name).unlink()
    return out


def stamps(out: Path) -> dict[str, int]:
    """When each run of the table was finished."""
    found = sorted((out / "rungs").glob("*/run.json"))
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


def lasting(record: CompareRecord) -> dict[str, Any]:
    """What two comparisons on the same rows have in common: all but costs and places."""
    values: dict[str, Any] = deepcopy(dict(record))
    for rung in values["rungs"]:
        for trial in rung["trials"]:
            del trial["seconds"]
        del rung["cost"], rung["command"]
    return values


def when_in(rung: str, do: Callable[[], None]) -> Listener:
    """A listener that does something once the rung's process has begun its work."""
    inside = False

    def listen(event: Event) -> None:
        nonlocal inside
        if isinstance(event, RungStarted):
            inside = event.rung == rung
        elif inside and isinstance(event, StageStarted):
            do()

    return listen


def stop() -> None:
    raise KeyboardInterrupt


def record_of(out: Path, rung: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((out / "rungs" / rung / "run.json").read_text())
    return values


def lines_of(folder: Path, part: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "predictions.jsonl").open())
    return [line for line in lines if line["part"] == part]


def named(record: CompareRecord, name: str) -> ComparedRung:
    return next(rung for rung in record["rungs"] if rung["name"] == name)
