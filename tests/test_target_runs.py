"""Runs of one model for several targets: folder, predictions, evaluation, commands."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from llabel.cli import main
from llabel.config import RunConfig
from llabel.errors import InputError
from llabel.merge import merge
from llabel.predictions import predict
from llabel.record import target_records
from llabel.run import evaluate, fit
from llabel.settings import DataSettings, LLMSettings, RunSettings
from two_targets import write_letters

PLACES = ["hill", "sea", "town"]


def config(data: Path, model: Path, **changes: Any) -> RunConfig:
    llm = LLMSettings(model=str(model), epochs=1, learning_rate=1e-2, r=4, device="cpu")
    settings = {"text": ("text", "note"), "label": "weather,place"}
    own = {name: changes.pop(name) for name in list(changes) if name in DataSettings.__slots__}
    return RunConfig(str(data), DataSettings(**(settings | own)), RunSettings(**changes), llm)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_letters(tmp_path_factory.mktemp("data") / "letters.jsonl", 60)


@pytest.fixture(scope="module")
def finished(data: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "both"
    fit(config(data, tiny_llama, abstain_below=0.4), out, command="llabel fit letters.jsonl")
    return out


def test_the_record_has_labels_metrics_and_report_of_each_target(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    assert "metrics" not in record
    assert record["data"]["classes"][0] == {"target": "weather", "label": "ice"}
    assert list(record["targets"]) == ["weather", "place"]
    place = record["targets"]["place"]
    assert place["data"]["classes"] == PLACES
    assert place["metrics"]["test"]["rows"] == record["data"]["rows"]["test"] == 12
    assert [row["name"] for row in place["report"]][:3] == PLACES
    assert place["baselines"]["majority"]["accuracy"] == pytest.approx(1 / 3)
    assert place["abstention"]["threshold"] == 0.4
    assert record["cost"]["disk_mb"] > 0.1
    own = target_records(record)["place"]
    assert own["metrics"] == place["metrics"]
    assert own["training"] == record["training"]


def test_predictions_have_label_and_probabilities_of_each_target(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "predictions.jsonl").open()]
    assert [line["part"] for line in lines] == ["validation"] * 6 + ["test"] * 12
    record = json.loads((finished / "run.json").read_text())
    for name, classes in (("weather", ["ice", "sun"]), ("place", PLACES)):
        told = [line["targets"][name] for line in lines if line["part"] == "test"]
        assert all(list(one["probabilities"]) == classes for one in told)
        right = [one.get("most_probable", one["prediction"]) == one["label"] for one in told]
        assert np.mean(right) == record["targets"][name]["metrics"]["test"]["accuracy"]
    assert lines[0]["text"].keys() == {"text", "note"}


def test_the_card_tells_each_target(finished: Path) -> None:
    card = (finished / "README.md").read_text()
    assert "Answers weather, one of 2 labels (ice, sun), and place, one of 3 labels" in card
    assert card.index("## Results: weather") < card.index("## Results: place")


def test_each_targets_threshold_goes_with_the_run(finished: Path) -> None:
    found = [path.relative_to(finished).as_posix() for path in finished.rglob("confidence.json")]
    assert sorted(found) == ["targets/place/confidence.json", "targets/weather/confidence.json"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_predict_writes_columns_of_each_target(
    finished: Path, data: Path, tmp_path: Path, ending: str
) -> None:
    out = tmp_path / f"answers.{ending}"
    assert predict(finished, str(data), out, abstain_below=0.01) == 60
    if ending == "csv":
        rows = list(csv.DictReader(out.open()))
    elif ending == "jsonl":
        rows = [json.loads(line) for line in out.open()]
    else:
        import pyarrow.parquet as pq

        rows = pq.read_table(out).to_pylist()
    assert list(rows[0]) == [
        *("id", "weather", "weather_probability_ice", "weather_probability_sun", "place"),
        *(f"place_probability_{label}" for label in PLACES),
    ]
    for row in rows:
        proba = [float(row[f"place_probability_{label}"]) for label in PLACES]
        assert sum(proba) == pytest.approx(1)
        assert row["place"] == PLACES[int(np.argmax(proba))]


def test_evaluation_gives_the_scores_of_the_run_again(finished: Path, data: Path) -> None:
    lines = [json.loads(line) for line in (finished / "predictions.jsonl").open()]
    rows = [json.loads(line) for line in data.open()]
    test = finished.parent / "test.jsonl"
    names = [int(line["id"].partition(":")[2]) - 1 for line in lines if line["part"] == "test"]
    told = [rows[n] | {"where": rows[n]["place"]} for n in names]
    test.write_text("".join(json.dumps(row) + "\n" for row in told))
    record = json.loads((finished / "run.json").read_text())
    for label in (None, "weather,where"):
        found = evaluate(finished, str(test), label=label)
        for name, own in found["targets"].items():
            scores = record["targets"][name]["metrics"]["test"]
            assert own["metrics"]["accuracy"] == scores["accuracy"]
            assert own["metrics"]["log_loss"] == pytest.approx(scores["log_loss"])
            assert own["answered"]["rows"] == 12
    with pytest.raises(InputError, match="the run answers 2 targets, weather, place"):
        evaluate(finished, str(test), label="where")


def test_the_same_call_answers_at_once_and_another_is_refused(
    finished: Path, data: Path, tiny_llama: Path
) -> None:
    same = config(data, tiny_llama, abstain_below=0.4)
    again = fit(same, finished, command="again")
    assert again["command"] == "llabel fit letters.jsonl"
    with pytest.raises(InputError, match="--target was None, is 'place'"):
        fit(replace(same, data=replace(same.data, target="place")), finished, command="other")


def test_one_target_alone_has_the_rows_of_all(
    finished: Path, data: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    for rung in ("llm-lora", "bag-of-words"):
        alone = config(data, tiny_llama, target="place", rung=rung)
        record = fit(alone, tmp_path / rung, command="alone")
        joint = json.loads((finished / "run.json").read_text())
        own = joint["targets"]["place"]["data"]
        assert record["data"]["fingerprint"] == own["fingerprint"]
        assert record["data"]["classes"] == PLACES
    assert evaluate(tmp_path / "bag-of-words", str(data))["rows"] == 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rung": "bag-of-words"}, "learns one target at a time. Add --target weather"),
        ({"target": "colour"}, "--target colour is none of the label columns. Choose one of"),
        ({"label": "weather,"}, "column ''"),
    ],
)
def test_what_cannot_be_is_refused(
    data: Path, tiny_llama: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fit(config(data, tiny_llama, **changes), tmp_path / "out", command="")
    assert not (tmp_path / "out").exists()


def test_the_commands_tell_each_target(finished: Path, data: Path, tiny_llama: Path) -> None:
    words = ["fit", str(data), "--text", "text,note", "--label", "weather, place", "--epochs", "1"]
    words += ["--model", str(tiny_llama), "--device", "cpu", "--out", str(finished.parent / "cli")]
    said = CliRunner().invoke(main, words)
    assert said.exit_code == 0, said.output
    told = " ".join(said.output.split())  # a title wraps where the data's path is long
    assert "llm-lora on" in told
    assert ": weather" in told
    assert ": place" in told
    said = CliRunner().invoke(main, ["evaluate", str(finished), str(data)])
    assert said.exit_code == 0, said.output
    assert said.output.count("By class") == 2


def test_check_and_prompt_show_each_target(data: Path, tiny_llama: Path, tmp_path: Path) -> None:
    words = [str(data), "--text", "text,note", "--label", "weather,place"]
    words += ["--model", str(tiny_llama)]
    said = CliRunner().invoke(main, ["check", *words, "--json", str(tmp_path / "found.json")])
    assert said.exit_code == 0, said.output
    assert "target weather" in said.output
    assert list(json.loads((tmp_path / "found.json").read_text())) == ["weather", "place"]
    said = CliRunner().invoke(main, ["prompt", *words, "--row", "3"])
    assert said.exit_code == 0, said.output
    assert "letters:3, label weather sun, place hill" in said.output
    assert "### Weather: sun" in said.output
    assert "\n Place: hill" in said.output


def test_names_of_targets_are_no_markup(tiny_llama: Path, tmp_path: Path) -> None:
    rows = [
        {"text": f"row {n}", "a[/b]": "xy"[n % 2], "c\x1b[31m": "uv"[n // 2 % 2]} for n in range(60)
    ]
    data = tmp_path / "named.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["check", str(data), "--text", "text", "--label", "a[/b],c\x1b[31m"]
    said = CliRunner().invoke(main, [*words, "--model", str(tiny_llama)])
    assert said.exit_code == 0, said.output
    assert "target a[/b]" in said.output
    assert "target c\\x1b[31m" in said.output


def test_a_sweep_is_of_one_target(data: Path, tiny_llama: Path, tmp_path: Path) -> None:
    words = ["sweep", str(data), "--text", "text", "--label", "weather,place", "--r", "1,2"]
    words += ["--model", str(tiny_llama), "--out", str(tmp_path / "o")]
    said = CliRunner().invoke(main, words)
    assert said.exit_code == 2, said.output
    assert "a sweep judges its cells by one target. Add --target weather" in str(
        " ".join(said.output.split())
    )


def test_a_merged_model_answers_every_target_as_the_run_does(
    finished: Path, tmp_path: Path
) -> None:
    found = merge(finished, tmp_path / "model", dtype="float32", max_flips=0)
    assert found.within(0)
    assert found.rows == 6
    assert found.max_move < 1e-3
    card = (tmp_path / "model" / "README.md").read_text()
    assert "- place, sea: `sea`" in card
    assert "\n Weather:\n Place:\n" in card
