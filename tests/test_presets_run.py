"""The published set-ups end to end: presets, a chat of several targets, a 4-bit model merged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from llabel.cli import main
from llabel.ladder.llm import LLMRung
from runs import write_weather
from test_chat_template import CHATML
from test_four_bit import stored_checkpoint  # noqa: F401  (a fixture)
from two_targets import write_letters


def llabel(*arguments: str | Path) -> str:
    """What the command prints; it must succeed."""
    done = CliRunner(env={"COLUMNS": "200"}).invoke(main, list(map(str, arguments)))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.usefixtures("runs_here")
def test_compare_climbs_the_ladder_with_the_settings_of_the_preset(
    tiny_llama: Path, tmp_path: Path
) -> None:
    data = write_weather(tmp_path / "weather.jsonl", 60)
    out = tmp_path / "ladder"
    llabel(
        *("compare", data, "--text", "text", "--label", "label", "--preset", "alpaca-qlora"),
        *("--model", tiny_llama, "--max-seq-length", "200", "--max-steps", "3", "--trials", "1"),
        *("--rungs", "llm-zero-shot,llm-qlora", "--device", "cpu"),
        *("--out", out),
    )  # fmt: skip
    record = json.loads((out / "compare.json").read_text())
    assert [rung["name"] for rung in record["rungs"]][-1] == "llm-qlora"
    zero_shot, qlora = (
        json.loads((out / f"rungs/{name}/run.json").read_text())
        for name in ("llm-zero-shot", "llm-qlora")
    )
    assert zero_shot["config"]["template"] == qlora["config"]["template"] == "alpaca"
    assert zero_shot["config"].get("base", "auto") == "auto", "only llm-qlora rounds its base"
    assert qlora["training"]["summary"]["global_steps"] == 3
    assert {name: qlora["config"][name] for name in ("optim", "loss", "r", "lora_alpha")} == {
        "optim": "adamw_8bit",
        "loss": "all",
        "r": 16,
        "lora_alpha": 16,
    }


@pytest.mark.usefixtures("cells_here")
def test_sweep_varies_what_the_preset_leaves_open(tiny_llama: Path, tmp_path: Path) -> None:
    data = write_weather(tmp_path / "weather.jsonl", 40)
    llabel(
        *("sweep", data, "--text", "text", "--label", "label", "--preset", "boolq-lora"),
        *("--model", tiny_llama, "--r", "1,2", "--lora-alpha", "0,2", "--device", "cpu"),
        *("--out", tmp_path / "out"),
    )  # fmt: skip
    record = json.loads((tmp_path / "out/sweep.json").read_text())
    assert [cell["status"] for cell in record["cells"]] == ["done"] * 4
    assert record["axes"] == {"r": [1, 2], "lora_alpha": [0, 2]}
    shared = record["config"]
    assert (shared["learning_rate"], shared["loss"], shared["adam_beta2"]) == (1e-4, "all", 0.999)


def test_one_model_answers_several_targets_in_a_chat(tiny_llama: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    (model / "chat_template.jinja").write_text(CHATML)
    data = write_letters(tmp_path / "letters.jsonl", 60)
    out = tmp_path / "run"
    llabel(
        *("fit", data, "--text", "text", "--label", "weather,place", "--template", "chat"),
        *("--instruction", "One of {labels}.", "--model", model, "--epochs", "2", "--lr", "1e-2"),
        *("--device", "cpu", "--out", out),
    )  # fmt: skip
    record = json.loads((out / "run.json").read_text())
    told = llabel("evaluate", out, data)
    assert "weather" in told
    assert "place" in told
    llabel("predict", out, data, "-o", tmp_path / "answers.jsonl")
    # A rung that is loaded again answers as the run did on its held-out rows.
    rows = [json.loads(line) for line in (out / "predictions.jsonl").open()]
    texts = [tuple(row["text"].values()) for row in rows]
    proba = LLMRung.load(out).predict_proba(texts)
    for target, columns in (("weather", slice(0, 2)), ("place", slice(2, 5))):
        then = [list(row["targets"][target]["probabilities"].values()) for row in rows]
        np.testing.assert_allclose(proba[:, columns], then, rtol=0, atol=1e-5)
    assert record["targets"]["place"]["metrics"]["test"]["rows"] == 12
    assert len(list((tmp_path / "answers.jsonl").open())) == 60


def test_a_run_over_a_4_bit_checkpoint_is_merged(
    stored_checkpoint: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    data = write_weather(tmp_path / "weather.jsonl", 60)
    llabel(
        *("fit", data, "--text", "text,note", "--label", "label", "--model", stored_checkpoint),
        *("--rung", "llm-qlora", "--epochs", "2", "--lr", "3e-3", "--device", "cpu"),
        *("--out", tmp_path / "run"),
    )  # fmt: skip
    told = llabel("merge", tmp_path / "run", "-o", tmp_path / "merged", "--max-flips", "0")
    assert "0 of" in told
    written = json.loads((tmp_path / "merged/config.json").read_text())
    assert "quantization_config" not in written
    again = llabel(
        *("fit", data, "--text", "text,note", "--label", "label", "--model", tmp_path / "merged"),
        *("--rung", "llm-zero-shot", "--device", "cpu", "--out", tmp_path / "zero-shot"),
    )
    assert "llm-zero-shot" in again
    one, other = (
        json.loads((tmp_path / name / "run.json").read_text())["metrics"]["test"]
        for name in ("run", "zero-shot")
    )
    assert one["accuracy"] == other["accuracy"]
    assert one["log_loss"] == pytest.approx(other["log_loss"], abs=1e-3)
