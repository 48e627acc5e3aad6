import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llabel import __version__
from llabel.cli import main
from runs import write_weather

COMMANDS = ("check", "prompt", "fit", "evaluate", "predict", "compare", "assets")
COLUMNS = ("--text", "text,note", "--label", "label")
HEAVY = ("torch", "transformers", "pandas", "pyarrow", "sklearn", "pydantic", "numpy", "datasets")


def llabel(*arguments: str | Path) -> Result:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main, list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def told(result: Result) -> str:
    """Everything printed, without frames and line breaks."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", result.output).split())


def cut(line: str) -> list[str]:
    """The cells of a table's row."""
    return re.split(r" {2,}", line.strip())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weather(tmp_path_factory.mktemp("data") / "weather.jsonl", 60)


@pytest.fixture(scope="module")
def finished(
    data: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Result, list[str]]:
    """A run folder, what `llabel fit` printed, and the command."""
    folder = tmp_path_factory.mktemp("runs")
    config = folder / "run.yaml"
    config.write_text(
        f"data: {data}\nout: {folder / 'run'}\ntext: [text, note]\nlabel: label\n"
        f"model: {tiny_llama}\nepochs: 7\nbatch-size: 8\nr: 4\nlearning_rate: 3e-3\ndevice: cpu\n"
    )
    command = ["fit", "--config", str(config), "--epochs", "1"]
    return folder / "run", llabel(*command), command


def test_help_starts_at_once_and_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['llabel', *sys.argv[1:]]\n"
        "from llabel.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    for arguments in ([], ["--help"], ["fit", "--help"], ["--version"], ["fit", "--r", "0"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stderr.splitlines()[-1] == "[]"


def test_help_is_fast() -> None:
    """In processor time: other work on the machine must not decide."""
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run(
            [sys.executable, "-m", "llabel", "--help"], check=True, stdout=subprocess.DEVNULL
        )
        after = os.times()
        user, system = (
            after.children_user - before.children_user,
            after.children_system - before.children_system,
        )
        seconds.append(user + system)
    assert statistics.median(seconds) < 0.8, "0.1 s on an idle machine"


def test_version() -> None:
    assert llabel("--version").output == f"llabel, version {__version__}\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_lacks_our_characters(encoding: str, tmp_path: Path) -> None:
    """The column's name and the note on it go through both streams of a real process."""
    data = tmp_path / "\u0142\u0105ki.csv"
    data.write_text("\u0142,y\n" + "".join(f"r\u00f3\u017ca {n},{n % 2}\n" for n in range(40)))
    words = ["fit", str(data), "--text", "\u0142", "--label", "y", "--rung", "majority"]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    for arguments in (["fit", "--help"], [*words, "--out", str(tmp_path / "run")]):
        done = subprocess.run(
            [sys.executable, "-m", "llabel", *arguments],
            capture_output=True,
            encoding=encoding,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
    assert "majority" in done.stdout
    assert (tmp_path / "run" / "run.json").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="names are UTF-16 there")
