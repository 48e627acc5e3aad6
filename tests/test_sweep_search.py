"""Searches in this process: proposals, pruning, going on, and two that share a study."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llabel.errors import InputError
from llabel.events import CellDone, CellStarted, Event
from llabel.sweep.axes import read_axes
from llabel.sweep.outcome import Order
from llabel.sweep.pruning import Halving, PrunedError
from llabel.sweep.runner import Runner
from llabel.sweep.study import combination, open_study, propose, sampler_of
from sweep_runs import Here, after, go, lasting, read, shared, stop

pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("cells_here")
SPACE = {"learning_rate": "1e-4..3e-2", "r": "1..8", "lora_alpha": "8,16"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, weather: Path, tiny_llama: Path):
    out, events = tmp_path_factory.mktemp("search") / "out", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llabel.sweep.sweep.ProcessWorker", Here)
        record = go(
            shared(weather, tiny_llama, **SPACE), out, events.append, search="tpe", trials=8
        )
    return out, record, events


def test_a_search_stays_in_its_ranges_and_gives_up_what_falls_behind(finished) -> None:
    out, record, events = finished
    assert record["search"]["sampler"] == "tpe"
    assert record["search"]["trials"] == 8
    expected = {"low": 1e-4, "high": 3e-2, "log": True, "whole": False}
    assert record["search"]["ranges"]["lr"] == expected
    assert record["axes"] == {"lora_alpha": [8, 16]}
    for cell in record["cells"]:
        assert 1e-4 <= cell["settings"]["lr"] <= 3e-2
        assert cell["settings"]["r"] in range(1, 9)
        assert f"{cell['settings']['lr']:.4g}" in f"{cell['settings']['lr']:.10g}"
    pruned = [cell for cell in record["cells"] if cell["status"] == "pruned"]
    done = [cell for cell in record["cells"] if cell["status"] == "done"]
    assert pruned
    assert done
    assert "not among the best third" in pruned[0]["reason"]
    assert pruned[0]["metrics"]["validation"] is None
    assert 0 < pruned[0]["curve"][-1][0] <= 5 < done[0]["curve"][-1][0] == 14
    assert record["chosen"]["cell"] in {cell["name"] for cell in done}
    trials = open_study(out).get_trials()
    assert [trial.state.name for trial in trials] == [
        "COMPLETE" if cell["status"] == "done" else "PRUNED" for cell in record["cells"]
    ]
    told = [event.cell for event in events if isinstance(event, CellDone)]
    assert told == [cell["name"] for cell in record["cells"]]


def test_a_search_goes_on_as_if_it_had_not_been_stopped(
    finished, weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    _, record, events = finished
    out, stops, rng = tmp_path / "out", 0, np.random.default_rng(1)
    while True:
        try:
            moment = int(rng.integers(len(events) // 6, len(events) // 2))
            values = shared(weather, tiny_llama, **SPACE)
            found = go(values, out, after(moment, stop), search="tpe", trials=8)
            break
        except KeyboardInterrupt:
            stops += 1
            assert stops < 40
    assert stops
    assert lasting(found) == lasting(record)


def test_a_search_may_be_given_more_trials_but_no_other_space(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    values = shared(weather, tiny_llama, rung="bag-of-words", train_rows="10..50")
    out = tmp_path / "out"
    first = go(values, out, search="random", trials=2)
    events: list[Event] = []
    more = go(values, out, events.append, search="random", trials=4)
    assert lasting(more)["cells"][:2] == lasting(first)["cells"]
    assert len(more["cells"]) == 4
    assert len([event for event in events if isinstance(event, CellStarted)]) == 2
    for other in ({"train_rows": "10..40"}, {"train_rows": "10,40"}, {"epochs": "7"}):
        told = "holds another sweep.*A search may be given more --trials, but no other values"
        with pytest.raises(InputError, match=told):
            go(values | other, out, search="random", trials=4)
    with pytest.raises(InputError, match="--search was over random"):
        go(values, out, search="tpe", trials=4)


def test_what_was_tried_before_is_not_trained_again(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    values = shared(weather, tiny_llama, rung="bag-of-words", train_rows="20,40")
    record = go(values, tmp_path / "out", search="random", trials=6)
    assert len(record["cells"]) == 2
    states = [t.state.name for t in open_study(tmp_path / "out").get_trials()]
    assert states == ["COMPLETE"] * 6


def test_what_failed_for_the_moment_is_tried_again(
    weather: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = shared(weather, tiny_llama, rung="bag-of-words", train_rows="10..50")
    out = tmp_path / "out"
    fitted = Runner._fitted

    def too_large(self: Runner, order: Order, *rest: Any) -> Any:
        if order.trial == 1:
            raise MemoryError("cannot allocate memory")
        return fitted(self, order, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_fitted", too_large)
        first = go(values, out, search="random", trials=3)
    assert [cell["status"] for cell in first["cells"]] == ["done", "failed", "done"]
    second = go(values, out, search="random", trials=3)
    assert [cell["status"] for cell in second["cells"]] == ["done"] * 3
    assert [t.state.name for t in open_study(out).get_trials()] == ["COMPLETE"] * 3
    lost = second["cells"][2]
    (out / lost["folder"] / "cell.json").unlink()
    again = go(values, out, search="random", trials=3)
    assert lasting(again) == lasting(second)


def test_values_that_look_alike_are_cells_of_their_own(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    values = shared(weather, tiny_llama, train_rows="16", epochs="1")
    values["instruction"] = ("Rain or sun?", "Rain or sun!")
    out = tmp_path / "out"
    record = go(values | {"template": "alpaca"}, out, search="random", trials=4, seeds=1)
    assert len({cell["folder"] for cell in record["cells"]}) == 2
    assert all((out / cell["folder"] / "cell.json").is_file() for cell in record["cells"])


def test_two_sweeps_share_one_study(weather: Path, tiny_llama: Path, tmp_path: Path) -> None:
    values = shared(weather, tiny_llama, rung="bag-of-words", train_rows="10..50")
    out, records, errors = tmp_path / "out", [], []

    def work() -> None:
        try:
            records.append(go(values, out, search="tpe", trials=12))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    trials = open_study(out).get_trials()
    assert [trial.number for trial in trials] == list(range(12))
    assert all(trial.state.name == "COMPLETE" for trial in trials)
    assert lasting(records[0]) == lasting(records[1])
    assert len(read(out)["cells"]) == len({t.params["train_rows"] for t in trials})


def test_proposals_depend_on_seed_and_number_alone(tmp_path: Path) -> None:
    axes = read_axes({"data": "x", "text": ("t",), "label": "l", **SPACE}, searching=True)

    def first(folder: Path, seed: int) -> list[dict]:
        folder.mkdir()
        found = []
        for number in range(4):
            trial = open_study(folder).ask()
            propose(trial, axes, lambda axis, n=number: sampler_of("random", seed, n, axis))
            found.append(combination(trial.params, axes))
        return found

    assert first(tmp_path / "a", 0) == first(tmp_path / "b", 0) != first(tmp_path / "c", 1)
    assert len({str(values) for values in first(tmp_path / "d", 2)}) == 4


def test_a_journal_whose_last_line_is_torn_goes_on(tmp_path: Path) -> None:
    open_study(tmp_path).ask()
    journal = tmp_path / "study.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"work')  # a kill, or a full disk
    assert len(open_study(tmp_path).get_trials()) == 1
    assert journal.read_bytes().startswith(whole)
    assert open_study(tmp_path).ask().number == 1
    assert len(open_study(tmp_path).get_trials()) == 2
    assert all(map(json.loads, journal.read_text().splitlines()))


def test_halving_keeps_the_best_third(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    ended: dict[int, int] = {}
    reasons: dict[int, str] = {}
    for number in range(9):
        study.ask()
        watch = Halving(tmp_path, number)
        try:
            for step in range(1, 19):
                watch(step, 18, lambda number=number: float(number))
                ended[number] = step
        except PrunedError as error:
            reasons[number] = str(error)
    assert all(f"{float(number):.4f}" in reason for number, reason in reasons.items())
    assert ended[0] == 18, "the best so far"
    assert all(ended[number] == 1 for number in range(1, 9)), "given up at step 2 of 18"
    study.ask()
    with pytest.raises(FloatingPointError, match="validation loss became nan"):
        Halving(tmp_path, 9)(2, 18, lambda: float("nan"))
    asked: list[int] = []
    for step in range(1, 4):
        Halving(tmp_path, 9)(step, 3, lambda step=step: asked.append(step) or -1.0)
    assert asked == [1], "the last step is no look: all is known then"


def test_a_trial_that_was_given_up_does_not_come_back(tmp_path: Path) -> None:
    """A process that is killed before it wrote down how the cell ended looks again."""
    study = open_study(tmp_path)
    for number, loss in enumerate((0.1, 0.9)):
        study.ask()
        reasons = []
        for _ in range(2):
            watch = Halving(tmp_path, number)
            try:
                watch(2, 18, lambda loss=loss: loss)
                watch(6, 18, lambda loss=loss: loss)
            except PrunedError as error:
                reasons.append(str(error))
        assert len(reasons) == 2 * number
        assert len(set(reasons)) == number


def test_a_search_without_optuna_says_what_to_install(
    weather: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'llabel\[search\]'"):
        go(shared(weather, tiny_llama, **SPACE), tmp_path / "out", search="tpe")
    assert not (tmp_path / "out").exists()
