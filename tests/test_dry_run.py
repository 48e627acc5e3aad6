import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from llabel.assessment import TRAIN_SAMPLE
from llabel.check.estimate import RunEstimate, model_size
from llabel.dry_run import find_row, prepare, run_cost
from llabel.engine.native.library import compiler
from llabel.errors import InputError
from llabel.run import load
from llabel.settings import DataSettings
from runs import config, write_weather

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")


@pytest.fixture
def no_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose work would blur the shares of the frozen layers that a test is about."""
    monkeypatch.setattr("llabel.dry_run._adapter_weights", lambda *_: 0)


def cost_of(tmp_path: Path, model: Path, **llm: Any) -> RunEstimate:
    """Of a run over 10,000 training tokens that predicts its validation rows and a sample."""
    made = config(write_weather(tmp_path / "weather.jsonl", 60), model, **llm)
    task = load(made).task
    return run_cost(prepare(made, task), task)(10_000, 0)


def relative_time(found: RunEstimate) -> float:
    """Of training, in units of prediction: each measures the machine's rate anew."""
    return found.train_seconds / found.predict_seconds


@pytest.mark.usefixtures("no_adapters")
@pytest.mark.parametrize(("trials", "refit"), [(1, False), (1, True), (3, True)])
def test_the_cost_counts_all_that_a_run_predicts(
    tmp_path: Path, tiny_llama: Path, trials: int, refit: bool
) -> None:
    made = config(
        write_weather(tmp_path / "weather.jsonl", 60), tiny_llama,
        epochs=3, trials=trials, refit=refit,
    )  # fmt: skip
    task = load(made).task
    rung = prepare(made, task)
    validation = sum(rung.encoder_.lengths(task.validation.texts))
    trainings = 3 * (trials + refit)
    found = run_cost(rung, task)(1000, 500)
    seconds_per_token = found.train_seconds / (2 * 1000 * trainings)  # forward and backward
    predicted = found.predict_seconds / seconds_per_token
    assert predicted == pytest.approx(500 + trials * 3 * validation + 1000)


@pytest.mark.usefixtures("no_adapters")
def test_rows_in_pieces_are_predicted_whole(tmp_path: Path, tiny_llama: Path) -> None:
    made = config(
        write_weather(tmp_path / "weather.jsonl", 60), tiny_llama, epochs=1, max_seq_length=64,
        compile=True,  # which reads nothing once for all
    )  # fmt: skip
    task = load(made).task
    long = tuple((text * 20, note) for text, note in task.validation.texts)
    task = replace(task, validation=replace(task.validation, texts=long))
    times = {}
    for kept in ("head", "chunks"):
        rung = prepare(replace(made, llm=replace(made.llm, long=kept)), task)
        found = run_cost(rung, task)(1000, 0)
        times[kept] = 2000 * found.predict_seconds / found.train_seconds - 1000  # tokens
    whole = sum(rung.encoder_.lengths(task.validation.texts))
    assert times["head"] == pytest.approx(rung.max_length_ * len(long))
    assert times["chunks"] > whole > 2 * times["head"], "with a template for each piece"


@pytest.mark.usefixtures("no_adapters")
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


@pytest.mark.usefixtures("no_adapters")
@pytest.mark.parametrize(
    "engine", [pytest.param("auto", marks=needs_compiler), "plain"], ids=["packed", "plain"]
)
def test_layers_that_are_run_again_take_time_and_spare_memory(
    tmp_path: Path, tiny_llama: Path, engine: str
) -> None:
    chosen = {"engine": engine, "token_budget": 4096}
    kept = cost_of(tmp_path, tiny_llama, **chosen)
    again = cost_of(tmp_path, tiny_llama, gradient_checkpointing=True, **chosen)
    assert relative_time(again) == pytest.approx(1.5 * relative_time(kept))
    assert again.peak_memory_mb < kept.peak_memory_mb
    assert "layers run again in the backward pass" in again.basis


@pytest.mark.usefixtures("no_adapters")
@pytest.mark.parametrize(
    ("changes", "share"),
    [  # of two layers: forward, backward, and the lower one forward
        pytest.param({"epochs": 3}, (3 * 2 + 1) / 12, marks=needs_compiler),
        pytest.param({"epochs": 1}, (2 + 1) / 4, marks=needs_compiler),
        # 60 rows: 43 to train on, 6 steps an epoch.
        pytest.param({"epochs": 1, "max_steps": 18}, (3 * 2 + 1) / 12, marks=needs_compiler),
        pytest.param({"epochs": 3, "max_steps": 3}, (2 + 1) / 4, marks=needs_compiler),
        pytest.param({"epochs": 1, "refit": True}, (2 * 2 + 1) / 8, marks=needs_compiler),
        ({"epochs": 3, "engine": "plain"}, (2 + 1) / 4),
        ({"epochs": 3, "lora_dropout": 0.1}, (2 + 1) / 4),  # the plain engine's
    ],
)
def test_layers_without_adapters_are_counted_as_they_are_read(
    tmp_path: Path, tiny_llama: Path, changes: dict[str, Any], share: float
) -> None:
    whole = cost_of(tmp_path, tiny_llama, **changes)
    found = cost_of(tmp_path, tiny_llama, adapt_layers=1, **changes)
    assert relative_time(found) == pytest.approx(share * relative_time(whole))
    assert "1 of 2 layers adapted" in found.basis


