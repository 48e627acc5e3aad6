"""Rotary positions beyond the context that a model was trained with."""

from pathlib import Path
from typing import Any

from llabel.errors import InputError
from llabel.settings import RopeScaling


def scaled_config(folder: Path, rope: RopeScaling) -> Any:
    """The configuration of the model at `folder` with its rotary positions scaled.

    Its `max_position_embeddings` are the new context, in tokens.

    Raises:
        InputError: the model has no rotary positions, several kinds of them, or scaled ones.
    """
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} holds no config.json that transformers can read: "
            f"{str(error).splitlines()[0]}"
        ) from error
    old = getattr(config, "rope_parameters", None)
    asked = f"--rope-scaling {rope.kind}:{rope.factor:g}"
    if not old or "rope_theta" not in old:
        what = "no rotary positions" if not old else "rotary positions of several kinds"
        raise InputError(f"{asked}: {config.model_type} has {what} to scale. Leave it out.")
    known, context = old.get("rope_type", "default"), int(config.max_position_embeddings)
    if known != "default":
        raise InputError(
            f"{asked}: the rotary positions of this model are scaled already ({known}, factor "
            f"{old.get('factor', '?')}), its context is {context} tokens. Leave it out."
        )
    new: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind == "dynamic":
        new = {"rope_theta": _ntk_base(config, old, rope.factor)}
    elif rope.kind != "linear":
        new["original_max_position_embeddings"] = context
    if rope.kind == "llama3":
        new |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # as Llama 3.1 and 3.2 have it
    config.rope_parameters = old | new
    config.max_position_embeddings = int(context * rope.factor)
    return config


def _ntk_base(config: Any, old: dict[str, Any], factor: float) -> float:
    """What transformers' dynamic scaling takes at a length of factor × context (NTK-aware)."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotated = int(width * old.get("partial_rotary_factor", 1.0))
    stretched = factor * factor - (factor - 1)
    return float(old["rope_theta"] * stretched ** (rotated / (rotated - 2)))
