"""What a run writes of itself, and that the test part decides none of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from comparison_runs import CHEAP, cheap, climb, lines_of, named
from llabel import run
from llabel.settings import DataSettings, RunSettings
from runs import config, write_weather

LLMS = ("llm-zero-shot", "llm-zero-shot-calibrated", "llm-few-shot", "llm-lora")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weather(tmp_path_factory.mktemp("data") / "weather.jsonl", 90)


def locked_data(folder: Path, rows: list[dict[str, str]]) -> Path:
    """A folder with the first 60 rows to train on, 10 to choose by and the rest to test on."""
    folder.mkdir()
    cut = [60, 70, len(rows)]
    for name, start, end in zip(("train", "validation", "test"), [0, *cut], cut, strict=False):
        lines = (json.dumps(row) + "\n" for row in rows[start:end])
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def locked(data: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """The same rows, with other labels in the test part, and with other texts and labels there."""
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    turned = {"sun": "ice", "ice": "sun"}
    other = [row | {"label": turned[row["label"]]} for row in rows[70:]]
    poisoned = [row | {"text": f"poison {n}", "note": "bad"} for n, row in enumerate(other)]
    return (
        locked_data(tmp_path / "a", rows),
        locked_data(tmp_path / "b", rows[:70] + other),
        locked_data(tmp_path / "c", rows[:70] + poisoned),
    )


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Most training rows are sun; of training and validation rows together, most are ice."""
    (tmp_path / "uneven").mkdir()
    for part, labels in (
        ("train", ["sun"] * 6 + ["ice"] * 5),
        ("validation", ["ice"] * 4),
        ("test", ["sun"] * 3 + ["ice"] * 2),
    ):
        rows = [
            {
                "text": f"{part} {n}",
                "note": f"new {n}" if part == "test" and n in (2, 3) else f"known {label}",
                "label": label,
            }
            for n, label in enumerate(labels)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "uneven" / f"{part}.jsonl").write_text(lines)
    return tmp_path / "uneven"


@pytest.mark.parametrize(("refit", "accuracy"), [(False, 0.6), (True, 0.4)])
def test_the_majority_class_is_that_of_the_rows_that_rungs_learn_from(
    uneven: Path, tmp_path: Path, refit: bool, accuracy: float
) -> None:
    told = cheap(uneven, RunSettings(rung="majority"), refit=refit)
    record = run.fit(told, tmp_path / "run", command="")
    assert record["metrics"]["test"]["accuracy"] == accuracy
    assert record["baselines"]["majority"]["accuracy"] == accuracy
    assert (
        record["baselines"]["lookup"]["accuracy"] == 0.8
    )  # of two new rows the one of the majority


@pytest.mark.usefixtures("runs_here")
def test_the_rung_majority_gains_nothing_over_the_majority_class(
    uneven: Path, tmp_path: Path
) -> None:
    record = climb(cheap(uneven), tmp_path / "out", rungs=("majority",))
    scores, reference = named(record, "majority")["metrics"], record["baselines"]["majority"]
    assert scores
    assert scores["test_unseen"]
    assert reference["accuracy"] == scores["test"]["accuracy"] == 0.6
    assert reference["accuracy_unseen"] == scores["test_unseen"]["accuracy"]


@pytest.mark.parametrize("rung", [*CHEAP, *LLMS])
def test_test_rows_decide_nothing_about_a_rung(
    rung: str, locked: tuple[Path, ...], tiny_llama: Path, tmp_path: Path
) -> None:
    fitted = []
    for number, folder in enumerate(locked):
        told = config(folder, tiny_llama, RunSettings(rung=rung), epochs=1, trials=2)  # type: ignore[arg-type]
        out = tmp_path / f"run {number}"
        values = run.fit(told, out, command="")
        proba = {
            part: [line["probabilities"] for line in lines_of(out, part)]
            for part in ("validation", "test")
        }
        trials = [
            {name: trial[name] for name in ("settings", "validation_loss", "chosen")}
            for trial in values["training"]["trials"]
        ]
        fitted.append((proba, trials, values["training"]["settings"]))
    (proba, *chosen), (relabelled, *chosen_b), (poisoned, *chosen_c) = fitted
    assert chosen == chosen_b == chosen_c
    assert proba == relabelled
    assert proba["validation"] == poisoned["validation"]


def test_the_sample_of_training_rows_has_a_row_of_each_class(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    rows = ({"text": f"of {n % 310}", "label": f"class {n % 310}"} for n in range(1550))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = cheap(path, RunSettings(rung="majority"))
    told = replace(told, data=DataSettings(text=("text",), label="label"))
    assert run.fit(told, tmp_path / "run", command="")["metrics"]["train"]["rows"] == 310


@pytest.mark.usefixtures("runs_here")
def test_test_rows_have_no_say_in_the_best(locked: tuple[Path, ...], tmp_path: Path) -> None:
    rungs = ("majority", "bag-of-words")
    plain, _, poisoned = locked
    before = climb(cheap(plain), tmp_path / "plain", rungs=rungs)
    after = climb(cheap(poisoned), tmp_path / "poisoned", rungs=rungs)
    assert before["verdict"]["best"] == after["verdict"]["best"] == "bag-of-words"
    scores, others = (named(record, "bag-of-words")["metrics"] for record in (before, after))
    assert scores
    assert others
    assert scores["validation"] == others["validation"]
    assert scores["test"]["accuracy"] > 0.9 > others["test"]["accuracy"]


def test_an_untested_run_says_nothing_of_the_test_part(data: Path, tmp_path: Path) -> None:
    told = cheap(data, RunSettings(rung="lookup", untested=True))
    record = run.fit(told, tmp_path / "run", command="")
    assert record["metrics"]["test"] is record["metrics"]["test_unseen"] is None
    assert record["report"] == []
    assert record["baselines"] == {}
    assert not lines_of(tmp_path / "run", "test")
    assert record["cost"]["predict_rows_per_second"] > 0


@pytest.mark.parametrize("no_texts", [False, True])
def test_examples_of_a_prompt_are_texts_of_rows(
    data: Path, tiny_llama: Path, tmp_path: Path, no_texts: bool
) -> None:
    told = config(data, tiny_llama, RunSettings(rung="llm-few-shot", no_texts=no_texts))
    run.fit(told, tmp_path / "run", command="")
    texts = [json.loads(line)["text"] for line in data.read_text().splitlines()]
    for name in ("rung.json", "predictions.jsonl"):
        content = (tmp_path / "run" / name).read_text()
        assert any(text in content for text in texts) is not no_texts
