import io
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from llabel.console import PIPE_WIDTH, fetching, listen, messages
from llabel.events import EpochDone, Event, Note, RowsDone, StageStarted, StepDone

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
MOVES = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that goes on when it is told to."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr("llabel.console.time.monotonic", lambda: now.seconds)
    return now


def step(number: int, of: int, loss: float = 0.5) -> StepDone:
    return StepDone("training", number, of, number / of, loss, 1e-3, 10, 1000, 1.0)


def in_a_pipe(*events: Event, wait: Callable[[], None] = lambda: None) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    with listen(console) as notify:
        for event in events:
            wait()
            notify(event)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def in_a_terminal(*events: Event, **console: Any) -> str:
    """What is left standing after the last event, and what stood before."""
    settings = {"force_terminal": True, "color_system": "standard", "width": 120, **console}
    terminal = Console(file=io.StringIO(), **settings)
    with listen(terminal) as notify:
        for event in events:
            notify(event)
    return terminal.file.getvalue()  # type: ignore[attr-defined]


def last_frame(output: str) -> list[str]:
    lines = [line.rstrip() for line in MOVES.sub("", output).replace("\r", "\n").splitlines()]
    return [line for line in lines if line]


def test_a_log_gets_a_line_a_tenth(clock: SimpleNamespace) -> None:
    def wait() -> None:
        clock.seconds += 1

    steps = [step(number, 100, loss=1 / number) for number in range(1, 101)]
    start, *lines = in_a_pipe(StageStarted("training", 1000), *steps, wait=wait)
    assert start == "training: 1,000 rows"
    assert [line.split(",")[0] for line in lines] == [f"training: {n}0%" for n in range(1, 11)]
    assert re.search(r"50%, 500/1,000 rows, 10.* rows/s, loss 0\.0\d\d, 50 s left$", lines[4])


def test_a_log_gets_a_line_every_ten_seconds(clock: SimpleNamespace) -> None:
    def wait() -> None:
        clock.seconds += 4

    rows = [RowsDone(1) for _ in range(10)]
    lines = in_a_pipe(StageStarted("predicting", 10_000), *rows, wait=wait)
    assert len(lines) == 1 + 40 // 12


@pytest.mark.parametrize("colours", [{}, {"FORCE_COLOR": "1"}])
def test_a_file_gets_lines_whatever_its_colours(
    colours: dict[str, str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    for name, value in colours.items():
        monkeypatch.setenv(name, value)
    with listen(messages()) as notify:
        for event in (StageStarted("predicting", 4), RowsDone(4)):
            notify(event)
    assert COLOUR.sub("", capfd.readouterr().err).splitlines() == [
        "predicting: 4 rows",
        "predicting: 100%, 4/4 rows",
    ]
    assert messages().width == PIPE_WIDTH


def test_a_log_has_no_control_characters_and_no_markup() -> None:
    lines = in_a_pipe(
        Note("column [red] is empty"), StageStarted("scoring [b]rows", 4), RowsDone(4)
    )
    assert lines == [
        "column [red] is empty",
        "scoring [b]rows: 4 rows",
        "scoring [b]rows: 100%, 4/4 rows",
    ]


def test_long_notes_stay_on_one_line_of_a_log() -> None:
    assert in_a_pipe(Note("word " * 100)) == ["word " * 100]


def test_a_terminal_gets_bars_under_the_notes() -> None:
    output = in_a_terminal(
        StageStarted("training [red]", 1000), step(1, 4, 0.7), step(2, 4, 0.5), Note("[red] note")
    )
    lines = last_frame(output)
    assert "[red] note" in lines[:-1]
    assert re.match(r"training \[red\] .*50%.* 500/1,000 rows.*loss 0\.600", lines[-1])


def test_a_resumed_training_stands_where_it_was() -> None:
    output = in_a_terminal(StageStarted("training", 1000), step(51, 100))
    assert "510/1,000 rows" in last_frame(output)[-1]
    (line,) = in_a_pipe(StageStarted("predicting", 100, done=40))
    assert line == "predicting: 100 rows, 40 done before"


def test_validation_in_the_middle_does_not_disturb_the_training() -> None:
    events = [
        StageStarted("training", 100),
        step(1, 2),
        StageStarted("validating", 10),
        RowsDone(10),
        EpochDone("training", 1, 0.61234, True),
        step(2, 2),
        StageStarted("validating", 10),
        RowsDone(10),
        EpochDone("training", 2, 0.7, False),
    ]
    lines = last_frame(in_a_terminal(*events))
    assert "epoch 1: validation loss 0.6123, the best so far" in "\n".join(lines)
    assert "epoch 2: validation loss 0.7000, no better than before" in "\n".join(lines)
    assert "100/100 rows" in lines[-2]
    assert lines[-2].startswith("training")


def test_rows_without_a_stage_are_no_error() -> None:
    assert in_a_pipe(RowsDone(3), step(1, 2)) == []


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [StageStarted("training", 100), step(1, 2)]
    coloured = [code for code in COLOUR.findall(in_a_terminal(*events)) if code != "\x1b[0m"]
    assert coloured
    monkeypatch.setenv("NO_COLOR", "1")
    plain = in_a_terminal(*events)
    assert not [code for code in COLOUR.findall(plain) if re.search(r"[349][0-7]", code)]


def test_a_dumb_terminal_is_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    output = in_a_terminal(StageStarted("training", 100), step(2, 2), color_system=None)
    assert "\x1b" not in output
    assert output.splitlines()[0] == "training: 100 rows"


def test_downloads(clock: SimpleNamespace) -> None:
    console = Console(file=io.StringIO(), width=120)
    with fetching(console) as progress:
        for share in (0.0, 0.04, 0.5, 1.0):
            clock.seconds += 2
            progress("downloading x 1.0", share)
        progress("preparing x", 0.0)
    assert [line.split(",")[0] for line in console.file.getvalue().splitlines()] == [  # type: ignore[attr-defined]
        "downloading x 1.0",
        "downloading x 1.0: 50%",
        "downloading x 1.0: 100%",
        "preparing x",
    ]
