import io
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from llabel.compare.rows import _stages
from llabel.config import RunConfig
from llabel.engine.answer import AnswerHead
from llabel.engine.batching import Batch
from llabel.errors import InputError
from llabel.events import Event, Note, StageStarted, StepDone, ignore
from llabel.folder import InUseError, alone_with, claimed, finished_run
from llabel.metrics import score
from llabel.record import RunRecord
from llabel.result_view import render_run
from llabel.run import evaluate, fit
from llabel.settings import RunSettings
from runs import config, write_weather
from small_disk import full_disk


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weather(tmp_path_factory.mktemp("data") / "weather.jsonl", 90)


@pytest.fixture(scope="module")
def setup(data: Path, tiny_llama: Path) -> RunConfig:
    return config(data, tiny_llama)


@pytest.fixture(scope="module")
def finished(setup: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    out = tmp_path_factory.mktemp("runs") / "done"
    return out, fit(setup, out, command="llabel fit weather.jsonl")


def test_a_run_leaves_its_record_and_nothing_unfinished(
    finished: tuple[Path, RunRecord],
) -> None:
    out, record = finished
    assert json.loads((out / "run.json").read_text()) == json.loads(json.dumps(record))
    assert {path.name for path in out.iterdir()} == {
        "README.md", "adapter", "predictions.jsonl", "run.json", "rung.json", "started.json",
        "train.log.jsonl",
    }  # fmt: skip
    assert {path.name for path in out.parent.iterdir()} == {out.name}, "no lock is left"
    assert record["rung"] == "llm-lora"
    assert record["seed"] == 0
    assert record["command"] == "llabel fit weather.jsonl"
    assert record["data"]["rows"] == {"train": 63, "validation": 9, "test": 18}
    assert record["cost"]["trainable_parameters"] > 0
    assert record["cost"]["train_tokens_per_second"] > 0
    for part in ("train", "validation", "test"):
        scores = record["metrics"][part]  # type: ignore[literal-required]
        assert {"accuracy", "accuracy_ci95", "macro_f1", "log_loss", "ece"} <= set(scores)


def test_scores_are_those_of_the_predictions(finished: tuple[Path, RunRecord]) -> None:
    import numpy as np

    out, record = finished
    lines = [json.loads(line) for line in (out / "predictions.jsonl").open()]
    test = [line for line in lines if line["part"] == "test"]
    assert len(test) == 18
    classes = record["data"]["classes"]
    y = np.array([classes.index(line["label"]) for line in test])
    proba = np.array([[line["probabilities"][c] for c in classes] for line in test])
    again = score(y, proba / proba.sum(1, keepdims=True))
    assert again is not None
    assert again["accuracy"] == record["metrics"]["test"]["accuracy"]
    assert again["log_loss"] == pytest.approx(record["metrics"]["test"]["log_loss"], abs=1e-4)
    assert all(line["text"].keys() == {"text", "note"} for line in test)


def test_the_log_has_every_step_once(finished: tuple[Path, RunRecord]) -> None:
    out, record = finished
    lines = [json.loads(line) for line in (out / "train.log.jsonl").open()]
    steps = [line["step"] for line in lines if "step" in line]
    assert steps == list(range(1, 8 * 2 + 1)), "63 rows in steps of 8, two epochs"
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert losses == record["training"]["epoch_losses"]


def test_the_same_call_again_answers_at_once(
    finished: tuple[Path, RunRecord], setup: RunConfig
) -> None:
    out, record = finished
    before = (out / "run.json").stat().st_mtime_ns
    seen: list[Event] = []
    assert fit(setup, out, command="again", notify=seen.append) == json.loads(json.dumps(record))
    assert (out / "run.json").stat().st_mtime_ns == before
    assert not any(isinstance(event, StageStarted) for event in seen)


def test_other_settings_or_rows_are_not_mixed_in(
    finished: tuple[Path, RunRecord], setup: RunConfig, tmp_path: Path
) -> None:
    out, _ = finished
    with pytest.raises(InputError, match=r"--r was 4, is 8.*--overwrite"):
        fit(replace(setup, llm=replace(setup.llm, r=8)), out, command="")
    data = write_weather(tmp_path / "weather.jsonl", 90)
    moved = replace(setup, source=str(data))
    moved = replace(moved, run=replace(moved.run, checkpoint_steps=1))
    first = tmp_path / "first"
    with pytest.raises(_Killed):
        fit(moved, first, command="", notify=_killer(StepDone, 3))
    write_weather(data, 91)
    with pytest.raises(InputError, match="the rows of the data have changed"):
        fit(moved, first, command="")


def test_a_template_file_that_changed_is_another_setting(setup: RunConfig, tmp_path: Path) -> None:
    template = tmp_path / "mine.txt"
    template.write_text("{text} {note} Weather:")
    own = replace(setup, llm=replace(setup.llm, template=str(template), epochs=1))
    out = tmp_path / "run"
    fit(own, out, command="")
    template.write_text("{text} {note} Sky:")
    with pytest.raises(InputError, match=r"the file .*mine.txt of --template has changed.*--overw"):
        fit(own, out, command="")


def test_weights_that_changed_are_another_model(
    setup: RunConfig, tiny_llama: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    own = replace(setup, llm=replace(setup.llm, model=str(model), epochs=1))
    out = tmp_path / "run"
    fit(own, out, command="")
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"the weights in .*model \(--model\) have changed"):
        fit(own, out, command="")
    shutil.rmtree(model)  # whoever has the run may have it without the model
    assert finished_run(out, own, json.loads((out / "started.json").read_text())["fingerprint"])


def test_word_vectors_that_changed_are_another_setting(data: Path, tmp_path: Path) -> None:
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("warm 1 0\ncold 0 1\n")
    given = {"text": "text,note", "label": "label", "rung": "word-embeddings"}
    own = RunConfig.from_flat({"data": str(data), **given, "embeddings": str(vectors)})
    out = tmp_path / "run"
    out.mkdir()
    with claimed(out, own, "0" * 64, overwrite=False, notify=ignore):
        (out / "checkpoints").mkdir()
    vectors.write_text("warm 1 0\ncold 1 1\n")
    with pytest.raises(InputError, match=r"the word vectors in .*vectors.txt .* have changed"):
        finished_run(out, own, "0" * 64)


def test_a_full_disk_does_not_close_the_folder(setup: RunConfig, tmp_path: Path) -> None:
    majority = replace(setup, run=RunSettings(rung="majority"))
    out = tmp_path / "run"
    with full_disk(100), pytest.raises(OSError, match="too large"):
        fit(majority, out, command="")
    assert not list(out.iterdir())
    (out / ".started.json.123").write_text("{")  # of a process that was killed
    assert fit(majority, out, command="")["rung"] == "majority"


def test_the_folder_itself_is_locked_where_none_may_write_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (tmp_path / ".run.lock").mkdir()  # a lock that cannot be opened, for root, too
    with alone_with(out, "in use"):
        assert [path.name for path in out.iterdir()] == [".run.lock"]
        with pytest.raises(InUseError, match="in use"), alone_with(out, "in use"):
            pass
    assert not list(out.iterdir())


@pytest.mark.parametrize("target", ["run", "nothing"])
def test_a_link_that_leads_nowhere_is_no_folder(
    setup: RunConfig, tmp_path: Path, target: str
) -> None:
    (tmp_path / "run").symlink_to(tmp_path / target)
    with pytest.raises(InputError, match=r"Symlink loop|leads nowhere"):
        fit(replace(setup, run=RunSettings(rung="majority")), tmp_path / "run", command="")


def test_a_run_may_lie_where_one_stands(
    setup: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(replace(setup, run=RunSettings(rung="majority")), Path(), command="")
    assert (tmp_path / "run.json").is_file()
    with pytest.raises(InputError, match="Name a folder below it"):
        fit(replace(setup, run=RunSettings(rung="majority")), Path("/"), command="")


def test_a_folder_of_others_is_left_alone(setup: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not llabel's"):
            fit(setup, tmp_path, command="", overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_models_folder_is_not_taken_for_a_run(
    setup: RunConfig, tiny_llama: Path, tmp_path: Path
) -> None:
    """It has a config.json too; overwriting it would lose the weights."""
    shutil.copytree(tiny_llama, tmp_path / "model")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not llabel's"):
            fit(setup, tmp_path / "model", command="", overwrite=overwrite)
    with pytest.raises(InputError, match="holds no run"):
        evaluate(tmp_path / "model", setup.source)
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_overwriting_removes_the_run_and_spares_what_is_not_its_own(
    setup: RunConfig, tmp_path: Path
) -> None:
    short = replace(setup, llm=replace(setup.llm, epochs=1))
    fit(short, tmp_path / "run", command="")
    (tmp_path / "run" / "my notes.txt").write_text("r 4 looks best")
    record = fit(setup, tmp_path / "run", command="", overwrite=True)
    assert record["training"]["steps"] == 16
    assert (tmp_path / "run" / "my notes.txt").read_text() == "r 4 looks best"


def test_overwriting_leaves_alone_what_a_link_leads_to(setup: RunConfig, tmp_path: Path) -> None:
    out, adapter = tmp_path / "run", tmp_path / "adapter"
    fit(replace(setup, run=RunSettings(rung="majority")), out, command="")
    adapter.mkdir()
    (adapter / "weights").write_text("hours of work")
    (out / "adapter").symlink_to(adapter)
    fit(replace(setup, run=RunSettings(rung="lookup")), out, command="", overwrite=True)
    assert (adapter / "weights").read_text() == "hours of work"
    assert not (out / "adapter").exists()


def test_overwriting_does_not_lose_an_interrupted_run_of_the_same_settings(
    setup: RunConfig, tmp_path: Path
) -> None:
    often = replace(setup, run=replace(setup.run, checkpoint_steps=2))
    with pytest.raises(_Killed):
        fit(often, tmp_path / "run", command="", overwrite=True, notify=_killer(StepDone, 7))
    seen: list[Event] = []
    fit(often, tmp_path / "run", command="", overwrite=True, notify=seen.append)
    assert next(event for event in seen if isinstance(event, StepDone)).step == 7


def test_a_mistake_found_late_does_not_claim_the_folder(setup: RunConfig, tmp_path: Path) -> None:
    wrong = replace(setup, llm=replace(setup.llm, target_modules=("q_project",)))
    with pytest.raises(InputError, match="q_project"):
        fit(wrong, tmp_path / "run", command="")
    assert fit(setup, tmp_path / "run", command="")["training"]["steps"] == 16


@pytest.mark.parametrize("name", ["run.json", "rung.json"])
def test_a_damaged_run_is_named(
    finished: tuple[Path, RunRecord], setup: RunConfig, tmp_path: Path, name: str
) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / name).write_text('{"rung": ')
    with pytest.raises(InputError, match=rf"{name}.*damaged"):
        evaluate(tmp_path / "run", setup.source)


def test_evaluate_checks_the_data_before_it_loads_the_model(
    finished: tuple[Path, RunRecord], setup: RunConfig, tmp_path: Path
) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "adapter")
    with pytest.raises(InputError, match=r"nowhere\.csv"):
        evaluate(tmp_path / "run", "nowhere.csv")


class _Killed(Exception):
    pass


def _killer(kind: type, after: int):  # type: ignore[no-untyped-def]
    count = 0

    def listen(event: Event) -> None:
        nonlocal count
        count += isinstance(event, kind)
        if count == after:
            raise _Killed

    return listen


@pytest.mark.parametrize(
    ("kind", "after"), [(StepDone, 3), (StepDone, 9), (StageStarted, 2), (StageStarted, 3)]
)
def test_an_interrupted_run_ends_like_an_undisturbed_one(
    finished: tuple[Path, RunRecord], setup: RunConfig, tmp_path: Path, kind: type, after: int
) -> None:
    often = replace(setup, run=replace(setup.run, checkpoint_steps=2))
    out = tmp_path / "run"
    with pytest.raises(_Killed):
        fit(often, out, command="", notify=_killer(kind, after))
    assert not (out / "run.json").exists()
    record = fit(often, out, command="")
    reference, expected = finished
    assert record["metrics"] == expected["metrics"]
    for name in ("adapter/adapter_model.safetensors", "predictions.jsonl"):
        assert (out / name).read_bytes() == (reference / name).read_bytes()
    steps = [json.loads(line).get("step") for line in (out / "train.log.jsonl").open()]
    assert [step for step in steps if step] == list(range(1, 17))


def test_a_run_killed_by_the_system_goes_on(
    finished: tuple[Path, RunRecord], setup: RunConfig, tmp_path: Path
) -> None:
    """A real process and a real SIGKILL in the middle of the training."""
    out = tmp_path / "run"
    often = replace(setup, run=replace(setup.run, checkpoint_steps=1))
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from dataclasses import replace\n"
        "from runs import config\n"
        "from llabel.run import fit\n"
        "from llabel.settings import RunSettings\n"
        "from llabel.events import StepDone\n"
        "def listen(event):\n"
        "    if isinstance(event, StepDone) and event.step == 6:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "c = config(Path(sys.argv[2]), Path(sys.argv[3]), RunSettings(checkpoint_steps=1))\n"
        "fit(c, Path(sys.argv[4]), command='', notify=listen)\n"
    )
    arguments = [str(Path(__file__).parent), setup.source, setup.llm.model, str(out)]
    killed = subprocess.run([sys.executable, "-c", script, *arguments], check=False)
    assert killed.returncode == -9
    seen: list[Event] = []
    record = fit(often, out, command="", notify=seen.append)
    assert next(event for event in seen if isinstance(event, StepDone)).step == 6
    reference, expected = finished
    assert record["metrics"] == expected["metrics"]
    adapter = "adapter/adapter_model.safetensors"
    assert (out / adapter).read_bytes() == (reference / adapter).read_bytes()


def test_refit_trains_on_validation_rows_too(setup: RunConfig, tmp_path: Path) -> None:
    refit = replace(setup, llm=replace(setup.llm, refit=True))
    record = fit(refit, tmp_path / "run", command="")
    assert record["training"]["refit"]
    epochs = record["training"]["epochs"]
    assert record["training"]["steps"] == epochs * 9, "63 + 9 rows in steps of 8"
    stages = [json.loads(line)["stage"] for line in (tmp_path / "run/train.log.jsonl").open()]
    assert set(stages) == {"training", "refitting on train + validation"}


def test_what_diverged_is_told(
    setup: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training in its second epoch, the refit at once."""
    steps, loss = [0], AnswerHead.loss

    def broken(head: AnswerHead, batch: Batch) -> Tensor:
        steps[0] += 1
        return loss(head, batch) * (math.nan if steps[0] >= 10 else 1)

    monkeypatch.setattr(AnswerHead, "loss", broken)
    whole_steps = replace(setup.llm, refit=True, token_budget=4096)
    record = fit(replace(setup, llm=whole_steps), tmp_path / "run", command="")
    training = record["training"]
    assert (training["epochs"], training["steps"]) == (1, 9)
    assert (training["refit"], training["refit_diverged"]) == (False, True)
    assert training["trials"][0]["stopped"] == "diverged"
    assert training["summary"]
    assert training["summary"]["epoch"] == 71 / 63
    written = io.StringIO()
    Console(width=500, file=written).print(render_run(record, tmp_path / "run"))
    told = written.getvalue()
    assert "it diverged later, and its best epoch is kept" in told
    assert "training anew on train + validation diverged, and is not kept" in told
    assert _stages(record) == ["training", "training"]


def test_an_interrupted_refit_goes_on(setup: RunConfig, tmp_path: Path) -> None:
    refit = replace(
        setup,
        llm=replace(setup.llm, refit=True),
        run=replace(setup.run, checkpoint_steps=2),
    )
    expected = fit(refit, tmp_path / "whole", command="")
    with pytest.raises(_Killed):
        fit(refit, tmp_path / "run", command="", notify=_killer(StepDone, 16 + 5))
    seen: list[Event] = []
    record = fit(refit, tmp_path / "run", command="", notify=seen.append)
    assert next(event for event in seen if isinstance(event, StepDone)).step == 5
    assert record["metrics"] == expected["metrics"]


def test_free_answers_may_be_unknown_and_wrong(setup: RunConfig, tmp_path: Path) -> None:
    free = replace(setup, run=RunSettings(decode="free", no_texts=True))
    free = replace(free, llm=replace(free.llm, lora_alpha=0, epochs=1))  # an untaught model babbles
    seen: list[Event] = []
    record = fit(free, tmp_path / "run", command="", notify=seen.append)
    notes = [event.text for event in seen if isinstance(event, Note)]
    assert any("--loss sft teaches it" in note for note in notes)
    rows = {row["name"]: row for row in record["report"]}
    assert rows["unknown"]["predicted"] == 18
    assert record["metrics"]["test"]["accuracy"] == 0.0
    lines = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").open()]
    test = [line for line in lines if line["part"] == "test"]
    assert {line["prediction"] for line in test} == {"unknown"}
    assert all(isinstance(line["answer"], str) for line in test), "what it wrote is kept"
    assert not any("text" in line for line in lines), "--no-texts"


def test_evaluate_repeats_the_recorded_scores(
    finished: tuple[Path, RunRecord], tmp_path: Path
) -> None:
    out, record = finished
    lines = [json.loads(line) for line in (out / "predictions.jsonl").open()]
    rows = [
        json.dumps({**line["text"], "label": line["label"]})
        for line in lines
        if line["part"] == "test"
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(rows))
    found = evaluate(out, str(tmp_path / "test.jsonl"))
    assert found["rows"] == 18
    assert found["metrics"].pop("accuracy_ci95") == record["metrics"]["test"]["accuracy_ci95"]
    expected = {name: record["metrics"]["test"][name] for name in found["metrics"]}  # type: ignore[literal-required]
    assert found["metrics"] == pytest.approx(expected)


def test_a_label_column_to_evaluate_is_named_as_in_fit(
    setup: RunConfig, data: Path, tmp_path: Path
) -> None:
    fit(replace(setup, run=RunSettings(rung="majority")), tmp_path / "run", command="")
    rows = [json.loads(line) for line in data.open()]
    other = tmp_path / "other.jsonl"
    other.write_text(
        "".join(json.dumps({**row, "the, label": row["label"]}) + "\n" for row in rows)
    )
    assert evaluate(tmp_path / "run", str(other), label='"the, label"')["rows"] == 90
    assert evaluate(tmp_path / "run", str(other), label="the, label")["rows"] == 90
    with pytest.raises(InputError, match=r"--label .*no list of names"):
        evaluate(tmp_path / "run", str(other), label='"the, label')


def test_rows_without_a_label_may_be_left_out_of_an_evaluation(
    setup: RunConfig, data: Path, tmp_path: Path
) -> None:
    fit(replace(setup, run=RunSettings(rung="majority")), tmp_path / "run", command="")
    first, *rest = [json.loads(line) for line in data.open()]
    holed = tmp_path / "holed.jsonl"
    rows = [first | {"label": None}, *rest]
    holed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"'label' is empty in row 1.*--drop-unlabelled"):
        evaluate(tmp_path / "run", str(holed))
    assert evaluate(tmp_path / "run", str(holed), drop_unlabelled=True)["rows"] == 89


def test_evaluate_wants_a_finished_run(setup: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        evaluate(tmp_path, setup.source)
    with pytest.raises(_Killed):
        fit(setup, tmp_path / "half", command="", notify=_killer(StepDone, 1))
    with pytest.raises(InputError, match="holds an unfinished run"):
        evaluate(tmp_path / "half", setup.source)


def test_unseen_rows_and_lookup_stand_beside_the_score(
    setup: RunConfig, tmp_path: Path, data: Path
) -> None:
    """`note` is short but the only long field is `text`; make half of the test texts known."""
    lines = [json.loads(line) for line in data.open()]
    test = [lines[row] | {"text": lines[row + 9]["text"]} if row % 2 else lines[row]
            for row in range(8)]  # fmt: skip
    train = lines[8:]
    (tmp_path / "data").mkdir()
    for name, rows in (("train", train), ("test", test)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "data" / f"{name}.jsonl").write_text(text)
    record = fit(replace(setup, source=str(tmp_path / "data")), tmp_path / "run", command="")
    unseen = record["metrics"]["test_unseen"]
    assert unseen is not None
    assert unseen["rows"] == 4
    assert record["baselines"]["lookup"]["column"] in ("text", "note")
    assert "unseen texts" in (tmp_path / "run" / "README.md").read_text()


def test_notes_reach_the_user(setup: RunConfig, tmp_path: Path) -> None:
    seen: list[Event] = []
    fit(setup, tmp_path / "run", command="", notify=seen.append)
    notes = [event.text for event in seen if isinstance(event, Note)]
    assert any("stratified by class, seed 0" in note for note in notes)
