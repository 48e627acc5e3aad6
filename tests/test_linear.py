import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from llabel.engine.linear import (
    Int8Linear,
    int_product,
    int_product_in_float,
    quantise_frozen,
)


@pytest.fixture
def layer() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(96, 64).requires_grad_(False)


@pytest.fixture
def x() -> torch.Tensor:
    """(2, 5, 96) activations with one feature ten times as large as the others."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, 96, generator=generator)
    x[..., 7] *= 10
    return x


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("bias", [True, False])
def test_int8_products_are_within_two_per_cent(layer, x, bias):
    if not bias:
        layer.bias = None
    quantised = Int8Linear(layer)
    found = quantised(x)
    assert found.shape == (2, 5, 64)
    assert relative_error(found, layer(x)) < 0.02


def test_int8_gradients_toward_the_input_are_within_two_per_cent(layer, x):
    upstream = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(2))
    found, expected = (x.clone().requires_grad_() for _ in range(2))
    Int8Linear(layer)(found).backward(upstream)
    layer(expected).backward(upstream)
    assert relative_error(found.grad, expected.grad) < 0.02


def test_the_gradient_is_that_of_the_rounded_weights(layer, x):
    """Only the rounding of rows lies between: with rows of whole numbers there is none."""
    quantised = Int8Linear(layer)
    whole = torch.randint(-127, 128, (3, 96), generator=torch.Generator().manual_seed(3)).float()
    whole[:, 0] = 127
    expected = nn.functional.linear(whole, quantised.dequantised(), layer.bias)
    torch.testing.assert_close(quantised(whole), expected, rtol=1e-5, atol=1e-4)


def test_rounded_weights_are_within_half_a_step(layer):
    quantised = Int8Linear(layer)
    step = layer.weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((quantised.dequantised() - layer.weight).abs() <= 0.5001 * step).all()
    assert quantised.weight.dtype == torch.int8


def test_rows_do_not_depend_on_their_company(layer, x):
    quantised = Int8Linear(layer)
    alone = torch.stack([quantised(row[None])[0] for row in x.reshape(-1, 96)])
    assert torch.equal(quantised(x).reshape(-1, 64), alone)


def test_zeros_stay_zeros_and_nan_stays_nan(layer):
    layer.weight[3] = 0
    quantised = Int8Linear(layer)
    zeros = torch.zeros(2, 96)
    torch.testing.assert_close(quantised(zeros), layer(zeros))
    zeros[1, 5] = torch.nan
    out = quantised(zeros)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def siblings() -> nn.Module:
    """Three layers with one input, and one behind them."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        names = ("q_proj", "k_proj", "v_proj")
        return nn.ModuleDict({n: nn.Linear(96, 32) for n in names} | {"o_proj": nn.Linear(32, 96)})


def test_every_linear_layer_is_replaced():
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(8, 8), nn.ReLU()), "b": siblings()})
    quantise_frozen(model)
    assert isinstance(model["a"][0], Int8Linear)
    assert all(isinstance(layer, Int8Linear) for layer in model["b"].values())


def test_smoothing_keeps_large_channels_from_spoiling_the_others(x):
    """Channel 7 is ten times as large: unsmoothed, it decides the scale of all."""
    x = x[..., :96].clone()
    x[..., 7] *= 10
    errors = []
    for smooth in (False, True):
        model = siblings()
        expected = {name: model[name](x) for name in ("q_proj", "k_proj", "v_proj")}
        largest = {layer: x.abs().flatten(0, 1).amax(0) for layer in model.values()}
        largest.pop(model["o_proj"])
        quantise_frozen(model, largest if smooth else {})
        assert torch.equal(model["q_proj"].unsmooth, model["v_proj"].unsmooth)
        errors.append(max(relative_error(model[n](x), e) for n, e in expected.items()))
    assert errors[1] < errors[0] / 2


def test_smoothing_changes_weights_by_their_rounding_alone(layer):
    smooth = torch.linspace(0.2, 5, 96)
    quantised = Int8Linear(layer, smooth)
    step = (layer.weight * smooth).abs().amax(dim=1, keepdim=True) / 127
    off = (quantised.dequantised() - layer.weight).abs() * smooth
    assert (off <= 0.501 * step).all()


def test_peft_adapts_int8_layers(layer, x):
    model = nn.Sequential(Int8Linear(layer))
    before = copy.deepcopy(model)(x)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["0"], init_lora_weights=True))
    assert torch.equal(adapted(x), before)  # B starts at zero
    adapted(x).square().sum().backward()
    gradients = {n: p.grad for n, p in adapted.named_parameters() if p.requires_grad}
    assert [name.split(".")[-3] for name in gradients] == ["lora_A", "lora_B"]
    assert all(p.dtype == torch.float32 for p in adapted.parameters() if p.requires_grad)
    assert gradients["base_model.model.0.lora_B.default.weight"].abs().sum() > 0


@pytest.mark.parametrize("product", [int_product, int_product_in_float])
@pytest.mark.parametrize("columns", [8, 1040, 1041, 4096])
def test_integer_products_are_exact_however_large_their_sums(product, columns):
    a, b = torch.full((3, columns), 127, dtype=torch.int8), torch.full((columns, 8), -127)
    a[1, ::2], a[2, -1] = -127, 1
    expected = a.int() @ b.int()
    assert torch.equal(product(a, b.to(torch.int8)), expected)
