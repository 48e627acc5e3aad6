"""The same tests for every kind of decoder, in both precisions and both engines."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llabel.engine.answer import AnswerHead
from llabel.engine.batching import Example, collate
from llabel.engine.model import LoraSettings, add_lora
from llabel.engine.native.library import compiler
from llabel.ladder.llm import LLMRung
from llabel.settings import LLMSettings
from test_answer import (
    ARCHITECTURES,
    PROMPTS,
    SLIDING_AND_FULL,
    TEXT,
    VISION,
    WORDS,
    by_hand,
    configuration,
    trie,
)
from tiny_models import random_model, save_tokenizer
from tiny_rungs import DEEP, TASK, untrained

OURS = "packed" if compiler() else "plain"
SIZES = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    **{"initializer_range": 0.1, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None},
}
GPT2_SIZES = {
    **{"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.1},
    **{"bos_token_id": 0, "eos_token_id": 0},
}


@dataclass(frozen=True)
class Kind:
    """A tiny model: its class, what is special about it, which engine reads it."""

    name: str
    engine: str = "plain"
    changes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, *self.changes])


KINDS = [
    Kind("Llama", OURS, {"tie_word_embeddings": True}),
    Kind("Llama", "plain", {"tie_word_embeddings": False, "attention_bias": True}),
    Kind("Qwen2", OURS, {"tie_word_embeddings": False}),  # biases; a head of its own
    Kind("Qwen2", "plain", {"use_sliding_window": True, "sliding_window": 24}),
    Kind("GPT2"),  # learned positions, its own linear layers
    Kind("Gemma2", "plain", {
        **{"head_dim": 16, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
        "sliding_window": 24,
    }),
    Kind("Gemma3Text", "plain", {"head_dim": 16, "sliding_window": 512}),
]  # fmt: skip


@pytest.fixture(scope="module", params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(scope="module")
def folder(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    made = tmp_path_factory.mktemp("tiny-model")
    sizes = GPT2_SIZES if kind.name == "GPT2" else SIZES
    settings = sizes | kind.changes | {"vocab_size": save_tokenizer(made)}
    random_model(getattr(transformers, f"{kind.name}Config")(**settings)).save_pretrained(made)
    return made


@pytest.fixture
def settings(folder: Path, llm_settings: Callable[..., LLMSettings]) -> Callable[..., LLMSettings]:
    return lambda **changes: llm_settings(**({"model": str(folder)} | changes))


def test_training_saving_and_reading(settings, kind, tmp_path):
    """Labels of several tokens; the two engines, and what was saved, say the same."""
    rung = LLMRung(settings(precision="float32")).fit(DEEP)
    assert rung.engine_ == kind.engine
    proba = rung.predict_proba(DEEP.train.texts)
    before = untrained(settings(), DEEP).predict_proba(DEEP.train.texts)
    assert np.abs(proba - before).max() > 0.05  # else there would be nothing to save
    rung.save(tmp_path)
    loaded = LLMRung.load(tmp_path)
    assert np.array_equal(loaded.predict_proba(DEEP.train.texts), proba)
    plain = LLMRung.load(tmp_path, engine="plain")
    assert plain.engine_ == "plain"
    np.testing.assert_allclose(plain.predict_proba(DEEP.train.texts), proba, atol=1e-4)
    alone = np.concatenate([loaded.predict_proba([text]) for text in DEEP.train.texts])
    np.testing.assert_allclose(alone, proba, atol=1e-5)
    if rung.engine_ == "packed":
        other = LLMRung(settings(precision="float32", engine="plain")).fit(DEEP)
        np.testing.assert_allclose(other.predict_proba(DEEP.train.texts), proba, atol=1e-3)


def test_int8_learns_nearly_the_same(settings, kind, tmp_path):
    exact = LLMRung(settings(precision="float32", lora_dropout=0.0)).fit(TASK)
    rung = LLMRung(settings(precision="int8", lora_dropout=0.0)).fit(TASK)
    assert rung.engine_ == kind.engine
    proba = rung.predict_proba(TASK.train.texts)
    np.testing.assert_allclose(proba, exact.predict_proba(TASK.train.texts), atol=0.1)
    rung.save(tmp_path)
    assert np.array_equal(LLMRung.load(tmp_path).predict_proba(TASK.train.texts), proba)
    plain = LLMRung.load(tmp_path, engine="plain").predict_proba(TASK.train.texts)
    np.testing.assert_allclose(plain, proba, atol=0.03)
    floats = LLMRung.load(tmp_path, precision="float32").predict_proba(TASK.train.texts)
    np.testing.assert_allclose(floats, proba, atol=0.05)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_what_rows_begin_with_is_read_once(settings, kind, precision):
    for engine in ("auto", "plain") if kind.engine == "packed" else ("plain",):
        rung = untrained(settings(template="alpaca", precision=precision, engine=engine), DEEP)
        once, read = rung.head_.read_prefix, []
        rung.head_.read_prefix = lambda ids, once=once, read=read: read.append(once(ids)) or read[0]
        found = rung.predict_proba(DEEP.train.texts)
        forgets = kind.changes.get("sliding_window") == 24  # the window is shorter than the prompt
        assert [prefix is None for prefix in read] == ([] if forgets else [False])
        rung.reader_.reuse = False
        # In int8, what the plain engine says of a row depends on the rows beside it.
        near = 1e-5 if precision == "float32" or rung.engine_ == "packed" else 0.03
        np.testing.assert_allclose(found, rung.predict_proba(DEEP.train.texts), atol=near)
        assert len(read) == (not forgets)


@pytest.mark.parametrize(("window", "reads_once"), [(300, True), (220, False)])
def test_a_sliding_window_does_not_break_the_token_budget(
    llm_settings, tmp_path, window, reads_once
):
    """What all 8 prompts of 165 to 174 tokens begin with are 148; the rest of all is 192."""
    import transformers

    sizes = SIZES | {"sliding_window": window, "vocab_size": save_tokenizer(tmp_path)}
    random_model(transformers.MistralConfig(**sizes)).save_pretrained(tmp_path)
    rung = untrained(
        llm_settings(model=str(tmp_path), template="alpaca", token_budget=64, engine="plain"), DEEP
    )
    read: list[int] = []
    rung.head_.reader.decoder.register_forward_pre_hook(
        lambda module, args, named: read.append(named["input_ids"].numel()), with_kwargs=True
    )
    found = rung.predict_proba(DEEP.train.texts)
    assert max(read) <= 4 * 64
    assert (sum(read) < 500) == reads_once
    rung.reader_.reuse = False
    np.testing.assert_allclose(found, rung.predict_proba(DEEP.train.texts), atol=1e-5)


@pytest.mark.parametrize(
    ("targets", "layers", "count"),
    [("all-linear", None, 14), ("all-linear", 1, 7), ("q_proj", 1, 1), (("q_proj",), None, 2)],
)
def test_a_vision_tower_is_not_adapted(tmp_path, targets, layers, count):
    """Its layers have the decoder's names and numbers."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, Gemma3Config

    towers = VISION | {"num_hidden_layers": 2}
    config = Gemma3Config(text_config=TEXT | SLIDING_AND_FULL, vision_config=towers)
    base = random_model(config).requires_grad_(False)
    base.save_pretrained(tmp_path / "base")
    model = add_lora(base, LoraSettings(4, 8.0, 0.0, targets, use_rslora=False, layers=layers))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * count
    head = AnswerHead(base, trie(WORDS["first token"]))
    head.loss(collate([Example((7, 8, 9), (2,), (0,), (1,))])).backward()
    assert all(p.grad is not None for p in trained.values())
    model.save_pretrained(tmp_path / "adapter")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(again, tmp_path / "adapter", is_trainable=True)
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == set(trained)


