"""The packed engine against transformers' own layers."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor

from llabel.assets import cache_folder
from llabel.engine.answer import AnswerHead
from llabel.engine.batching import FULL_VOCABULARY, Example, collate
from llabel.engine.linear import largest_inputs, quantise_frozen
from llabel.engine.lower_states import LIMIT, LowerStates
from llabel.engine.model import LoraSettings, add_lora
from llabel.engine.native.kernels import Kernels
from llabel.engine.native.library import CannotCompile, compiler, load_library
from llabel.engine.packable import why_not
from llabel.engine.packed import PackedDecoder
from llabel.engine.packed_reader import PackedReader, packed_reader
from llabel.events import Event, Note
from llabel.labels import LabelTrie, compile_labels
from llabel.ladder.llm import LLMRung
from llabel.settings import Help, LLMSettings
from llabel.task import Split, Task, Text
from tiny_models import random_model
from tiny_rungs import TASK

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")

KERNELS = cache_folder() / "kernels"
VOCABULARY, END = 60, 0
PROMPTS = ((11, 12, 13, 14, 15, 16, 17, 18, 19), (21,), (31, 32, 33, 34), tuple(range(2, 57)) * 2)
SHARED = tuple(range(20, 41))
WORDS = {
    "first token": ["5", "6", "7"],
    "shared beginning": ["5 6 7", "5 6 8"],
    "deep": ["5", "5 6", "5 6 7", "5 6 7 8", "5 6 9", "6 5 5", "6 5 6 1", "6 5 6 2", "7 5 6 1"],
}
SMALL = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 60},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
    **{"initializer_range": 0.15, "eos_token_id": 0, "bos_token_id": None, "pad_token_id": None},
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {"rms_norm_eps": 1e-2}),
    "Llama, own head width": ("Llama", {"head_dim": 32, "num_key_value_heads": 1}),
    "Llama, gate and up biased": ("Llama", {}),  # no configuration biases these two alone
    "Llama 3 positions": (
        "Llama",
        {
            "rope_parameters": {
                **{"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0},
                **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "Qwen2": ("Qwen2", {}),  # biases in queries, keys and values
    "Mistral": ("Mistral", {"sliding_window": None}),
}


def model(name: str, **changes: Any) -> Any:
    import transformers

    kind, special = MODELS[name]
    made = random_model(getattr(transformers, f"{kind}Config")(**(SMALL | special | changes)))
    if name == "Llama, gate and up biased":
        for layer in made.get_decoder().layers:
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
                linear.bias = torch.nn.Parameter(torch.zeros(linear.out_features))
    generator = torch.Generator().manual_seed(7)
    for parameter_name, parameter in made.named_parameters():  # else norms are one, biases zero
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        assert parameter_name
    return made.requires_grad_(False)


def lora(base: Any, **changes: Any) -> Any:
    """With adapters that do something."""
    settings = {"r": 4, "lora_alpha": 8.0, "lora_dropout": 0.0, "target_modules": "all-linear"}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        made = add_lora(base, LoraSettings(**(settings | {"use_rslora": False} | changes)))
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    return made


def int8(base: Any) -> Any:
    quantise_frozen(base.get_decoder(), largest_inputs(base.get_decoder(), range(1, 50)))
    return base


def trie(words: list[str]) -> LabelTrie:
    return compile_labels(words, lambda word: [int(token) for token in word.split()], END)


def packed(base: Any, labels: LabelTrie) -> AnswerHead:
    reader = packed_reader(base, labels, KERNELS)
    assert isinstance(reader, PackedReader), reader
    return AnswerHead(base, labels, reader)


def batch(*prompts: tuple[int, ...]) -> Any:
    return collate([Example(prompt) for prompt in prompts], pad_token=3)


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("name", MODELS)
def test_log_probs_are_those_of_the_plain_engine(name, words):
    base = lora(model(name)).get_base_model()
    labels = trie(WORDS[words])
    expected = AnswerHead(base, labels).log_probs(batch(*PROMPTS))
    head = packed(base, labels)
    torch.testing.assert_close(head.log_probs(batch(*PROMPTS)), expected, rtol=0, atol=2e-5)
    assert expected.std() > 0.05  # else anything would pass


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("name", MODELS)
def test_a_prefix_read_once_changes_nothing(name, words):
    base, labels = model(name), trie(WORDS[words])
    expected = AnswerHead(base, labels).log_probs(batch(*(SHARED + p for p in PROMPTS)))
    head = packed(base, labels)
    prefix = head.read_prefix(SHARED)
    for _ in range(2):
        found = head.log_probs(batch(*PROMPTS), prefix)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("words", WORDS)
def test_int8_rows_are_the_same_to_the_bit_alone_together_and_behind_a_prefix(words):
    base = lora(int8(model("Llama"))).get_base_model()
    base.get_decoder().norm = torch.nn.Identity()  # no integers follow that amplify its rounding
    read = packed(base, trie(WORDS[words])).reader
    rows = [SHARED + p for p in PROMPTS]
    together = read.at_branchings(batch(*rows), None)
    alone = torch.cat([read.at_branchings(batch(row), None) for row in rows])
    behind = read.at_branchings(batch(*PROMPTS), read.read_prefix(SHARED))
    many = read.at_branchings(batch(*rows * 5), None)[: len(rows)]
    for other in (alone, behind, many):
        assert torch.equal(together, other)


def examples(labels: LabelTrie, loss: str) -> list[Example]:
    made = []
    for row, prompt in enumerate(PROMPTS):
        path, last = labels.steps[row % len(labels.tokens)], len(prompt) - 1
        depths = [len(labels.branchings[number].prefix) for number, _ in path]
        if loss == "answer":
            numbers, children = zip(*path, strict=True)
            ids = (*prompt, *labels.tokens[row % len(labels.tokens)][: max(depths)])
            made.append(Example(ids, tuple(last + d for d in depths), numbers, children))
        elif len(prompt) > 1:
            everywhere = tuple(range(last))
            made.append(Example(prompt, everywhere, (FULL_VOCABULARY,) * last, prompt[1:]))
    return made


def gradients(module: Any, head: AnswerHead, rows: list[Example]) -> tuple[Tensor, list[Tensor]]:
    loss = head.loss(collate(rows, pad_token=3))
    loss.backward()
    found = [p.grad.clone() for p in module.parameters() if p.requires_grad]
    module.zero_grad()
    return loss.detach(), found


TARGETS: dict[str, dict[str, Any]] = {
    "all": {},
    "r 1": {"r": 1},
    "r 24, rank-stabilised": {"r": 24, "use_rslora": True},
    "some": {"target_modules": ("q_proj", "v_proj", "down_proj")},
    "upper layers": {"target_modules": ("layers.1.self_attn.q_proj", "layers.2.mlp.up_proj")},
    "last layer": {"target_modules": ("layers.2.mlp.gate_proj",)},
}


@pytest.mark.parametrize("loss", ["answer", "all"])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", ["Llama", "Llama, gate and up biased", "Qwen2"])
def test_gradients_are_those_of_the_plain_engine(name, targets, loss):
    module = lora(model(name), **TARGETS[targets])
    base, labels = module.get_base_model(), trie(WORDS["deep"])
    rows = examples(labels, loss)
    expected_loss, expected = gradients(module, AnswerHead(base, labels), rows)
    found_loss, found = gradients(module, packed(base, labels), rows)
    torch.testing.assert_close(found_loss, expected_loss, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.norm() > 0
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def test_int8_gradients_are_near_those_of_float():
    labels = trie(WORDS["deep"])
    flat = []
    for change in (int8, lambda base: base):
        module = lora(change(model("Llama")))
        _, found = gradients(
            module, packed(module.get_base_model(), labels), examples(labels, "answer")
        )
        flat.append(torch.cat([gradient.flatten() for gradient in found]))
    assert torch.cosine_similarity(*flat, dim=0) > 0.99


def test_int8_gradients_are_the_same_where_integers_multiply_in_float(monkeypatch):
    """As on ARM, where weights become floats, once for both ways."""
    module, labels = lora(int8(model("Qwen2"))), trie(WORDS["deep"])
    base, rows = module.get_base_model(), examples(labels, "answer")
    expected = gradients(module, packed(base, labels), rows)
    monkeypatch.setattr("llabel.engine.projection.int_mm_is_fast", lambda: False)
    library = Kernels(KERNELS)
    library.multiplies_integers = False
    decoder = PackedDecoder(base, library)
    for projection in (made for layer in decoder.layers for made in layer.projections):
        there, back = projection.forward.weight, projection.backward.weight
        assert there.dtype == torch.float32
        assert there.data_ptr() == back.data_ptr()
    loss, found = gradients(module, AnswerHead(base, labels, PackedReader(decoder, labels)), rows)
    assert torch.equal(loss, expected[0])
    assert all(map(torch.equal, found, expected[1]))


def test_int8_gradients_are_the_same_where_pytorch_multiplies_integers(monkeypatch):
    """As for large models, and where a processor has a unit for it: product, then stage."""
    module, labels = lora(int8(model("Qwen2"))), trie(WORDS["deep"])
    base, rows = module.get_base_model(), examples(labels, "answer")
    found = []
    for own in (True, False):
        monkeypatch.setattr("llabel.engine.packed.own_int_products", lambda *_, own=own, **__: own)
        head = packed(base, labels)
        found.append(gradients(module, head, rows))
        copied = head.reader.decoder.layers[0].down.backward.packed is not None
        assert copied is (own and head.reader.decoder.kernels.multiplies_integers)
    (loss, ours), (other_loss, others) = found
    assert torch.equal(loss, other_loss)
    assert all(map(torch.equal, ours, others))


def test_without_onednn_pytorchs_own_product_is_used(monkeypatch):
    """As PyTorch is built for macOS."""
    module, labels = lora(model("Llama")), trie(WORDS["deep"])
    base, rows = module.get_base_model(), examples(labels, "answer")
    expected = gradients(module, packed(base, labels), rows)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())  # it has no operators there
    found = gradients(module, packed(base, labels), rows)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_what_lies_below_the_adapters_is_computed_once(precision):
    base = model("Llama")
    module = lora(int8(base) if precision == "int8" else base, layers=1)
    head, labels = packed(module.get_base_model(), trie(WORDS["deep"])), trie(WORDS["deep"])
    rows = examples(labels, "answer")
    plain_loss, plain = gradients(module, head, rows)
    head.reader.keep_lower(True)
    halves = [rows[:2], rows]  # the second time, half of them are known
    gradients(module, head, halves[0])
    entered = []
    lower = head.reader.decoder.lower
    head.reader.decoder.lower = lambda tokens: entered.append(len(tokens.segments)) or lower(tokens)
    for _ in range(2):
        loss, found = gradients(module, head, halves[1])
        torch.testing.assert_close(loss, plain_loss, rtol=1e-6, atol=1e-6)
        for ours, theirs in zip(found, plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert entered == [len(rows) - 2]


def test_states_beyond_the_limit_are_not_kept_which_is_told_once():
    told: list[Event] = []
    known, state = LowerStates(100, told.append), torch.zeros(2, 5)  # 40 bytes
    for ids in ((1, 2), (1, 2), (3, 4), (3, 4)):
        known.keep(ids, state)
    assert not told  # what is kept already takes no more room
    for ids in ((5, 6), (7, 8), (5, 6)):
        known.keep(ids, state)
    rows = ((1, 2), (3, 4), (5, 6), (7, 8))
    assert [known.get(ids) is None for ids in rows] == [False, False, True, True]
    [note] = told
    assert isinstance(note, Note)
    assert "which 2 rows fill" in note.text


def test_the_help_names_the_limit():
    hint = get_type_hints(LLMSettings, include_extras=True)["adapt_layers"]
    [said] = (extra.text for extra in hint.__metadata__ if isinstance(extra, Help))
    tokens = round(LIMIT / (4 * 576), -4)  # float32 states
    assert f"{LIMIT / 2**30:g} GiB ({tokens:,.0f} tokens at hidden size 576)" in said


def test_changed_adapters_are_seen():
    module, labels = lora(model("Llama")), trie(WORDS["deep"])
    head = packed(module.get_base_model(), labels)
    before = head.log_probs(batch(*PROMPTS))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.mul_(-2.0)
    after = head.log_probs(batch(*PROMPTS))
    expected = AnswerHead(module.get_base_model(), labels).log_probs(batch(*PROMPTS))
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(after, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sliding_window": 8, "name": "Mistral"}, "slides over 8 tokens"),
        ({"hidden_act": "gelu", "name": "Llama"}, "activation is gelu"),
        ({"attention_dropout": 0.1, "name": "Llama"}, "attention drops 10% of what it sees"),
        ({"attention_bias": True, "name": "Llama"}, "o_proj has a bias"),
        ({"mlp_bias": True, "name": "Llama"}, "down_proj has a bias"),
        ({"intermediate_size": 90, "name": "Llama"}, "no multiples of"),
    ],
)
def test_other_models_are_left_to_transformers(changes, reason):
    base = model(changes.pop("name"), **changes)
    assert reason in str(packed_reader(base, trie(WORDS["deep"]), KERNELS))


def test_other_adapters_are_left_to_transformers():
    assert why_not(lora(model("Llama"), lora_dropout=0.5).get_base_model()) == "q_proj has dropout"
    assert why_not(model("Llama").requires_grad_(True)) == "q_proj is trained itself"
    assert why_not(model("Llama").bfloat16()) == "q_proj is no linear layer in float32 or int8"


def test_without_a_compiler_there_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CannotCompile, match="no C\\+\\+ compiler"):
        load_library(tmp_path)


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho cannot do this >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CannotCompile, match="cannot do this"):
        load_library(tmp_path / "kernels")
    assert not (tmp_path / "kernels").exists()  # no litter


def test_another_compiler_takes_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CXX", "false")
    load_library(tmp_path)
    (kept,) = tmp_path.iterdir()
    # What was compiled serves where there is no compiler, too.
    monkeypatch.setenv("PATH", "")
    load_library.cache_clear()
    load_library(tmp_path)
    assert list(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize("replaceable", [True, False])
def test_kept_kernels_that_cannot_be_loaded_are_compiled_anew(tmp_path: Path, replaceable: bool):
    kept = tmp_path / Path(load_library(KERNELS)._name).name
    if replaceable:
        kept.write_bytes(b"of another C library")
    else:
        kept.mkdir()
    assert load_library(tmp_path).lanes() >= 1
    assert list(tmp_path.iterdir()) == [kept]
    assert not replaceable or kept.stat().st_size > 1000


def test_kernels_that_cannot_be_kept_are_compiled_for_the_process(tmp_path: Path):
    (tmp_path / "file").touch()
    assert Kernels(tmp_path / "file" / "kernels").lanes >= 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_it_is_said_when_the_plain_engine_must_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llm_settings: Any
):
    monkeypatch.setenv("LLABEL_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", "")
    found: list[Any] = []
    rung = LLMRung(llm_settings(epochs=1)).fit(TASK, notify=found.append)
    assert rung.record_.settings["engine"] == "plain"
    said = [event.text for event in found if isinstance(event, Note)]
    assert any("several times slower" in text and "install g++ or clang++" in text for text in said)
    asked = []
    LLMRung(llm_settings(epochs=1, engine="plain")).fit(TASK, notify=asked.append)
    assert not [event for event in asked if isinstance(event, Note)]


# The real model


def first_rows(boolq: Path, part: str, n: int) -> Split:
    """The first of BoolQ's train or validation part."""
    with (boolq / f"{part}.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(next(lines)) for _ in range(n)]
    texts = tuple((row["question"], row["passage"]) for row in rows)
    ids = tuple(f"{part}:{number}" for number in range(n))
    return Split(ids, texts, np.array([row["answer"] for row in rows], dtype=np.int64))


@pytest.fixture(scope="module")
def questions(boolq: Path) -> tuple[Text, ...]:
    """Forty rows of BoolQ's validation part."""
    return first_rows(boolq, "validation", 40).texts


def probabilities(texts: tuple[Text, ...], **changes: Any) -> Any:
    """P(true) of SmolLM2-135M before training."""
    rung = LLMRung(LLMSettings(model="smollm2-135m", max_seq_length=192, **changes))
    rung.prepare(("question", "passage"), (False, True))._load_model()
    return rung.predict_proba(texts)[:, 1], rung.engine_


@pytest.mark.slow
def test_the_real_model_says_the_same_in_both_engines(questions):
    found, engine = probabilities(questions, precision="float32")
    expected, reference = probabilities(questions, precision="float32", engine="plain")
    assert (engine, reference) == ("packed", "plain")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def refuse_other_than_stated(fast: Any, exact: Any) -> None:
    """docs/performance.md: BoolQ's move by 0.04 on average and 0.2 at most.

    Moves of 0.04 on average have a standard deviation of about 0.05, the probabilities before
    training one of 0.14: a correlation of 0.94, of which processors have a little more or less.
    """
    moved = np.abs(fast - exact)
    assert 0 < moved.mean() < 0.04
    assert moved.max() < 0.2
    assert np.corrcoef(fast, exact)[0, 1] > 0.92


def test_int8_keeps_the_real_models_probabilities_within_the_stated_tolerance(questions):
    exact, _ = probabilities(questions, precision="float32")
    fast, engine = probabilities(questions, precision="int8")
    assert engine == "packed"
    refuse_other_than_stated(fast, exact)


@pytest.mark.slow
def test_so_it_does_after_a_short_training(questions, boolq: Path, tmp_path: Path):
    train, few = first_rows(boolq, "train", 48), first_rows(boolq, "validation", 4)
    task = Task("boolq", ("question", "passage"), (False, True), train, few, few, "")
    short = {"max_seq_length": 128, "epochs": 2, "batch_size": 8, "learning_rate": 8e-4}
    rung = LLMRung(LLMSettings(model="smollm2-135m", precision="int8", patience=None, **short))
    rung.fit(task).save(tmp_path)
    fast = rung.predict_proba(questions)[:, 1]
    exact = LLMRung.load(tmp_path, precision="float32").predict_proba(questions)[:, 1]
    before, _ = probabilities(questions, precision="float32")
    assert np.abs(exact - before).mean() > 0.1  # it learned something
    refuse_other_than_stated(fast, exact)
