"""What `llabel sweep` prints at its end, and its exit code."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from llabel.cli import main
from llabel.sweep_record import SweepRecord
from llabel.sweep_view import render_sweep
from sweeps import sweep


def printed(record: SweepRecord, out: Path = Path("runs/sweep")) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(render_sweep(record, out))
    return capture.get()


@pytest.mark.usefixtures("cells_here")
def test_a_cell_that_fails_is_told_with_the_choice_among_the_others(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    result = CliRunner(env={"COLUMNS": "300"}).invoke(main, [
        *("sweep", str(weather), "--text", "text,note", "--label", "label"),
        *("--model", str(tiny_llama), "--lr", "3e-3,1e30", "--r", "2", "--epochs", "1"),
        *("--batch-size", "8", "--device", "cpu", "--out", str(tmp_path / "out")),
    ])  # fmt: skip
    assert result.exit_code == 1
    good, bad = (line.split() for line in result.stdout.splitlines()[3:5])
    assert good[:2] == ["→", "0.003"]
    assert (bad[0], bad[-1]) == ("1e+30", "failed")
    assert re.search(r"lr1e.30-\S+ failed: .*diverged", result.stdout)
    assert re.search(r"Chosen: r2-\S+, validation log loss [\d.]+ \(", result.stdout)
    used = re.search(r"Use it: llabel predict (\S+) DATA -o FILE", result.stdout)
    assert used
    assert (Path(used[1]) / "rung.json").is_file()


def test_a_cheaper_setting_is_recommended_with_how_to_use_it() -> None:
    record = sweep({"lr": [1e-4, 1e-3]})
    assert record["chosen"] is not None
    best = record["chosen"]["cell"]
    cheap = next(cell["name"] for cell in record["cells"] if cell["name"] != best)
    record["chosen"]["recommended"] = cheap
    text = printed(record)
    assert f"Chosen: {best}, validation log loss" in text
    assert f"Recommended: {cheap} is cheaper and not measurably worse" in text
    assert f"Use it: llabel predict runs/sweep/cells/{cheap}/rung DATA -o FILE" in text


def test_an_untouched_model_that_is_recommended_can_be_had_without_training() -> None:
    record = sweep({"lora_alpha": [0, 16], "template": ["qa", "chat"]})
    assert record["chosen"] is not None
    record["chosen"]["recommended"] = next(
        cell["name"]
        for cell in record["cells"]
        if cell["control"] and cell["settings"]["template"] == "chat"
    )
    text = printed(record)
    assert "Use it:" not in text
    assert "That is the untouched model: no training is measurably better" in text
    assert "(llabel fit DATA --rung llm-zero-shot --template chat … --out FOLDER)." in text


def test_settings_are_no_markup() -> None:
    names = ["body[en]", "a[/b]", "bell\a"]
    text = printed(sweep({"text": [["title", name] for name in names]}))
    for shown in ("title,body[en]", "title,a[/b]", r"title,bell\x07"):
        assert shown in text
