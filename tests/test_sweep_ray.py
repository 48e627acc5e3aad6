"""The same sweep on a local Ray with two workers."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llabel.errors import InputError
from llabel.events import CellSays, Event, StepDone
from sweep_runs import GRID, Here, go, lasting, shared


@pytest.fixture
def two_workers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Ray of this machine with two cores, whatever it has."""
    ray = pytest.importorskip("ray")
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_a_cluster_comes_to_the_same_results(
    two_workers: Any,
    weather: Path,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = shared(weather, tiny_llama, **GRID)
    out = tmp_path / "ray"
    cells: set[str] = set()

    def listen(event: Event) -> None:
        if isinstance(event, CellSays) and isinstance(event.event, StepDone):
            cells.add(event.cell)

    found = go(values, out, listen, ray="default", jobs=2)
    assert len(cells) == 4, "what they say arrives"
    monkeypatch.setattr("llabel.sweep.sweep.ProcessWorker", Here)
    alone = go(values, tmp_path / "alone")
    assert lasting(found) == lasting(alone)
    assert go(values, out, ray="default", jobs=2) == found | {"environment": found["environment"]}


def actor() -> int:
    """The process of the only one at work: Ray writes what it does into its title."""
    table = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    (found,) = [line for line in table.stdout.splitlines() if "ray::_Actor" in line]
    return int(found.split()[0])


@pytest.mark.slow
def test_an_actor_that_is_killed_takes_one_cell_along_and_others_go_on(
    two_workers: Any, weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    values, out = shared(weather, tiny_llama, **GRID), tmp_path / "out"
    killed: list[str] = []

    def listen(event: Event) -> None:
        step = event.event if isinstance(event, CellSays) else None
        if isinstance(step, StepDone) and step.step == 5 and not killed:
            killed.append(event.cell)
            os.kill(actor(), signal.SIGKILL)

    first = go(values, out, listen, ray="default", jobs=1)
    lost = [cell for cell in first["cells"] if cell["status"] == "failed"]
    assert [cell["name"] for cell in lost] == killed
    assert "its Ray worker died" in lost[0]["reason"]
    second = go(values, out, ray="default", jobs=2)
    assert {cell["status"] for cell in second["cells"]} == {"done"}


def test_no_cluster_and_no_ray_are_told(
    weather: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'llabel\[ray\]'"):
        go(shared(weather, tiny_llama, r="2,4"), tmp_path / "out", ray="default")
    assert not (tmp_path / "out").exists()
