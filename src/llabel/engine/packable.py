"""Which models the packed decoder can run."""

from typing import Any

import torch
from torch import nn

from llabel.engine.four_bit import is_four_bit

# Llama's layer under other names. Others differ in norms, activations, scores or residuals.
_ALIKE = frozenset({"llama", "mistral", "qwen2"})
_FIXED_ROTARY = frozenset({"default", "linear", "llama3", "yarn"})  # no tables that change


def why_not_config(config: Any, lanes: int = 1) -> str | None:
    """What keeps models of a configuration out of a `PackedDecoder`; None if nothing does."""
    kind = getattr(config, "model_type", "?")
    if kind not in _ALIKE:
        return f"{kind} is not built like Llama"
    if config.hidden_act not in {"silu", "swish"}:
        return f"its activation is {config.hidden_act}"
    if dropout := getattr(config, "attention_dropout", 0.0):
        return f"its attention drops {dropout:.0%} of what it sees in training"
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotary not in _FIXED_ROTARY:
        return f"its rotary positions are {rotary}"
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True):
        return f"its attention slides over {window} tokens"
    if any(n % lanes for n in (config.hidden_size, config.intermediate_size, head_width(config))):
        return f"its widths are no multiples of {lanes}"
    return None


def why_not(model: Any, lanes: int = 1) -> str | None:
    """What keeps `model` out of a `PackedDecoder`; None if nothing does."""
    if reason := why_not_config(model.config, lanes):
        return reason
    if next(model.parameters()).device.type != "cpu":
        return "it is for the CPU"
    for layer in model.get_decoder().layers:
        for room in (layer.self_attn, layer.mlp):
            for name in _LINEAR:
                found = getattr(room, name, None)
                if found and (reason := _odd(found, adds=name in {"o_proj", "down_proj"})):
                    return f"{name} {reason}"
    return None


_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def head_width(config: Any) -> int:
    """Numbers of one attention head."""
    width = getattr(config, "head_dim", None)
    return int(width or config.hidden_size // config.num_attention_heads)


def _odd(layer: Any, *, adds: bool) -> str | None:
    """What is unusual about a linear layer; `adds` to the residual stream."""
    frozen = getattr(layer, "base_layer", layer)
    if not isinstance(frozen, nn.Linear) or frozen.weight.dtype not in {torch.float32, torch.int8}:
        return "is no linear layer in float32 or int8"
    if is_four_bit(frozen):
        return "is in 4 bits"
    if frozen.weight.requires_grad:
        return "is trained itself"
    if adds and frozen.bias is not None:
        return "has a bias"
    if frozen is layer:
        return None
    if not hasattr(layer, "lora_A") or len(layer.active_adapters) != 1 or layer.merged:
        return "has something other than one LoRA adapter"
    (name,) = layer.active_adapters
    if any(layer.use_dora.values()) or any(layer.lora_bias.values()):
        return "has an unusual adapter"
    if not isinstance(layer.lora_dropout[name], nn.Identity):
        return "has dropout"
    return None
