"""What the published experiments set, and what their training ended with."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from llabel import run
from llabel.cli import main
from llabel.config import RunConfig, defaults
from llabel.engine.checkpoint import CheckpointFolder
from llabel.engine.optimisers import make_optimizer, packed_state, unpacked_state
from llabel.engine.training import Trainer
from llabel.errors import InputError
from llabel.events import Event, StageStarted, StepDone
from llabel.ladder.llm import LLMRung
from llabel.presets import PRESETS, preset
from llabel.result_view import render_run, summary
from llabel.settings import LLMSettings, RunSettings
from runs import config, write_weather
from test_training import EXAMPLES, ROWS, SETTINGS, Stop, Training, same
from tiny_rungs import TASK

CONSTANT = replace(SETTINGS, schedule="constant", warmup_ratio=0.0)


# Steps in place of epochs and shares


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_max_steps_are_the_first_steps_of_a_longer_training(steps: int) -> None:
    long, short = Training(CONSTANT), Training(replace(CONSTANT, max_steps=steps))
    long.run()
    progress = short.run()
    assert progress.step == len(short.steps()) == steps
    assert [one.loss for one in short.steps()] == [one.loss for one in long.steps()[:steps]]
    assert progress.rows == sum(one.rows for one in short.steps())
    assert short.events[0] == StageStarted("training", round(ROWS * steps / 3), done=0)
    assert progress.loss_sum == pytest.approx(sum(one.loss for one in short.steps()))


def test_more_steps_than_epochs_go_on() -> None:
    training = Training(replace(SETTINGS, epochs=1, max_steps=8))
    assert training.run().step == 8
    assert training.steps()[-1].epoch == pytest.approx(8 / 3)


def test_the_last_part_of_an_epoch_is_validated() -> None:
    losses = iter([0.5, 0.4])
    training = Training(replace(SETTINGS, max_steps=4), validate=lambda: next(losses))
    progress = training.run()
    assert progress.epoch_losses == (0.5, 0.4)
    assert progress.best_step == 4


def test_the_rate_rises_for_the_warm_up_s_steps_and_falls_in_a_line() -> None:
    settings = replace(
        SETTINGS, learning_rate=1.0, schedule="linear", warmup_ratio=0.9, warmup_steps=2
    )
    training = Training(replace(settings, max_steps=6, learning_rate=1e-3))
    training.run()
    rates = [one.learning_rate * 1000 for one in training.steps()]
    assert rates == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25])


# AdamW in 8 bits, by bitsandbytes


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_eight_bits_learn_nearly_the_same(optim: str) -> None:
    pytest.importorskip("bitsandbytes")
    exact, small = Training(CONSTANT), Training(replace(CONSTANT, optim=optim))
    exact.run()
    small.run()
    a, b = ([one.loss for one in training.steps()] for training in (exact, small))
    assert a == pytest.approx(b, abs=0.05)
    assert not same(exact.weights(), small.weights())


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
@pytest.mark.parametrize("stop_at", [1, 5])
def test_a_resumed_training_in_eight_bits_ends_as_an_undisturbed_one(
    optim: str, stop_at: int, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    settings = replace(SETTINGS, optim=optim)
    whole = Training(settings)
    whole.run()

    def stop(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == stop_at + 1:
            raise Stop

    with pytest.raises(Stop):
        Training(settings, checkpoints=CheckpointFolder(tmp_path, every_steps=1), notify=stop).run()
    again = Training(settings, checkpoints=CheckpointFolder(tmp_path, every_steps=1))
    progress = again.run()
    assert again.steps()[0].step == stop_at + 1
    assert same(again.weights(), whole.weights())
    assert progress.loss_sum == pytest.approx(sum(one.loss for one in whole.steps()))


def test_state_goes_on_in_memory_that_the_optimiser_gives() -> None:
    """On a GPU it may be paged; here it is marked in another way."""
    pytest.importorskip("bitsandbytes")
    parameter = torch.nn.Parameter(torch.ones(64, 128))
    optimizer: Any = make_optimizer(
        "paged_adamw_8bit", [parameter], lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=False
    )
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    packed, given, get = packed_state(optimizer.state[parameter]), [], optimizer.get_state_buffer
    optimizer.get_state_buffer = lambda *args, **how: given.append(get(*args, **how)) or given[-1]
    again = unpacked_state(packed, parameter, optimizer, on_gpu=False)
    assert len(given) == 2
    assert again["state1"] is given[0]
    assert again["state2"] is given[1]
    assert all(torch.equal(again[name], packed[name]) for name in packed if name != "step")
    assert again["state1"].any()


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_the_packed_engine_learns_in_eight_bits_what_the_plain_one_does(
    optim: str, llm_settings: Callable[..., LLMSettings]
) -> None:
    pytest.importorskip("bitsandbytes")
    losses = {}
    for engine in ("auto", "plain"):
        rung = LLMRung(llm_settings(optim=optim, engine=engine, patience=None)).fit(TASK)
        losses[rung.engine_] = rung.progress_.epoch_losses
    if len(losses) == 1:
        pytest.skip("no C++ compiler here")
    assert losses["packed"] == pytest.approx(losses["plain"], abs=2e-3)
    assert losses["packed"][1] < losses["packed"][0] - 0.01


class Large(torch.nn.Module):
    """Two parameters of 8,192 numbers each, which bitsandbytes keeps in 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(5)
        self.a = torch.nn.Parameter(torch.randn(64, 128, generator=rng))
        self.b = torch.nn.Parameter(torch.randn(64, 128, generator=rng))

    def forward(self, batch: Any) -> Any:
        rows = batch.input_ids[:, 0]
        return ((self.a[rows] - self.b[rows]) ** 2).sum() / 128


