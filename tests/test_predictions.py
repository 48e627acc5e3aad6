import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from llabel import LLMClassifier
from llabel.errors import InputError
from llabel.events import Event, Note, RowsDone
from llabel.predictions import predict
from llabel.run import fit
from llabel.settings import DataSettings, RunSettings
from runs import config, write_weather


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    data = write_weather(folder / "weather.jsonl", 60)
    fit(config(data, tiny_llama, epochs=1), folder / "run", command="")
    return folder / "run"


def _read(path: Path) -> list[dict[str, str]]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.open()]
    return [dict(row) for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_every_row_gets_a_label_and_probabilities(run: Path, tmp_path: Path, suffix: str) -> None:
    data = write_weather(tmp_path / "new.jsonl", 20, seed=1)
    out = tmp_path / f"answers{suffix}"
    assert predict(run, str(data), out) == 20
    rows = _read(out)
    assert len(rows) == 20
    assert list(rows[0]) == ["id", "label", "probability_ice", "probability_sun"]
    for row in rows:
        ice, sun = float(row["probability_ice"]), float(row["probability_sun"])
        assert ice + sun == pytest.approx(1, abs=1e-9)
        assert row["label"] == ("ice" if ice >= sun else "sun")
    assert {path.name for path in tmp_path.iterdir()} == {"new.jsonl", out.name}


def test_labels_beyond_64_bits_are_texts_in_parquet(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}", "label": 10**20 if n % 3 else 7} for n in range(60)]
    data = tmp_path / "huge.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = replace(config(data, tmp_path), data=DataSettings(text=("text",), label="label"))
    fit(replace(told, run=RunSettings(rung="majority")), tmp_path / "run", command="")
    predict(tmp_path / "run", str(data), tmp_path / "a.parquet")
    assert {row["label"] for row in _read(tmp_path / "a.parquet")} == {str(10**20)}


def test_an_interrupted_prediction_goes_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llabel.predictions.WINDOW", 8)
    data = write_weather(tmp_path / "new.jsonl", 30, seed=2)
    predict(run, str(data), tmp_path / "whole.csv")

    def stop(event: Event) -> None:
        if isinstance(event, RowsDone):
            raise KeyboardInterrupt

    out = tmp_path / "answers.csv"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            predict(run, str(data), out, notify=stop)
    partial = tmp_path / "answers.csv.partial"
    with partial.open("ab") as file:
        file.write(b'{"id": "new:17", "la')  # cut off in the middle of a line
    seen: list[Event] = []
    assert predict(run, str(data), out, notify=seen.append) == 30
    assert sum(event.rows for event in seen if isinstance(event, RowsDone)) == 30 - 16
    assert any(isinstance(event, Note) and "16 rows" in event.text for event in seen)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not partial.exists()


def test_rows_of_another_job_do_not_count(run: Path, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, RowsDone):
            raise KeyboardInterrupt

    data = write_weather(tmp_path / "new.jsonl", 12, seed=3)
    out = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        predict(run, str(data), out, notify=stop)
    write_weather(data, 13, seed=4)
    assert predict(run, str(data), out) == 13
    assert len(_read(out)) == 13
    assert len((tmp_path / "answers.jsonl.partial.old").read_text().splitlines()) == 1 + 12


def test_labels_are_not_needed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("note,text,other\nday 1,cold snow,x\n,,y\n")
    predict(run, str(tmp_path / "new.csv"), tmp_path / "answers.jsonl")
    assert len(_read(tmp_path / "answers.jsonl")) == 2


@pytest.mark.parametrize(
    ("data", "out", "message"),
    [
        ("new.jsonl", "answers.txt", r"ending in \.csv, \.jsonl, \.parquet"),
        ("new.jsonl", "nowhere/answers.csv", "nowhere does not exist"),
        ("new.jsonl", "new.jsonl", "would overwrite the data"),
        ("new.jsonl", "{run}/predictions.jsonl", "would replace a file of the run"),
        ("lacking.csv", "answers.csv", "note"),
        ("missing.csv", "answers.csv", "missing.csv"),
    ],
)
def test_mistakes_are_named(run: Path, tmp_path: Path, data: str, out: str, message: str) -> None:
    write_weather(tmp_path / "new.jsonl", 3)
    (tmp_path / "lacking.csv").write_text("text\nsnow\n")
    with pytest.raises(InputError, match=message):
        predict(run, str(tmp_path / data), tmp_path / out.format(run=run))


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    data = write_weather(tmp_path / "new.jsonl", 3)
    with pytest.raises(InputError, match="holds no trained rung"):
        predict(tmp_path, str(data), tmp_path / "answers.csv")


def test_free_answers_may_be_unknown(run: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("note,text\nday 1,zzz qqq\n")
    predict(run, str(tmp_path / "new.csv"), tmp_path / "answers.jsonl", decode="free")
    (row,) = _read(tmp_path / "answers.jsonl")
    assert row["label"] in ("ice", "sun", "unknown")


def test_all_rows_are_checked_before_the_model_loads(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "new.csv").write_text("note,text\n" + "day,snow\n" * 2000 + "day\n")
    with pytest.raises(InputError, match="2001"):
        predict(tmp_path / "run", str(tmp_path / "new.csv"), tmp_path / "answers.csv")


def test_rows_that_an_open_quote_may_have_joined_are_told(tmp_path: Path) -> None:
    data = write_weather(tmp_path / "weather.jsonl", 30)
    told = replace(config(data, tmp_path), run=RunSettings(rung="majority"))
    fit(told, tmp_path / "run", command="")
    new = tmp_path / "new.tsv"
    new.write_text('note\ttext\n1\t"Wow\n2\tbad\n3\tok\n4\t"\n5\tfine\n')
    seen: list[Event] = []
    assert predict(tmp_path / "run", str(new), tmp_path / "a.csv", notify=seen.append) == 2
    notes = [event.text for event in seen if isinstance(event, Note)]
    assert any("lines 2 to 5 are one row: a quoted cell reaches over them" in n for n in notes)


def test_two_processes_do_not_write_one_file(run: Path, tmp_path: Path) -> None:
    data = write_weather(tmp_path / "new.jsonl", 3)
    out = tmp_path / "answers.csv"
    with FileLock(tmp_path / ".answers.csv.lock"), pytest.raises(InputError, match="another"):
        predict(run, str(data), out)


def test_a_classifier_saved_in_python_predicts_too(tiny_llama: Path, tmp_path: Path) -> None:
    texts, labels = ["snow", "sun"] * 10, ["ice", "sun"] * 10
    classifier = LLMClassifier(str(tiny_llama), r=2, epochs=1, device="cpu").fit(texts, labels)
    classifier.save(tmp_path / "saved")
    (tmp_path / "new.csv").write_text("text\nsnow\nsun\n")
    predict(tmp_path / "saved", str(tmp_path / "new.csv"), tmp_path / "answers.jsonl")
    expected = classifier.predict_proba(["snow", "sun"])
    found = [row["probability_ice"] for row in _read(tmp_path / "answers.jsonl")]
    assert found == pytest.approx(expected[:, 0].tolist(), abs=1e-6)
