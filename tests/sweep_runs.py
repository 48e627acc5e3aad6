"""Small sweeps of a tiny model for the tests of `llabel.sweep`."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from llabel.events import Event, Listener, ignore
from llabel.settings import SweepSettings
from llabel.sweep.outcome import Order
from llabel.sweep.rows import Rows
from llabel.sweep.runner import Runner
from llabel.sweep.sweep import sweep
from llabel.sweep_record import SweepRecord

COMMAND = "llabel sweep weather.jsonl"
GRID = {"r": "2,4", "lora_alpha": "0,8,16"}  # two of six cells are the untouched model


class Here:
    """A worker in this process: what `llabel.sweep.worker` does without the pipe."""

    def __init__(self, out: Path, threads: int | None = None) -> None:
        self.runner = Runner(out, Rows())

    def carry_out(self, order: Order, notify: Listener) -> str:
        return self.runner.carry_out(order, notify)

    def stop(self) -> None:
        pass


def shared(data: Path, model: Path, **more: Any) -> dict[str, Any]:
    """Settings of a cell that takes a second."""
    values = {
        "data": str(data), "text": "text,note", "label": "label", "model": str(model),
        "learning_rate": "3e-3", "epochs": "2", "batch_size": "8", "device": "cpu",
        "checkpoint_steps": 1,
    }  # fmt: skip
    return values | more


def go(values: dict[str, Any], out: Path, notify: Listener = ignore, **asked: Any) -> SweepRecord:
    return sweep(values, SweepSettings(**asked), out, command=COMMAND, notify=notify)


def lasting(record: Any) -> dict[str, Any]:
    """What two sweeps of the same have in common: all but costs and places."""
    values: dict[str, Any] = json.loads(json.dumps(deepcopy(record)))
    del values["environment"]
    for cell in values["cells"]:
        del cell["command"]
        if cell["cost"]:
            for name in ("train_seconds", "train_rows_per_second", "peak_rss_mb"):
                del cell["cost"][name]
    return values


def read(out: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((out / "sweep.json").read_text())
    return values


def after(events: int, do: Callable[[], None]) -> Listener:
    """A listener that does something once so many events have come."""
    seen = 0

    def listen(event: Event) -> None:
        nonlocal seen
        seen += 1
        if seen == events:
            do()

    return listen


def stop() -> None:
    raise KeyboardInterrupt