def test_large_parameters_go_on_in_eight_bits_as_undisturbed(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    settings = replace(SETTINGS, optim="adamw_8bit", token_budget=1000)

    def trainer(**fields: Any) -> Trainer:
        module = Large()
        return Trainer(module=module, loss=module, settings=settings, **fields)

    def stop(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 6:
            raise Stop

    whole = trainer()
    whole.run(EXAMPLES)
    with pytest.raises(Stop):
        trainer(checkpoints=CheckpointFolder(tmp_path, every_steps=1), notify=stop).run(EXAMPLES)
    again = trainer(checkpoints=CheckpointFolder(tmp_path, every_steps=1))
    again.run(EXAMPLES)
    assert same(again.module.state_dict(), whole.module.state_dict())


def test_large_parameters_are_kept_in_eight_bits() -> None:
    """Those of tiny models are not: bitsandbytes keeps fewer than 4,096 numbers as they are."""
    pytest.importorskip("bitsandbytes")
    parameter = torch.nn.Parameter(torch.ones(64, 128))
    optimizer = make_optimizer(
        "adamw_8bit", [parameter], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0, fused=False
    )
    parameter.sum().backward()
    optimizer.step()
    assert optimizer.state[parameter]["state1"].dtype == torch.uint8
    assert parameter.mean().item() == pytest.approx(0.9, abs=0.01)


def test_a_missing_bitsandbytes_is_told_before_any_work(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    rung = LLMRung(LLMSettings(model=str(tiny_llama), optim="adamw_8bit", device="cpu"))
    with pytest.raises(InputError, match=r"--optim adamw_8bit .* pip install 'llabel\[qlora\]'"):
        rung.prepare(("text",), ("a", "b"))


# Presets


def test_the_published_settings() -> None:
    linear = tuple(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down"))
    assert of_preset("alpaca-qlora") == {
        **{"rung": "llm-qlora", "base": "nf4", "template": "alpaca", "loss": "all"},
        **{"lora_alpha": 16, "target_modules": linear},
        **{"max_seq_length": 4600, "gradient_checkpointing": True},
        **{"batch_size": 8, "warmup_steps": 5, "max_steps": 200, "patience": None},
        **{"learning_rate": 2e-4, "weight_decay": 0.01, "adam_beta2": 0.999},
        **{"schedule": "linear", "optim": "adamw_8bit", "seed": 3407},
    }
    assert of_preset("boolq-lora") == {
        **{"loss": "all", "learning_rate": 1e-4, "epochs": 1, "adam_beta2": 0.999},
    }
    usual = defaults()
    assert (usual["r"], usual["lora_dropout"], usual["use_rslora"]) == (16, 0, False)
    assert usual["init_lora"] == "default"
    assert (usual["rung"], usual["template"], usual["optim"], usual["schedule"]) == (
        *("llm-lora", "qa", "adamw", "cosine"),
    )


def of_preset(name: str) -> dict[str, Any]:
    """What a run with the preset has otherwise than one without."""
    usual = defaults() | {"data": "x", "text": ("t",), "label": "l"}
    told = RunConfig.from_flat({"data": "x", "text": "t", "label": "l", **preset(name)})
    return {key: value for key, value in told.flat().items() if value != usual[key]}


def test_a_preset_yields_to_config_and_command_line(tmp_path: Path, tiny_llama: Path) -> None:
    data = write_weather(tmp_path / "weather.jsonl", 40)
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {tiny_llama}\nbatch_size: 4\nmax_seq_length: 220\nbase: auto\n")
    arguments = ["fit", str(data), "--text", "text", "--label", "label", "--out", f"{tmp_path}/o"]
    more = ["--preset", "alpaca-qlora", "--config", str(file), "--max-steps", "2", "--device"]
    done = CliRunner().invoke(main, [*arguments, *more, "cpu", "--rung", "llm-lora"])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "o/run.json").read_text())
    told = record["config"]
    assert (told["batch_size"], told["max_steps"], told["r"]) == (4, 2, 16)
    assert record["seed"] == 3407
    assert record["training"]["summary"]["global_steps"] == 2
    assert "Training: 2 steps, mean loss" in done.output


@pytest.mark.parametrize("command", ["fit", "compare", "sweep", "check", "prompt"])
def test_an_unknown_preset_is_told(command: str, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "o")] if command in {"fit", "compare", "sweep"} else []
    done = CliRunner().invoke(main, [command, "x.csv", *out, "--preset", "alpaca"])
    assert done.exit_code == 2
    assert "--preset 'alpaca': choose alpaca-qlora or boolq-lora" in done.output
    assert len(PRESETS) == 2


# The line at the end


def test_the_summary_is_the_kept_training_s(tmp_path: Path, tiny_llama: Path) -> None:
    data = write_weather(tmp_path / "weather.jsonl", 60)
    settings = config(data, tiny_llama, max_steps=7)
    record: Any = run.fit(settings, tmp_path / "o", command="llabel fit")
    found = record["training"]["summary"]
    lines = (tmp_path / "o/train.log.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    rows = record["data"]["rows"]["train"]
    assert found["global_steps"] == len(losses) == 7
    assert found["training_loss"] == pytest.approx(sum(losses) / 7, abs=1e-4)
    assert found["epoch"] == pytest.approx(7 / math.ceil(rows / 8), abs=0.05)
    assert found["runtime"] == record["cost"]["train_seconds"]
    assert found["samples_per_second"] == pytest.approx(record["cost"]["train_rows_per_second"])
    assert found["total_flos"] > 6 * 7 * 8 * 10 * 1000
    assert f"{found['training_loss']:.4f}" in next(summary(found))
    assert list(summary(None)) == []
    assert render_run(record, tmp_path) is not None


def test_a_solver_s_iterations_are_no_steps(tmp_path: Path) -> None:
    data = write_weather(tmp_path / "weather.jsonl", 40)
    settings = config(data, tmp_path, RunSettings(rung="bag-of-words"))
    record: Any = run.fit(settings, tmp_path / "o", command="x")
    assert record["training"]["steps"] > 0
    assert record["training"]["summary"] is None


def test_flops_are_those_of_transformers(tmp_path: Path, tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    data = write_weather(tmp_path / "weather.jsonl", 40)
    record: Any = run.fit(config(data, tiny_llama, max_steps=2), tmp_path / "o", command="x")
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama)
    base = plain.num_parameters(exclude_embeddings=True)
    adapter = record["cost"]["trainable_parameters"]
    trial = record["training"]["trials"][0]
    assert record["training"]["summary"]["total_flos"] == 6 * trial["tokens"] * (base + adapter)
