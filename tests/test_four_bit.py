"""4-bit bases by real bitsandbytes on the CPU: whose numbers they have, and what they refuse."""

import json
import shutil
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch import Tensor, nn

from llabel import dry_run, run
from llabel.config import RunConfig
from llabel.engine import four_bit as four_bit_module
from llabel.engine.four_bit import (
    FourBit,
    four_bit_layers,
    parameter_count,
    unpacked_weight,
    weight_bytes,
    why_not_here,
)
from llabel.engine.linear import Int8Linear
from llabel.engine.model import LoraSettings, add_lora, load_model
from llabel.engine.native.library import compiler
from llabel.engine.plain import PlainReader
from llabel.engine.updates import in_all, updates
from llabel.errors import InputError
from llabel.events import Note, ignore
from llabel.labels import compile_labels
from llabel.ladder import base_form, registry
from llabel.ladder.base_models import BaseModels, KeptBaseModels
from llabel.ladder.llm import LLMRung
from llabel.ladder.prompted import PromptedRung
from llabel.ladder.qlora import QLoRARung
from llabel.settings import CompareSettings, RunSettings
from llabel.sweep.untouched import _ask
from runs import config, write_weather
from test_answer import configuration
from tiny_models import random_model
from tiny_rungs import TASK

CPU = torch.device("cpu")
IDS = torch.arange(4, 24)[None]


def rounded(weight: Tensor, *, double_quant: bool = True) -> Tensor:
    """What bitsandbytes makes of (out, in) weights."""
    packed, state = quantize_4bit(
        weight.contiguous(), blocksize=64, compress_statistics=double_quant, quant_type="nf4"
    )
    return dequantize_4bit(packed, state)


def load(folder: Path, four_bit: FourBit | None = None, precision: str = "float32") -> Any:
    return load_model(folder, CPU, precision, four_bit=four_bit)


@pytest.fixture(scope="module")
def stored_checkpoint(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as people publish it in 4 bits: quantised in bfloat16, with its tokenizer."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder = tmp_path_factory.mktemp("models") / "tiny-llama-bnb-4bit"
    shutil.copytree(tiny_llama, folder)
    (folder / "model.safetensors").unlink()
    wanted = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        tiny_llama, dtype=torch.bfloat16, quantization_config=wanted, device_map=CPU
    )
    model.save_pretrained(folder)
    return folder


# Whose numbers


@pytest.mark.parametrize("double_quant", [True, False])
def test_linear_layers_have_the_numbers_of_bitsandbytes_and_the_rest_its_own(
    tiny_llama: Path, double_quant: bool
):
    plain, model = load(tiny_llama), load(tiny_llama, FourBit(double_quant=double_quant))
    linear = 0
    for name, parameter in plain.named_parameters():
        expected = parameter
        if "proj" in name:
            linear += 1
            expected = rounded(parameter, double_quant=double_quant)
        found = model.get_parameter(name)
        assert torch.equal(found, expected), name
        assert not found.requires_grad
    assert linear == 14


def test_rounding_the_scales_changes_the_numbers(tiny_llama: Path):
    once, twice = (load(tiny_llama, FourBit(double_quant=d)) for d in (False, True))
    name = "model.layers.0.mlp.up_proj.weight"
    apart = (once.get_parameter(name) - twice.get_parameter(name)).norm()
    assert 0 < apart < 0.02 * once.get_parameter(name).norm()


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "GPT2", "GPTNeoX"])
def test_unpacked_once_or_for_every_product_it_is_the_same(kind: str, tmp_path: Path):
    """Qwen2's layers have biases, GPT-2's are transposed, GPT-NeoX has a head of its own."""
    random_model(configuration(kind)).save_pretrained(tmp_path)
    plain, once, each = (load(tmp_path, form) for form in (None, FourBit(), FourBit(stored=True)))
    assert len(four_bit_layers(each)) > 5
    assert not four_bit_layers(once)
    kinds = [[type(m) for m in model.modules()] for model in (plain, once)]
    assert kinds[0] == kinds[1]
    assert type(each.get_output_embeddings()) is nn.Linear
    logits = [model(input_ids=IDS).logits for model in (plain, once, each)]
    torch.testing.assert_close(logits[1], logits[2], rtol=1e-4, atol=1e-4)
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize("stored", [False, True])
def test_what_is_stored_in_4_bits_is_read_as_it_is(stored_checkpoint: Path, stored: bool):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(stored_checkpoint, device_map=CPU)
    model = load(stored_checkpoint, FourBit(stored=stored, checkpoint=True))
    assert bool(four_bit_layers(model)) == stored
    assert {p.dtype for p in model.parameters() if p.is_floating_point()} == {torch.float32}
    for name, layer in four_bit_layers(theirs).items():
        found = model.get_submodule(name)
        weight = unpacked_weight(found) if stored else found.weight
        expected = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert torch.equal(weight.float(), expected.float())
    # As a GPU does it: everything in bfloat16, as the checkpoint was made.
    same = load(stored_checkpoint, FourBit(stored=stored, checkpoint=True), "bfloat16")
    assert torch.equal(same(input_ids=IDS).logits, theirs(input_ids=IDS).logits)


