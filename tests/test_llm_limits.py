import contextlib
import json
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llabel.engine.checkpoint import CheckpointFolder
from llabel.engine.four_bit import FourBit
from llabel.engine.model import load_model, load_tokenizer
from llabel.errors import InputError
from llabel.events import Event, Note, StepDone
from llabel.ladder.llm import LLMRung
from tiny_models import random_model, save_tokenizer
from tiny_rungs import BOOL, DEEP, TASK, untrained

# Prompts that fit


def test_rows_that_are_cut_are_counted_and_told(llm_settings):
    long = replace(TASK.train, texts=(("why", "because " * 200), *TASK.train.texts[1:]))
    events: list[Event] = []
    chosen = llm_settings(max_seq_length=60, epochs=1)
    rung = LLMRung(chosen).fit(replace(TASK, train=long), notify=events.append)
    assert rung.truncated_ == {"train": 1, "validation": 0}
    [note] = [event for event in events if isinstance(event, Note)]
    assert note.text.startswith("1 of 26 rows are longer than 58 tokens")
    examples, _ = rung.examples(long)
    assert max(len(example.input_ids) for example in examples) == 58  # " true" and its end make 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_seq_length": 10}, r"The template alone takes \d+ tokens, but only 8 are allowed"),
        (
            {"max_seq_length": 513},
            "--max-seq-length 513 is more than the context of .*: 512 tokens. Give at most 512 "
            r".*--rope-scaling yarn:2\.$",
        ),
        ({"template": "plane"}, "--template 'plane' is neither .* Did you mean 'plain'"),
        ({"label_words": {"True": "false"}}, "False and True have the same words 'false'"),
        ({"label_words": {"yes": "false"}}, "names 'yes', which is no label. Labels: False, True"),
        ({"model": "nowhere"}, "cannot find a model named 'nowhere'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_without_weights(llm_settings, changes, message):
    with pytest.raises(InputError, match=message):
        LLMRung(llm_settings(**changes)).prepare(TASK.fields, TASK.classes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ("q_proj", "c_attn")}, "no linear layer 'c_attn'.*all-linear.*q_proj"),
        ({"target_modules": ("lm_head",)}, "no linear layer 'lm_head' to adapt"),
        ({"target_modules": ("embed_tokens",)}, "no linear layer 'embed_tokens'"),
        ({"precision": "int4"}, "--precision 'int4': use one of float32, bfloat16, int8"),
        ({"device": "tpu"}, "--device 'tpu' is unknown. Use auto, cpu, cuda"),
        ({"device": "meta"}, "--device 'meta' is unknown. Use auto, cpu, cuda"),
        ({"device": "cuda:99"}, "--device 'cuda:99': this PyTorch sees \\d+ CUDA devices"),
    ],
)
def test_settings_that_do_not_fit_the_model(llm_settings, changes, message):
    with pytest.raises(InputError, match=message):
        LLMRung(llm_settings(**changes)).fit(TASK)


