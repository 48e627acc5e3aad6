"""AdamW, also with its state in 8 bits (Dettmers et al. 2022, arXiv 2110.02861).

On a GPU the paged form keeps the state of parameters of 100,000 numbers and more in memory that
moves between the GPU and the machine. bitsandbytes has no way to give it back: that of every
training stays, two bytes a number, until the process ends.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llabel.errors import InputError

# What the optimisers keep of a parameter: PyTorch's, and bitsandbytes', which keeps small ones in
# float32 without scales.
STATE = (
    *("step", "exp_avg", "exp_avg_sq"),
    *("state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2"),
)


def make_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    fused: bool,
) -> torch.optim.Optimizer:
    """An optimiser over `parameters`.

    Args:
        name: `adamw`, `adamw_8bit` or `paged_adamw_8bit`.
        parameters: what it changes.
        lr, betas, weight_decay: AdamW's.
        fused: PyTorch's fused form of `adamw`.

    Raises:
        InputError: unknown name, or bitsandbytes is missing.
    """
    if name == "adamw":
        return torch.optim.AdamW(
            parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused or None
        )
    refuse_missing(name)
    from bitsandbytes import optim

    kinds: dict[str, Any] = {
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
    }
    if name not in kinds:
        raise InputError(f"--optim {name!r}: choose adamw, {' or '.join(kinds)}.")
    optimizer: torch.optim.Optimizer = kinds[name](
        parameters, lr=lr, betas=betas, weight_decay=weight_decay
    )
    return optimizer


def refuse_missing(name: str) -> None:
    """Say what to install for an optimiser, before any work.

    Raises:
        InputError: bitsandbytes is missing.
    """
    from importlib.util import find_spec

    if name != "adamw" and find_spec("bitsandbytes") is None:
        raise InputError(
            f"--optim {name} needs bitsandbytes: pip install 'llabel[qlora]'. Or leave it out."
        )


def packed_state(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state of one parameter as tensors of its own: bitsandbytes' code books are shared."""
    return {
        key: value.clone() if key.startswith("qmap") else torch.as_tensor(value)
        for key, value in state.items()
        if key in STATE and value is not None
    }


def unpacked_state(
    state: Mapping[str, Tensor],
    parameter: nn.Parameter,
    optimizer: torch.optim.Optimizer,
    *,
    on_gpu: bool,
) -> dict[str, Any]:
    """The reverse of `packed_state`.

    Args:
        state: of one parameter.
        parameter: it, where it lives now.
        optimizer: whose state it becomes.
        on_gpu: PyTorch counts steps on the CPU unless it is fused.
    """
    found: dict[str, Any] = {}
    bits8: Any = optimizer
    for key, value in state.items():
        if key in {"state1", "state2"}:  # in the memory that a fresh one would have: perhaps paged
            found[key] = bits8.get_state_buffer(parameter, dtype=value.dtype).copy_(value)
        elif key != "step":
            found[key] = value.to(parameter.device)
        elif value.dtype.is_floating_point:
            found[key] = value.to(parameter.device if on_gpu else "cpu")
        else:  # bitsandbytes counts in plain numbers
            found[key] = int(value)
    return found
