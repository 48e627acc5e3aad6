"""In which form the frozen model stands: as its files say, or in 4 bits; what that needs."""

import json
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llabel.errors import InputError
from llabel.events import Listener, Note
from llabel.settings import LLMSettings

if TYPE_CHECKING:
    import torch

    from llabel.engine.four_bit import FourBit

_NEEDED = ("bitsandbytes", "accelerate")


def four_bit_of(settings: LLMSettings, folder: Path, device: "torch.device") -> "FourBit | None":
    """How the model at `folder` is to be kept in 4 bits; None where it is not.

    Args:
        settings: `base`, `double_quant`, `compute_dtype`; others, to see whether they fit.
        folder: the model's; its files may hold 4-bit weights already.
        device: where it shall run.

    Raises:
        InputError: the files are in a form that llabel does not read, bitsandbytes is missing or
            does not run here, or the settings contradict each other.
    """
    import torch

    from llabel.engine.four_bit import FourBit, why_not_here

    kept = _stored_quantisation(folder)
    _refuse_other_forms(settings, kept)
    if settings.base == "auto" and kept is None:
        return None
    if any(find_spec(name) is None for name in _NEEDED):
        raise InputError(
            f"{_asked(settings)} needs bitsandbytes: pip install 'llabel[qlora]'. "
            + _without(settings)
        )
    if reason := why_not_here(device.type):
        raise InputError(
            f"{_asked(settings)}: bitsandbytes {version('bitsandbytes')} cannot round to 4 bits on "
            f"{device.type} here ({reason}). {_without(settings)}"
        )
    stored = settings.base == "nf4-stored" or device.type != "cpu"
    if stored and settings.precision == "int8":
        raise InputError(
            "--base nf4-stored keeps the weights in 4 bits, --precision int8 in 8. Use --base nf4 "
            "for 4-bit numbers that multiply in int8, or leave --precision out."
        )
    if stored and settings.compile:
        raise InputError(
            f"--compile cannot fuse layers that stay in 4 bits ({_asked(settings)}). Leave it out."
        )
    compute = settings.compute_dtype
    return FourBit(
        double_quant=settings.double_quant,
        compute_dtype=None if compute == "auto" else getattr(torch, compute),
        stored=stored,
        checkpoint=kept is not None,
    )


def check_base(
    settings: LLMSettings, folder: Path, device: "torch.device", precision: str, notify: Listener
) -> None:
    """Refuse what cannot be done before a model is loaded, and say what 4 bits mean here.

    Raises:
        InputError: as `four_bit_of`.
    """
    four_bit = four_bit_of(settings, folder, device)
    if four_bit is None:
        idle = []
        if settings.compute_dtype != "auto":
            idle.append(f"--compute-dtype {settings.compute_dtype}")
        if not settings.double_quant:
            idle.append("--no-double-quant")
        if idle:
            notify(Note(f"{' and '.join(idle)}: no effect without 4 bits (--base nf4)."))
    if four_bit is None or device.type != "cpu":
        return
    if four_bit.stored:
        said = (
            "the weights stay in 4 bits and are unpacked for every product. That saves memory and "
            "takes time; --base nf4 has the same numbers without unpacking"
        )
    else:
        said = (
            f"the weights have the numbers of 4-bit NF4, unpacked once, and multiply in "
            f"{precision}. Answers are those of QLoRA, memory is not: it is as much as without. "
            "--base nf4-stored keeps 4 bits in memory, and is slower"
        )
    notify(Note(f"{_asked(settings)}, on the CPU: {said}."))


def check_start(settings: LLMSettings, folder: Path) -> None:
    """Refuse to start from what rounding lost where nothing is rounded, or nobody knows it.

    Raises:
        InputError: `init_lora` does not fit the base.
    """
    if settings.init_lora == "default":
        return
    if _stored_quantisation(folder) is not None:
        raise InputError(
            "--init-lora loftq needs the weights before they were rounded, but "
            f"{settings.model} is stored in 4 bits. Give the model in full precision, with "
            "--base nf4."
        )
    if settings.base == "auto":
        raise InputError(
            "--init-lora loftq makes up for what rounding to 4 bits loses, and nothing is rounded "
            "here. Add --base nf4, or leave it out."
        )


def check_training(settings: LLMSettings, folder: Path, device: "torch.device") -> None:
    """Refuse products through which no gradient would come whole.

    Raises:
        InputError: 4-bit layers are to compute in float16; as `four_bit_of`.
    """
    four_bit = four_bit_of(settings, folder, device)
    if four_bit is not None and four_bit.stored and settings.compute_dtype == "float16":
        raise InputError(
            "--compute-dtype float16 is for prediction: in training, small gradients would become "
            "0 in it, as llabel does not scale the loss. Use bfloat16 or float32, or leave it out."
        )


def form_in_use(four_bit: "FourBit | None") -> str:
    """What `base` comes to."""
    if four_bit is None:
        return "auto"
    return "nf4-stored" if four_bit.stored else "nf4"


def _asked(settings: LLMSettings) -> str:
    """What wants 4 bits, in the user's words."""
    if settings.base == "auto":
        return f"--model {settings.model} (stored in 4 bits)"
    return f"--base {settings.base}"


def _without(settings: LLMSettings) -> str:
    if settings.base == "auto":
        return "Or choose the model in full precision."
    return "Without it: --base auto (rung llm-lora); --precision int8 spares memory on a CPU."


def _stored_quantisation(folder: Path) -> dict[str, Any] | None:
    """What `config.json` says of weights that are stored quantised; None of plain ones."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = config.get("quantization_config")
    return found if isinstance(found, dict) else None


def _refuse_other_forms(settings: LLMSettings, kept: dict[str, Any] | None) -> None:
    if kept is None:
        return
    method = kept.get("quant_method", "bitsandbytes" if "load_in_4bit" in kept else "unknown")
    if method != "bitsandbytes" or not kept.get("load_in_4bit"):
        form = "bitsandbytes 8-bit" if method == "bitsandbytes" else method
        raise InputError(
            f"--model {settings.model}: its weights are stored in the form {form}, which llabel "
            "does not read. Give the model in full precision, or one that bitsandbytes stored in "
            "4 bits."
        )
    kind = kept.get("bnb_4bit_quant_type", "fp4")
    if kind != "nf4" and settings.base != "auto":
        raise InputError(
            f"--base {settings.base}: {settings.model} is stored in 4-bit {kind}, and cannot be "
            "rounded again. Use --base auto, with --rung llm-lora in place of llm-qlora (which is "
            "--base nf4), or the model in full precision."
        )
