"""Sweeps with workers in processes of their own, which get killed."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llabel.errors import InputError
from llabel.events import CellSays, CellStarted, Event, StepDone
from llabel.sweep.crew import ProcessWorker, threads_each
from llabel.sweep.outcome import Order
from llabel.sweep.study import open_study
from sweep_runs import GRID, Here, go, lasting, read, shared


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, weather: Path, tiny_llama: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llabel.sweep.sweep.ProcessWorker", Here)
        out = tmp_path_factory.mktemp("sweep") / "out"
        return lasting(go(shared(weather, tiny_llama, **GRID), out))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_worker_that_is_killed_takes_one_cell_along(
    weather: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise ImportError('a module of the user')")
    monkeypatch.chdir(tmp_path)  # workers look for no modules where the user is
    workers: list[ProcessWorker] = []

    def hire(out: Path, threads: int | None) -> ProcessWorker:
        workers.append(ProcessWorker(out, threads))
        return workers[-1]

    monkeypatch.setattr("llabel.sweep.sweep.ProcessWorker", hire)
    monkeypatch.setattr("llabel.sweep.sweep.render_sweep", lambda record: "")

    def kill(event: Event) -> None:
        if isinstance(event, CellStarted) and "rows-40" in event.cell and "bag" in event.cell:
            workers[-1].process.send_signal(signal.SIGKILL)

    values = shared(weather, tiny_llama, rung="majority,bag-of-words", train_rows="20,40,50")
    record = go(values, tmp_path / "out", kill)
    states = [(cell["rung"], cell["status"]) for cell in record["cells"]]
    assert states == [("majority", "done")] * 3 + [
        ("bag-of-words", "done"), ("bag-of-words", "failed"), ("bag-of-words", "done"),
    ]  # fmt: skip
    assert "killed, probably for want of memory" in record["cells"][4]["reason"]
    assert len(workers) == 2
    assert not any(alive(worker.process.pid) for worker in workers)
    again = go(values, tmp_path / "out")
    assert {cell["status"] for cell in again["cells"]} == {"done"}


def test_a_listener_that_raises_takes_the_worker_along() -> None:
    """The disk under a log may be full: nobody would read any longer what the worker says."""
    worker = object.__new__(ProcessWorker)
    told = json.dumps({"event": "Note", "text": "here"})
    worker.process = subprocess.Popen(
        [sys.executable, "-c", f"import time; print({told!r}, flush=True); time.sleep(20)"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip

    def full(event: Event) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        worker.carry_out(Order("cell", {}, ""), full)
    assert worker.process.poll() is not None
    worker.stop()


def test_killed_altogether_it_goes_on_as_if_it_had_not_been(
    weather: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = shared(weather, tmp_path, rung="majority,bag-of-words", train_rows="20,30,40,50")
    out = tmp_path / "out"
    process = begin(values, out)
    wait_for(lambda: any(out.glob("cells/*/cell.json")), process)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    monkeypatch.setattr("llabel.sweep.sweep.ProcessWorker", Here)
    monkeypatch.setattr("llabel.sweep.sweep.render_sweep", lambda record: "")
    assert lasting(go(values, out)) == lasting(go(values, tmp_path / "undisturbed"))


def test_a_chosen_cell_that_cannot_be_tested_says_why(weather: Path, tmp_path: Path) -> None:
    values = shared(weather, tmp_path, rung="majority", train_rows="20,40")
    out = tmp_path / "out"
    chosen = go(values, out)["chosen"]
    assert chosen
    (out / "test.json").unlink()
    (out / "cells" / chosen["cell"] / "rung" / "rung.json").write_text("{")
    with pytest.raises(InputError, match=r"testing the chosen one.*rung\.json cannot be read"):
        go(values, out)


def test_cores_are_shared_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_each(1) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert [threads_each(jobs) for jobs in (2, 3, 16)] == [4, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "8,2")
    assert threads_each(2) == 4, "the first is of the outermost loop"
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert threads_each(10_000) == 1


def begin(values: dict[str, Any], out: Path, **asked: Any) -> "subprocess.Popen[str]":
    """`llabel sweep` as a user starts it."""
    config = out.with_name("sweep.yaml")
    if not config.exists():
        config.write_text(json.dumps(values | asked))  # JSON is YAML
    return subprocess.Popen(
        [sys.executable, "-m", "llabel", "sweep", "--config", str(config), "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
    )  # fmt: skip


def wait_for(there: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    while not there() and process.poll() is None:
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(
    undisturbed: Any, weather: Path, tiny_llama: Path, tmp_path: Path, how: signal.Signals
) -> None:
    out, rng = tmp_path / "out", random.Random(int(how))
    values = shared(weather, tiny_llama, **GRID)
    for kills in range(3):
        process = begin(values, out)
        wait_for(lambda n=kills: len(list(out.glob("cells/*/cell.json"))) > n, process)
        time.sleep(rng.uniform(0, 1))
        process.send_signal(how)
        said, _ = process.communicate(timeout=60)
        # -SIGINT: it came while Python was still importing us.
        if how is signal.SIGINT and process.returncode not in (0, -signal.SIGINT):
            assert process.returncode == 130, said
            assert "The same command goes on" in said
            assert "failed" not in said
    last = begin(values, out)
    said, _ = last.communicate(timeout=300)
    assert last.returncode == 0, said
    assert lasting(read(out)) == undisturbed | {"command": read(out)["command"]}
    workers = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(out) not in workers.stdout


@pytest.mark.slow
def test_several_at_a_time_come_to_the_same(
    undisturbed: Any, weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """Two processes here, and two commands with the same folder."""
    values = shared(weather, tiny_llama, **GRID)
    (tmp_path / "a").mkdir()
    assert begin(values, tmp_path / "a" / "out", jobs=2).wait(300) == 0
    assert lasting(read(tmp_path / "a" / "out")) == undisturbed | {
        "command": read(tmp_path / "a" / "out")["command"]
    }
    (tmp_path / "b").mkdir()
    both = [begin(values, tmp_path / "b" / "out") for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    assert lasting(read(tmp_path / "b" / "out")) == undisturbed | {
        "command": read(tmp_path / "b" / "out")["command"]
    }


@pytest.mark.slow
def test_two_commands_share_one_study(weather: Path, tiny_llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    values = shared(weather, tiny_llama, learning_rate="1e-4..3e-2", r="1..8")
    out = tmp_path / "out"
    both = [begin(values, out, search="tpe", trials=10) for _ in range(2)]
    said = [process.communicate(timeout=400)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    trials = open_study(out).get_trials()
    assert [trial.number for trial in trials] == list(range(10))
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    names = [cell["name"] for cell in read(out)["cells"]]
    assert len(names) == 10
    mine = [sum(f"{name}: " in text for name in names) for text in said]
    assert min(mine) > 1, "each did some"


@pytest.mark.slow
def test_a_killed_worker_s_training_goes_on_at_its_checkpoint(
    undisturbed: Any, weather: Path, tiny_llama: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pids: list[int] = []

    def hire(out: Path, threads: int | None) -> ProcessWorker:
        worker = ProcessWorker(out, threads)
        pids.append(worker.process.pid)
        return worker

    monkeypatch.setattr("llabel.sweep.sweep.ProcessWorker", hire)
    monkeypatch.setattr("llabel.sweep.sweep.render_sweep", lambda record: "")
    steps: list[tuple[str, int]] = []

    def listen(event: Event) -> None:
        if isinstance(event, CellSays) and isinstance(event.event, StepDone):
            steps.append((event.cell, event.event.step))
            if len(steps) == 7 and len(pids) == 1:
                os.kill(pids[-1], signal.SIGKILL)

    values, out = shared(weather, tiny_llama, **GRID), tmp_path / "out"
    first = go(values, out, listen)
    (lost,) = [cell for cell in first["cells"] if cell["status"] == "failed"]
    before = [step for cell, step in steps if cell == lost["name"]]
    steps.clear()
    second = go(values, out, listen)
    again = [step for cell, step in steps if cell == lost["name"]]
    assert before[0] == 1 < again[0] <= before[-1] + 1
    assert lasting(second) == undisturbed