def test_target_modules_are_those_named(llm_settings):
    rung = untrained(llm_settings(target_modules=("q_proj", "mlp.up_proj")))
    trained = [name for name, p in rung.model_.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 2  # two layers, two modules, A and B
    assert all("q_proj" in name or "up_proj" in name for name in trained)


def test_a_model_that_begins_every_text(llm_settings, tiny_llama_bos):
    rung = LLMRung(llm_settings(model=str(tiny_llama_bos), epochs=30, patience=None)).fit(DEEP)
    assert (rung.predict_proba(DEEP.train.texts).argmax(1) == DEEP.train.y).all()


@pytest.fixture(scope="module")
def tiny_gpt2(tmp_path_factory):
    """Folder of a model whose projections are no `nn.Linear`, and whose layers are elsewhere."""
    from transformers import GPT2Config

    folder = tmp_path_factory.mktemp("tiny-gpt2")
    size = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
    tokens = {"vocab_size": save_tokenizer(folder), "bos_token_id": 0, "eos_token_id": 0}
    random_model(GPT2Config(**size, **tokens)).save_pretrained(folder)
    return folder


def test_another_architecture_learns_by_heart(llm_settings, tiny_gpt2):
    rung = LLMRung(llm_settings(model=str(tiny_gpt2), epochs=40, patience=None)).fit(BOOL)
    assert (rung.predict_proba(BOOL.train.texts).argmax(1) == BOOL.train.y).all()
    assert rung.max_length_ == 128 - 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compile": True}, "--compile does not know GPT2LMHeadModel"),
        ({"target_modules": ("q_proj",)}, "no linear layer 'q_proj'.*c_attn, c_fc, c_proj"),
    ],
)
def test_what_gpt2_does_not_have(llm_settings, tiny_gpt2, changes, message, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name)  # whether there is a compiler or not
    with pytest.raises(InputError, match=message):
        LLMRung(llm_settings(model=str(tiny_gpt2), **changes)).fit(BOOL)


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch asks for others elsewhere")
@pytest.mark.parametrize(("cxx", "there"), [(None, "clang++"), ("icpx", "g++"), ("icpx", None)])
def test_compiling_needs_the_compiler_that_pytorch_asks_for(
    llm_settings, monkeypatch, tmp_path, cxx, there
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if cxx:
        monkeypatch.setenv("CXX", cxx)
    if there:
        (tmp_path / there).write_text("#!/bin/sh\n")
        (tmp_path / there).chmod(0o755)
    with pytest.raises(
        InputError, match=rf"--compile needs a C\+\+ compiler.*'{re.escape(cxx or 'g++')}'"
    ):
        LLMRung(llm_settings(compile=True)).fit(BOOL)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_compiled_layers_learn_the_same_and_resume_exactly(llm_settings, tmp_path, precision):
    plain = LLMRung(llm_settings(precision=precision)).fit(TASK).predict_proba(TASK.test.texts)

    def stop(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 5:
            raise KeyboardInterrupt

    compiled = llm_settings(precision=precision, compile=True)
    checkpoints = CheckpointFolder(tmp_path, every_steps=2)
    with pytest.raises(KeyboardInterrupt):
        LLMRung(compiled).fit(TASK, checkpoints=checkpoints, notify=stop)
    again = LLMRung(compiled).fit(TASK, checkpoints=checkpoints).predict_proba(TASK.test.texts)
    undisturbed = LLMRung(compiled).fit(TASK).predict_proba(TASK.test.texts)
    assert np.array_equal(again, undisturbed)
    np.testing.assert_allclose(again, plain, atol=0.1 if precision == "int8" else 1e-3)


def test_damaged_weights_are_told(llm_settings, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match="holds no causal language model with safetensors"):
        LLMRung(llm_settings(model=str(folder))).fit(TASK)


@pytest.mark.parametrize("four_bit", [None, FourBit()], ids=["auto", "nf4"])
def test_weights_that_would_be_random_are_told(tiny_llama_bos, tmp_path, four_bit):
    def load():
        return load_model(folder, torch.device("cpu"), "float32", four_bit=four_bit)

    folder = shutil.copytree(tiny_llama_bos, tmp_path / "model")
    whole = load_file(folder / "model.safetensors")
    headless = {name: tensor for name, tensor in whole.items() if name != "lm_head.weight"}
    save_file(headless, folder / "model.safetensors", {"format": "pt"})
    message = r"lacks weights of its LlamaForCausalLM \(lm_head\.weight\), which .* be random"
    with pytest.raises(InputError, match=message):
        load()
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    message = r"down_proj\.weight is \(64, 128\), not \(64, 96\) \(6 in all\)\. Put weights and"
    with pytest.raises(InputError, match=message):
        load()


# Code that a model brings along


@pytest.mark.parametrize("what", ["model", "tokenizer"])
def test_a_models_own_code_is_never_run(tiny_llama, tmp_path, monkeypatch, what):
    """Even where somebody would answer transformers' question with yes."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: ..."
    )
    if what == "model":
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "evil", "auto_map": {
            "AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
    else:
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text())
        config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
        path.write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    if what == "model":
        with pytest.raises(InputError, match="transformers"):
            load_model(folder, torch.device("cpu"), "float32")
    else:
        with contextlib.suppress(InputError):  # or it is loaded as the plain tokenizer that it is
            load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_the_labels_own_tokens_count_in_the_token_budget(llm_settings, engine, monkeypatch):
    """Each row brings the whole trie along, which may be longer than its text."""
    classes = tuple(f"{first} {last}" for first in "abcdefgh" for last in "ijkl")
    settings = llm_settings(engine=engine, template="plain", token_budget=200)
    rung = untrained(settings, replace(TASK, classes=classes))
    reader, passes = rung.head_.reader, []
    read = reader.at_branchings

    def reading(batch, prefix):
        rows = len(batch.lengths)
        passes.append((rows, int(batch.lengths.sum()) + rows * reader.tree_tokens))
        return read(batch, prefix)

    assert reader.tree_tokens >= 8 * 2  # each first letter and the space behind it
    monkeypatch.setattr(reader, "at_branchings", reading)
    rung.predict_proba(TASK.train.texts)
    budget = 4 * settings.token_budget  # without gradients
    assert max(rows for rows, _ in passes) > 1
    assert all(tokens <= budget for _, tokens in passes)
    assert max(tokens for _, tokens in passes) > budget / 2
