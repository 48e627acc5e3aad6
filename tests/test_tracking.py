"""What trackers are told: TensorBoard and, where it is installed, MLflow itself."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from llabel.config import RunConfig
from llabel.events import Event, StepDone
from llabel.run import fit
from llabel.settings import RunSettings
from llabel.tracking import tracked
from runs import config
from sweep_runs import go, shared


def told(folder: Path) -> dict[str, list[float]]:
    """Values by name, of the event files right in a folder."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found: Any = accumulators.EventAccumulator(str(folder))
    found.Reload()
    return {
        name: [event.value for event in found.Scalars(name)] for name in found.Tags()["scalars"]
    }


def logged(path: Path, name: str) -> list[float]:
    lines = map(json.loads, path.read_text().splitlines())
    return [line[name] for line in lines if name in line]


def test_tensorboard_has_the_losses_of_a_run(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    record = fit(config(weather, tiny_llama, RunSettings(track="tensorboard")), out, command="")
    found, log = told(out / "tensorboard" / "out"), out / "train.log.jsonl"
    assert found["loss"] == pytest.approx(logged(log, "loss"))
    assert found["learning_rate"] == pytest.approx(logged(log, "learning_rate"))
    assert found["validation/log_loss"] == pytest.approx(logged(log, "validation_loss"))
    for part in ("validation", "test"):
        scores = record["metrics"][part]
        assert found[f"{part}/final_log_loss"] == pytest.approx([scores["log_loss"]])


def test_steps_go_on_where_an_interrupted_run_went_on(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """What an earlier process finished counts: the refit stands behind the training."""
    out = tmp_path / "out"
    asked = RunSettings(track="tensorboard", checkpoint_steps=2)
    settings = config(weather, tiny_llama, asked, epochs=1, refit=True)

    def killed(event: Event) -> None:
        if isinstance(event, StepDone) and event.stage.startswith("refitting") and event.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(settings, out, command="", notify=killed)
    shutil.rmtree(out / "tensorboard")  # what the first process wrote
    fit(settings, out, command="")
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found: Any = accumulators.EventAccumulator(str(out / "tensorboard" / "out"))
    found.Reload()
    steps = [event.step for event in found.Scalars("loss")]
    assert steps == list(range(7 + 3, 7 + 8 + 1))  # seven steps, then eight, two of which were done


@pytest.mark.usefixtures("cells_here")
def test_tensorboard_has_the_losses_of_each_cell(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    values = shared(weather, tiny_llama, r="2,4", epochs="1", track="tensorboard")
    for cell in go(values, out)["cells"]:
        found = told(out / "tensorboard" / cell["name"])
        assert found["loss"] == pytest.approx(
            logged(out / cell["folder"] / "train.log.jsonl", "loss")
        )
        assert found["validation/final_log_loss"] == pytest.approx(
            [cell["metrics"]["validation"]["log_loss"]]
        )


STAND_IN = """
import json, os, sys
from filelock import FileLock, Timeout
from pathlib import Path
from types import SimpleNamespace

telemetry = os.environ.get("MLFLOW_DISABLE_TELEMETRY")  # as it is when mlflow is imported
utils = SimpleNamespace(
    validation=SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
)
said = []

def __getattr__(name):
    if name.startswith("_"):
        raise AttributeError(name)
    def call(*args, **more):
        said.append((name, args, more))
        if name == "search_experiments":
            try:
                FileLock(os.environ["EXPECTED_LOCK"]).acquire(timeout=0)
                said.append(("unlocked", (), {}))
            except Timeout:
                pass
            return []
    return call
"""


def stand_in(settings: RunConfig, out: Path) -> Any:
    """What is called of MLflow, as a module that is imported anew."""
    try:
        with tracked(settings, out, "mine", lambda event: None):
            return sys.modules["mlflow"]
    finally:
        sys.modules.pop("mlflow", None)


def test_mlflow_gets_a_database_made_by_one_worker_and_no_telemetry(
    weather: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "mlflow.py").write_text(STAND_IN)
    monkeypatch.setitem(sys.modules, "mlflow", None)  # put back at the end
    sys.modules.pop("mlflow")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    out = tmp_path / "out"
    monkeypatch.setenv("EXPECTED_LOCK", str(out / "mlflow" / ".start.lock"))
    settings = config(weather, tiny_llama, RunSettings(track="mlflow"))
    found = stand_in(settings, out)
    names = [name for name, _, _ in found.said]
    assert found.telemetry == "true"
    assert "unlocked" not in names
    assert found.said[0][:2] == ("set_tracking_uri", (f"sqlite:///{out}/mlflow/mlflow.db",))
    made = found.said[names.index("create_experiment")][2]
    assert made["name"] == "out"
    assert made["artifact_location"] == (out / "mlflow" / "artifacts").as_uri()
    assert names[-1] == "end_run"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mine")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    found = stand_in(settings, out)
    assert "set_tracking_uri" not in [name for name, _, _ in found.said]
    assert found.telemetry == "false"


SERVICE = """
from types import SimpleNamespace

said = []
config = SimpleNamespace(update=lambda values, **more: said.append(("config", values)))

def init(**more):
    said.append(("init", more))
    return SimpleNamespace(
        log=lambda values, step=None, **more: said.append(("log", values)),
        finish=lambda: said.append(("finish", None)),
    )
"""


@pytest.mark.parametrize("track", ["wandb", "trackio"])
def test_services_are_told_through_accelerate_s_trackers(
    weather: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, track: Any
) -> None:
    (tmp_path / f"{track}.py").write_text(SERVICE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = config(weather, Path("none"), RunSettings(track=track, rung="majority"))
    record = fit(settings, tmp_path / "out", command="")
    module = sys.modules.pop(track)
    names = [name for name, _ in module.said]
    assert names[:2] == ["init", "config"]
    assert names[-1] == "finish"
    logged: dict[str, float] = {}
    for name, values in module.said:
        logged |= values if name == "log" else {}
    test = record["metrics"]["test"]
    assert test
    assert logged["test/final_log_loss"] == test["log_loss"]


def test_mlflow_has_the_losses_of_each_cell_of_two_workers(
    weather: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow: Any = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = tmp_path / "out"
    values = shared(weather, tiny_llama, r="2,4", epochs="1", track="mlflow")
    record = go(values, out, jobs=2)
    client = mlflow.MlflowClient(f"sqlite:///{out / 'mlflow' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'out'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    for cell in record["cells"]:
        run = runs[cell["name"]]
        assert run.data.metrics["validation/final_log_loss"] == pytest.approx(
            cell["metrics"]["validation"]["log_loss"]
        )
        history = [point.value for point in client.get_metric_history(run.info.run_id, "loss")]
        assert history == pytest.approx(logged(out / cell["folder"] / "train.log.jsonl", "loss"))
