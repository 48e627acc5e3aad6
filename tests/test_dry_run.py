from dataclasses import replace
from pathlib import Path

import pytest

from llabel.assessment import TRAIN_SAMPLE
from llabel.dry_run import prepare, run_cost
from llabel.engine.native.library import compiler
from llabel.run import load
from runs import config, write_weather


@pytest.mark.parametrize("refit", [False, True])
def test_the_cost_counts_all_that_a_run_predicts(
    tmp_path: Path, tiny_llama: Path, refit: bool
) -> None:
    made = config(write_weather(tmp_path / "weather.jsonl", 60), tiny_llama, epochs=3, refit=refit)
    task = load(made).task
    rung = prepare(made, task)
    validation = sum(rung.encoder_.lengths(task.validation.texts))
    trainings = 3 * (2 if refit else 1)
    found = run_cost(rung, task)(1000, 500)
    seconds_per_token = found.train_seconds / (2 * 1000 * trainings)  # forward and backward
    predicted = found.predict_seconds / seconds_per_token
    assert predicted == pytest.approx(500 + 3 * validation + 1000)


def test_of_many_training_rows_a_sample_is_predicted(tmp_path: Path, tiny_llama: Path) -> None:
    made = config(write_weather(tmp_path / "weather.jsonl", 60), tiny_llama, epochs=1)
    task = load(made).task
    task = replace(task, validation=replace(task.validation, ids=(), texts=()),
                   train=replace(task.train, ids=task.train.ids * 100))  # fmt: skip
    found = run_cost(prepare(made, task), task)(1000, 500)
    share = TRAIN_SAMPLE / len(task.train)
    predicted = 2 * 1000 * found.predict_seconds / found.train_seconds
    assert predicted == pytest.approx(500 + share * 1000, abs=1)


def test_what_prompts_begin_with_is_read_once(tmp_path: Path, tiny_llama: Path) -> None:
    """The labels of the instruction, in one token a micro-batch and once in prediction."""
    labels = " ".join(f"Say whether it was sun or ice, number {n}." for n in range(8))
    made = config(
        write_weather(tmp_path / "weather.jsonl", 60), tiny_llama, epochs=1, batch_size=8,
        template="alpaca", instruction=labels, max_seq_length=512, token_budget=4096,
    )  # fmt: skip
    task = load(made).task
    rung = prepare(made, task)
    prompts = [prompt.input_ids for prompt in rung.encoder_.encode(task.validation.texts)]
    whole = sum(map(len, prompts)) / len(prompts)
    shared = next(n for n in range(len(prompts[0])) if len({ids[:n] for ids in prompts}) > 1) - 1
    assert shared > 50
    found = run_cost(rung, task)(10_000, 0)
    rung.settings = replace(made.llm, batch_size=1)  # then there is nothing to share
    alone = run_cost(rung, task)(10_000, 0)
    share = (whole - shared + shared / 8) / whole
    # Each measured the machine's rate anew, which is the unit of both.
    assert found.train_seconds / found.predict_seconds == pytest.approx(
        share * alone.train_seconds / alone.predict_seconds, rel=0.01
    )


@pytest.mark.parametrize("avx2", [True, False])
def test_int8_is_promised_to_be_faster_only_where_integers_multiply_faster(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, avx2: bool
) -> None:
    monkeypatch.setattr("llabel.dry_run.int_mm_is_fast", lambda: False)
    monkeypatch.setattr("llabel.dry_run.has_avx2", lambda: avx2)
    monkeypatch.setattr("llabel.dry_run.measure_matmul_rate", lambda *_, **__: 1e9)
    made = config(write_weather(tmp_path / "weather.jsonl", 60), tiny_llama, epochs=1)
    task, seconds = load(made).task, {}
    for precision in ("float32", "int8"):
        own = replace(made, llm=replace(made.llm, precision=precision))
        seconds[precision] = run_cost(prepare(own, task), task)(1000, 500).train_seconds
    assert (seconds["int8"] < seconds["float32"]) is (avx2 and compiler() is not None)
