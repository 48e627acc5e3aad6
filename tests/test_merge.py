"""Adapters merged into their base: what is written, what is checked, what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from llabel import run
from llabel.cli import main
from llabel.engine.four_bit import FourBit
from llabel.engine.model import load_adapter, load_model
from llabel.errors import InputError
from llabel.events import RowsDone
from llabel.ladder import merged as merged_module
from llabel.ladder.llm import LLMRung
from llabel.ladder.prompted import PromptedRung
from llabel.merge import MergeCheck, _compared, merge
from llabel.settings import RunSettings
from llabel.task import Task
from runs import config, write_weather
from test_answer import configuration
from tiny_models import random_model, save_llama, save_tokenizer
from tiny_rungs import TASK
from two_targets import joint_task

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weather(tmp_path_factory.mktemp("data") / "weather.jsonl", 60)


def trained(out: Path, data: Path, model: Path, rung: Any = "llm-lora", **llm: Any) -> Path:
    told = config(data, model, RunSettings(rung=rung), **({"epochs": 1} | llm))
    run.fit(told, out, command="llabel fit …")
    return out


@pytest.fixture(scope="module")
def lora(tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "lora", data, tiny_llama)


@pytest.fixture(scope="module")
def qlora(tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "qlora", data, tiny_llama, "llm-qlora")


def as_zero_shot(folder: Path, model: Path, task: Task) -> np.ndarray:
    """What llm-zero-shot says with the merged model and the run's other settings."""
    rung = LLMRung.load(folder)
    settings = replace(rung.settings, model=str(model), base="auto")
    asked = PromptedRung(settings, few_shot=False, calibrated=False).fit(task)
    return asked.predict_proba(task.test.texts)


@pytest.fixture(params=["lora", "qlora"])
def finished(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_the_merged_model_answers_as_the_run_did(finished: Path, tmp_path: Path):
    out = tmp_path / "models" / "merged"
    found = merge(finished, out)
    task = run.load(run.RunConfig.from_flat(run.read_record(finished)["config"])).task
    assert found.rows == len(task.validation)
    assert found.flips == 0
    assert 0 < found.max_move < 1e-5
    before = LLMRung.load(finished).predict_proba(task.test.texts)
    np.testing.assert_allclose(as_zero_shot(finished, out, task), before, rtol=0, atol=1e-5)
    assert sorted(path.name for path in out.parent.iterdir()) == ["merged"]
    written = json.loads((out / "config.json").read_text())
    assert written["dtype"] == "float32"
    assert "quantization_config" not in written
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.float32}
    card = (out / "README.md").read_text()
    assert "{text}" in card
    assert "- sun: `sun`" in card
    assert f"Of {found.rows} rows that the run and this model were both asked, 0 got" in card
    assert str(finished.parent) not in card
    assert f"# {Path(run.read_record(finished)['config']['model']).name}, tuned by llm-" in card


def test_weights_are_base_and_update_added_in_float32(qlora: Path, tmp_path: Path):
    """For QLoRA to the 4-bit numbers; what no adapter changes stays as it was."""
    merge(qlora, tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    model = run.read_record(qlora)["config"]["model"]
    base = load_model(Path(model), CPU, "float32", four_bit=FourBit())
    plain = load_file(Path(model) / "model.safetensors")
    assert merged.keys() == plain.keys()
    tuned = load_adapter(base, qlora / "adapter").get_base_model()
    for name, weight in merged.items():
        layer: Any = tuned.get_submodule(name.removesuffix(".weight"))
        expected = plain[name]
        if hasattr(layer, "lora_A"):
            expected = layer.get_base_layer().weight + layer.get_delta_weight("default")
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_fewer_bits_move_probabilities_and_halve_the_file(lora: Path, tmp_path: Path, dtype: Any):
    whole = merge(lora, tmp_path / "whole")
    found = merge(lora, tmp_path / "half", dtype=dtype, max_flips=1)
    assert whole.max_move < found.max_move < 0.1
    assert found.mean_move <= found.max_move
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("whole", "half")]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.02)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize(
    ("kind", "llm"),
    [
        ("GPT2", {"base": "nf4"}),  # transposed layers
        ("Qwen2", {"base": "nf4-stored"}),  # biases
        ("Llama", {"precision": "int8", "use_rslora": True}),
    ],
)
def test_other_architectures_and_forms(kind: str, llm: dict[str, Any], data: Path, tmp_path: Path):
    size = save_tokenizer(tmp_path / "base")
    changes = {"n_positions": 128} if kind == "GPT2" else {}
    random_model(configuration(kind, vocab_size=size, **changes)).save_pretrained(tmp_path / "base")
    folder = trained(tmp_path / "run", data, tmp_path / "base", max_seq_length=64, **llm)
    found = merge(folder, tmp_path / "merged", max_flips=1)
    assert found.max_move < 1e-4, "both are asked in the same precision"


def test_a_saved_classifier_is_merged_with_texts_given(
    llm_settings: Any, data: Path, tmp_path: Path
):
    rung = LLMRung(llm_settings(epochs=1)).fit(TASK)
    rung.save(tmp_path / "saved")
    message = r"on which rows it was validated \(run\.json is missing\)\. Give texts .* --data FILE"
    with pytest.raises(InputError, match=message):
        merge(tmp_path / "saved", tmp_path / "merged")
    table = tmp_path / "rows.csv"
    table.write_text("question,passage\n" + "is this,it is film\nis that,it is music\n" * 5)
    found = merge(tmp_path / "saved", tmp_path / "merged", data=str(table), rows=4)
    assert (found.rows, found.flips) == (4, 0)