def adapted(base: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        base.requires_grad_(False)
        made = add_lora(base, LoraSettings(4, 8.0, 0.0, "all-linear", use_rslora=False))
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.data.copy_(0.05 * torch.randn(parameter.shape))
    return made


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("case", ARCHITECTURES, ids=str)
def test_gradients_are_those_of_the_models_own_logits(case, words):
    module, labels = (
        adapted(random_model(configuration(case.kind, **case.changes))),
        trie(WORDS[words]),
    )
    base, rows, expected_loss = module.get_base_model(), [], torch.zeros(())
    for number, prompt in enumerate(PROMPTS):
        label = 3 * number % len(labels.tokens)
        path = labels.steps[label]
        depths = [len(labels.branchings[branching].prefix) for branching, _ in path]
        ids = (*prompt, *labels.tokens[label][: max(depths)])
        positions = tuple(len(prompt) - 1 + depth for depth in depths)
        rows.append(Example(ids, positions, *map(tuple, zip(*path, strict=True))))
        expected_loss = expected_loss - by_hand(base, labels, prompt)[label]
    trained = [p for p in module.parameters() if p.requires_grad]
    expected = torch.autograd.grad(expected_loss, trained)
    loss = AnswerHead(base, labels).loss(collate(rows, pad_token=3))
    found = torch.autograd.grad(loss, trained)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.norm() > 0
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))
