"""Several processes at one sweep, and workers that die late: nothing finished is lost or mixed."""

import json
from pathlib import Path
from typing import Any

import pytest

from llabel.errors import FetchError
from llabel.events import CellAgain, CellDone, CellStarted, Event, Listener, Note
from llabel.ladder.llm import LLMRung
from llabel.sweep.axes import read_axes
from llabel.sweep.cells import grid
from llabel.sweep.crew import WorkerDiedError
from llabel.sweep.folder import read_test
from llabel.sweep.outcome import Order
from llabel.sweep.sweep import _by_kind
from sweep_runs import Here, go, read, shared

pytestmark = pytest.mark.usefixtures("cells_here")
CHEAP = {"rung": "majority,bag-of-words", "train_rows": "20,30"}


def dies_late(monkeypatch: pytest.MonkeyPatch, name: str, *, done: bool) -> list[Order]:
    """The worker that is at such a cell dies once, when it is done or before; the orders so far."""
    orders: list[Order] = []

    class Dies(Here):
        def carry_out(self, order: Order, notify: Listener) -> str:
            first = name in order.name and order.name not in [one.name for one in orders]
            orders.append(order)
            if first and not done:
                raise WorkerDiedError("it was killed")
            ended = super().carry_out(order, notify)
            if first:
                raise WorkerDiedError("it was killed")
            return ended

    monkeypatch.setattr("llabel.sweep.sweep.ProcessWorker", Dies)
    return orders


def test_a_cell_that_was_done_when_its_worker_died_stays_done(
    weather: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies_late(monkeypatch, "majority", done=True)
    record = go(shared(weather, tmp_path, **CHEAP), tmp_path / "out")
    assert [cell["status"] for cell in record["cells"]] == ["done"] * 4


def test_one_that_was_extended_meanwhile_leaves_choice_and_test_to_the_other(
    weather: Path, tmp_path: Path
) -> None:
    out, said = tmp_path / "out", []
    whole = shared(weather, tmp_path, **CHEAP)

    def extend(event: Event) -> None:
        if isinstance(event, CellDone) and "rows-30" in event.cell:
            go(whole, out)
        said.append(event)

    record = go(whole | {"rung": "majority"}, out, extend)
    assert record["chosen"] is record["test"] is None
    assert any(isinstance(event, Note) and "extended this sweep" in event.text for event in said)
    assert not any(isinstance(event, CellAgain) for event in said), "the test part was not read"
    written = read(out)
    assert "bag-of-words" in written["chosen"]["cell"]
    found = read_test(out)
    assert found
    assert written["test"]["cell"] == found["cell"] == written["chosen"]["cell"]
    assert found["earlier"] == []


def test_a_cell_that_another_process_ends_during_the_test_is_chosen_from_too(
    weather: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, out = dies_late(monkeypatch, "bag-of-words", done=False), tmp_path / "out"
    again: list[str] = []

    def end(event: Event) -> None:
        if isinstance(event, CellAgain):
            again.append(event.cell)
            for order in {one.name: one for one in orders if "bag" in one.name}.values():
                Here(out).carry_out(order, lambda event: None)

    record = go(shared(weather, tmp_path, **CHEAP), out, end)
    assert record["chosen"]
    assert record["test"]
    assert "majority" in again[0]
    assert "bag-of-words" in record["chosen"]["cell"]
    assert record["test"]["cell"] == record["chosen"]["cell"]
    assert record["test"]["earlier"] == [again[0]], "that the test part was read before is told"
    assert read(out) == json.loads(json.dumps(record))


def test_cells_that_share_a_model_are_done_together(weather: Path, tmp_path: Path) -> None:
    begun: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, CellStarted):
            begun.append("majority" if "majority" in event.cell else "bag-of-words")

    values = shared(weather, tmp_path, train_rows="20,30", rung="majority,bag-of-words")
    record = go(values, tmp_path / "out", listen)
    assert begun == sorted(begun, reverse=begun[0] == "majority")
    assert len(record["cells"]) == 4
    values = shared(weather, tmp_path, r="2,4") | {"model": "a,b"}
    cells = grid(read_axes(values, searching=False, seeds=1))
    assert [cell.config.llm.model for cell in cells] == ["a", "b", "a", "b"]
    models = [(cell.config.llm.model, cell.config.llm.r) for cell in _by_kind(cells)]
    assert models == [("a", 2), ("a", 4), ("b", 2), ("b", 4)]


def test_a_model_that_nobody_has_is_told_before_anything_runs(
    weather: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(self: LLMRung, *args: Any, **more: Any) -> LLMRung:
        raise FetchError("the model cannot be fetched")

    monkeypatch.setattr(LLMRung, "prepare", prepare)
    with pytest.raises(FetchError):
        go(shared(weather, tiny_llama, r="2,4"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    both = shared(weather, tiny_llama, rung="majority,llm-lora", epochs="1")
    states = [cell["status"] for cell in go(both, tmp_path / "both")["cells"]]
    assert states == ["done", "failed"]
