"""Llama 3.1 and 3.2: the tokenizer in tiktoken's format, and models in exactly their form."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from llabel.assets import resolve_model
from llabel.engine import llama3_tokenizer
from llabel.engine.model import load_tokenizer
from llabel.engine.native.library import compiler
from llabel.errors import InputError
from llabel.ladder.llm import LLMRung
from llabel.task import Split
from tiny_llama3 import LLAMA_3_1, LLAMA_3_2, RANKS, TINY, VOCABULARY, ranks, save_llama3
from tiny_tasks import make_task

TASK = make_task(train=4, validation=2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_llama3(tmp_path_factory.mktemp("llama3"), LLAMA_3_2 | TINY)


@pytest.fixture(scope="module")
def ours(tiny):
    return load_tokenizer(tiny)


@pytest.fixture(scope="module")
def theirs():
    specials = {text: RANKS + place for place, text in enumerate(llama3_tokenizer.special_tokens())}
    return tiktoken.Encoding(
        "llama3",
        pat_str=llama3_tokenizer.PATTERN,
        mergeable_ranks=ranks(),
        special_tokens=specials,
    )


def test_special_tokens_stand_where_meta_has_them(ours):
    assert len(ours) == VOCABULARY
    assert len(set(llama3_tokenizer.special_tokens())) == 256
    known = {
        128_000: "<|begin_of_text|>",
        128_001: "<|end_of_text|>",
        128_002: "<|reserved_special_token_0|>",
        128_004: "<|finetune_right_pad_id|>",
        128_005: "<|reserved_special_token_2|>",
        128_006: "<|start_header_id|>",
        128_007: "<|end_header_id|>",
        128_008: "<|eom_id|>",
        128_009: "<|eot_id|>",
        128_010: "<|python_tag|>",
        128_011: "<|reserved_special_token_3|>",
        128_255: "<|reserved_special_token_247|>",
    }
    assert {number: ours.convert_ids_to_tokens(number) for number in known} == known
    assert (ours.bos_token_id, ours.eos_token_id) == (128_000, 128_001)
    assert ours("a")["input_ids"][0] == 128_000
    assert ours("<|eot_id|>", add_special_tokens=False)["input_ids"] == [128_009]


@given(text=st.text(max_size=60) | st.text("ab'S  \n1234.,", max_size=60))
def test_texts_become_the_tokens_that_tiktoken_makes(ours, theirs, text):
    found = ours(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert found == theirs.encode(text, disallowed_special=())
    assert ours.decode(found) == text


def test_an_instruct_model_ends_its_turns(tiny, tmp_path):
    config = json.loads((tiny / "config.json").read_text())
    ends = {"eos_token_id": [128_001, 128_008, 128_009]}
    (tmp_path / "config.json").write_text(json.dumps(config | ends))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ 1 }}"}))
    (tmp_path / "original").mkdir()
    shutil.copy(tiny / "tokenizer.model", tmp_path / "original")
    shutil.copy(tiny / "model.safetensors", tmp_path)
    assert resolve_model(str(tmp_path)) == tmp_path
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_token == "<|eot_id|>"
    assert tokenizer.chat_template == "{{ 1 }}"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: [*lines[:7], "no rank", *lines[8:]], "line 8: not a token in base64"),
        (lambda lines: lines[1:] + lines[:1] * 2, None),  # a line twice is the same line
        (lambda lines: lines[:-2] + lines[-1:], "127,999 ranks are not those from 0 on"),
        (lambda lines: [*lines, "QUJDRA== 128000"], "but the model has 128256"),
    ],
)
def test_a_damaged_file_is_refused(tiny, tmp_path, edit, message):
    shutil.copy(tiny / "config.json", tmp_path)
    lines = (tiny / "tokenizer.model").read_text().splitlines()
    (tmp_path / "tokenizer.model").write_text("\n".join(edit(lines)) + "\n")
    if message is None:
        assert len(load_tokenizer(tmp_path)) == VOCABULARY
        return
    with pytest.raises(InputError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_training_saving_and_reading(tied, tiny, llm_settings, tmp_path):
    """One step, with a row longer than the 8,192 tokens that the rotary positions began with."""
    folder = tiny if tied else save_llama3(tmp_path / "3.1", LLAMA_3_1 | TINY)
    long = ("is this 0", "it is film " + " music" * 3200)
    train = replace(TASK.train, texts=(long, *TASK.train.texts[1:]))
    task = replace(TASK, train=train)
    settings = llm_settings(model=str(folder), epochs=1, token_budget=16_384, precision="float32")
    rung = LLMRung(settings).fit(task)
    assert rung.progress_.step == 1
    assert 9_000 < rung.encoder_.lengths([long])[0] < 11_000
    assert rung.engine_ == ("packed" if compiler() else "plain")
    texts = (long, *TASK.validation.texts)
    proba = rung.predict_proba(texts)
    rung.save(tmp_path / "rung")
    assert np.array_equal(LLMRung.load(tmp_path / "rung").predict_proba(texts), proba)
    plain = LLMRung.load(tmp_path / "rung", engine="plain").predict_proba(texts)
    np.testing.assert_allclose(plain, proba, atol=1e-5)


def test_beginning_and_end_of_a_row(tiny, llm_settings):
    rung = LLMRung(llm_settings(model=str(tiny), loss="sft")).prepare(TASK.fields, TASK.classes)
    examples, _ = rung.examples(Split(TASK.test.ids, TASK.test.texts, TASK.test.y))
    assert {example.input_ids[0] for example in examples} == {128_000}
    assert {example.targets[-1] for example in examples} == {128_001}


def test_only_llama3_is_converted(tiny, tmp_path):
    assert llama3_tokenizer.ranks_file(tiny) == tiny / "tokenizer.model"
    shutil.copy(tiny / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert llama3_tokenizer.ranks_file(tmp_path) is None
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")  # as SentencePiece's
    assert llama3_tokenizer.ranks_file(tmp_path) is None
    assert llama3_tokenizer.ranks_file(Path("nowhere")) is None


_MAKE = """
import sys; from pathlib import Path; import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from tiny_llama3 import LLAMA_3_2, ONE_BILLION, write_ranks
folder = Path(sys.argv[1]); torch.manual_seed(0)
config = LlamaConfig(**LLAMA_3_2, **ONE_BILLION)
AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
write_ranks(folder / "tokenizer.model")
"""
_USE = """
import json, resource, sys
from llabel.ladder.llm import LLMRung
from llabel.settings import LLMSettings
from tiny_tasks import make_task
task = make_task(train=2, validation=2)
rung = LLMRung(LLMSettings(model=sys.argv[1], device="cpu", epochs=1, precision="float32"))
rung.fit(task)
print(json.dumps({
    "steps": rung.progress_.step, "parameters": rung.record_.parameters,
    "proba": rung.predict_proba(task.test.texts).tolist(),
    "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in kilobytes on Linux")
def test_the_size_of_llama_3_2_1b_in_12_gib(tmp_path):
    """A random model: one training step, one prediction, each in a process of its own."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    for script in (_MAKE, _USE):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            **{"env": os.environ | {"PYTHONPATH": path}, "capture_output": True, "text": True},
            check=False,
        )
        assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["steps"] == 1
    # 1,235,814,400 of the base model, and rank 16 in seven linear layers of each of 16
    assert found["parameters"] == 1_235_814_400 + 11_272_192
    np.testing.assert_allclose(np.sum(found["proba"], axis=1), 1)
    assert found["gib"] < 12
    print(f"peak memory: {found['gib']:.2f} GiB")
