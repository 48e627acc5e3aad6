"""4-bit NF4 weights (Dettmers et al. 2023, QLoRA, arXiv 2305.14314) by bitsandbytes."""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK = 64  # weights that share a scale: bitsandbytes' default, and that of every checkpoint


@dataclass(frozen=True, slots=True)
class FourBit:
    """How the frozen linear layers are kept in 4 bits. Embeddings and the head never are.

    Attributes:
        double_quant: the blocks' scales are rounded to 8 bits, too; of a checkpoint that is stored
            in 4 bits, what it has counts.
        compute_dtype: what weights are unpacked to for a product; None is the model's own.
        stored: 4 bits stay in memory, and every product unpacks them. Otherwise they are unpacked
            once: the same numbers in the form of any other model.
        checkpoint: the files hold 4-bit weights already.
    """

    double_quant: bool = True
    compute_dtype: torch.dtype | None = None
    stored: bool = False
    checkpoint: bool = False


@functools.cache
def why_not_here(device_type: str) -> str | None:
    """What keeps bitsandbytes from rounding to 4 bits on a kind of device; None if nothing does."""
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        numbers = torch.linspace(-1, 1, 2 * BLOCK, device=device_type).view(2, BLOCK)
        again = dequantize_4bit(*quantize_4bit(numbers, blocksize=BLOCK, quant_type="nf4"))
        off = float((again - numbers).abs().max())
    except Exception as error:  # whatever it is made of did not load, or does not run
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return None if off < 0.2 else f"it rounds numbers by {off:.3g}"


def round_trip(weight: torch.Tensor, *, double_quant: bool) -> torch.Tensor:
    """(out, in) weights → the same rounded to NF4, in their own dtype."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(
        weight.contiguous(), blocksize=BLOCK, compress_statistics=double_quant, quant_type="nf4"
    )
    return dequantize_4bit(packed, state).view(weight.shape).to(weight.dtype)


def loading_options(four_bit: FourBit, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` must be told to load a model with 4-bit layers."""
    from transformers import BitsAndBytesConfig

    if four_bit.checkpoint:  # it says itself how its weights are stored
        return {}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=four_bit.double_quant,
            bnb_4bit_compute_dtype=four_bit.compute_dtype or dtype,
        )
    }


def four_bit_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose weights are in 4 bits, by name."""
    return {name: module for name, module in model.named_modules() if is_four_bit(module)}


def is_four_bit(layer: nn.Module) -> bool:
    """Whether a linear layer's weights are in 4 bits."""
    return getattr(getattr(layer, "weight", None), "quant_state", None) is not None


def unpacked_weight(layer: Any) -> torch.Tensor:
    """(out, in) weights that a 4-bit layer multiplies with."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def settle(model: "PreTrainedModel", four_bit: FourBit, dtype: torch.dtype) -> None:
    """Bring a model that was just loaded with 4-bit layers into the form asked for."""
    layers = four_bit_layers(model)
    for parameter in model.parameters():  # of a 4-bit checkpoint they keep the type of its files
        if getattr(parameter, "quant_state", None) is None:
            parameter.data = parameter.data.to(dtype)
    for layer in layers.values():
        module: Any = layer
        module.compute_dtype, module.compute_type_is_set = four_bit.compute_dtype or dtype, True
        # A form for inference in bfloat16 alone, through which no gradient comes; bitsandbytes
        # turns to it for good as soon as a model is read in evaluation mode.
        module.support_avx512bf16_for_cpu = False
        if four_bit.stored:
            from llabel.engine.four_bit_layer import Linear4bitAsAsked  # needs bitsandbytes

            module.__class__ = Linear4bitAsAsked
    if layers and not four_bit.stored:
        _unpack(model, four_bit, dtype)


def _unpack(model: Any, four_bit: FourBit, dtype: torch.dtype) -> None:
    """Put 4-bit numbers into ordinary layers of `dtype`."""
    from transformers.integrations.bitsandbytes import Bnb4bitDeserialize
    from transformers.pytorch_utils import Conv1D

    # transformers puts an `nn.Linear` in the place of GPT-2's transposed layers.
    transposed = [n for n, m in model.named_modules() if getattr(m, "source_cls", None) is Conv1D]
    rounded = list(four_bit_layers(model))
    model.dequantize(dtype=dtype)
    # What reads packed weights from a 4-bit checkpoint has no reverse, and saving would ask for it.
    model._weight_conversions = [
        conversion
        for conversion in getattr(model, "_weight_conversions", None) or ()
        if not any(isinstance(o, Bnb4bitDeserialize) for o in getattr(conversion, "operations", ()))
    ]
    for name in rounded:
        linear = model.get_submodule(name)
        if four_bit.compute_dtype is not None:  # as a product would
            weight: Any = linear.weight
            weight.data = weight.data.to(four_bit.compute_dtype).to(dtype)
        if name in transposed:
            model.set_submodule(name, _conv1d(linear))


def _conv1d(linear: Any) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        layer = Conv1D(linear.out_features, linear.in_features)
    layer.weight = nn.Parameter(linear.weight.detach().t().contiguous(), requires_grad=False)
    layer.bias = linear.bias
    return layer


def parameter_count(model: nn.Module) -> int:
    """Numbers that the model computes with; packed ones count each."""
    return sum(_numbers(parameter) for parameter in model.parameters())


def _numbers(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else state.shape.numel())


def weight_bytes(model: nn.Module) -> int:
    """Memory of the weights as they stand, the scales of packed ones included."""
    found = 0
    for tensor in (*model.parameters(), *model.buffers()):
        found += tensor.numel() * tensor.element_size()
        state = getattr(tensor, "quant_state", None)
        while state is not None:
            found += state.absmax.numel() * state.absmax.element_size()
            state = state.state2
    return found
