"""What runs on a GPU, tested on the CPU too: the same lines, with and without CUDA."""

from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llabel.engine.answer import AnswerHead
from llabel.engine.batching import FULL_VOCABULARY, Batch, Example, collate
from llabel.engine.checkpoint import CheckpointFolder
from llabel.engine.model import LoraSettings, add_lora, compile_layers
from llabel.engine.training import seeded
from llabel.errors import InputError
from llabel.events import Event, StepDone
from llabel.ladder.label_model import precision_of
from llabel.ladder.llm import LLMRung
from llabel.ladder.prompted import PromptedRung
from llabel.run import fit
from runs import config, write_weather
from test_answer import ARCHITECTURES, PROMPTS, WORDS, Case, configuration, trie
from test_packed import examples
from tiny_models import llama_config, random_model
from tiny_rungs import DEEP, TASK

EXAMPLES = [row for row in examples(trie(WORDS["deep"]), "answer") if len(row.input_ids) < 64]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def settings(llm_settings, device) -> Any:
    """On the device, with the layers of transformers: the others are for the CPU."""
    return lambda **changes: llm_settings(**({"device": device, "engine": "plain"} | changes))


def adapted(base: nn.Module, device: str = "cpu") -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        base.requires_grad_(False).to(device)
        made = add_lora(base, LoraSettings(4, 8.0, 0.0, "all-linear", use_rslora=False))
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.data.copy_(0.05 * torch.randn(parameter.shape))
    return made.train()


@pytest.mark.gpu
def test_seeding_leaves_the_random_state_of_every_gpu():
    before = torch.cuda.get_rng_state_all()
    with seeded(7, torch.device("cpu")):
        torch.rand(3, device="cuda")
    after = torch.cuda.get_rng_state_all()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# Batches

TENSORS = tuple(name for name in Batch.__slots__ if name not in {"tails", "shared"})


def batch() -> Batch:
    whole = Example(PROMPTS[0], (2, 7), (FULL_VOCABULARY,) * 2, (50, 51), weights=(0.5,))
    return collate([*EXAMPLES, whole], pad_token=3)


def test_a_batch_arrives_as_it_was(device):
    here = replace(batch(), shared=2)
    there = here.to(torch.device(device))
    for name in TENSORS:
        moved, stayed = getattr(there, name), getattr(here, name)
        assert moved.device.type == ("cpu" if name == "branchings" else device)
        assert moved.dtype == (torch.float32 if name == "weights" else torch.int64)
        assert torch.equal(moved.cpu(), stayed)
    assert (there.tails, there.shared) == (here.tails, 2)


def test_shapes_survive_the_one_copy():
    there, here = batch().to(torch.device("meta")), batch()
    for name in TENSORS:
        assert getattr(there, name).shape == getattr(here, name).shape
        assert getattr(there, name).is_meta == (name != "branchings")


@pytest.mark.parametrize("case", [ARCHITECTURES[0], ARCHITECTURES[4], ARCHITECTURES[9]], ids=str)
def test_a_step_asks_the_device_for_no_numbers(case: Case, monkeypatch: pytest.MonkeyPatch):
    """Tensors without numbers pass through loss and backward: a GPU need not be waited for.

    But by transformers, which looks at the positions of each batch to see whether it is packed.
    """
    name = "transformers.masking_utils.find_packed_sequence_indices"
    monkeypatch.setattr(name, lambda positions: None)
    module = adapted(random_model(configuration(case.kind, **case.changes)))
    head, meta = AnswerHead(module.get_base_model(), trie(WORDS["deep"])), torch.device("meta")
    module.to(meta)
    head._children = [children.to(meta) for children in head._children]
    head.loss(batch().to(meta)).backward()
    trained = [p for p in module.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and p.grad.is_meta for p in trained)


# bfloat16


