import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llabel import run
from llabel.config import RunConfig
from llabel.events import CellAgain, CellDone, CellSays, CellStarted, Event, StepDone, SweepStarted
from llabel.ladder import registry
from llabel.metrics import log_loss
from llabel.sweep.arrays import read_proba
from llabel.sweep_record import SweepRecord
from sweep_runs import GRID, Here, after, go, lasting, read, shared, stop

pytestmark = pytest.mark.usefixtures("cells_here")


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, weather: Path, tiny_llama: Path
) -> tuple[Path, SweepRecord, list[Event]]:
    """A sweep of two ranks and three alphas, undisturbed; every adapter is kept."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    events: list[Event] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llabel.sweep.sweep.ProcessWorker", Here)
        record = go(shared(weather, tiny_llama, **GRID), out, events.append, keep_adapters=True)
    return out, record, events


def test_every_combination_is_a_row(finished) -> None:
    out, record, _ = finished
    assert lasting(record) == lasting(read(out))
    assert record["axes"] == {"r": [2, 4], "lora_alpha": [0, 8, 16]}
    settings = [(c["settings"]["r"], c["settings"]["lora_alpha"]) for c in record["cells"]]
    assert settings == [(2, 0), (2, 8), (2, 16), (4, 0), (4, 8), (4, 16)]
    for cell in record["cells"]:
        assert cell["settings"].keys() == {"r", "lora_alpha", "lr", "epochs", "seed"}
        assert cell["scaling"] == cell["settings"]["lora_alpha"] / cell["settings"]["r"]
        assert cell["scaling_lr"] == pytest.approx(cell["scaling"] * 3e-3)
        assert (cell["status"], cell["reason"]) == ("done", "")
        assert cell["metrics"]["validation"]["rows"] == 8
        assert cell["cost"]["rows"] == (0 if cell["control"] else 2 * 56)
        assert (cell["cost"]["tokens"] > 10 * cell["cost"]["rows"]) != cell["control"]
    assert (out / "report.html").is_file()
    assert record["config"]["learning_rate"] == 3e-3
    assert not {"r", "lora_alpha"} & record["config"].keys()
    assert record["data"]["rows"] == {"train": 56, "validation": 8, "test": 16}


def test_a_cell_says_only_what_differs_from_the_defaults(finished) -> None:
    out, record, _ = finished
    cell = json.loads((out / record["cells"][4]["folder"] / "cell.json").read_text())
    assert cell["config"].keys() == {
        *("data", "text", "label", "model", "r", "lora_alpha", "learning_rate", "epochs"),
        *("batch_size", "device", "split_seed"),
    }


def test_the_untouched_model_is_read_once_and_stands_at_every_rank(finished) -> None:
    out, record, events = finished
    controls = [cell for cell in record["cells"] if cell["control"]]
    assert [cell["settings"]["lora_alpha"] for cell in controls] == [0, 0]
    names = {cell["name"] for cell in controls}
    told = [event for event in events if isinstance(event, CellSays) and event.cell in names]
    assert not any(isinstance(event.event, StepDone) for event in told)
    reads = [e for e in events if isinstance(e, CellSays) and "untouched" in str(e.event)]
    assert len(reads) == 2  # validation rows and prompts
    first, second = (read_proba(out / c["folder"] / "validation.safetensors") for c in controls)
    assert np.array_equal(first, second)
    for cell in controls:
        assert cell["weights"]["update_norm"] == 0
        assert cell["perplexity"]["before"] == cell["perplexity"]["after"]
        assert cell["cost"]["steps"] == cell["cost"]["trainable_parameters"] == 0
        assert cell["epoch_losses"] == cell["curve"] == []
        assert not (out / cell["folder"] / "rung").exists()
    plain = config_of(out, controls[0], rung="llm-zero-shot")
    rung = registry.make(plain)
    task = run.load(plain).task
    rung.prepare(task.fields, task.classes)
    rung.fit(task)
    assert np.allclose(rung.validation_proba_, first, rtol=0, atol=1e-6)


def config_of(out: Path, cell: Any, **changes: Any) -> RunConfig:
    values = json.loads((out / cell["folder"] / "cell.json").read_text())["config"]
    return RunConfig.from_flat(values | {"untested": True} | changes)


def test_a_cell_is_a_fit_to_the_bit(finished, tmp_path: Path) -> None:
    """Whatever was trained on the same frozen model before it."""
    out, record, _ = finished
    for cell in (record["cells"][1], record["cells"][5]):
        alone = run.fit(config_of(out, cell), tmp_path / cell["name"], command="")
        mine, theirs = out / cell["folder"] / "rung", tmp_path / cell["name"]
        adapter = Path("adapter") / "adapter_model.safetensors"
        assert (mine / adapter).read_bytes() == (theirs / adapter).read_bytes()
        assert alone["training"]["epoch_losses"] == cell["epoch_losses"]
        lines = map(json.loads, (theirs / "predictions.jsonl").read_text().splitlines())
        proba = [list(line["probabilities"].values()) for line in lines]
        assert np.array_equal(proba, read_proba(out / cell["folder"] / "validation.safetensors"))
        assert alone["metrics"]["validation"] == cell["metrics"]["validation"]


def test_the_choice_is_made_on_validation_and_tested_once(finished) -> None:
    out, record, events = finished
    losses = {c["name"]: c["metrics"]["validation"]["log_loss"] for c in record["cells"]}
    chosen = record["chosen"]
    assert chosen["cell"] == min(losses, key=losses.__getitem__)
    assert chosen["metrics"]["validation"]["log_loss"] == losses[chosen["cell"]]
    assert record["test"]["cell"] == chosen["cell"]
    cell = next(c for c in record["cells"] if c["name"] == chosen["cell"])
    task = run.load(config_of(out, cell)).task
    proba = registry.load(out / cell["folder"] / "rung", device="cpu").predict_proba(
        task.test.texts
    )
    assert record["test"]["metrics"]["test"]["log_loss"] == log_loss(task.test.y, proba)
    reads = [e for e in events if isinstance(e, CellSays) and "test rows" in str(e.event)]
    assert [event.cell for event in reads] == [chosen["cell"]]


def test_progress_counts_cells_and_rows(finished) -> None:
    _, record, events = finished
    (start,) = [event for event in events if isinstance(event, SweepStarted)]
    assert (start.cells, start.done, start.rows) == (6, 0, 4 * 2 * 56)
    begun = [event for event in events if isinstance(event, CellStarted)]
    assert sum(event.rows for event in begun) == start.rows
    ended = [event.cell for event in events if isinstance(event, CellDone)]
    assert ended == [event.cell for event in begun] == [c["name"] for c in record["cells"]]
    tested = CellAgain(record["chosen"]["cell"], "testing the chosen one")
    assert [event for event in events if isinstance(event, CellAgain)] == [tested]


def test_nothing_finished_is_done_again(finished) -> None:
    out, record, _ = finished
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("cell.json")}
    values = started(out)
    events: list[Event] = []
    again = go(values, out, events.append, keep_adapters=True)
    assert lasting(again) == lasting(record)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("cell.json")} == stamps
    assert not any(isinstance(event, CellStarted | CellSays) for event in events)


def started(out: Path) -> dict[str, Any]:
    """The settings that the sweep began with, as they would be typed."""
    values = json.loads((out / "started.json").read_text())["values"]
    once = {"data", "text", "label"}
    return {"checkpoint_steps": 1} | {
        name: some[0] if name in once else tuple(map(str, some)) for name, some in values.items()
    }


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_stopped_at_random_moments_it_ends_as_if_it_had_not_been(
    finished, weather: Path, tiny_llama: Path, tmp_path: Path, seed: int
) -> None:
    _, record, events = finished
    rng = np.random.default_rng(seed)
    out, stops = tmp_path / "out", 0
    while True:
        try:
            moment = int(rng.integers(1, len(events) // 2))
            found = go(shared(weather, tiny_llama, **GRID), out, after(moment, stop))
            break
        except KeyboardInterrupt:
            stops += 1
            assert stops < 40
    assert stops
    assert lasting(found) == lasting(record)
    kept = {path.parent.name for path in out.glob("cells/*/rung")}
    assert kept == {found["chosen"]["cell"], found["chosen"]["recommended"]}
    assert not list(out.glob("cells/*/checkpoints"))


def test_more_values_extend_a_sweep(
    finished, weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = go(shared(weather, tiny_llama, r="2", lora_alpha="8,16"), out)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("cell.json")}
    values = shared(weather, tiny_llama, r="2,4", lora_alpha="8,0,16", use_rslora="false,true")
    values["use_rslora"] = "false"
    more = go(values, out)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert len(more["cells"]) == 6
    _, record, _ = finished
    by_name = {cell["name"]: cell for cell in lasting(record)["cells"]}
    assert all(by_name[cell["name"]] == cell for cell in lasting(more)["cells"])
    assert more["chosen"]["cell"] == record["chosen"]["cell"]
    if first["test"]["cell"] != more["test"]["cell"]:
        assert more["test"]["earlier"] == [first["test"]["cell"]]
    wider = go(values | {"use_rslora": "false,true"}, out)
    assert len(wider["cells"]) == 12 - 3 + 3
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    ratios = {c["name"]: c["scaling"] for c in wider["cells"] if c["settings"]["use_rslora"]}
    assert ratios["r4-alpha16-lr0.003-epochs2-seed0-use-rslora-true"] == 16 / math.sqrt(4)
