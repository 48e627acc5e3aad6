"""Which rows `llabel evaluate` scores, and what it must not take for the run's own."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from labelled_tables import rows_of, write_csv, write_jsonl
from llabel.cli import main
from llabel.data import load_labelled
from llabel.errors import InputError
from llabel.events import Event, Note
from llabel.ladder import registry
from llabel.metrics import wilson_interval
from llabel.run import evaluate, fit
from llabel.settings import DataSettings, RunSettings
from runs import config
from test_target_runs import config as config_of_two
from two_targets import write_letters


def majority(data: str, out: Path, **settings: Any) -> Path:
    """A finished run of the rung that trains nothing."""
    told = config(Path(data), Path("no-model"), RunSettings(rung="majority"))
    columns = DataSettings(text=("text",), label="label", **settings)
    fit(replace(told, data=columns), out, command="")
    return out


def notes_of(run: Path, data: str, **options: Any) -> tuple[dict[str, Any], list[str]]:
    events: list[Event] = []
    found = evaluate(run, data, notify=events.append, **options)
    return found, [event.text for event in events if isinstance(event, Note)]


def test_a_split_column_says_which_rows_are_scored(tmp_path: Path) -> None:
    rows = [
        (text, label, ["train", "train", "valid", "test"][n // 2 % 4])
        for n, (text, label) in enumerate(rows_of(40))
    ]
    data = write_csv(tmp_path / "parts.csv", rows, "text,label,part")
    run = majority(data, tmp_path / "run", split_column="part")
    found, said = notes_of(run, data)
    assert found["rows"] == 10
    assert said == ["Scored are the 10 of 40 rows of which column 'part' says test."]
    assert found["data"]["notes"] == said
    assert notes_of(run, data, part="train")[0]["rows"] == 20
    with pytest.raises(InputError, match=r"--split tst: .* says 'train', 'validation', 'test'"):
        evaluate(run, data, part="tst")
    other = write_csv(tmp_path / "other.csv", rows_of(12))
    assert notes_of(run, other)[0]["rows"] == 12


def test_intervals_are_over_the_groups_that_the_run_was_told(tmp_path: Path) -> None:
    def table(name: str, start: int) -> str:
        rows = [(f"{t} {n}", y, f"u{t}") for t, y in rows_of(12, start=start) for n in range(9)]
        return write_csv(tmp_path / name, rows, "text,label,who")

    run = majority(table("rows.csv", 0), tmp_path / "run", group="who")
    new = table("new.csv", 50)
    found, said = notes_of(run, new)
    assert said == ["Intervals are over whole groups of rows, those that share their 'who'."]
    low, high = found["metrics"]["accuracy_ci95"]
    assert high - low > 2 * np.ptp(wilson_interval(54, 108))
    alone = write_csv(tmp_path / "alone.csv", rows_of(12))
    found, (note,) = notes_of(run, alone)
    assert found["metrics"]["accuracy_ci95"] == list(wilson_interval(6, 12))
    assert "has no column 'who', by which the run's rows were grouped" in note


def test_rows_that_were_trained_on_are_told(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "rows.csv", rows_of(40))
    run = majority(data, tmp_path / "run")
    assert "holds the rows that" in notes_of(run, data)[1][0]
    new = write_csv(tmp_path / "new.csv", rows_of(8))
    assert notes_of(run, new)[1] == []


def test_the_part_that_is_scored_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for number, part in enumerate(("train", "test")):
        write_csv(folder / f"{part}.csv", rows_of(20, start=20 * number))
    run = majority(str(folder), tmp_path / "run")
    assert notes_of(run, str(folder))[1] == ["Scored is the test part, 20 rows."]


def test_a_model_in_the_place_of_the_runs_own_is_refused(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "rows.csv", rows_of(40))
    run = majority(data, tmp_path / "run")
    other = majority(write_csv(tmp_path / "o.csv", rows_of(40, ("bad", "good"))), tmp_path / "o")
    for file in ("rung.json", "arrays.safetensors"):
        shutil.copy(other / file, run / file)
    with pytest.raises(InputError, match=r"another model .* answers 'bad', 'good'"):
        evaluate(run, data)


def test_a_mapped_label_that_looks_like_none_is_kept(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "rows.csv", [("a", "NA"), ("b", "y"), ("c", "")])
    mapped: Any = [{"label": "NA", "becomes": "y", "rows": 3}]
    split = load_labelled(
        data, ["text"], "label", ("x", "y"), mapped=mapped, drop_unlabelled=True
    )  # fmt: skip
    assert split.y.tolist() == [1, 1]


def test_labels_of_every_target_are_read_before_the_model(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_letters(tmp_path / "letters.jsonl", 60)
    fit(config_of_two(data, tiny_llama), tmp_path / "run", command="")
    rows = [{"text": "a", "note": "", "weather": "ice", "place": "hall"}]
    wrong = write_jsonl(tmp_path / "wrong.jsonl", rows)
    monkeypatch.setattr(registry, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(InputError, match="'hall'"):
        evaluate(tmp_path / "run", wrong)


@pytest.mark.parametrize(
    "command", ["evaluate {run} {data}", "check {data} --text text --label label"]
)
def test_findings_do_not_take_the_place_of_the_data(tmp_path: Path, command: str) -> None:
    data = write_csv(tmp_path / "rows.csv", rows_of(40))
    before = Path(data).read_bytes()
    run = majority(data, tmp_path / "run")
    words = command.format(run=run, data=data).split()
    result = CliRunner().invoke(main, [*words, "--json", data])
    assert result.exit_code == 2
    assert "would overwrite the data" in result.output
    assert Path(data).read_bytes() == before
