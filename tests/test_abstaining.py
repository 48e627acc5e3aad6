"""Runs that are calibrated and leave unsure rows without an answer, and what is made of them."""

import csv
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from comparison_runs import cheap, lines_of
from llabel import LLMClassifier
from llabel.card import render_card
from llabel.compare.answers import read_answers
from llabel.confidence import read_confidence, scaled
from llabel.config import RunConfig
from llabel.errors import InputError
from llabel.events import Event, Note
from llabel.folder import finished_run
from llabel.metrics import score
from llabel.predictions import predict
from llabel.run import evaluate, fit, load
from llabel.settings import RunSettings
from runs import config, write_weather

BAG = RunSettings(rung="bag-of-words")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels 1 to 3, of which a fifth is wrong: nobody can be sure."""
    rng = random.Random(0)
    words = {1: "warm light summer", 2: "cold snow winter", 3: "rain wind autumn"}
    path = tmp_path_factory.mktemp("data") / "noisy.jsonl"
    with path.open("w") as file:
        for row in range(240):
            label = rng.choice(list(words))
            text = " ".join(rng.choices(words[label].split(), k=4))
            label = rng.choice(list(words)) if rng.random() < 0.2 else label
            file.write(json.dumps({"text": f"{text} {row}", "note": "x", "label": label}) + "\n")
    return path


def fitted(data: Path, out: Path, **run: Any) -> dict[str, Any]:
    return dict(fit(cheap(data, replace(BAG, **run)), out, command=""))


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "plain"
    return out, fitted(data, out)


@pytest.fixture(scope="module")
def unsure(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "unsure"
    return out, fitted(data, out, calibrate="temperature", abstain_below=0.6)


def proba_of(folder: Path, part: str) -> np.ndarray:
    return np.array([list(line["probabilities"].values()) for line in lines_of(folder, part)])


def test_nothing_changes_unless_asked(plain: tuple[Path, dict[str, Any]]) -> None:
    folder, record = plain
    assert record["calibration"] is record["abstention"] is record["free_answers"] is None
    assert not (folder / "confidence.json").exists()
    assert not any("most_probable" in line for line in lines_of(folder, "test"))


def test_every_probability_of_a_run_is_calibrated(
    plain: tuple[Path, dict[str, Any]], unsure: tuple[Path, dict[str, Any]]
) -> None:
    (before, _), (after, record) = plain, unsure
    temperature = record["calibration"]["temperature"]
    assert temperature != 1
    assert read_confidence(after).temperature == temperature
    for part in ("validation", "test"):
        assert proba_of(after, part) == pytest.approx(scaled(proba_of(before, part), temperature))
        judged = record["calibration"][part]["after"]
        assert judged.items() <= record["metrics"][part].items()
    change = record["calibration"]["validation"]
    assert change["after"]["log_loss"] < change["before"]["log_loss"]


def test_unsure_rows_get_no_answer_and_are_scored_all_the_same(
    plain: tuple[Path, dict[str, Any]], unsure: tuple[Path, dict[str, Any]]
) -> None:
    folder, record = unsure
    lines = lines_of(folder, "test")
    withheld = [line for line in lines if max(line["probabilities"].values()) < 0.6]
    assert 0 < len(withheld) < len(lines)
    for line in lines:
        best = max(line["probabilities"], key=line["probabilities"].__getitem__)
        said = str(line["most_probable"] if line in withheld else line["prediction"])
        assert said == best
        assert (line["prediction"] == "abstain") == (line in withheld)
    answered = [line for line in lines if line not in withheld]
    right = sum(line["prediction"] == line["label"] for line in answered)
    told = record["abstention"]
    assert told["test"]["answered"] == len(answered)
    assert told["test"]["accuracy"] == pytest.approx(right / len(answered))
    assert (told["rule"], told["threshold"]) == ("abstain_below", 0.6)
    assert record["metrics"]["test"]["accuracy"] == plain[1]["metrics"]["test"]["accuracy"]
    assert "`abstain` is answered where no label has probability 0.6000" in render_card(record)


def test_a_target_is_sought_on_validation(data: Path, tmp_path: Path) -> None:
    record = fitted(data, tmp_path / "run", target_precision=0.4)
    told = record["abstention"]
    assert told["attained"] is True
    assert read_confidence(tmp_path / "run").abstain_below == told["threshold"]
    proba = proba_of(tmp_path / "run", "validation")
    assert told["threshold"] in proba.max(axis=1)
    assert told["validation"]["answered"] == (proba.max(axis=1) >= told["threshold"]).sum()


def test_a_missed_target_is_said_whenever_the_run_is_used(data: Path, tmp_path: Path) -> None:
    record = fitted(data, tmp_path / "run", target_precision=0.999)
    assert record["abstention"]["attained"] is False
    assert "The target was missed" in render_card(record)  # type: ignore[arg-type]
    seen: list[Event] = []
    predict(tmp_path / "run", str(data), tmp_path / "new.csv", notify=seen.append)
    notes = [event.text for event in seen if isinstance(event, Note)]
    assert notes == ["On validation no threshold showed the precision 0.999 of the run."]


def test_evaluate_and_predict_do_as_the_run_does(
    data: Path, unsure: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, record = unsure
    lines = lines_of(folder, "test")
    rows = [line["text"] | {"label": line["label"]} for line in lines]
    new = tmp_path / "new.jsonl"
    new.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluate(folder, str(new))
    assert found["metrics"] == record["metrics"]["test"]
    assert found["answered"] == record["abstention"]["test"]
    assert evaluate(folder, str(new), abstain_below=0.01)["answered"]["coverage"] == 1.0
    for suffix in ("csv", "jsonl", "parquet"):
        predict(folder, str(new), tmp_path / f"answers.{suffix}")
    with (tmp_path / "answers.csv").open(newline="") as file:
        answers = [row["label"] for row in csv.DictReader(file)]
    assert answers == [str(line["prediction"]) for line in lines]
    labels = [json.loads(line)["label"] for line in (tmp_path / "answers.jsonl").open()]
    assert labels == [line["prediction"] for line in lines]
    table = pq.read_table(tmp_path / "answers.parquet").to_pydict()
    assert table["label"] == answers
    expected = proba_of(folder, "test")
    assert pytest.approx(expected) == np.array([table[f"probability_{n}"] for n in (1, 2, 3)]).T


def test_a_threshold_may_be_given_later(
    data: Path, plain: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = plain
    predict(folder, str(data), tmp_path / "all.jsonl")
    predict(folder, str(data), tmp_path / "sure.jsonl", abstain_below=0.6)
    every, sure = (
        [json.loads(line) for line in (tmp_path / name).open()]
        for name in ("all.jsonl", "sure.jsonl")
    )
    assert [row["label"] for row in sure] == [
        row["label"] if max(row[f"probability_{n}"] for n in (1, 2, 3)) >= 0.6 else "abstain"
        for row in every
    ]
    assert evaluate(folder, str(data))["answered"] is None


def test_a_rung_that_abstains_is_compared_on_all_rows(
    data: Path, plain: tuple[Path, dict[str, Any]], unsure: tuple[Path, dict[str, Any]]
) -> None:
    task = load(cheap(data)).task
    before, after = (read_answers([folder], task) for folder, _ in (plain, unsure))
    for part in ("validation", "test"):
        assert np.array_equal(before[part].answers, after[part].answers)


def test_a_run_from_before_there_was_a_setting_goes_on(
    data: Path, plain: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copytree(plain[0], tmp_path / "old")
    started = tmp_path / "old" / "started.json"
    values = json.loads(started.read_text())
    for name in ("calibrate", "decode", "untested"):
        del values["config"][name]
    started.write_text(json.dumps(values))
    fingerprint = plain[1]["data"]["fingerprint"]
    assert finished_run(tmp_path / "old", cheap(data, BAG), fingerprint)
    asked = cheap(data, replace(BAG, untested=True))
    with pytest.raises(InputError, match="--untested was False, is True"):
        finished_run(tmp_path / "old", asked, fingerprint)


def test_free_answers_are_set_apart(tiny_llama: Path, tmp_path: Path) -> None:
    few = write_weather(tmp_path / "few.jsonl", 30)
    told = config(few, tiny_llama, RunSettings(decode="free"), epochs=1, lora_alpha=0)
    record = fit(told, tmp_path / "run", command="")
    free, lines = record["free_answers"], lines_of(tmp_path / "run", "test")
    assert free
    assert free["unknown"] == sum(line["prediction"] == "unknown" for line in lines)
    y = np.array([("ice", "sun").index(line["label"]) for line in lines])
    assert free["constrained"] == score(y, proba_of(tmp_path / "run", "test"))
    assert free["accuracy"] == record["metrics"]["test"]["accuracy"]
    found = evaluate(tmp_path / "run", str(few))
    assert found["free_answers"]["rows"] == 30


def test_a_classifier_loads_the_temperature_too(
    tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    run = RunSettings(calibrate="temperature", abstain_below=0.5)
    fit(config(data, tiny_llama, run, epochs=1), tmp_path / "run", command="")
    classifier = LLMClassifier.load(tmp_path / "run")
    lines = lines_of(tmp_path / "run", "test")
    texts = pd.DataFrame([line["text"] for line in lines])
    expected = proba_of(tmp_path / "run", "test")
    assert classifier.confidences_[""].temperature != 1
    assert classifier.predict_proba(texts) == pytest.approx(expected, abs=1e-6)
    assert set(classifier.predict(texts)) <= {1, 2, 3}
    classifier.save(tmp_path / "saved")
    assert read_confidence(tmp_path / "saved") == classifier.confidences_[""]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            {"abstain_below": 0.5, "target_precision": 0.9},
            "--abstain-below and --target-precision both say when .* Choose one",
        ),
        (
            {"abstain_below": 0.5, "decode": "free"},
            "--abstain-below and --decode free exclude each other",
        ),
        (
            {"target_precision": 0.5, "decode": "free"},
            "--target-precision and --decode free exclude each other",
        ),
    ],
)
def test_settings_that_exclude_each_other(run: dict[str, Any], message: str) -> None:
    values = {"data": "x.csv", "text": "a", "label": "b", **run}
    with pytest.raises(InputError, match=message):
        RunConfig.from_flat(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"abstain_below": 1.0}, "--abstain-below 1.0: it should be less than 1"),
        ({"abstain_below": 0}, "--abstain-below 0: it should be greater than 0"),
        ({"target_precision": 95}, "--target-precision 95: it should be less than 1"),
        ({"calibrate": "platt"}, "--calibrate 'platt': it should be 'temperature'"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RunConfig.from_flat({"data": "x.csv", "text": "a", "label": "b", **values})


def test_a_label_must_not_be_called_abstain(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_text("text,note,label\n" + "aye,x,abstain\nno,x,against\n" * 20)
    for run, name in (({"abstain_below": 0.5}, "below"), ({"target_precision": 0.5}, "precision")):
        with pytest.raises(InputError, match=rf"{name}: one of the labels is 'abstain'.*--map-l"):
            fitted(path, tmp_path / "run", **run)
    assert not (tmp_path / "run").exists()
    fitted(path, tmp_path / "run")
    with pytest.raises(InputError, match="--abstain-below: one of the labels is 'abstain'"):
        predict(tmp_path / "run", str(path), tmp_path / "x.csv", abstain_below=0.5)


def test_free_answers_are_not_withheld(
    data: Path, unsure: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="--abstain-below and --decode free exclude each other"):
        predict(unsure[0], str(data), tmp_path / "x.csv", decode="free", abstain_below=0.5)
    with pytest.raises(InputError, match="--abstain-below 2: above 0 and below 1 is needed"):
        predict(unsure[0], str(data), tmp_path / "x.csv", abstain_below=2)
