"""Comparisons of several targets: one each, the tuned LLM trained once for all of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llabel.cli import main
from llabel.compare.compare import compare_each
from llabel.config import RunConfig
from llabel.errors import InputError
from llabel.events import Event, StageStarted
from llabel.predictions import predict
from llabel.settings import CompareSettings
from test_target_runs import config
from two_targets import write_letters

RUNGS = ("majority", "bag-of-words", "llm-lora")
pytestmark = pytest.mark.usefixtures("runs_here")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_letters(tmp_path_factory.mktemp("data") / "letters.jsonl", 60)


@pytest.fixture(scope="module")
def setup(data: Path, tiny_llama: Path) -> RunConfig:
    return config(data, tiny_llama)


@pytest.fixture(scope="module")
def compared(
    runs_here: None, setup: RunConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Event], dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "both"
    events: list[Event] = []
    asked = CompareSettings(rungs=RUNGS)
    found = compare_each(setup, asked, out, command="llabel compare", notify=events.append)
    return out, events, found


def test_each_target_has_a_comparison_and_the_llm_is_trained_once(compared: Any) -> None:
    out, events, found = compared
    assert list(found) == ["weather", "place"]
    assert {path.name for path in out.iterdir()} == {"weather", "place", "rungs"}
    assert [path.name for path in (out / "rungs").iterdir()] == ["llm-lora"]
    trained = [e for e in events if isinstance(e, StageStarted) and e.name == "training"]
    assert len(trained) == 1
    joint = json.loads((out / "rungs" / "llm-lora" / "run.json").read_text())
    for name, (folder, record) in found.items():
        assert folder == out / name
        assert json.loads((folder / "compare.json").read_text()) == json.loads(json.dumps(record))
        assert (folder / "report.html").is_file()
        assert name in record["title"]
        assert [rung["status"] for rung in record["rungs"]] == ["done"] * 3
        llm = record["rungs"][2]
        scores = joint["targets"][name]["metrics"]["test"]
        assert llm["metrics"]["test"]["accuracy"] == scores["accuracy"]
        assert llm["losses"]["train"] if "train" in llm["losses"] else llm["losses"]
        assert record["data"]["classes"] == joint["targets"][name]["data"]["classes"]
    rows = {record["data"]["fingerprint"] for _, record in found.values()}
    assert len(rows) == 2  # of other labels, on the same rows:
    ids = [
        [json.loads(line)["id"] for line in (out / n / "rungs/majority/predictions.jsonl").open()]
        for n in found
    ]
    assert ids[0] == ids[1]


def test_the_model_of_all_predicts_and_a_share_of_it_says_where_it_is(
    compared: Any, data: Path, tmp_path: Path
) -> None:
    out, _, _ = compared
    assert predict(out / "rungs" / "llm-lora", str(data), tmp_path / "a.csv") == 60
    with pytest.raises(InputError, match="holds the answers to one of several targets"):
        predict(out / "place" / "rungs" / "llm-lora", str(data), tmp_path / "b.csv")


def test_the_same_command_has_nothing_left_to_do(compared: Any, setup: RunConfig) -> None:
    out, _, found = compared
    events: list[Event] = []
    asked = CompareSettings(rungs=RUNGS)
    again = compare_each(setup, asked, out, command="llabel compare", notify=events.append)
    assert again == found
    assert not [event for event in events if isinstance(event, StageStarted)]


def test_other_settings_are_refused_unless_they_overwrite(compared: Any, setup: RunConfig) -> None:
    out, _, _ = compared
    other = replace(setup, llm=replace(setup.llm, r=2))
    asked = CompareSettings(rungs=("llm-lora",))
    with pytest.raises(InputError, match="--r was 4, is 2"):
        compare_each(other, asked, out, command="again")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"reuse": ("runs/x",)}, "--reuse: a comparison of several targets"),
        ({}, "--out .* holds notes.txt, which is not of a comparison of weather and place"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    setup: RunConfig, tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=message):
        compare_each(setup, CompareSettings(rungs=RUNGS, **asked), tmp_path, command="")


def test_a_training_that_fails_is_not_tried_for_each_target(
    setup: RunConfig, tmp_path: Path
) -> None:
    wrong = replace(setup, llm=replace(setup.llm, learning_rate=1e30))
    events: list[Event] = []
    asked = CompareSettings(rungs=("majority", "llm-lora"))
    found = compare_each(wrong, asked, tmp_path / "o", command="", notify=events.append)
    for _, record in found.values():
        assert [rung["status"] for rung in record["rungs"]] == ["done", "failed"]
    trained = [e for e in events if isinstance(e, StageStarted) and e.name == "training"]
    assert len(trained) == 1


def test_draws_train_one_model_for_all_targets_each(setup: RunConfig, tmp_path: Path) -> None:
    asked = CompareSettings(rungs=("majority", "llm-lora"), draws=2)
    found = compare_each(setup, asked, tmp_path / "o", command="llabel compare")
    runs = sorted(p.parent.relative_to(tmp_path / "o") for p in tmp_path.rglob("adapter"))
    assert list(map(Path.as_posix, runs)) == ["draws/1/rungs/llm-lora", "draws/2/rungs/llm-lora"]
    for _, record in found.values():
        assert len(record["draws"]) == 2


def test_the_command_prints_a_table_for_each_target(
    data: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    words = ["compare", str(data), "--text", "text,note", "--label", "weather,place"]
    words += ["--rungs", "majority,bag-of-words", "--out", str(tmp_path / "o")]
    said = CliRunner().invoke(main, words)
    assert said.exit_code == 0, said.output
    assert "letters, weather: learned from 42 training rows" in said.output
    assert "letters, place: learned from 42 training rows" in said.output
