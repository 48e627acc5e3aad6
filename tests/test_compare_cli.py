"""`llabel compare` as it is typed, and `llabel fit --rung` for the rungs below the LLM."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from comparison_runs import CHEAP, cheap, climb, in_this_process, lasting, stamps
from llabel.cli import main
from llabel.console import listen
from llabel.events import Event, Note, RowsDone, RungDone, RungFailed, RungStarted, StageStarted
from runs import write_weather

COLUMNS = ("--text", "text,note", "--label", "label")
RUNGS = ("--rungs", ",".join(CHEAP), "--trials", "1")


def llabel(*arguments: str | Path) -> Result:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main, list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def told(result: Result) -> str:
    """Everything printed, without frames and line breaks."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", result.output).split())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weather(tmp_path_factory.mktemp("data") / "weather.jsonl", 90)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("ladders") / "ladder"
    return out, llabel("compare", data, *COLUMNS, *RUNGS, "--out", out)


def test_free_answers_stand_beside_the_constrained_ones(
    data: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    asked = ("compare", data, *COLUMNS, "--rungs", "majority,llm-zero-shot", "--trials", "1")
    free = (*asked, "--model", tiny_llama, "--decode", "free", "--out", tmp_path / "free")
    with in_this_process():
        assert llabel(*free).exit_code == 0
    majority, llm = json.loads((tmp_path / "free" / "compare.json").read_text())["rungs"]
    assert majority["free_answers"] is None
    assert llm["free_answers"]["unknown"] > 0, "an untrained model knows no labels"
    refused = llabel(*free, "--long", "chunks", "--overwrite")
    assert refused.exit_code == 2
    assert "--decode free and --long chunks exclude each other" in told(refused)


def test_the_table_the_verdict_and_the_page_end_it(finished: tuple[Path, Result]) -> None:
    out, result = finished
    assert result.exit_code == 0
    record = json.loads((out / "compare.json").read_text())
    for rung in record["rungs"]:
        (line,) = re.findall(rf"^(?:→ )?{rung['name']} +\d.*$", result.stdout, re.MULTILINE)
        test = rung["metrics"]["test"]
        low, high = test["accuracy_ci95"]
        for number in (test["accuracy"], low, high, test["macro_f1"], test["log_loss"]):
            assert f"{number:.4f}" in line
    assert f"Verdict: {record['verdict']['reason']}" in told(result)
    assert str(out / "report.html") in result.stdout.splitlines()[-1]
    assert "majority (1 of 3)" in result.stderr, "progress is no result"
    assert record["command"].startswith("llabel compare ")
    assert record["settings"]["trials"] == 1


WRONG = [
    ("--rungs bag-of-word", r"--rungs.*'bag-of-word'.*did you mean bag-of-words\?"),
    ("--margin 2", "'--margin': 2.0 is not in the range 0<=x<1"),
    ("--seeds 0", "'--seeds': 0 is not in the range x>=1"),
    ("--curve 5,x", "--curve '5,x': .* valid integer"),
    ("--curve 5,0", "--curve '5,0': .* greater than or equal to 1"),
    ("--curve 1", r"--curve 1, a run with --train-rows 1: choose from 2 \(one a class\)"),
    ("--rope-scaling yarn:0.5", r"--rope-scaling 'yarn:0.5': the factor must be a number of at"),
    ("--curve 10,64", "--curve 64: there are 63 training rows"),
    ("--budget soon", "--budget 'soon': write a time as 90s, 10m or 1h"),
    ("--budget 0s", "--budget '0s': .* greater than 0"),
    ("--reuse {tmp}/none", "none holds no run: run.json is missing"),
    ("--out {data}", "is a file. Name a folder"),
    ("--out {tmp}", "holds files that are no comparison"),
    ("--trials 2 --out {ladder}", "--trials was 1, is 2.*--overwrite"),
    ("--config {tmp}/unread.yaml", "untested: known to `llabel fit` only"),
    ("--config {tmp}/typo.yaml", "unknown setting 'margn'. Did you mean margin"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_input_ends_with_a_remedy(
    options: str, message: str, data: Path, finished: tuple[Path, Result], tmp_path: Path
) -> None:
    (tmp_path / "unread.yaml").write_text("untested: true\n")
    (tmp_path / "typo.yaml").write_text("margn: 0.1\n")
    ladder = finished[0]
    before = stamps(ladder)
    words = options.format(data=data, tmp=tmp_path, ladder=ladder).split()
    result = llabel("compare", data, *COLUMNS, *RUNGS, "--out", tmp_path / "x", *words)
    assert result.exit_code == 2
    assert re.search(message, told(result)), told(result)
    assert "Traceback" not in result.output
    assert not list(tmp_path.rglob("run.json")), "told before any work"
    assert stamps(ladder) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--rung bag-of-word", "not one of .*bag-of-words"),
        ("--rung bag-of-words --decode free", "bag-of-words writes no text"),
        ("--rung majority --config {tmp}/run.yaml", "--margin: known to `llabel compare` only"),
        ("--margin 0.1", "No such option"),
    ],
)
def test_fit_refuses_what_is_not_for_it(
    options: str, message: str, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text("margin: 0.1\n")
    words = options.format(tmp=tmp_path).split()
    result = llabel("fit", data, *COLUMNS, "--out", tmp_path / "x", *words)
    assert result.exit_code == 2
    assert re.search(message, told(result)), told(result)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("rung", CHEAP)
def test_a_rung_alone_is_fitted_evaluated_and_used(rung: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fitted = llabel("fit", data, *COLUMNS, "--rung", rung, "--r", "8", "--out", out)
    assert fitted.exit_code == 0
    assert f"Without effect on {rung}: --r." in fitted.stderr
    record = json.loads((out / "run.json").read_text())
    assert "r" not in record["config"]
    assert f"{record['metrics']['test']['accuracy']:.4f}" in fitted.stdout
    found = tmp_path / "found.json"
    assert llabel("evaluate", out, data, "--json", found).exit_code == 0
    metrics = json.loads(found.read_text())["metrics"]
    assert metrics["rows"] == 90
    answers = tmp_path / "answers.jsonl"
    assert llabel("predict", out, data, "-o", answers).exit_code == 0
    answered = [json.loads(line)["label"] for line in answers.read_text().splitlines()]
    labels = [json.loads(line)["label"] for line in data.read_text().splitlines()]
    right = sum(a == b for a, b in zip(answered, labels, strict=True))
    assert right / 90 == pytest.approx(metrics["accuracy"])
    free = llabel("predict", out, data, "-o", tmp_path / "f.csv", "--decode", "free")
    assert free.exit_code == 2
    assert f"{rung} writes no text" in told(free)


def test_options_that_a_rung_reads_are_not_remarked_on(data: Path, tmp_path: Path) -> None:
    options = ("--rung", "bag-of-words", "--trials", "1", "--seed", "1")
    result = llabel("fit", data, *COLUMNS, *options, "--out", tmp_path / "run")
    assert "Without effect" not in result.stderr


def test_compare_remarks_on_options_that_no_rung_reads(
    data: Path, finished: tuple[Path, Result]
) -> None:
    result = llabel("compare", data, *COLUMNS, *RUNGS, "--out", finished[0], "--lora-alpha", "8")
    assert result.exit_code == 0
    assert "Without effect on majority, lookup, bag-of-words: --lora-alpha." in result.stderr
    assert result.stdout == finished[1].stdout


def test_a_failed_rung_is_told_and_is_the_exit_code(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'llabel.worker' in sys.orig_argv: os._exit(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "out"
    result = llabel("compare", data, *COLUMNS, "--rungs", "majority", "--out", out)
    assert result.exit_code == 1
    assert "majority failed: its process ended (3)" in told(result)
    assert "Traceback" not in result.output
    assert json.loads((out / "compare.json").read_text())["rungs"][0]["status"] == "failed"
    assert "the exit code is 1" in told(llabel("compare", "--help"))


def until(process: "subprocess.Popen[str]", beginning: str) -> Iterator[str]:
    assert process.stderr
    for line in process.stderr:
        yield line
        if line.startswith(beginning):
            return


def is_gone(group: int) -> bool:
    """Whether no process of the group is left, within some seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_stopped_and_killed_and_still_the_same_in_the_end(
    data: Path, finished: tuple[Path, Result], tmp_path: Path
) -> None:
    """Ctrl-C in the second rung, SIGKILL for all processes in the third, then the rest."""
    out = tmp_path / "ladder"
    command = [sys.executable, "-m", "llabel", "compare", data, *COLUMNS, *RUNGS, "--out", out]
    start: Any = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    start["env"] = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, **start) as process:
        lines = [*until(process, "lookup (2 of 3)"), *until(process, "scoring")]
        process.send_signal(signal.SIGINT)
        assert process.stderr
        lines += list(process.stderr)
    assert process.returncode == 130, "".join(lines)
    assert lines[-1] == "Stopped. The same command goes on from where it was last saved.\n"
    assert "Traceback" not in "".join(lines)
    assert is_gone(process.pid)
    kept = stamps(out)
    assert set(kept) == {"majority"}
    with subprocess.Popen(command, **start) as process:
        list(until(process, "bag-of-words (3 of 3)"))
        os.killpg(process.pid, signal.SIGKILL)
    assert is_gone(process.pid)
    assert process.returncode == -signal.SIGKILL
    assert kept.items() <= stamps(out).items()
    assert not (out / "compare.json").exists()
    kept = stamps(out)
    again = climb(cheap(data), out)
    assert kept.items() <= stamps(out).items()
    undisturbed = json.loads((finished[0] / "compare.json").read_text())
    assert lasting(again) | {"command": ""} == lasting(undisturbed) | {"command": ""}


def done(rung: str, accuracy: float) -> RungDone:
    return RungDone(rung, 24, accuracy, (0.35, 0.71), 0.5, 0.69, 0.0, 1.8, "test")


EVENTS: list[Event] = [
    RungStarted("majority", 1, 2),
    StageStarted("scoring test rows", 24),
    RowsDone(24),
    done("majority", 0.5417),
    RungStarted("lookup [b]", 2, 2),
    StageStarted("scoring test rows", 24),
    RowsDone(12),
    RungFailed("lookup [b]", "its process was [red]killed"),
    Note("Comparing the rungs' answers."),
]


def test_in_a_log_a_comparison_is_plain_lines() -> None:
    console = Console(file=io.StringIO(), width=120)
    with listen(console) as notify:
        for event in EVENTS:
            notify(event)
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "majority (1 of 2)",
        "scoring test rows: 24 rows",
        "scoring test rows: 100%, 24/24 rows",
        "majority: accuracy 0.5417 (0.3500–0.7100), macro-F1 0.5000, log loss 0.6900, training –, "
        "ms a text 1.8",
        "lookup [b] (2 of 2)",
        "scoring test rows: 24 rows",
        "lookup [b]: failed",
        "lookup [b] failed: its process was [red]killed",
        "Comparing the rungs' answers.",
    ]


class Screen:
    """As much of a terminal as Rich's live display needs: lines, moves up, erased lines."""

    def __init__(self, output: str) -> None:
        self.lines, self.row = [""], 0
        for token in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|\n|\r|[^\x1b\n\r]+", output):
            if token == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
            elif token.endswith("A") and token.startswith("\x1b"):
                self.row -= int(token[2:-1] or 1)
            elif token == "\x1b[2K":
                self.lines[self.row] = ""
            elif not token.startswith("\x1b") and token != "\r":
                self.lines[self.row] += token

    def shown(self) -> list[str]:
        return [line.rstrip() for line in self.lines if line.strip()]


def in_a_terminal(*events: Event) -> str:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    with listen(terminal) as notify:
        for event in events:
            notify(event)
    return terminal.file.getvalue()  # type: ignore[attr-defined]


def test_in_a_terminal_the_results_stand_above_the_bars_while_it_runs() -> None:
    output = in_a_terminal(*EVENTS[:7], Note("a note"))
    assert re.search(r"majority +0\.5417 \(0\.3500–0\.7100\)", output)
    assert "lookup [b] (2 of 2): scoring test rows" in output


def test_in_a_terminal_a_comparison_leaves_its_notes_and_nothing_else() -> None:
    assert Screen(in_a_terminal(*EVENTS)).shown() == [
        "lookup [b] failed: its process was [red]killed",
        "Comparing the rungs' answers.",
    ]
