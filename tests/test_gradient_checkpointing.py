"""Layers that are run again in the backward pass instead of being kept."""

import gc
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llabel.engine import packed as packed_module
from llabel.engine.answer import AnswerHead
from llabel.engine.batching import Example, collate
from llabel.engine.linear import quantise_frozen
from llabel.engine.model import LoraSettings, add_lora
from llabel.engine.native.library import compiler
from llabel.errors import InputError
from llabel.ladder.llm import LLMRung
from test_answer import PROMPTS, WORDS, configuration, trie
from test_packed import examples, lora, model, packed
from tiny_models import random_model
from tiny_rungs import TASK

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "GPT2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "GPTNeoX": {},
    "Gemma2": {"head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 6},
    "Mistral": {"sliding_window": 6},
}


def adapted(kind: str, precision: str = "float32", **changes: Any) -> Any:
    """A model in training mode, with adapters that do something."""
    base = random_model(configuration(kind, **ARCHITECTURES[kind])).requires_grad_(False)
    if precision == "int8":
        quantise_frozen(base.get_decoder())
    if precision == "bfloat16":
        base.to(torch.bfloat16)
    settings = {"r": 4, "lora_alpha": 8.0, "lora_dropout": 0.0, "target_modules": "all-linear"}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        made = add_lora(base, LoraSettings(**(settings | {"use_rslora": False} | changes)))
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    return made.train()


def gradients(module: Any, head: AnswerHead, rows: list[Example]) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        head.loss(collate(rows, pad_token=3)).backward()
    found = {n: p.grad.clone() for n, p in module.named_parameters() if p.requires_grad}
    module.zero_grad()
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert sum(float(gradient.abs().sum()) for gradient in expected.values()) > 0


def rows_of(loss: str) -> list[Example]:
    return [row for row in examples(trie(WORDS["deep"]), loss) if len(row.input_ids) < 64]


@pytest.mark.parametrize("loss", ["answer", "all"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_gradients_are_the_same_to_the_bit(kind, loss):
    module = adapted(kind)
    head = AnswerHead(module.get_base_model(), trie(WORDS["deep"]))
    expected = gradients(module, head, rows_of(loss))
    head.reader.checkpoint_layers()
    assert_same(gradients(module, head, rows_of(loss)), expected)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_the_same_in_other_precisions_and_with_dropout(precision):
    module = adapted("Llama", precision, lora_dropout=0.3)
    head = AnswerHead(module.get_base_model(), trie(WORDS["deep"]))
    expected = gradients(module, head, rows_of("answer"))
    head.reader.checkpoint_layers()
    assert_same(gradients(module, head, rows_of("answer")), expected)


def kept_bytes(head: AnswerHead) -> int:
    """What autograd holds after the forward pass, weights left out."""
    weights = {p.data_ptr() for p in head.model.parameters()}
    held: dict[int, int] = {}

    def hold(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            held[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        head.loss(collate([Example(PROMPTS[0] * 5, (44,), (0,), (1,))]))
    return sum(held.values())


def test_far_less_is_kept():
    module = adapted("Llama")
    head = AnswerHead(module.get_base_model(), trie(WORDS["first token"]))
    before = kept_bytes(head)
    head.reader.checkpoint_layers()
    assert kept_bytes(head) < before / 4


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_nothing_below_the_lowest_adapter_is_run_again(kind):
    module = adapted(kind, layers=1)
    base = module.get_base_model()
    head, ran = AnswerHead(base, trie(WORDS["first token"])), Counter()
    decoder = base.get_decoder()
    for number, layer in enumerate(getattr(decoder, "layers", None) or decoder.h):
        part = next(layer.children())  # what is inside a layer is run again with it
        part.register_forward_hook(lambda *_, number=number: ran.update([number]))
    head.reader.checkpoint_layers()
    gradients(module, head, [Example(PROMPTS[0], (8,), (0,), (1,))])
    assert ran == {0: 1, 1: 2}
    assert not base.get_input_embeddings()(torch.tensor([1])).requires_grad


def test_an_architecture_that_cannot_do_it_is_told():
    base = random_model(configuration("Llama"))
    base.supports_gradient_checkpointing = False
    with pytest.raises(InputError, match="--gradient-checkpointing does not know LlamaForCausalLM"):
        AnswerHead(base, trie(WORDS["deep"])).reader.checkpoint_layers()


# The packed engine


def kept_layers() -> int:
    return sum(type(found) is packed_module._Kept for found in gc.get_objects())


@needs_compiler
@pytest.mark.parametrize("loss", ["answer", "all"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("layers", [None, 1])
def test_the_packed_engine_keeps_inputs_alone(precision, layers, loss):
    base = model("Qwen2")
    if precision == "int8":
        quantise_frozen(base.get_decoder())
    labels, module = trie(WORDS["deep"]), lora(base, layers=layers)
    head, rows = packed(module.get_base_model(), labels), examples(trie(WORDS["deep"]), loss)
    expected = gradients(module, head, rows)
    kept = head.loss(collate(rows))
    assert kept_layers() == (layers or 3)
    del kept
    head.reader.checkpoint_layers()
    head.reader.keep_lower(layers is not None)
    kept = head.loss(collate(rows))
    assert kept_layers() == 0
    kept.backward()
    module.zero_grad()
    assert_same(gradients(module, head, rows), expected)


# Whole trainings


@pytest.mark.parametrize(
    ("engine", "changes"),
    [
        pytest.param("packed", {}, marks=needs_compiler),
        pytest.param("packed", {"precision": "int8"}, marks=needs_compiler),
        ("plain", {"engine": "plain", "lora_dropout": 0.2, "refit": True}),
        ("plain", {"precision": "bfloat16"}),
    ],
)
def test_a_training_ends_the_same(llm_settings, tmp_path: Path, engine, changes):
    ends = []
    for checkpointing in (False, True):
        chosen = llm_settings(gradient_checkpointing=checkpointing, token_budget=60, **changes)
        rung = LLMRung(chosen).fit(TASK)
        rung.save(tmp_path / str(checkpointing))
        weights = tmp_path / str(checkpointing) / "adapter" / "adapter_model.safetensors"
        proba = rung.predict_proba(TASK.test.texts)
        ends.append((weights.read_bytes(), rung.engine_, proba.tobytes()))
    assert ends[0] == ends[1]
    assert rung.engine_ == engine
    loaded = LLMRung.load(tmp_path / "True")
    assert np.array_equal(loaded.predict_proba(TASK.test.texts), proba)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_layers_are_run_again(llm_settings):
    chosen = llm_settings(engine="plain")
    expected = LLMRung(chosen).fit(TASK).predict_proba(TASK.test.texts)
    both = llm_settings(compile=True, gradient_checkpointing=True)
    found = LLMRung(both).fit(TASK).predict_proba(TASK.test.texts)
    np.testing.assert_allclose(found, expected, atol=1e-3)
