"""LoRA that starts from what rounding the base to 4 bits lost."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llabel.engine.four_bit import round_trip

if TYPE_CHECKING:
    from peft import PeftModel


@torch.no_grad()
def start_from_rounding(model: "PeftModel", folder: Path, double_quant: bool) -> None:
    """Let every fresh adapter be the best of its rank for W ≈ NF4(W) + scaling · B A.

    LoftQ (Li et al. 2023, arXiv 2310.08659, algorithm 1) with one step, as PEFT's
    `replace_lora_weights_loftq`, which needs a GPU and leaves the scaling out. More steps would
    change the base: this adapter belongs to the NF4 numbers that everybody gets from the model.
    An adapter that is scaled by 0 stays as it is.

    Args:
        model: its base was rounded to NF4.
        folder: the model in full precision; it is in memory beside the other for a moment.
        double_quant: as its base was.
    """
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    base: Any = model.get_base_model()
    full: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=base.dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    for name, layer in base.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        adapted: Any = layer
        (adapter,) = adapted.active_adapters
        if not (scaling := float(adapted.scaling[adapter])):
            continue
        before = full.get_submodule(name)
        weight = before.weight.t() if isinstance(before, Conv1D) else before.weight  # (out, in)
        weight = weight.to(base.device)
        lost = weight.float() - round_trip(weight, double_quant=double_quant).float()
        a, b = adapted.lora_A[adapter].weight, adapted.lora_B[adapter].weight
        left, right = _best_factors(lost / scaling, len(a))
        a.copy_(right)
        b.copy_(left)


def _best_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(out, in) → (out, rank) and (rank, in), whose product is nearest (Eckart, Young 1936)."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()  # half of each singular value to either side
    missing = rank - len(root)
    left = torch.nn.functional.pad(u[:, :rank] * root, (0, missing))
    right = torch.nn.functional.pad(root[:, None] * v[:rank], (0, 0, 0, missing))
    return left, right
