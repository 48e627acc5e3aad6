"""Runs that a comparison takes over from elsewhere."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from comparison_runs import cheap, climb, lines_of, named, record_of, stamps
from llabel import run
from llabel.config import RunConfig
from llabel.errors import InputError
from llabel.settings import RunSettings
from runs import config, write_weather

pytestmark = pytest.mark.usefixtures("runs_here")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weather(tmp_path_factory.mktemp("data") / "weather.jsonl", 90)


@pytest.fixture(scope="module")
def setup(data: Path) -> RunConfig:
    return cheap(data)


@pytest.fixture(scope="module")
def source(setup: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of bag of words."""
    out = tmp_path_factory.mktemp("runs") / "words"
    run.fit(replace(setup, run=RunSettings(rung="bag-of-words")), out, command="")
    return out


def test_a_finished_run_is_taken_over_without_its_texts(
    setup: RunConfig, source: Path, tmp_path: Path
) -> None:
    record = json.loads((source / "run.json").read_text())
    quiet = replace(setup, run=RunSettings(no_texts=True))
    out, rungs = tmp_path / "ladder", ("majority", "bag-of-words")
    again = climb(quiet, out, rungs=rungs, reuse=(str(source),))
    row, copy = named(again, "bag-of-words"), out / "rungs" / "bag-of-words"
    assert row["metrics"]
    assert row["metrics"]["test"]["accuracy"] == record["metrics"]["test"]["accuracy"]
    assert (copy / "run.json").read_bytes() == (source / "run.json").read_bytes()
    assert all("text" in line for line in lines_of(source, "test"))
    assert not any("text" in line for line in lines_of(copy, "test"))
    before = stamps(out)
    climb(quiet, out, rungs=rungs, reuse=(str(source),))
    assert stamps(out) == before
    with pytest.raises(InputError, match=r"taken from .* by --reuse, which this command does not"):
        climb(quiet, out, rungs=rungs)
    assert climb(quiet, out, rungs=rungs, overwrite=True)["verdict"] == again["verdict"]
    assert "--no-texts" in record_of(out, "bag-of-words")["command"], "its own run by now"


def test_what_cannot_be_taken_over_is_told(
    setup: RunConfig, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    out, asked = tmp_path / "out", (str(source),)
    with pytest.raises(InputError, match=f"{tmp_path}/none holds no run"):
        climb(setup, out, reuse=("~/none",))
    other = cheap(write_weather(tmp_path / "other.jsonl", 90, seed=1))
    with pytest.raises(InputError, match="was trained or tested on other rows than these"):
        climb(other, out, reuse=asked)
    with pytest.raises(InputError, match="a run of bag-of-words, which is not among --rungs"):
        climb(setup, out, rungs=("majority",), reuse=asked)
    with pytest.raises(InputError, match="holds no run"):
        climb(setup, out, reuse=(str(tmp_path),))
    unread = replace(setup, run=RunSettings(rung="majority", untested=True))
    run.fit(unread, tmp_path / "unread", command="")
    with pytest.raises(InputError, match=r"was not tested \(--untested\)"):
        climb(setup, out, reuse=(str(tmp_path / "unread"),))
    shutil.copytree(source, tmp_path / "twin")
    with pytest.raises(InputError, match=r"would both be the same row, bag-of-words\. Give --see"):
        climb(setup, out, reuse=(*asked, str(tmp_path / "twin")))
    (out / "rungs" / "bag-of-words").mkdir(parents=True)
    with pytest.raises(InputError, match=r"is there already\. Throw it away with --overwrite"):
        climb(setup, out, reuse=asked)


def test_examples_of_a_run_taken_over_are_removed_too(
    data: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "source", tmp_path / "ladder"
    told = config(data, tiny_llama, RunSettings(rung="llm-few-shot"))
    run.fit(told, source, command="")
    texts = [json.loads(line)["text"] for line in data.read_text().splitlines()]
    assert any(text in (source / "rung.json").read_text() for text in texts)
    quiet = replace(told, run=RunSettings(no_texts=True))
    climb(quiet, out, rungs=("llm-few-shot",), reuse=(str(source),))
    copy = (out / "rungs" / "llm-few-shot" / "rung.json").read_text()
    assert not any(text in copy for text in texts)


def test_a_run_in_the_comparison_itself_is_kept(
    setup: RunConfig, source: Path, tmp_path: Path
) -> None:
    out, rungs = tmp_path / "ladder", ("majority", "bag-of-words")
    climb(setup, out, rungs=rungs)
    kept = out / "rungs" / "bag-of-words"
    before = (kept / "run.json").read_bytes()
    other = replace(setup, llm=replace(setup.llm, trials=2))
    again = climb(other, out, rungs=rungs, reuse=(str(kept),), overwrite=True)
    assert named(again, "bag-of-words")["status"] == "done"
    assert (kept / "run.json").read_bytes() == before
    shutil.copytree(source, tmp_path / "words")
    (tmp_path / "words" / "predictions.jsonl").unlink()
    with pytest.raises(InputError, match=r"words: its predictions.jsonl cannot be used"):
        climb(other, out, rungs=rungs, reuse=(str(tmp_path / "words"),), overwrite=True)
    assert (kept / "run.json").read_bytes() == before, "nothing goes before the copy is whole"


def test_rows_of_a_file_of_another_name_are_the_same(
    setup: RunConfig, data: Path, source: Path, tmp_path: Path
) -> None:
    shutil.copy(data, tmp_path / "climate.jsonl")
    elsewhere = cheap(tmp_path / "climate.jsonl")
    out, rungs = tmp_path / "ladder", ("majority", "bag-of-words")
    record = climb(elsewhere, out, rungs=rungs, reuse=(str(source),))
    copy = out / "rungs" / "bag-of-words"
    assert named(record, "bag-of-words")["metrics"]
    ids = [line["id"] for line in lines_of(out / "rungs" / "majority", "test")]
    assert [line["id"] for line in lines_of(copy, "test")] == ids
