"""Several processes at one sweep, and workers that die late: nothing finished is lost or mixed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from llabel.errors import FetchError, InputError
from llabel.events import CellAgain, CellDone, CellStarted, Event, Listener, Note
from llabel.ladder.llm import LLMRung
from llabel.sweep.axes import read_axes
from llabel.sweep.cells import grid
from llabel.sweep.crew import WorkerDiedError
from llabel.sweep.folder import read_test
from llabel.sweep.outcome import Order
from llabel.sweep.sweep import _by_model, _kinds
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
    models = [(cell.config.llm.model, cell.config.llm.r) for cell in _by_model(cells)]
    assert models == [("a", 2), ("a", 4), ("b", 2), ("b", 4)]
    values = shared(weather, tmp_path, r="2,4", compile="false,true")
    fused = [c.config.llm.compile for c in _by_model(grid(read_axes(values, searching=False)))]
    assert fused == [False, False, True, True]


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        ({"r": "2,4", "learning_rate": "1e-4,1e-3"}, 1),
        ({"base": "nf4-stored", "compile": "false,true"}, 2),
        ({"adapt_layers": "8,99"}, 2),
    ],
    ids=str,
)
def test_what_may_be_impossible_is_looked_at_before_anything_runs(
    weather: Path, tmp_path: Path, values: dict[str, str], kinds: int
) -> None:
    cells = grid(read_axes(shared(weather, tmp_path, **values), searching=False))
    assert len(_kinds(cells)) == kinds


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


@pytest.fixture
def hub_model(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], None]:
    """What puts `org/tiny`, its weights multiplied, into the Hub's cache as its newest commit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--org--tiny"

    def push(factor: int) -> None:
        commit = f"{len(list(repo.glob('snapshots/*'))):040d}"
        folder = shutil.copytree(tiny_llama, repo / "snapshots" / commit)
        weights = load_file(folder / "model.safetensors")
        several = {name: factor * some for name, some in weights.items()}
        save_file(several, folder / "model.safetensors", {"format": "pt"})
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / "main").write_text(commit)

    return push


def test_a_hub_model_of_which_there_are_other_weights_now_is_refused(
    weather: Path, hub_model: Callable[[int], None], tmp_path: Path
) -> None:
    values, out = (
        shared(weather, Path("org/tiny"), rung="majority", train_rows="20,30"),
        tmp_path / "o",
    )
    hub_model(1)
    go(values, out)
    hub_model(1)  # a commit of something else
    go(values, out)
    hub_model(2)
    with pytest.raises(InputError, match="the weights in org/tiny have changed"):
        go(values, out)
    started = json.loads((out / "started.json").read_text())
    del started["weights"]
    (out / "started.json").write_text(json.dumps(started))  # as an older llabel left it
    go(values, out)


def test_weights_that_change_while_a_sweep_runs_are_kept_out_of_it(
    weather: Path, hub_model: Callable[[int], None], tmp_path: Path
) -> None:
    def push(event: Event) -> None:
        if isinstance(event, CellDone) and event.status == "done":
            hub_model(2)

    hub_model(1)
    values = shared(weather, Path("org/tiny"), lora_alpha="0", r="2,4")
    one, other = go(values, tmp_path / "out", push)["cells"]
    assert (one["status"], other["status"]) == ("done", "failed")
    assert "the weights in org/tiny (--model) have changed since the sweep began" in other["reason"]
