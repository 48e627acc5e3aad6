"""Rotary positions beyond the context: transformers' angles, both engines, and what is refused."""

import numpy as np
import pytest
import torch

from llabel.engine.model import load_model
from llabel.engine.native.library import compiler
from llabel.engine.rope import scaled_config
from llabel.errors import InputError
from llabel.ladder.llm import LLMRung
from llabel.ladder.prompted import PromptedRung
from llabel.settings import RopeScaling, parse_rope
from test_architectures import GPT2_SIZES
from tiny_models import llama_config, random_model, save_llama, save_tokenizer
from tiny_rungs import TASK, untrained

KINDS = ("linear", "dynamic", "yarn", "llama3")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("tiny-model"))


def test_kind_and_factor():
    assert parse_rope(None) is None
    assert parse_rope("yarn:4") == RopeScaling("yarn", 4.0)
    assert parse_rope("linear:1.5") == RopeScaling("linear", 1.5)


@pytest.mark.parametrize("given", ["yarn:0.5", "yarn:-4", "yarn:nan", "yarn:inf", "yarn:four"])
def test_a_factor_below_1_is_refused(given, llm_settings):
    with pytest.raises(InputError, match=f"--rope-scaling '{given}': the factor must be a number"):
        LLMRung(llm_settings(rope_scaling=given)).prepare(TASK.fields, TASK.classes)


@pytest.mark.parametrize("given", ["ntk:4", "yarn", "4", "", "YARN:4"])
def test_an_unknown_kind_is_refused_with_names(given):
    with pytest.raises(InputError, match="one of linear, dynamic, yarn, llama3"):
        parse_rope(given)


def test_a_model_without_rotary_positions_is_refused(tmp_path, llm_settings):
    from transformers import GPT2Config

    size = save_tokenizer(tmp_path)
    random_model(GPT2Config(**GPT2_SIZES, vocab_size=size)).save_pretrained(tmp_path)
    rung = LLMRung(llm_settings(model=str(tmp_path), rope_scaling="yarn:4"))
    with pytest.raises(InputError, match="yarn:4: gpt2 has no rotary positions to scale"):
        rung.prepare(TASK.fields, TASK.classes)


def test_positions_that_are_scaled_already_are_refused(tmp_path):
    llama_config(400, rope_parameters={
        **{"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0},
    }).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(InputError, match=r"scaled already \(linear, factor 2.0\).* 512 tokens"):
        scaled_config(tmp_path, RopeScaling("yarn", 4.0))


@pytest.mark.parametrize("kind", KINDS)
def test_angles_are_those_of_transformers(folder, kind):
    """`dynamic`: at the whole context, where transformers has the same."""
    rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 10_000.0}
    if kind in {"yarn", "llama3"}:
        rope["original_max_position_embeddings"] = 512
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    theirs = random_model(llama_config(400, rope_parameters=rope)).get_decoder().rotary_emb
    ours = load_model(folder, CPU, "float32", rope=RopeScaling(kind, 4.0)).get_decoder().rotary_emb
    positions = torch.arange(2048)[None]
    for found, expected in zip(
        ours(torch.empty(0), positions), theirs(torch.empty(0), positions), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 if kind == "dynamic" else 0)
    assert (ours.attention_scaling > 1) == (kind == "yarn")


@pytest.mark.parametrize("kind", KINDS)
def test_both_engines_below_and_above_the_first_context(folder, kind, llm_settings, tmp_path):
    given = {"model": str(folder), "rope_scaling": f"{kind}:4", "precision": "float32"}
    texts = [*TASK.test.texts[:2], ("is this 9", "it is film " + "music " * 600)]
    rung = untrained(llm_settings(**given))
    short, _, long = rung.encoder_.lengths(texts)
    assert short < 512 < long < rung.max_length_ + rung.trie_.longest == 2048
    assert rung.engine_ == ("packed" if compiler() else "plain")
    proba = rung.predict_proba(texts)
    plain = untrained(llm_settings(**given, engine="plain")).predict_proba(texts)
    np.testing.assert_allclose(plain, proba, atol=1e-5)
    alone = np.concatenate([rung.predict_proba([text]) for text in texts])
    np.testing.assert_allclose(alone, proba, atol=1e-6)
    rung.save(tmp_path)
    assert np.array_equal(LLMRung.load(tmp_path).predict_proba(texts), proba)
    unscaled = untrained(llm_settings(model=str(folder), precision="float32"))
    assert np.abs(unscaled.predict_proba(texts[:2]) - proba[:2]).max() > 1e-6


def test_max_seq_length_may_reach_the_new_context(folder, llm_settings):
    given = {"model": str(folder), "rope_scaling": "linear:1.5"}
    rung = LLMRung(llm_settings(**given, max_seq_length=768)).prepare(TASK.fields, TASK.classes)
    assert rung.prompting_.max_total == 768
    with pytest.raises(InputError, match=r"769 is more .*: 768 tokens with --rope-scaling"):
        LLMRung(llm_settings(**given, max_seq_length=769)).prepare(TASK.fields, TASK.classes)


def test_zero_shot_reads_it_too(folder, llm_settings):
    settings = llm_settings(model=str(folder), rope_scaling="yarn:2")
    rung = PromptedRung(settings, few_shot=False, calibrated=False).fit(TASK)
    assert rung.reader_.model.config.max_position_embeddings == 1024
    assert rung.record_.settings["rope_scaling"] == "yarn:2"