def test_words_that_no_record_can_hold_are_refused_before_any_work(
    data: Path, tmp_path: Path
) -> None:
    out = os.fsencode(tmp_path) + b"/r\xe9sum\xe9"
    words = ["fit", str(data), *COLUMNS, "--rung", "majority", "--out", out]
    done = subprocess.run(
        [sys.executable, "-m", "llabel", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert r"r\udce9sum\udce9' is no text in this system's encoding" in done.stderr
    assert "Traceback" not in done.stderr
    assert not os.path.exists(out)  # noqa: PTH110  # the name is bytes


def test_commands_stand_in_the_order_of_work() -> None:
    places = [llabel("--help").output.index(f"│ {command} ") for command in COMMANDS]
    assert places == sorted(places)


def examples(command: str) -> Iterator[list[str]]:
    text = (main.commands[command].help or "").replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip().startswith("llabel "):
            yield shlex.split(line)


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_in_the_help_are_valid_and_not_wrapped(command: str) -> None:
    found = list(examples(command))
    assert found
    for _, name, *arguments in found:
        assert name == command
        main.commands[command].make_context(command, arguments)
    result = CliRunner(env={"COLUMNS": "80"}).invoke(main, [command, "--help"])
    for line in (main.commands[command].help or "").partition("Examples:")[2].splitlines():
        assert line.strip() in result.output


WRONG: list[tuple[str, str]] = [
    ("fit", "Missing, both.*DATA: .*--text: .*--label: .*--out: Folder of the run"),
    ("fit {data} --text text --label label", "--out: Folder of the run"),
    ("check {data} --text text", "--label: .*Columns of .*weather.jsonl: 'text', 'note', 'label'"),
    ("compare {data}", "--text: .*--out: .*Columns of .*weather.jsonl: 'text', 'note', 'label'"),
    ("fit {data} {columns} --out {tmp}/x --r 0", "'--r': 0 is not in the range x>=1"),
    ("fit {data} {columns} --out {tmp}/x --lr nan", "--learning-rate nan: .* a finite number"),
    ("fit {data} {columns} --out {tmp}/x --loss foo", "not one of 'answer', 'sft', 'all'"),
    ("fit {data} {columns} --out {tmp}/x --epoch 3", "No such option.*--epochs"),
    ("fit {data} {columns} --out {tmp}/x --model {tmp}", "no config.json"),
    ("fit {data} {columns} --out {tmp}/x --model smollm", "Did you mean smollm2-135m"),
    ("fit {data} {columns} --out {data}", "is a file. Name a folder"),
    ("fit --config {tmp}/none.yaml", "none.yaml: there is no such file"),
    ("fit --config {tmp}/bad.yaml", "bad.yaml: unknown setting 'lora_alhpa'. .*lora_alpha"),
    ("fit {tmp}/no.csv {columns} --out {tmp}/x", "no.csv: there is no such file"),
    ("fit {data} --text txt --label label --out {tmp}/x", "column 'txt'.*Did you mean 'text'"),
    # The data are looked at before a model is fetched: this one does not exist.
    ("check {data} --text text --label lable --model no/model", "'lable'.*Did you mean 'label'"),
    ("check", "Missing, both.*DATA"),
    ("check {data} {columns} --model no-model", "'no-model': there is no such path"),
    ("check {data} {columns} --json {tmp}/no/x.json", "--json .*: the folder .* does not exist"),
    ("check {data} {columns} --json -", "--json -: standard output has the tables. Name a file"),
    ("check --config {tmp}/run.yaml --json {tmp}/run.yaml", "would overwrite .*run.yaml, which"),
    (
        "check {data} {columns} --template {tmp}/mine.txt --json {tmp}/mine.txt",
        "would overwrite .*mine.txt, which is read",
    ),
    ("sweep --config {tmp}/five.yaml", "--out 5: it should be a valid string"),
    ("check {data} {columns} --max-seq-length 9999", "more than the context"),
    ("check {data} {columns} --max-seq-length 9", "Raise --max-seq-length"),
    ("check {data} {columns} --adapt-layers 9", "--adapt-layers 9: the model has 2 layers"),
    ("check {data} {columns} --label-words warm", "'warm' is not LABEL=WORDS"),
    ("check {data} {columns} --label-words rain=wet", "--label-words names 'rain'"),
    ("check {data} {columns} --learning-rate 1", "No such option"),
    ("prompt {data} {columns} --row 61", "--row 61: there is no such row .*weather:60"),
    ("prompt {data} {columns} --row test:1", "--row test:1: there is no such row"),
    ("prompt {data} {columns} --template qaa", "--template 'qaa' .*Did you mean 'qa'"),
    ("evaluate {tmp} {data}", "holds no run: run.json is missing"),
    ("evaluate {run}", "Missing argument 'DATA'"),
    ("evaluate {run} {data} --label lable", "'lable'.*Did you mean 'label'"),
    ("evaluate {run} {data} --split tset", "--split tset"),
    ("evaluate {run} {data} --json {tmp}/no/x.json", "the folder .* does not exist"),
    ("evaluate {run} {data} --json {run}/run.json", "would replace a file of the run"),
    ("evaluate {run} {data} --device gpu", "--device 'gpu' is unknown. Use auto, cpu, cuda"),
    ("predict {run} {data}", "Missing option '-o' / '--out'"),
    ("predict {run} {data} -o {tmp}/x.xlsx", "write to a file ending in .csv, .jsonl, .parquet"),
    ("predict {run} {data} -o {tmp}/no/x.csv", "the folder .* does not exist"),
    ("predict {tmp} {data} -o {tmp}/x.csv", "holds no trained rung"),
    ("evaluate {run} ~nobody-here/no.csv --json {tmp}/x.json", "there is no such file"),
    ("predict {run} ~nobody-here/no.csv -o {tmp}/x.csv", "there is no such file"),
    ("predict {run} {tmp}/no.csv -o {tmp}/x.csv", "there is no such file"),
    ("assets --fetch smollm", "--fetch 'smollm': built in are smollm2-135m"),
    ("train", "No such command 'train'"),
]


@pytest.mark.parametrize(("command", "message"), WRONG)
def test_wrong_input_ends_with_a_remedy(
    command: str,
    message: str,
    data: Path,
    tiny_llama: Path,
    tmp_path: Path,
    finished: tuple[Path, Result, list[str]],
) -> None:
    (tmp_path / "bad.yaml").write_text("lora_alhpa: 3\n")
    (tmp_path / "run.yaml").write_text(f"data: {data}\ntext: text\nlabel: label\n")
    (tmp_path / "five.yaml").write_text((tmp_path / "run.yaml").read_text() + "out: 5\n")
    (tmp_path / "mine.txt").write_text("{text} {note} Weather:")
    if "{columns}" in command and "--model" not in command:
        command += f" --model {tiny_llama}"
    line = command.format(data=data, columns=" ".join(COLUMNS), tmp=tmp_path, run=finished[0])
    result = llabel(*line.split())
    assert result.exit_code == 2
    assert re.search(message, told(result))
    assert "Traceback" not in result.output


def test_fit_prints_scores_with_intervals(finished: tuple[Path, Result, list[str]]) -> None:
    out, result, command = finished
    assert result.exit_code == 0
    record = json.loads((out / "run.json").read_text())
    test = record["metrics"]["test"]
    low, high = test["accuracy_ci95"]
    rows = {cells[0]: cells[1:] for line in result.stdout.splitlines() if (cells := cut(line))}
    numbers = [f"{test[key]:.4f}" for key in ("accuracy", "macro_f1", "log_loss", "ece")]
    assert rows["test"] == [str(test["rows"]), numbers[0], f"{low:.4f}–{high:.4f}", *numbers[1:]]
    assert {"train", "validation", "test, unseen texts"} <= set(rows)
    majority = record["baselines"]["majority"]["accuracy"]
    assert f"{majority:.4f}" in rows["majority (test)"]
    assert "look-up of note (test)" in rows
    assert str(out) in result.stdout
    assert "tokens/s" in result.stdout
    assert "training: " in result.stderr
    assert record["command"] == shlex.join(["llabel", *command])
    assert record["config"]["epochs"] == 1, "the command line wins over run.yaml"
    assert record["config"]["batch_size"] == 8


def test_a_finished_fit_is_shown_again_and_others_refused(
    finished: tuple[Path, Result, list[str]],
) -> None:
    _, first, command = finished
    again = llabel(*command)
    assert again.stdout == first.stdout
    assert "nothing is left to do" in again.stderr
    other = llabel(*command, "--seed", "1")
    assert other.exit_code == 2
    assert "--seed was 0, is 1" in other.stderr
    assert "--overwrite" in other.stderr


def test_evaluate(finished: tuple[Path, Result, list[str]], data: Path, tmp_path: Path) -> None:
    result = llabel("evaluate", finished[0], data, "--json", tmp_path / "found.json")
    assert result.exit_code == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rows"] == 60
    assert f"{found['metrics']['accuracy']:.4f}" in result.stdout
    for row in found["report"]:
        assert row["name"] in result.stdout
    free = llabel("evaluate", finished[0], data, "--decode", "free")
    assert "unknown" in free.stdout, "one epoch does not teach it to write labels"


def test_predict(finished: tuple[Path, Result, list[str]], data: Path, tmp_path: Path) -> None:
    result = llabel("predict", finished[0], data, "-o", tmp_path / "answers.csv")
    assert result.exit_code == 0
    assert result.stdout == f"60 rows labelled in {tmp_path / 'answers.csv'}\n"
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 61
    arguments = ("-o", tmp_path / "free.jsonl", "--decode", "free")
    assert llabel("predict", finished[0], data, *arguments).exit_code == 0
    answers = {json.loads(line)["label"] for line in (tmp_path / "free.jsonl").open()}
    assert "unknown" in answers, "one epoch does not teach it to write labels"


def test_columns_with_commas_in_their_names(tiny_llama: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.csv"
    data.write_text('"my review, long",y\n' + "fine,a\nbad,b\n" * 20)
    options = ("--label", "y", "--model", tiny_llama)
    result = llabel("prompt", data, "--text", '"my review, long"', *options)
    assert result.exit_code == 0
    assert "my review, long" in result.stdout
    broken = llabel("prompt", data, "--text", '"my review, long', *options)
    assert "a name that holds a comma in double quotes" in told(broken)
    assert '"A, or B",C' in told(llabel("fit", "--help"))


def test_a_built_in_data_set_comes_with_a_bar(
    monkeypatch: pytest.MonkeyPatch, boolq: Path, tiny_llama: Path
) -> None:
    def fetch(asset: Any, progress: Any) -> None:
        progress(f"downloading {asset.name}", 0.0)

    monkeypatch.setattr("llabel.assets.fetch", fetch)
    options = ("--text", "txt", "--label", "answer", "--model", tiny_llama)
    assert "downloading boolq" in llabel("check", "boolq", *options).stderr
    assert "downloading" not in llabel("check", boolq, *options).stderr


def test_check(data: Path, tiny_llama: Path, tmp_path: Path) -> None:
    result = llabel(
        *("check", data, *COLUMNS, "--model", tiny_llama, "--json", tmp_path / "found.json"),
        *("--adapt-layers", "1", "--gradient-checkpointing", "--r", "8", "--lora-dropout", "0"),
        *("--target-modules", "q_proj,v_proj", "--base", "auto", "--trials", "2"),
        *("--max-steps", "4", "--batch-size", "4"),
    )
    assert result.exit_code == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["part"] for row in found["tokens"]] == ["train", "validation", "test"]
    assert found["estimate"]["train_seconds"] > 0
    counted = "1 of 2 layers adapted, layers run again in the backward pass"
    assert counted in found["estimate"]["basis"]
    assert "60 rows" in told(result)
    assert "Same field value in an earlier part" in result.stdout
    assert "Estimate of a run here" in result.stdout
    assert "cut from train as the test part" in result.stderr


def test_check_and_prompt_take_the_run_yaml(
    finished: tuple[Path, Result, list[str]], tiny_llama: Path
) -> None:
    config = finished[2][2]
    assert llabel("check", "--config", config).exit_code == 0
    result = llabel("prompt", "--config", config, "--row", "60", "--template", "plain")
    assert result.stdout.startswith("weather:60, label ")
    assert "\nLabel:" in result.stdout


def test_a_file_of_settings_may_name_what_lies_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_weather(tmp_path / "weather.jsonl", 40)
    (tmp_path / "map.yaml").write_text("sun: warm\n")
    (tmp_path / "run.yaml").write_text(
        "data: ~/weather.jsonl\nout: ~/run\ntext: text\nlabel: label\nrung: majority\n"
        "map_labels: ~/map.yaml\n"
    )
    assert llabel("fit", "--config", tmp_path / "run.yaml").exit_code == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "warm" in record["data"]["classes"]


def test_texts_of_the_user_are_no_markup(tiny_llama: Path, tmp_path: Path) -> None:
    rows = [
        {"[red]": f"see [red]this[/red] [/] {row}", "y": ["[bold]a", "b[/bold]"][row % 2]}
        for row in range(40)
    ]
    data = tmp_path / "[green]rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = (str(data), "--text", "[red]", "--label", "y", "--model", str(tiny_llama))
    prompt = llabel("prompt", *options, "--row", "2")
    assert "see [red]this[/red] [/] 1" in prompt.stdout
    check = llabel("check", *options)
    for text in ("[green]rows", "[bold]a", "b[/bold]", "[red]"):
        assert text in check.stdout
    fit = llabel("fit", *options, "--epochs", "1", "--out", tmp_path / "[b]run")
    assert fit.exit_code == 0
    assert "[b]run" in fit.stdout
    evaluation = llabel("evaluate", tmp_path / "[b]run", data)
    assert "[bold]a" in evaluation.stdout
    missing = llabel("check", tmp_path / "[blue]no.csv", *COLUMNS)
    assert "[blue]no.csv" in missing.stderr


def test_assets() -> None:
    result = llabel("assets")
    assert result.exit_code == 0
    for name in ("smollm2-135m", "boolq", "Apache-2.0", "93 MB", "https://", "rounded to 4 bits"):
        assert name in result.stdout


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (FloatingPointError("the loss became nan: lower the learning rate"), 1, "the loss became"),
        (MemoryError(), 1, "Error: Out of memory. Try a smaller --token-budget"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "Error: Out of memory"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel"), 1, "CUDA error: out of memory\n"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"), 1, "Error: Out of memory"),
        (OSError(28, "No space left on device", "x.bin"), 1, "No space left on device: x.bin"),
        (KeyboardInterrupt(), 130, "Stopped. The same command goes on from where it was last"),
    ],
)
def test_failures_that_are_no_bugs(
    monkeypatch: pytest.MonkeyPatch,
    finished: tuple[Path, Result, list[str]],
    error: BaseException,
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr("llabel.run.fit", _raiser(error))
    result = llabel(*finished[2])
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_the_gpu_may_be_full(
    monkeypatch: pytest.MonkeyPatch, finished: tuple[Path, Result, list[str]]
) -> None:
    import torch

    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee docs")
    monkeypatch.setattr("llabel.run.fit", _raiser(error))
    result = llabel(*finished[2])
    assert result.exit_code == 1
    assert result.stderr.endswith("CUDA out of memory. Tried to allocate 2 GiB.\n")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("x"), ValueError("y")])