def test_a_compute_dtype_rounds_the_unpacked_weights(tiny_llama: Path):
    name = "model.layers.1.mlp.down_proj.weight"
    exact, coarse = (
        load(tiny_llama, FourBit(compute_dtype=dtype)).get_parameter(name)
        for dtype in (None, torch.bfloat16)
    )
    assert coarse.dtype == torch.float32
    assert torch.equal(coarse, exact.bfloat16().float())
    assert not torch.equal(coarse, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_products_are_in_the_compute_dtype_where_the_model_is_in_bfloat16(
    tiny_llama: Path, dtype: torch.dtype
):
    """The engine runs it under autocast, for the adapters that are kept in float32."""
    model = load(tiny_llama, FourBit(stored=True, compute_dtype=dtype), "bfloat16")
    layer, seen = model.model.layers[1].mlp.down_proj, []
    layer.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    PlainReader(model, compile_labels(["5", "6"], lambda word: [int(word)], 0))
    assert len(seen) > 1

    def product(x: Tensor, kind: torch.dtype) -> Tensor:
        state = copy(layer.weight.quant_state)
        state.dtype = kind  # that it is unpacked to
        return (x.to(kind) @ dequantize_4bit(layer.weight.data, state).t()).bfloat16()

    for x, out in seen:
        assert x.dtype == out.dtype == torch.bfloat16
        for kind in (torch.float32, torch.bfloat16, torch.float16):
            assert torch.equal(out, product(x, kind)) == (kind == dtype)


def test_int8_multiplies_with_the_4_bit_numbers(tiny_llama: Path):
    exact, quick = (load(tiny_llama, FourBit(), p) for p in ("float32", "int8"))
    layer, linear = (m.model.layers[0].mlp.up_proj for m in (quick, exact))
    assert isinstance(layer, Int8Linear)
    step = linear.weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((layer.dequantised() - linear.weight).abs() <= 0.5001 * step).all()


def test_4_bits_in_memory_are_counted_as_they_are(tiny_llama: Path):
    plain, once, each = (load(tiny_llama, f) for f in (None, FourBit(), FourBit(stored=True)))
    linear = sum(p.numel() for name, p in plain.named_parameters() if "proj" in name)
    assert parameter_count(plain) == parameter_count(once) == parameter_count(each)
    assert weight_bytes(plain) == weight_bytes(once)
    saved = weight_bytes(plain) - weight_bytes(each)
    scales = linear // 64  # of one byte, and theirs: one float for 256 of them, at least one
    assert saved == 4 * linear - linear // 2 - scales - 4 * 14


def test_updates_are_measured_against_the_unpacked_weights(tiny_llama: Path):
    lora = LoraSettings(2, 4.0, 0.0, "all-linear", use_rslora=False)
    once, each = (
        in_all(updates(add_lora(load(tiny_llama, FourBit(stored=s)), lora))) for s in (False, True)
    )
    assert once.frozen == pytest.approx(each.frozen, rel=1e-6)
    assert once.norm == each.norm == 0


# Rungs


def fitted(rung: Any) -> tuple[Any, np.ndarray]:
    rung.fit(TASK)
    return rung, rung.predict_proba(TASK.test.texts)


def test_both_forms_train_to_the_same_answers(llm_settings: Any):
    once, p = fitted(LLMRung(llm_settings(base="nf4")))
    each, q = fitted(LLMRung(llm_settings(base="nf4-stored")))
    assert once.engine_ == ("packed" if compiler() else "plain")
    assert each.engine_ == "plain"
    np.testing.assert_allclose(p, q, rtol=0, atol=2e-3)
    full, r = fitted(LLMRung(llm_settings()))
    assert np.abs(p - r).max() > 5e-3
    forms = [rung.record_.settings["base"] for rung in (full, once, each)]
    assert forms == ["auto", "nf4", "nf4-stored"]
    assert full.record_.parameters == once.record_.parameters == each.record_.parameters
    assert full.record_.weight_bytes == once.record_.weight_bytes > each.record_.weight_bytes


def test_gradients_come_through_4_bit_layers_after_they_were_read(tiny_llama: Path):
    """bitsandbytes would turn them into a form without gradients where there is AVX512-BF16."""
    lora = LoraSettings(2, 4.0, 0.0, "all-linear", use_rslora=False)
    found = []
    for stored in (False, True):
        torch.manual_seed(0)
        model = add_lora(load(tiny_llama, FourBit(stored=stored)), lora)
        layers = [m for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
        assert len(layers) == (14 if stored else 0)
        assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
        with torch.no_grad():
            model.eval()(input_ids=IDS)
        model.train()(input_ids=IDS).logits.square().mean().backward()
        first = model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight
        found.append(first.grad)
    assert found[0].abs().sum() > 0
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("base", ["nf4", "nf4-stored"])
def test_saved_is_loaded_bit_for_bit(llm_settings: Any, tmp_path: Path, base: str):
    rung, p = fitted(LLMRung(llm_settings(base=base, epochs=1)))
    rung.save(tmp_path)
    again = LLMRung.load(tmp_path)
    assert again.settings.base == base
    np.testing.assert_array_equal(again.predict_proba(TASK.test.texts), p)


def test_a_checkpoint_in_4_bits_is_a_model_like_any_other(
    llm_settings: Any, stored_checkpoint: Path
):
    plain, p = fitted(LLMRung(llm_settings(model=str(stored_checkpoint))))
    asked, q = fitted(LLMRung(llm_settings(model=str(stored_checkpoint), base="nf4")))
    np.testing.assert_array_equal(p, q)
    assert plain.record_.settings["base"] == asked.record_.settings["base"] == "nf4"


def test_prompted_rungs_read_the_rounded_model(llm_settings: Any):
    def zero_shot(**changes: Any) -> tuple[Any, np.ndarray]:
        return fitted(PromptedRung(llm_settings(**changes), few_shot=False, calibrated=False))

    full, once, each = (zero_shot(base=base) for base in ("auto", "nf4", "nf4-stored"))
    np.testing.assert_allclose(once[1], each[1], rtol=0, atol=1e-5)
    assert np.abs(full[1] - once[1]).max() > 1e-4
    settings = once[0].record_.settings
    assert (settings["base"], settings["double_quant"]) == ("nf4", True)
    assert each[0].record_.weight_bytes < once[0].record_.weight_bytes


def test_the_estimate_knows_what_stays_in_4_bits(
    tiny_llama: Path, stored_checkpoint: Path, tmp_path: Path
):
    data = write_weather(tmp_path / "weather.jsonl", 40)

    def estimate(model: Path, base: str) -> Any:
        made = config(data, model, base=base)
        task = run.load(made).task
        return dry_run.run_cost(dry_run.prepare(made, task), task)(1000, 500)

    once, each = (estimate(tiny_llama, base) for base in ("nf4", "nf4-stored"))
    assert "plain engine" in each.basis
    linear = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)  # two layers: q o, k v, gate up down
    saved = once.peak_memory_mb - each.peak_memory_mb
    assert saved == pytest.approx(3.5 * linear / 2**20)
    assert estimate(stored_checkpoint, "auto").peak_memory_mb == once.peak_memory_mb


def test_llm_qlora_is_lora_on_nf4(llm_settings: Any):
    rung, p = fitted(QLoRARung(llm_settings()))
    _, q = fitted(LLMRung(llm_settings(base="nf4")))
    np.testing.assert_array_equal(p, q)
    assert rung.settings.base == "nf4"
    assert QLoRARung(llm_settings(base="nf4-stored")).settings.base == "nf4-stored"


def test_the_settings_of_llm_qlora_say_so(tiny_llama: Path):
    told = config(Path("rows.jsonl"), tiny_llama)
    assert told.llm.base == "auto"
    rounded = replace(told, run=RunSettings(rung="llm-qlora"))
    assert rounded.llm.base == rounded.flat()["base"] == "nf4"
    assert RunConfig.from_flat(rounded.flat()) == rounded
    assert isinstance(registry.make(rounded), QLoRARung)
    assert "llm-qlora" not in CompareSettings().rungs


def test_kept_models_are_not_mixed_up(llm_settings: Any):
    models = KeptBaseModels()
    full, rounded = (LLMRung(llm_settings(base=base), models) for base in ("auto", "nf4"))
    kept = []
    for rung in (full, rounded, rounded):
        rung.prepare(TASK.fields, TASK.classes)
        kept.append(models.frozen(rung.prompting_, rung.settings))
    assert kept[0] is not kept[1]
    assert kept[1] is kept[2]


def test_a_sweep_counts_packed_numbers_each(tiny_llama: Path, tmp_path: Path):
    data = write_weather(tmp_path / "weather.jsonl", 40)

    def count(base: str) -> int:
        made = config(data, tiny_llama, base=base)
        return _ask(made, run.load(made).task, BaseModels(), ignore).parameters

    assert count("nf4-stored") == count("auto")


def test_it_is_said_which_memory_is_saved(llm_settings: Any):
    said: list[str] = []

    def listen(event: Any) -> None:
        if isinstance(event, Note):
            said.append(event.text)

    for base in ("auto", "nf4", "nf4-stored"):
        LLMRung(llm_settings(base=base)).prepare(TASK.fields, TASK.classes, listen)
    idle = llm_settings(compute_dtype="float16", double_quant=False)
    LLMRung(idle).prepare(TASK.fields, TASK.classes, listen)
    once, each, without = said
    assert without == (
        "--compute-dtype float16 and --no-double-quant: no effect without 4 bits (--base nf4)."
    )
    assert "unpacked once, and multiply in float32" in once
    assert "memory is not" in once
    assert "unpacked for every product" in each


@pytest.mark.gpu
def test_a_gpu_keeps_4_bits_of_the_same_numbers(llm_settings: Any):
    def zero_shot(device: str) -> tuple[Any, np.ndarray]:
        settings = llm_settings(base="nf4", precision="float32", device=device)
        return fitted(PromptedRung(settings, few_shot=False, calibrated=False))

    (here, p), (there, q) = zero_shot("cpu"), zero_shot("cuda")
    np.testing.assert_allclose(p, q, rtol=0, atol=1e-2)
    forms = [rung.record_.settings["base"] for rung in (here, there)]
    assert forms == ["nf4", "nf4-stored"]
    assert there.record_.weight_bytes < here.record_.weight_bytes
    trained, _ = fitted(LLMRung(llm_settings(base="nf4", device="cuda")))
    losses = trained.record_.trials[0].epoch_losses
    assert losses[-1] < losses[0]


# What is refused, before any model is loaded


@pytest.fixture
def without_weights(tiny_llama: Path, tmp_path: Path) -> Path:
    """A model whose weights cannot be read: whoever loads them fails otherwise than expected."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    return folder


def refused(settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LLMRung(settings).prepare(TASK.fields, TASK.classes)
    if settings.init_lora == "default":
        with pytest.raises(InputError, match=message):
            PromptedRung(settings, few_shot=False, calibrated=False).prepare(
                TASK.fields, TASK.classes
            )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "nf4-stored", "precision": "int8"}, r"4 bits, --precision int8 in 8\. Use --ba"),
        ({"init_lora": "loftq"}, "nothing is rounded here. Add --base nf4, or leave it out"),
    ],
)
def test_settings_that_contradict_each_other(
    llm_settings: Any, without_weights: Path, changes: dict[str, Any], message: str
):
    refused(llm_settings(model=str(without_weights), **changes), message)


def test_layers_in_4_bits_are_not_compiled(llm_settings: Any, without_weights: Path):
    settings = llm_settings(model=str(without_weights), base="nf4-stored", compile=True)
    message = r"--compile cannot fuse layers that stay in 4 bits \(--base nf4-stored\)\. Leave"
    with pytest.raises(InputError, match=message):
        LLMRung(settings).prepare(TASK.fields, TASK.classes)


def test_products_in_float16_are_for_prediction(llm_settings: Any, without_weights: Path):
    """On the CPU, nf4 is unpacked once: its numbers are rounded, and multiply in float32."""
    model = str(without_weights)
    settings = llm_settings(model=model, base="nf4-stored", compute_dtype="float16")
    message = r"--compute-dtype float16 is for prediction: .* Use bfloat16 or float32, or leave"
    with pytest.raises(InputError, match=message):
        LLMRung(settings).prepare(TASK.fields, TASK.classes)
    LLMRung(replace(settings, base="nf4")).prepare(TASK.fields, TASK.classes)
    asked = PromptedRung(settings, few_shot=False, calibrated=False)
    asked.prepare(TASK.fields, TASK.classes)


@pytest.mark.parametrize(
    ("stored", "changes", "message"),
    [
        (
            {"quant_method": "gptq", "bits": 4},
            {},
            "its weights are stored in the form gptq, which llabel does not read",
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True},
            {},
            "stored in the form bitsandbytes 8-bit",
        ),
        (
            {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
            {"base": "nf4"},
            r"--base nf4: .* is stored in 4-bit fp4, .* Use --base auto, with --rung llm-lora in",
        ),
        (
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            {"init_lora": "loftq"},
            "loftq needs the weights before they were rounded, but .* is stored in 4 bits. Give",
        ),
    ],
)
def test_forms_on_disk_that_do_not_do(
    llm_settings: Any,
    without_weights: Path,
    stored: dict[str, Any],
    changes: dict[str, Any],
    message: str,
):
    path = without_weights / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": stored}))
    refused(llm_settings(model=str(without_weights), **changes), message)


def test_without_bitsandbytes_the_command_that_installs_it_is_named(
    llm_settings: Any,
    without_weights: Path,
    stored_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    missing = {"bitsandbytes"}
    monkeypatch.setattr(base_form, "find_spec", lambda name: None if name in missing else name)
    message = r"--base nf4 needs bitsandbytes: pip install 'llabel\[qlora\]'\. Without it: --base a"
    refused(llm_settings(model=str(without_weights), base="nf4"), message)
    message = r"--model \S+ \(stored in 4 bits\) needs bitsandbytes: pip .* in full precision"
    refused(llm_settings(model=str(stored_checkpoint)), message)
    LLMRung(llm_settings(model=str(without_weights))).prepare(TASK.fields, TASK.classes)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A platform on which bitsandbytes cannot round."""

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel for this platform\nand a long story")

    monkeypatch.setattr("bitsandbytes.functional.quantize_4bit", fails)
    four_bit_module.why_not_here.cache_clear()
    yield
    four_bit_module.why_not_here.cache_clear()


@pytest.mark.usefixtures("broken")
def test_a_platform_without_4_bits(llm_settings: Any, without_weights: Path):
    message = (
        r"--base nf4: bitsandbytes \d\S+ cannot round to 4 bits on cpu here "
        r"\(RuntimeError: no kernel for this platform\)\. Without it: --base auto .* int8 spares"
    )
    refused(llm_settings(model=str(without_weights), base="nf4"), message)


def test_here_it_runs():
    assert why_not_here("cpu") is None
    assert (why_not_here("cuda") is None) == torch.cuda.is_available()