def products(module: Any) -> Counter[torch.dtype]:
    """What the adapters' products come in, counted while the module is used."""
    seen: Counter[torch.dtype] = Counter()
    for name, part in module.named_modules():
        if name.endswith(("lora_A.default", "lora_B.default")):
            part.register_forward_hook(lambda _, __, out: seen.update([out.dtype]))
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_kept_in_float32_and_multiplied_as_the_model_is(device, dtype):
    module = adapted(random_model(configuration("Qwen2")).to(dtype), device)
    head, seen = AnswerHead(module.get_base_model(), trie(WORDS["deep"])), products(module)
    there = batch().to(torch.device(device))
    head.loss(there).backward()
    head.log_probs(there)
    prefix = head.read_prefix(PROMPTS[0])
    assert prefix is not None
    head.log_probs(there, prefix)
    assert set(seen) == {dtype}
    trained = [p for p in module.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {p.grad.dtype for p in trained} == {torch.float32}
    assert {p.device.type for p in module.parameters()} == {device}


def flat_gradients(module: Any, head: AnswerHead, device: str) -> Tensor:
    head.loss(batch().to(torch.device(device))).backward()
    return torch.cat([p.grad.flatten().cpu() for p in module.parameters() if p.requires_grad])


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "GPT2", "Gemma2"])
def test_bfloat16_gradients_point_where_those_of_float32_do(device, kind):
    found = []
    for dtype, where in ((torch.float32, "cpu"), (torch.bfloat16, device)):
        special = {"head_dim": 8, "sliding_window": 10} if kind == "Gemma2" else {}
        off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if kind == "GPT2" else {}
        module = adapted(random_model(configuration(kind, **special, **off)).to(dtype), where)
        head = AnswerHead(module.get_base_model(), trie(WORDS["deep"]))
        found.append(flat_gradients(module, head, where))
    assert torch.cosine_similarity(*found, dim=0) > 0.99
    assert float(found[1].norm() / found[0].norm()) == pytest.approx(1, abs=0.05)


def test_label_logits_are_not_rounded_to_bfloat16(device):
    """Around 16, bfloat16 knows eighths only: two rows would often tie."""
    base = random_model(llama_config(60)).to(torch.bfloat16).to(device)
    head = AnswerHead(base, trie(WORDS["first token"]))
    hidden = 20 * torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    hidden = hidden.to(torch.bfloat16).to(device)
    weight = base.get_output_embeddings().weight[head._children[0]]
    expected = hidden.double() @ weight.double().t()
    assert expected.abs().max() > 16
    found = head.logits(hidden, 0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-3)


@pytest.mark.gpu
def test_auto_is_bfloat16_where_the_gpu_has_it(llm_settings):
    native = torch.cuda.get_device_capability() >= (8, 0) or torch.version.hip
    chosen = precision_of(llm_settings(device="cuda", precision="auto"))
    assert chosen == ("bfloat16" if native else "float32")


@pytest.mark.skipif(find_spec("triton") is not None, reason="Triton is here")
def test_compiling_for_a_gpu_needs_triton():
    with pytest.raises(InputError, match="--compile needs Triton on a GPU"):
        compile_layers(random_model(llama_config(60)).to("meta"))


# Whole rungs