def test_an_answer_of_any_target_counts(llm_settings: Any, tmp_path: Path):
    rung = LLMRung(llm_settings(epochs=1)).fit(joint_task())
    rung.save(tmp_path / "saved")
    table = tmp_path / "rows.csv"
    table.write_text("note,text\n" + "day 1,warm wave\nday 2,cold stone\n" * 3)
    found = merge(tmp_path / "saved", tmp_path / "merged", data=str(table))
    assert (found.rows, found.flips) == (6, 0)
    assert found.max_move < 1e-5
    before, after = np.array([[0.6, 0.4, 0.6, 0.4]] * 2), np.array([[0.7, 0.3, 0.4, 0.6]] * 2)
    assert _compared(before, after, [(0, 2), (2, 4)]).flips == 2
    assert _compared(before, before, [(0, 2), (2, 4)]).flips == 0


def test_test_rows_are_never_asked(lora: Path, tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_weather(folder / "train.jsonl", 5)
    write_weather(folder / "test.jsonl", 9)
    asked: list[int] = []

    def count(event: Any) -> None:
        if isinstance(event, RowsDone):
            asked.append(event.rows)

    found = merge(lora, tmp_path / "a", data=str(folder), notify=count)
    assert (found.rows, sum(asked)) == (5, 10)
    write_weather(folder / "validation.jsonl", 3)
    assert merge(lora, tmp_path / "b", data=str(folder)).rows == 3


def test_flips_are_counted_as_shares():
    assert MergeCheck(200, 2, 0.0, 0.0).within(0.01)
    assert not MergeCheck(200, 3, 0.0, 0.0).within(0.01)
    assert MergeCheck(200, 0, 0.5, 0.5).within(0)


def llabel(*words: Any) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_command_says_what_changed(lora: Path, tmp_path: Path):
    done = llabel("merge", lora, "-o", tmp_path / "merged")
    assert done.exit_code == 0, done.output
    assert "0 of 6 answers change (0.00%); probabilities move by " in done.stdout
    assert f"in float32: use it as --model {tmp_path / 'merged'}." in done.stdout


def test_too_many_flips_fail_and_leave_nothing(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The written weights are spoilt, as a wrong merge would."""
    whole = merged_module.write_merged

    def inverted(rung: Any, folder: Path, out: Path, dtype: torch.dtype) -> None:
        whole(rung, folder, out, dtype)
        weights = load_file(out / "model.safetensors")
        for name in weights:
            if "norm" in name:
                weights[name] = -weights[name]
        save_file(weights, out / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(merged_module, "write_merged", inverted)
    done = llabel("merge", lora, "-o", tmp_path / "merged", "--max-flips", "0")
    assert done.exit_code == 1
    assert "of 6 answers change" in done.stdout
    assert "more than --max-flips 0 allows, so nothing was written" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_merged(
    lora: Path,
    data: Path,
    tiny_llama: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
):
    bag = trained(tmp_path / "bag", data, tiny_llama, "bag-of-words")
    with pytest.raises(InputError, match="the rung bag-of-words, which has no adapter to merge"):
        merge(bag, tmp_path / "merged")
    with pytest.raises(InputError, match="holds no trained rung"):
        merge(tmp_path / "nowhere", tmp_path / "merged")
    shutil.copytree(lora, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "adapter")
    with pytest.raises(InputError, match=r"has no adapter/adapter_model\.safetensors: it was rem"):
        merge(tmp_path / "bare", tmp_path / "merged")
    with pytest.raises(InputError, match=r"is there already\. Name a new or empty folder"):
        merge(lora, bag)
    with pytest.raises(InputError, match=r"is there already\. Name a new or empty folder"):
        merge(lora, data)
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    with pytest.raises(InputError, match=r"-o \. is the folder that you are in"):
        merge(lora, Path())
    assert not (tmp_path / "merged").exists()


def test_rows_that_are_gone_or_changed(tiny_llama: Path, tmp_path: Path):
    table = write_weather(tmp_path / "rows.jsonl", 40)
    folder = trained(tmp_path / "run", table, tiny_llama)
    write_weather(table, 40, seed=1)
    with pytest.raises(InputError, match=r"are not those of the run any more.* --data FILE\."):
        merge(folder, tmp_path / "merged")
    table.unlink()
    with pytest.raises(InputError, match=r"cannot be read again\. Call this where `llabel fit` wa"):
        merge(folder, tmp_path / "merged")


def test_an_empty_folder_may_be_there(lora: Path, tmp_path: Path):
    (tmp_path / "merged").mkdir()
    merge(lora, tmp_path / "merged", rows=2)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


@pytest.mark.parametrize("kind", ["dynamic", "yarn"])
def test_longer_positions_are_merged_once(kind: str, data: Path, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", data, save_llama(tmp_path / "m"), rope_scaling=f"{kind}:4")
    assert merge(folder, tmp_path / "merged").max_move < 1e-5
