import errno
import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llabel.engine.model import load_adapter, load_model
from llabel.errors import InputError
from llabel.ladder import registry
from llabel.ladder.llm import LLMRung
from llabel.ladder.prompted import PromptedRung
from small_disk import full_disk
from tiny_models import random_model
from tiny_rungs import TASK, own_proba, untrained
from tiny_tasks import make_task

# Adapters


@pytest.fixture
def trained(llm_settings, tmp_path):
    rung = LLMRung(llm_settings(template="alpaca")).fit(TASK)
    rung.save(tmp_path / "run")
    return rung


def test_peft_alone_gives_the_same_probabilities(llm_settings, tiny_llama, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    rung = LLMRung(llm_settings()).fit(TASK)  # " true" and " false" are single tokens
    assert all(len(tokens) == 1 for tokens in rung.trie_.tokens)
    rung.save(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    expected = rung.predict_proba(TASK.test.texts)
    np.testing.assert_allclose(own_proba(adapted, rung, TASK.test.texts), expected, atol=1e-5)
    zero_shot = untrained(llm_settings()).predict_proba(TASK.test.texts)
    assert np.abs(zero_shot - expected).max() > 0.05  # training did change something


def test_a_merged_model_gives_the_same_probabilities(llm_settings):
    rung = LLMRung(llm_settings()).fit(TASK)
    expected = rung.predict_proba(TASK.test.texts)
    merged = rung.model_.merge_and_unload()
    np.testing.assert_allclose(own_proba(merged, rung, TASK.test.texts), expected, atol=1e-4)


@pytest.mark.parametrize(
    "classes", [(False, True), (1, 2, 30), ("style", "style & beauty", "naïve 😀")]
)
def test_what_is_loaded_is_what_was_saved(llm_settings, tmp_path, classes):
    task = make_task(classes, train=6)
    rung = LLMRung(llm_settings(template="alpaca", label_words={str(classes[0]): "Nope"})).fit(task)
    rung.save(tmp_path)
    loaded = LLMRung.load(tmp_path)
    expected = rung.predict_proba(TASK.test.texts)
    assert np.array_equal(loaded.predict_proba(TASK.test.texts), expected)
    assert loaded.classes_ == classes
    assert [type(label) for label in loaded.classes_] == [type(label) for label in classes]
    assert (loaded.settings, loaded.trie_, loaded.template_) == (
        rung.settings,
        rung.trie_,
        rung.template_,
    )


def test_a_saved_rung_does_not_need_its_template_file(llm_settings, tmp_path):
    path = tmp_path / "template.txt"
    path.write_text("{question}? {passage} One of {labels}:")
    rung = LLMRung(llm_settings(template=str(path))).fit(TASK)
    rung.save(tmp_path / "run")
    path.unlink()
    loaded = LLMRung.load(tmp_path / "run")
    expected = rung.predict_proba(TASK.test.texts)
    assert np.array_equal(loaded.predict_proba(TASK.test.texts), expected)


def test_saving_again_replaces_and_leaves_nothing_behind(trained, tmp_path):
    trained.save(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"adapter", "rung.json"}
    files = {path.name for path in (tmp_path / "run" / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    record = json.loads((tmp_path / "run" / "rung.json").read_text())
    assert record["classes"] == [False, True]


def test_settings_may_be_changed_on_loading(trained, tmp_path):
    loaded = LLMRung.load(tmp_path / "run", precision="bfloat16", token_budget=64)
    assert loaded.model_.get_base_model().dtype == torch.bfloat16
    expected = trained.predict_proba(TASK.test.texts)
    np.testing.assert_allclose(loaded.predict_proba(TASK.test.texts), expected, atol=0.1)


@pytest.mark.parametrize(
    ("lose", "message"),
    [
        ("rung.json", r"holds no trained rung \(rung.json is missing\).*finished `llabel fit`"),
        ("adapter/adapter_model.safetensors", r"holds no adapter_model\.safetensors"),
    ],
)
def test_folders_that_hold_no_rung(trained, tmp_path, lose, message):
    (tmp_path / "run" / lose).unlink()
    with pytest.raises(InputError, match=message):
        LLMRung.load(tmp_path / "run")


def test_a_record_of_another_version_is_refused(llm_settings, tmp_path):
    untrained(llm_settings()).save(tmp_path)
    record = json.loads((tmp_path / "rung.json").read_text(encoding="utf-8"))
    (tmp_path / "rung.json").write_text(json.dumps(record | {"schema": 2}), encoding="utf-8")
    for load in (LLMRung.load, registry.load):
        with pytest.raises(InputError, match=r"schema 2 where 1 is known.*another version"):
            load(tmp_path)


@pytest.mark.parametrize("trained_first", [True, False], ids=["llm-lora", "llm-zero-shot"])
def test_other_weights_under_the_same_name_are_refused(
    llm_settings, tiny_llama, tmp_path, trained_first
):
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    settings = llm_settings(model=str(model), epochs=1)
    kind: Any = LLMRung if trained_first else PromptedRung
    asked = {} if trained_first else {"few_shot": False, "calibrated": False}
    kind(settings, **asked).fit(TASK).save(tmp_path / "run")
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    loaded.save_pretrained(model, max_shard_size="100KB")  # the same, in other files
    (model / "model.safetensors").unlink()
    assert len(list(model.glob("*.safetensors"))) > 1
    expected = kind.load(tmp_path / "run").predict_proba(TASK.test.texts)
    random_model(loaded.config, seed=1).save_pretrained(model, max_shard_size="100KB")
    with pytest.raises(InputError, match=r"are no longer those that .*run was made with"):
        kind.load(tmp_path / "run")
    named = kind.load(tmp_path / "run", model=str(tiny_llama))
    np.testing.assert_array_equal(named.predict_proba(TASK.test.texts), expected)


def test_an_adapter_of_another_training_is_refused(llm_settings, tmp_path):
    """As a save over an older one leaves it when it is killed before rung.json is written."""
    run = tmp_path / "run"
    untrained(llm_settings()).save(run)
    untrained(llm_settings(seed=1)).save(tmp_path / "new")
    LLMRung.load(run)
    shutil.copytree(tmp_path / "new" / "adapter", run / "adapter", dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"safetensors is damaged, or of another training than"):
        LLMRung.load(run)
    record = json.loads((run / "rung.json").read_text())
    del record["adapter"]  # as older versions wrote it
    (run / "rung.json").write_text(json.dumps(record))
    LLMRung.load(run)


def truncate(path):
    path.write_bytes(path.read_bytes()[:5000])


def rename(path):
    tensors = load_file(path)
    save_file({name.replace("layers.1", "layers.7"): t for name, t in tensors.items()}, path)


def lower_rank(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 2}))


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("model.safetensors", truncate, r"PEFT can read \(SafetensorError: .* Train the run again"),
        (
            "model.safetensors",
            rename,
            r"is none of this LlamaForCausalLM: .*layers\.1\..* 28 in all",
        ),
        ("config.json", lambda path: path.write_text("{"), r"PEFT can read \(JSONDecodeError"),
        ("config.json", lambda path: path.write_text("{}"), r"holds no adapter that PEFT can read"),
        ("config.json", lambda path: path.unlink(), r"holds no adapter_config\.json\. Train"),
        ("config.json", lower_rank, r"tensors of other shapes than .* shape torch\.Size"),
    ],
)
def test_an_adapter_that_does_not_fit_its_model(
    llm_settings, tiny_llama, tmp_path, name, spoil, message
):
    untrained(llm_settings()).save(tmp_path)
    spoil(tmp_path / "adapter" / f"adapter_{name}")
    base = load_model(tiny_llama, torch.device("cpu"), "float32")
    with pytest.raises(InputError, match=message):
        load_adapter(base, tmp_path / "adapter")


def test_a_full_disk_is_an_error_of_the_files(llm_settings, tmp_path):
    rung = untrained(llm_settings())
    with full_disk(10_000), pytest.raises(OSError, match="too large") as raised:
        rung.save(tmp_path)
    assert raised.value.errno == errno.EFBIG
    assert not (tmp_path / "rung.json").exists()
