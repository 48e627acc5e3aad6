import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llabel.compare.processes import RunFailedError, fit_apart
from llabel.config import RunConfig
from llabel.events import (
    EpochDone,
    Event,
    Fetching,
    Note,
    RowsDone,
    RungFailed,
    StageStarted,
    StepDone,
)
from llabel.settings import DataSettings, LLMSettings, RunSettings
from llabel.worker import decode, encode
from runs import write_weather

EVENTS = st.one_of(
    *(
        st.builds(kind)
        for kind in (EpochDone, Fetching, Note, RowsDone, RungFailed, StageStarted, StepDone)
    )
)


@given(EVENTS)
def test_events_cross_a_pipe_unchanged(event: Event) -> None:
    line = encode(event)
    assert "\n" not in line
    assert repr(decode(line)) == repr(event)  # NaN equals nothing, but shows as itself


@pytest.mark.parametrize("line", ['{"event": "Bomb"}', "[]", "no JSON", '{"text": "x"}'])
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises((ValueError, AttributeError)):
        decode(line)


def bag_of_words(data: Path, **llm: object) -> RunConfig:
    return RunConfig(
        str(data),
        DataSettings(text=("text",), label="label"),
        RunSettings(rung="bag-of-words"),
        LLMSettings(**llm),  # type: ignore[arg-type]
    )


def test_a_run_in_a_process_of_its_own_tells_its_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_weather(tmp_path / "weather.jsonl", 60)
    (tmp_path / "random.py").write_text("raise ImportError('a module of the user')")
    monkeypatch.chdir(tmp_path)  # it looks for no modules where the user is
    seen: list[Event] = []
    out = tmp_path / "runs" / "bow"
    fit_apart(bag_of_words(data), out, command="by hand", overwrite=False, notify=seen.append)
    assert json.loads((out / "run.json").read_text())["command"] == "by hand"
    assert any(isinstance(event, StageStarted) for event in seen)
    assert [path.name for path in out.parent.iterdir()] == ["bow"], "no log, no lock"


def test_a_user_s_mistake_is_told_without_a_log(tmp_path: Path) -> None:
    config = bag_of_words(tmp_path / "missing.csv")
    with pytest.raises(RunFailedError, match=r"missing\.csv") as error:
        fit_apart(config, tmp_path / "out", command="", overwrite=False, notify=print)
    assert ".log" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_listener_that_raises_takes_the_process_along(tmp_path: Path) -> None:
    data = write_weather(tmp_path / "weather.jsonl", 60)

    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_apart(bag_of_words(data), tmp_path / "o", command="", overwrite=False, notify=stop)
    table = subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True, check=True)
    mine = [line for line in table.stdout.splitlines() if line.split()[0] == str(os.getpid())]
    assert not [line for line in mine if "llabel.worker" in line]
    assert not list(tmp_path.rglob("*.log"))


def test_a_worker_without_listener_ends(tmp_path: Path) -> None:
    data = write_weather(tmp_path / "weather.jsonl", 60)
    job = {"config": bag_of_words(data).flat(), "out": str(tmp_path / "o"), "command": "",
           "overwrite": False}  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "llabel.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    process.stdout.close()  # as when the comparison is killed
    process.stdin.write(json.dumps(job))
    process.stdin.close()
    assert process.wait(60) == 1
    assert not (tmp_path / "o" / "run.json").exists()
