"""What a sweep leaves before its last cell has ended."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llabel.events import CellDone, Event, Note
from llabel.report import render_sweep
from llabel.sweep.outcome import Order
from llabel.sweep.runner import BUSY, ENDED
from llabel.sweep.so_far import WrittenSoFar
from llabel.sweep_record import SweepRecord
from outlines import check_self_contained, check_structure
from sweep_runs import go, read, shared, stop
from sweeps import sweep

pytestmark = pytest.mark.usefixtures("cells_here")


def stop_after(cells: int) -> Any:
    """A listener that interrupts when so many cells have ended."""
    ended: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, CellDone):
            ended.append(event.cell)
            if len(ended) == cells:
                stop()

    return listen


@pytest.mark.parametrize("asked", [{}, {"search": "random", "trials": 6}], ids=str)
def test_a_sweep_that_is_stopped_leaves_what_it_has(
    weather: Path, tiny_llama: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    values = shared(weather, tiny_llama, rung="majority", train_rows="20,30,40")
    if asked:
        values |= {"train_rows": "20..50", "rung": "majority,lookup"}
    with pytest.raises(KeyboardInterrupt):
        go(values, out, stop_after(2), **asked)
    found: Any = read(out)
    assert len(found["cells"]) == 2
    assert {cell["status"] for cell in found["cells"]} == {"done"}
    assert found["unfinished"] == (4 if asked else 1)
    assert (found["chosen"], found["test"]) == (None, None)
    assert not (out / "test.json").exists()
    page = render_sweep(found)
    check_structure(page)
    check_self_contained(page)
    assert re.search("Not finished: (1 cell is|4 cells are) still to come", page)
    assert "Best so far: " in page
    assert "Failed or pruned" not in page
    record = go(values, out, **asked)
    assert "unfinished" not in read(out)
    assert record["chosen"] is not None


def test_a_finished_record_stays_until_a_larger_sweep_has_ended(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    values = shared(weather, tiny_llama, rung="majority", train_rows="20,30")
    go(values, out)
    before = (out / "sweep.json").read_text()
    with pytest.raises(KeyboardInterrupt):
        go(values | {"train_rows": "20,30,40,50"}, out, stop_after(1))
    assert (out / "sweep.json").read_text() == before


def test_it_is_written_once_a_minute_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now, written, said = SimpleNamespace(seconds=5.0), [], []
    monkeypatch.setattr("llabel.sweep.so_far.time.monotonic", lambda: now.seconds)
    ended: list[str] = []
    plan: Any = SimpleNamespace(next=lambda: None, ended=lambda *how: ended.append(how[1]))

    def write() -> None:
        written.append(now.seconds)
        if now.seconds > 60:
            raise OSError("disk full")

    watched = WrittenSoFar(plan, write, said.append)
    order = Order("a", {}, "f")
    watched.ended(order, BUSY, "")
    assert not written
    for seconds in (6.0, 20.0, 65.0, 66.0, 67.0):
        now.seconds = seconds
        watched.ended(order, ENDED, "")
    assert written == [6.0, 66.0]
    assert said == [Note("The page so far could not be written: disk full")]
    assert ended == [BUSY, *[ENDED] * 5]


@pytest.mark.parametrize("left", [1, 3])
def test_any_part_of_a_sweep_has_a_page(left: int) -> None:
    record: SweepRecord = sweep({"r": [1, 16], "lora_alpha": [0, 16]})
    record["cells"] = record["cells"][: 4 - left]
    record |= {"chosen": None, "test": None, "unfinished": left}
    page = render_sweep(record)
    check_structure(page)
    assert "No cell is done" not in page