@pytest.mark.parametrize(("precision", "checkpointing"), [("float32", False), ("bfloat16", True)])
def test_training_saving_and_reading_anywhere(settings, device, tmp_path, precision, checkpointing):
    """Rows begin with the same 60 tokens, which are read once; the labels have several tokens."""
    chosen = settings(
        template="alpaca", precision=precision, lora_dropout=0.05,
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    rung = LLMRung(chosen).fit(DEEP)
    proba = rung.predict_proba(DEEP.train.texts)
    assert proba.std() > 0.04  # else anything would pass
    assert rung.engine_ == "plain"
    assert {p.device.type for p in rung.model_.parameters()} == {device}
    assert rung.record_.settings["device"] == device
    rung.reader_.reuse = False
    exact = 1e-5 if precision == "float32" else 0.03
    np.testing.assert_allclose(rung.predict_proba(DEEP.train.texts), proba, atol=exact)
    rung.save(tmp_path)
    here = LLMRung.load(tmp_path, device="cpu", precision="float32")
    np.testing.assert_allclose(here.predict_proba(DEEP.train.texts), proba, atol=max(exact, 1e-3))
    there = LLMRung.load(tmp_path, device=device)
    assert {p.device.type for p in there.model_.parameters()} == {device}
    np.testing.assert_allclose(there.predict_proba(DEEP.train.texts), proba, atol=1e-6)


@pytest.mark.parametrize("few_shot", [False, True])
def test_prompting_and_free_answers(settings, few_shot):
    found = []
    for where in ({}, {"device": "cpu"}):
        rung = PromptedRung(settings(shots=3, **where), few_shot=few_shot, calibrated=True)
        rung.fit(DEEP)
        assert (rung.reader_._kept is not None) == few_shot
        found.append((rung.predict_proba(DEEP.test.texts), rung.generate(DEEP.test.texts)[1]))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-3)
    assert found[0][1] == found[1][1]


def test_trials_and_a_kill(settings, tmp_path):
    chosen = settings(trials=2, epochs=2, lora_dropout=0.1)

    def killed(event: Event) -> None:
        if isinstance(event, StepDone) and "trial 2" in event.stage and event.step == 5:
            raise KeyboardInterrupt

    checkpoints = CheckpointFolder(tmp_path / "training", every_steps=2)
    with pytest.raises(KeyboardInterrupt):
        LLMRung(chosen).fit(TASK, checkpoints=checkpoints, notify=killed)
    again = LLMRung(chosen).fit(TASK, checkpoints=checkpoints)
    undisturbed = LLMRung(chosen).fit(TASK)
    for trial, other in zip(again.record_.trials, undisturbed.record_.trials, strict=True):
        assert trial.epoch_losses == pytest.approx(other.epoch_losses, abs=1e-6)
    np.testing.assert_allclose(again.validation_proba_, undisturbed.validation_proba_, atol=1e-6)


@pytest.mark.gpu
def test_int8_made_for_the_cpu_is_read_in_another_precision(llm_settings, tmp_path):
    rung = LLMRung(llm_settings(precision="int8")).fit(TASK)
    rung.save(tmp_path)
    loaded = LLMRung.load(tmp_path, device="cuda")
    assert loaded.precision in {"bfloat16", "float32"}
    expected = rung.predict_proba(TASK.test.texts)
    np.testing.assert_allclose(loaded.predict_proba(TASK.test.texts), expected, atol=0.1)


@pytest.mark.gpu
@pytest.mark.slow
def test_compiled_layers_on_cuda(llm_settings):
    chosen = llm_settings(device="cuda", precision="float32")
    expected = LLMRung(chosen).fit(TASK).predict_proba(TASK.test.texts)
    compiled = replace(chosen, compile=True, gradient_checkpointing=True)
    found = LLMRung(compiled).fit(TASK).predict_proba(TASK.test.texts)
    np.testing.assert_allclose(found, expected, atol=1e-2)


def test_a_run_records_its_device_and_memory(tiny_llama: Path, tmp_path: Path, device):
    made = config(write_weather(tmp_path / "weather.jsonl", 60), tiny_llama, device=device)
    record = fit(made, tmp_path / "run", command="llabel fit")
    gpu = record["cost"]["peak_gpu_mb"]
    assert (record["environment"]["device"] == "cpu") == (device == "cpu")
    assert gpu is None if device == "cpu" else 0 < gpu < 1000


@pytest.mark.gpu
def test_a_step_waits_for_the_gpu_no_more_than_transformers_does(monkeypatch):
    name = "transformers.masking_utils.find_packed_sequence_indices"
    monkeypatch.setattr(name, lambda positions: None)
    module = adapted(random_model(configuration("Llama")), "cuda")
    head = AnswerHead(module.get_base_model(), trie(WORDS["deep"]))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            head.loss(batch().to(torch.device("cuda"))).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
