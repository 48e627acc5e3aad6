"""How far LoRA moved a model's weights, layer by layer."""

import re
from collections import defaultdict
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llabel.engine.four_bit import is_four_bit, unpacked_weight
from llabel.engine.linear import Int8Linear

if TYPE_CHECKING:
    from peft import PeftModel

_NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Update:
    """What adapters add to the linear layers of one decoder layer, or of all of them.

    Attributes:
        layer: the decoder layer's number from 0; -1 for what has none.
        norm: √ Σ ‖ΔW‖²_F over the adapted linear layers, ΔW = scaling · B A.
        frozen: √ Σ ‖W‖²_F over the same layers.
    """

    layer: int
    norm: float
    frozen: float

    @property
    def relative(self) -> float:
        """`norm` / `frozen`."""
        return self.norm / self.frozen


@torch.no_grad()
def updates(model: "PeftModel") -> list[Update]:
    """The update of every decoder layer that has adapters, in their order."""
    squares: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and getattr(module, "active_adapters", None):
            number = _NUMBER.search(name)
            layer = int(number.group(1)) if number else -1
            squares[layer].append((_squared_update(module), _squared_norm(module)))
    return [
        Update(layer, *(sqrt(sum(column)) for column in zip(*found, strict=True)))
        for layer, found in sorted(squares.items())
    ]


def in_all(found: list[Update]) -> Update:
    """The same of all layers together."""
    norm, frozen = (sqrt(sum(getattr(u, n) ** 2 for u in found)) for n in ("norm", "frozen"))
    return Update(-1, norm, frozen)


def _squared_update(module: Any) -> float:
    """‖s B A‖²_F = s² Σ (BᵀB ∘ A Aᵀ): two (r, r) products in place of an (out, in) one."""
    (name,) = module.active_adapters
    a, b = (_weight(room[name]) for room in (module.lora_A, module.lora_B))
    return float(module.scaling[name]) ** 2 * float(((b.t() @ b) * (a @ a.t())).sum())


def _weight(linear: nn.Module) -> Tensor:
    weight: Any = linear.weight
    tensor: Tensor = weight.detach().double()
    return tensor


def _squared_norm(module: Any) -> float:
    base = module.get_base_layer()
    if is_four_bit(base):
        return float(unpacked_weight(base).double().square().sum())
    weight = base.dequantised() if isinstance(base, Int8Linear) else base.weight.detach()
    return float(weight.double().square().sum())