@needs_compiler
def test_states_that_are_kept_take_memory(tmp_path: Path, tiny_llama: Path) -> None:
    once, thrice = (
        cost_of(tmp_path, tiny_llama, adapt_layers=1, epochs=epochs).peak_memory_mb
        for epochs in (1, 3)
    )
    hidden = json.loads((tiny_llama / "config.json").read_text())["hidden_size"]
    assert thrice - once == pytest.approx(10_000 * 4 * hidden / 2**20)


def test_rank_steps_and_trials_change_the_cost(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llabel.dry_run.measure_matmul_rate", lambda *_, **__: 1e9)

    def seconds(**llm: Any) -> float:
        return cost_of(tmp_path, tiny_llama, **{"epochs": 1, "engine": "plain"} | llm).train_seconds

    linear = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)  # two layers: q o, k v, gate up down
    width = 2 * (2 * 128 + 2 * 96 + 3 * 192)  # inputs and outputs of each
    low, high = seconds(r=1), seconds(r=64)
    assert high / low == pytest.approx((4 * linear + 6 * 64 * width) / (4 * linear + 6 * width))
    queries = seconds(r=64, target_modules=("q_proj",))
    assert queries / low == pytest.approx(
        (4 * linear + 6 * 64 * 2 * 128) / (4 * linear + 6 * width)
    )
    # 43 rows to train on, in steps of 8: 6 an epoch.
    assert seconds(r=1, max_steps=3) == pytest.approx(low / 2)
    assert seconds(r=1, max_steps=3, batch_size=16) == pytest.approx(low)
    assert seconds(r=1, trials=3) == pytest.approx(3 * low)
    with pytest.raises(InputError, match="no linear layer 'query'"):
        seconds(target_modules=("query",))


def test_more_layers_than_the_model_has_are_refused(tmp_path: Path, tiny_llama: Path) -> None:
    with pytest.raises(InputError, match="--adapt-layers 3: the model has 2 layers"):
        cost_of(tmp_path, tiny_llama, adapt_layers=3)


@needs_compiler
def test_where_lower_states_are_kept_rows_are_read_whole(tmp_path: Path, tiny_llama: Path) -> None:
    """So what prompts share is not read once a micro-batch."""
    labels = " ".join(f"Say whether it was sun or ice, number {n}." for n in range(8))
    chosen = {"template": "alpaca", "instruction": labels, "max_seq_length": 512,
              "token_budget": 4096, "adapt_layers": 1, "batch_size": 8}  # fmt: skip
    once = relative_time(cost_of(tmp_path, tiny_llama, epochs=1, **chosen))
    alone = relative_time(cost_of(tmp_path, tiny_llama, epochs=1, **chosen | {"batch_size": 1}))
    assert once < 0.8 * alone
    kept, also = (
        relative_time(cost_of(tmp_path, tiny_llama, epochs=2, **chosen | {"batch_size": rows}))
        for rows in (8, 1)
    )
    assert kept == pytest.approx(also)


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


@needs_compiler
@pytest.mark.parametrize(
    ("avx2", "fast", "most", "copies"),
    [
        (True, True, 2**30, 2),  # with VNNI: a copy for each direction
        (True, True, 0, 0),  # a model that is too large for that
        (True, False, 0, 2),  # AVX2 alone: there is no other way
        (False, False, 2**30, 4),  # ARM: one in float32
    ],
)
def test_copies_of_int8_weights_count_as_memory(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch,
    avx2: bool, fast: bool, most: int, copies: int,
) -> None:  # fmt: skip
    monkeypatch.setattr("llabel.dry_run.has_avx2", lambda: avx2)
    monkeypatch.setattr("llabel.engine.projection.has_matrix_unit", lambda: False)
    monkeypatch.setattr("llabel.engine.projection.COPIED", most)
    for module in ("llabel.dry_run", "llabel.engine.projection"):
        monkeypatch.setattr(f"{module}.int_mm_is_fast", lambda: fast)
    there = cost_of(tmp_path, tiny_llama, precision="int8", epochs=1)
    plain = cost_of(tmp_path, tiny_llama, precision="int8", epochs=1, engine="plain")
    weights = model_size(AutoConfig.from_pretrained(tiny_llama)).linear_parameters
    found = (there.peak_memory_mb - plain.peak_memory_mb) * 2**20 / weights
    assert found == pytest.approx(copies, abs=0.01)


def test_the_first_row_is_the_first_that_there_is(tmp_path: Path) -> None:
    lines = write_weather(tmp_path / "weather.jsonl", 60).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for number in (0, 1, 30, 59):
        rows[number]["label"] = None
    data = tmp_path / "gaps.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = DataSettings(text=("text", "note"), label="label", drop_unlabelled=True)
    made = replace(config(data, tmp_path), data=told)
    task, name, text, label = find_row(made, None)
    assert (name, text, task.classes[label]) == (  # type: ignore[index]
        "gaps:3",
        (rows[2]["text"], rows[2]["note"]),
        rows[2]["label"],
    )
    assert find_row(made, "4")[1] == "gaps:4"
    for row in ("1", "31", "60"):
        with pytest.raises(InputError, match=r"There are gaps:3 to gaps:59 \(56 rows\)\.$"):
            find_row(made, row)
