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
from llabel.sweep.on_ray import _share, refuse_unreachable
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
    again = go(values, out, ray="default", jobs=2)  # in which bitsandbytes is loaded by now
    assert again | {"environment": found["environment"]} == found


def test_a_cluster_ends_cheap_cells_as_this_process_does(
    two_workers: Any, weather: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llabel.sweep.sweep.render_sweep", lambda record: "")
    values = shared(weather, tmp_path, rung="majority,bag-of-words", train_rows="20,40")
    found = go(values, tmp_path / "ray", ray="default", jobs=1)
    assert {cell["status"] for cell in found["cells"]} == {"done"}
    monkeypatch.setattr("llabel.sweep.sweep.ProcessWorker", Here)
    assert lasting(found) == lasting(go(values, tmp_path / "alone"))


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
    second = go(values, out, ray="default", jobs=4)  # more than cores
    assert {cell["status"] for cell in second["cells"]} == {"done"}


def test_no_cluster_and_no_ray_are_told(
    weather: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'llabel\[ray\]'"):
        go(shared(weather, tiny_llama, r="2,4"), tmp_path / "out", ray="default")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_where_nobody_listens_is_told_at_once(address: str) -> None:
    with pytest.raises(InputError, match=f"--ray {address}: nothing listens there"):
        refuse_unreachable(address)
    refuse_unreachable("default")
    refuse_unreachable("auto")


CORES, GPU, TWO_GPUS = {"CPU": 8.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 16.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "jobs", "expected"),
    [
        ([CORES], None, (1, {"num_cpus": 8})),
        ([CORES, CORES], None, (2, {"num_cpus": 8})),
        ([CORES, CORES], 3, (3, {"num_cpus": 4})),
        ([{"CPU": 2.0}], 4, (4, {"num_cpus": 0.5})),
        ([{"CPU": 2.0}], 6, (6, {"num_cpus": 0.3333})),
        ([CORES, {"CPU": 4.0}], 3, (3, {"num_cpus": 4})),
        ([CORES, {"CPU": 0.0}], None, (1, {"num_cpus": 8})),
        ([GPU, CORES], 2, (2, {"num_cpus": 4, "num_gpus": 0.5})),
        ([GPU, CORES], None, (1, {"num_cpus": 8, "num_gpus": 1})),
        ([TWO_GPUS], None, (2, {"num_cpus": 8, "num_gpus": 1})),
        ([TWO_GPUS, GPU, CORES], None, (3, {"num_cpus": 8, "num_gpus": 1})),
        ([TWO_GPUS, GPU], 3, (3, {"num_cpus": 8, "num_gpus": 1})),
        ([TWO_GPUS, GPU], 4, (4, {"num_cpus": 5, "num_gpus": 0.5})),
        ([GPU], 6, (6, {"num_cpus": 1, "num_gpus": 0.1666})),
        ([{"CPU": 1.0, "GPU": 8.0}], 8, (8, {"num_cpus": 0.125, "num_gpus": 1})),
        ([{"GPU": 1.0}], 2, (2, {"num_cpus": 0, "num_gpus": 0.5})),
    ],
    ids=str,
)
def test_all_workers_fit_beside_each_other(
    nodes: list[dict[str, float]], jobs: int | None, expected: tuple[int, dict[str, float]]
) -> None:
    count, share = _share(nodes, jobs)
    assert (count, share) == expected
    fit = 0
    for node in nodes:
        cores = int(node.get("CPU", 0) / share["num_cpus"] + 1e-9) if share["num_cpus"] else count
        cards = share.get("num_gpus")
        fit += min(cores, int(1 / cards) * int(node.get("GPU", 0)) if cards else cores)
    assert fit >= count
