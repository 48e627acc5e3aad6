"""LoRA that starts from what rounding to 4 bits lost."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llabel.engine.four_bit import FourBit, unpacked_weight
from llabel.engine.loftq import start_from_rounding
from llabel.engine.model import LoraSettings, add_lora, load_model
from llabel.ladder.llm import LLMRung
from test_answer import configuration
from tiny_models import random_model
from tiny_rungs import TASK

CPU = torch.device("cpu")
IDS = torch.arange(4, 24)[None]


def started(folder: Path, form: FourBit, r: int, alpha: float = 8.0) -> Any:
    lora = LoraSettings(r, alpha, 0.0, "all-linear", use_rslora=False)
    model = add_lora(load_model(folder, CPU, "float32", four_bit=form), lora)
    start_from_rounding(model, folder, form.double_quant)
    return model


def adapted(model: Any) -> dict[str, Any]:
    base = model.get_base_model()
    return {name: m for name, m in base.named_modules() if hasattr(m, "lora_A")}


@pytest.mark.parametrize("form", [FourBit(), FourBit(double_quant=False), FourBit(stored=True)])
@pytest.mark.parametrize("alpha", [4.0, 32.0])
def test_the_adapter_is_the_best_of_its_rank(tiny_llama: Path, form: FourBit, alpha: float):
    """By Eckart and Young, what is left of W are the singular values beyond r."""
    full = load_model(tiny_llama, CPU, "float32")
    layers = adapted(started(tiny_llama, form, r=4, alpha=alpha))
    assert len(layers) == 14
    for name, layer in layers.items():
        weight = full.get_parameter(f"{name}.weight")
        base = layer.get_base_layer()
        rounded = unpacked_weight(base) if form.stored else base.weight
        before = weight - rounded
        after = before - layer.get_delta_weight("default")
        tail = torch.linalg.svdvals(before)[4:].norm()
        assert after.norm().item() == pytest.approx(tail.item(), rel=1e-4)
        assert after.norm() < before.norm()


def test_more_rank_is_nearer_and_all_of_it_is_the_full_model(tiny_llama: Path):
    expected = load_model(tiny_llama, CPU, "float32")(input_ids=IDS).logits
    off = []
    for r in (1, 8, 32, 200):  # the smallest layer is (32, 64)
        with torch.no_grad():
            found = started(tiny_llama, FourBit(), r)(input_ids=IDS).logits
        off.append(float((found - expected).norm() / expected.norm()))
    plain = load_model(tiny_llama, CPU, "float32", four_bit=FourBit())(input_ids=IDS).logits
    assert off == sorted(off, reverse=True)
    assert off[0] < float((plain - expected).norm() / expected.norm())
    assert off[-1] < 1e-4


def test_transposed_layers_and_a_scaling_of_zero(tmp_path: Path):
    random_model(configuration("GPT2")).save_pretrained(tmp_path)
    expected = load_model(tmp_path, CPU, "float32")(input_ids=IDS).logits
    with torch.no_grad():
        whole = started(tmp_path, FourBit(), 200)(input_ids=IDS).logits
    torch.testing.assert_close(whole, expected, rtol=1e-3, atol=1e-3)
    layers = adapted(started(tmp_path, FourBit(), 2, alpha=0.0))
    assert all(not layer.lora_B["default"].weight.any() for layer in layers.values())


@pytest.mark.parametrize("base", ["nf4", "nf4-stored"])
def test_saved_is_loaded_bit_for_bit(llm_settings: Any, tmp_path: Path, base: str):
    settings = llm_settings(base=base, init_lora="loftq", epochs=1)
    rung = LLMRung(settings).fit(TASK)
    p = rung.predict_proba(TASK.test.texts)
    rung.save(tmp_path)
    np.testing.assert_array_equal(LLMRung.load(tmp_path).predict_proba(TASK.test.texts), p)
    plain = LLMRung(llm_settings(base=base, epochs=1)).fit(TASK)
    assert np.abs(plain.predict_proba(TASK.test.texts) - p).max() > 1e-3


def test_the_untouched_model_is_not_started_from_it(llm_settings: Any):
    settings = llm_settings(base="nf4", init_lora="loftq")
    rung = LLMRung(settings).untrained(TASK)
    plain = LLMRung(llm_settings(base="nf4")).untrained(TASK)
    texts = TASK.validation.texts
    np.testing.assert_array_equal(rung.predict_proba(texts), plain.predict_proba(texts))
