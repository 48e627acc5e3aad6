"""Frozen linear layers: the same numbers as `nn.Linear`, cheaper to multiply with."""

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn


class Int8Linear(nn.Linear):
    """A frozen linear layer with int8 weights (one scale per output channel).

    Activations are rounded to int8 row by row (absolute maximum / 127) on the way forward, and
    gradients likewise on the way back, so that both products run in integers: many times as fast
    as float32 on CPUs with VNNI. It stays an `nn.Linear`, hence PEFT can wrap it. The result is the
    same to the bit on every processor, as integer sums are exact.

    Args:
        linear: whose weights it takes; their rounding is the only thing that is lost.
        smooth: (in,) what input channels are divided by, and the weights multiplied with, before
            rounding (Xiao et al. 2023, SmoothQuant, eq. 3), so that a few large channels do not
            decide the scale of all.
    """

    def __init__(self, linear: nn.Linear, smooth: Tensor | None = None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        if smooth is not None:
            weight = weight * smooth
        scale = weight.abs().amax(dim=1).clamp_min(1e-8) / 127.0  # (out,)
        rounded = (weight / scale[:, None]).round().to(torch.int8)  # (out, in)
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.scale: Tensor
        self.register_buffer("scale", scale, persistent=False)
        self.unsmooth: Tensor
        unsmooth = torch.ones(self.in_features) if smooth is None else 1.0 / smooth
        self.register_buffer("unsmooth", unsmooth, persistent=False)
        self.bias = linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        flat = input.reshape(-1, self.in_features)
        out = _Int8Product.apply(flat, self.weight, self.scale, self.unsmooth)
        out = out.view(*input.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias

    def dequantised(self) -> Tensor:
        """(out, in) float32 weights that this layer multiplies with."""
        return self.weight.float() * self.scale[:, None] * self.unsmooth


class _Int8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, unsmooth: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale, unsmooth)
        quantised, rows = _quantise_rows(x * unsmooth)
        return int_product(quantised, weight.t()) * rows * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale, unsmooth = ctx.saved_tensors
        quantised, rows = _quantise_rows(grads[0] * scale)
        return int_product(quantised, weight) * rows * unsmooth, None, None, None


@functools.cache
def int_mm_is_fast() -> bool:
    """Whether `torch._int_mm` is more than a plain loop, fifty times as slow as float32, here.

    oneDNN multiplies integers only where the processor has VNNI (pytorch/pytorch#136942): of those
    with AVX-512, Skylake's have not.
    """
    wide = torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AMX"))
    return wide and torch.cpu._is_vnni_supported()


@functools.cache
def has_matrix_unit() -> bool:
    """Whether `torch._int_mm` runs on a unit of its own (AMX), which our products don't know."""
    told: bool = getattr(torch.cpu, "_is_amx_tile_supported", bool)()  # PyTorch 2.5 may lack it
    return told


def int_product(a: Tensor, b: Tensor) -> Tensor:
    """(m, k) and (k, n) int8 in -127 ... 127 → (m, n) int32, exact."""
    return torch._int_mm(a, b) if int_mm_is_fast() else int_product_in_float(a, b)


def int_product_in_float(a: Tensor, b: Tensor) -> Tensor:
    """The same by float32 products, in parts whose sums float32 holds exactly (below 2^24)."""
    exact = 2**24 // 127**2  # columns
    parts = zip(a.split(exact, dim=1), b.split(exact), strict=True)
    products = [(left.float() @ right.float()).to(torch.int32) for left, right in parts]
    return products[0] if len(products) == 1 else torch.stack(products).sum(0, dtype=torch.int32)


def _quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(n, k) float → (n, k) int8 and its (n, 1) scales."""
    rows = x.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127.0
    return (x / rows).round().to(torch.int8), rows


# Layers that read the same input, by their usual names: they are smoothed alike.
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def quantise_frozen(
    module: nn.Module, largest: Mapping[nn.Module, Tensor] = MappingProxyType({})
) -> nn.Module:
    """Replace every `nn.Linear` below `module` by an `Int8Linear`.

    Args:
        module: a decoder without its head.
        largest: (in,) largest magnitude of each input channel, for the layers that shall be
            smoothed (see `largest_inputs`).
    """
    for parent in list(module.modules()):
        children = {n: c for n, c in parent.named_children() if isinstance(c, nn.Linear)}
        for names in _SIBLINGS:
            if children.keys() >= set(names):
                _quantise(parent, {name: children.pop(name) for name in names}, largest)
        for name, child in children.items():
            if not isinstance(child, Int8Linear):
                _quantise(parent, {name: child}, largest)
    return module


def _quantise(
    parent: nn.Module, layers: dict[str, nn.Linear], largest: Mapping[nn.Module, Tensor]
) -> None:
    smooth: Tensor | None = None
    first = next(iter(layers.values()))
    if first in largest:
        weights = torch.cat([layer.weight.detach().float() for layer in layers.values()])
        smooth = _smoothing(largest[first], weights.abs().amax(dim=0))
    for name, layer in layers.items():
        setattr(parent, name, Int8Linear(layer, smooth))


def _smoothing(inputs: Tensor, weights: Tensor) -> Tensor:
    """Half of the difficulty each: √(largest input / largest weight) of a channel, mean one."""
    smooth = (inputs.clamp_min(1e-5) / weights.clamp_min(1e-5)).sqrt()  # (in,)
    return smooth / smooth.mean()


@torch.no_grad()
def largest_inputs(module: nn.Module, input_ids: Sequence[int]) -> dict[nn.Module, Tensor]:
    """(in,) largest magnitude of each input channel of every `nn.Linear` over some tokens."""
    found: dict[nn.Module, Tensor] = {}

    def watch(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[layer] = inputs[0].detach().abs().flatten(0, -2).amax(dim=0)

    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_pre_hook(watch) for layer in linear]
    try:
        module(input_ids=torch.tensor([list(input_ids)]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found
