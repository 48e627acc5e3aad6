"""A folder → a causal language model in the right place and precision, with LoRA adapters."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llabel.engine.allocator import keep_freed_memory
from llabel.engine.linear import quantise_frozen
from llabel.errors import InputError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

PRECISIONS = ("float32", "bfloat16", "int8")


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """LoRA (Hu et al. 2021, arXiv 2106.09685): W + scaling · B A, with A (r, in), B (out, r).

    Attributes:
        r: rank of the update.
        lora_alpha: scaling is lora_alpha / r, or lora_alpha / √r with `use_rslora`.
        lora_dropout: share of A's inputs set to zero in training.
        target_modules: names of linear layers, or "all-linear".
        use_rslora: rank-stabilised scaling (Kalajdzievski 2023, arXiv 2312.03732).
    """

    r: int
    lora_alpha: float
    lora_dropout: float
    target_modules: str | tuple[str, ...]
    use_rslora: bool


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        InputError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name!r} is unknown. Use auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name!r}: this PyTorch sees no CUDA device. Use --device cpu.")
    return device


def load_model(folder: Path, device: torch.device, precision: str) -> "PreTrainedModel":
    """The language model at `folder`, frozen, in evaluation mode.

    Args:
        folder: local folder with `config.json` and safetensors weights.
        device: where it shall live.
        precision: of the frozen weights: `float32`, `bfloat16`, or `int8` (CPU; products in
            integers, everything between them in float32; see `Int8Linear`).

    Raises:
        InputError: unknown precision, int8 on a GPU, or a folder that is no causal LM.
    """
    from transformers import AutoModelForCausalLM

    if precision not in PRECISIONS:
        raise InputError(f"--precision {precision!r}: use one of {', '.join(PRECISIONS)}.")
    if precision == "int8" and device.type != "cpu":
        raise InputError("--precision int8 is for the CPU. On a GPU use bfloat16 or float32.")
    if device.type == "cpu":
        keep_freed_memory()
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} holds no causal language model with safetensors weights that transformers "
            f"can load: {str(error).splitlines()[0]}"
        ) from error
    model.requires_grad_(False)
    if precision == "int8":
        quantise_frozen(model.get_decoder())
    model.to(device)  # type: ignore[arg-type]  # transformers' stub wants no device
    return model.eval()


def compile_layers(model: "PreTrainedModel") -> None:
    """Let torch.compile fuse each decoder layer; one graph serves all layers and lengths.

    Raises:
        InputError: there is no C++ compiler for it here.
    """
    import os
    import shutil

    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise InputError("--compile needs a C++ compiler (g++ or clang++). Leave it out.")
    for layer in model.get_decoder().layers:
        layer.compile(dynamic=True)


def add_lora(model: "PreTrainedModel", settings: LoraSettings) -> "PeftModel":
    """Wrap `model` with fresh adapters (A random, B zero: nothing changes until training).

    Raises:
        InputError: r below 1, or target modules that the model does not have.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    if settings.r < 1:
        raise InputError(f"--r {settings.r}: the rank must be at least 1.")
    targets = settings.target_modules
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # PEFT divides, any number does
        lora_dropout=settings.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=settings.use_rslora,
        task_type=TaskType.CAUSAL_LM,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        linear = sorted({n.rsplit(".")[-1] for n, m in model.named_modules() if _is_linear(m)})
        raise InputError(
            f"--target-modules {targets}: not in this model. It has: all-linear, "
            f"{', '.join(linear)}."
        ) from error


def load_adapter(model: "PreTrainedModel", folder: Path) -> "PeftModel":
    """Wrap `model` with the adapter saved at `folder` (PEFT's own format, safetensors)."""
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").is_file():
        raise InputError(f"{folder} holds no adapter_model.safetensors.")
    return PeftModel.from_pretrained(model, str(folder), is_trainable=False)


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear)