def test_our_own_bugs_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch,
    finished: tuple[Path, Result, list[str]],
    error: Exception,
) -> None:
    monkeypatch.setattr("llabel.run.fit", _raiser(error))
    with pytest.raises(type(error)):
        llabel(*finished[2])


def _raiser(error: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def test_ctrl_c_stops_and_the_same_command_goes_on(
    data: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """A real process, a real SIGINT in the middle of the training, and the same command again."""
    command = [
        *(sys.executable, "-m", "llabel", "fit", str(data), *COLUMNS, "--model", str(tiny_llama)),
        *("--out", str(tmp_path / "run"), "--epochs", "12", "--patience", "12"),
        *("--checkpoint-steps", "5", "--device", "cpu", "--batch-size", "4"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("epoch 2:"):
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130, "".join(lines)
    assert lines[-1] == "Stopped. The same command goes on from where it was last saved.\n"
    assert "Traceback" not in "".join(lines)
    again = llabel(*command[3:])
    assert again.exit_code == 0
    assert "epoch 1:" not in again.stderr
    assert "epoch 12:" in again.stderr
    assert "majority (test)" in again.stdout


def test_a_run_without_a_network_does_without_torch(tmp_path: Path) -> None:
    """Importing it takes seconds."""
    data = write_weather(tmp_path / "weather.jsonl", 40)
    words = ["fit", str(data), "--text", "text,note", "--label", "label", "--rung", "bag-of-words"]
    words += ["--out", str(tmp_path / "run")]
    program = (
        f"import sys; from llabel.cli import main; main({words!r}, standalone_mode=False); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
