"""A folder → a causal language model in the right place and precision, with LoRA adapters."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llabel.engine.allocator import keep_freed_memory
from llabel.engine.four_bit import FourBit, four_bit_layers, loading_options, settle
from llabel.engine.linear import Int8Linear, largest_inputs, quantise_frozen
from llabel.engine.llama3_tokenizer import load_llama3_tokenizer, ranks_file
from llabel.engine.rope import RopeScaling, scaled_config
from llabel.errors import InputError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PRECISIONS = ("float32", "bfloat16", "int8")
_TRAIN_AGAIN = "Train the run again with --overwrite."


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """LoRA (Hu et al. 2021, arXiv 2106.09685): W + scaling · B A, with A (r, in), B (out, r).

    Attributes:
        r: rank of the update.
        lora_alpha: scaling is lora_alpha / r, or lora_alpha / √r with `use_rslora`.
        lora_dropout: share of A's inputs set to zero in training.
        target_modules: names of linear layers, or "all-linear".
        use_rslora: rank-stabilised scaling (Kalajdzievski 2023, arXiv 2312.03732).
        layers: how many of the last layers get adapters; None is all.
    """

    r: int
    lora_alpha: float
    lora_dropout: float
    target_modules: str | tuple[str, ...]
    use_rslora: bool
    layers: int | None = None


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        InputError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in {"cpu", "cuda"}:
        raise InputError(f"--device {name!r} is unknown. Use auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"--device {name!r}: this PyTorch sees {torch.cuda.device_count()} CUDA devices, "
            "numbered from 0. Use --device auto."
        )
    return device


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer at `folder`; code that a model brings along is never run.

    Raises:
        InputError: there is none that transformers can load by itself.
    """
    from transformers import AutoTokenizer

    if (ranks := ranks_file(folder)) is not None:
        return load_llama3_tokenizer(folder, ranks)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} holds no tokenizer that transformers can load without running the model's "
            f"own code, which llabel never does: {str(error).splitlines()[0]}"
        ) from error


def load_model(
    folder: Path,
    device: torch.device,
    precision: str,
    sample: Sequence[int] = (),
    four_bit: FourBit | None = None,
    rope: RopeScaling | None = None,
) -> "PreTrainedModel":
    """The language model at `folder`, frozen, in evaluation mode.

    On the CPU the whole process is told to keep freed memory (see `keep_freed_memory`).

    Args:
        folder: local folder with `config.json` and safetensors weights.
        device: where it shall live.
        precision: of the frozen weights: `float32`, `bfloat16`, or `int8` (CPU; products in
            integers, everything between them in float32; see `Int8Linear`).
        sample: token ids of any text, with which int8 layers are smoothed.
        four_bit: how the frozen linear layers are rounded to 4 bits, or were already.
        rope: how its rotary positions are stretched (see `scaled_config`).

    Raises:
        InputError: unknown precision, int8 on a GPU or for a model without linear layers, or a
            folder that is no causal LM, or lacks some of its weights, or has them in other shapes.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if precision not in PRECISIONS:
        raise InputError(f"--precision {precision!r}: use one of {', '.join(PRECISIONS)}.")
    if precision == "int8" and device.type != "cpu":
        raise InputError("--precision int8 is for the CPU. On a GPU use bfloat16 or float32.")
    if device.type == "cpu":
        keep_freed_memory()
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    # Straight to the GPU, whose memory may be larger than the machine's.
    straight = device.type == "cuda" or four_bit is not None
    place: dict[str, Any] = {"device_map": device} if straight else {}
    if four_bit is not None:
        place |= loading_options(four_bit, dtype)
    if rope is not None:
        place["config"] = scaled_config(folder, rope)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, and told better than there
            **place,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{folder} holds no causal language model with safetensors weights that transformers "
            f"can load: {str(error).splitlines()[0]}"
        ) from error
    model: PreTrainedModel = loaded[0]
    _refuse_other_tensors(model, loaded[1], folder)
    if four_bit is not None:
        if not four_bit_layers(model):
            raise InputError(
                f"--base nf4: {type(model).__name__} has no linear layers to round to 4 bits. "
                "Use --base auto."
            )
        settle(model, four_bit, dtype)
    model.requires_grad_(False)
    if precision == "int8":
        decoder = model.eval().get_decoder()
        _turn_conv1d(decoder)
        quantise_frozen(decoder, largest_inputs(decoder, sample) if sample else {})
        if not any(isinstance(module, Int8Linear) for module in model.modules()):
            raise InputError(
                f"--precision int8: {type(model).__name__} has no linear layers that it knows. "
                "Use --precision float32."
            )
    return model.eval()


def _refuse_other_tensors(model: "PreTrainedModel", report: dict[str, Any], folder: Path) -> None:
    """Whatever the files lack, or have in another shape, transformers has made up at random.

    A head that shares the embeddings' weights is not missing, and buffers are computed.

    Args:
        model: as it was loaded.
        report: transformers' `missing_keys`, and `mismatched_keys` with both shapes.
        folder: named in the message.

    Raises:
        InputError: there is such a weight.
    """
    if missing := sorted(report["missing_keys"] & {name for name, _ in model.named_parameters()}):
        raise InputError(
            f"{folder} lacks weights of its {type(model).__name__} ({_some(missing)}), which would "
            "be random. Give the folder of a whole causal language model; if its head shares the "
            "weights of the embeddings, its config.json must say so (tie_word_embeddings: true)."
        )
    other = {name: (tuple(found), tuple(asked)) for name, found, asked in report["mismatched_keys"]}
    for name, layer in four_bit_layers(model).items():  # which transformers does not look at
        linear: Any = layer
        found, asked = linear.weight.quant_state.shape, (linear.out_features, linear.in_features)
        if tuple(found) != asked:
            other[f"{name}.weight"] = tuple(found), asked
    if other:
        name, (found, asked) = min(other.items())
        raise InputError(
            f"{folder}: its weights have not the shapes that its config.json says: {name} is "
            f"{found}, not {asked} ({len(other)} in all). Put weights and config.json of one model "
            "there."
        )


def _some(names: Sequence[str]) -> str:
    """The first three."""
    return ", ".join(names[:3]) + (f" … {len(names)} in all" if len(names) > 3 else "")


def _turn_conv1d(module: torch.nn.Module) -> None:
    """Replace GPT-2's `Conv1D`, a linear layer with its weight transposed, by `nn.Linear`."""
    from transformers.pytorch_utils import Conv1D

    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Conv1D):
                inside, outside = child.weight.shape
                linear = torch.nn.Linear(inside, outside, device="meta")
                linear.weight = torch.nn.Parameter(child.weight.t().contiguous(), False)
                linear.bias = child.bias
                setattr(parent, name, linear)


def compile_layers(model: "PreTrainedModel") -> None:
    """Let torch.compile fuse each decoder layer; one graph serves all layers and lengths.

    Raises:
        InputError: there is no C++ compiler for it here (CPU) or no Triton (GPU), or the layers
            are not where most models have them.
    """
    import os
    import shutil
    import sys
    from importlib.util import find_spec

    on_cpu = next(model.parameters()).device.type == "cpu"
    # The one that Inductor takes; it looks for no other.
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX", usual)
    if on_cpu and not shutil.which(compiler):
        raise InputError(
            f"--compile needs a C++ compiler: PyTorch asks for {compiler!r}, which is not here. "
            "Set CXX to one that is, or leave it out."
        )
    if not on_cpu and not find_spec("triton"):
        raise InputError("--compile needs Triton on a GPU (pip install triton). Leave it out.")
    layers = getattr(model.get_decoder(), "layers", None)
    if layers is None:
        raise InputError(f"--compile does not know {type(model).__name__}. Leave it out.")
    for layer in layers:
        layer.compile(dynamic=True)


def adapted_layers(layers: int | None, total: int) -> int:
    """How many of a model's `total` layers, the last ones, get adapters; None asks for all.

    Raises:
        InputError: more are asked for than there are.
    """
    if layers is not None and layers > total:
        raise InputError(f"--adapt-layers {layers}: the model has {total} layers.")
    return total if layers is None else layers


def outline(config: Any) -> "PreTrainedModel":
    """The causal LM of a config on the meta device: modules, names and shapes, no memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return model


def check_adapters(folder: Path, settings: LoraSettings) -> None:
    """Refuse adapters that the model at `folder` has no place for, before its weights are read.

    Raises:
        InputError: as `adapted_layers`; as `add_lora` of target modules; or no causal LM.
    """
    from transformers import AutoConfig

    if settings.layers is None and settings.target_modules == "all-linear":
        return  # every model has that
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = outline(config)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} holds no causal language model that transformers can load: "
            f"{str(error).splitlines()[0]}"
        ) from error
    _targets(model, settings)
    _upper_layers(model, settings)


def add_lora(model: "PreTrainedModel", settings: LoraSettings) -> "PeftModel":
    """Wrap `model` with fresh adapters (A random, B zero: nothing changes until training).

    Raises:
        InputError: r below 1, or target modules that are no linear layers of the model (its head
            is not to be adapted: most of its logits are never computed).
    """
    from peft import LoraConfig, TaskType, get_peft_model

    if settings.r < 1:
        raise InputError(f"--r {settings.r}: the rank must be at least 1.")
    targets: str | list[str] = _targets(model, settings)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # PEFT divides, any number does
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        exclude_modules=_beside_the_decoder(model),
        layers_to_transform=_upper_layers(model, settings),
        use_rslora=settings.use_rslora,
        task_type=TaskType.CAUSAL_LM,
    )
    return get_peft_model(model, config)


def remove_lora(model: "PreTrainedModel") -> "PreTrainedModel":
    """The frozen model that was loaded, with whatever adapters are around its layers taken off."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaseTunerLayer):
                setattr(parent, name, child.get_base_layer())
    vars(model).pop("peft_config", None)  # else PEFT takes the next adapters for a second set
    return model.eval()


def load_adapter(model: "PreTrainedModel", folder: Path) -> "PeftModel":
    """Wrap `model` with the adapter saved at `folder` (PEFT's own format, safetensors).

    Raises:
        InputError: there is none, it cannot be read, or it is not one for this model.
    """
    from peft import PeftConfig, PeftModelForCausalLM
    from safetensors import SafetensorError

    for name in (
        "adapter_config.json",
        "adapter_model.safetensors",
    ):  # else PEFT asks the Hub for them
        if not (folder / name).is_file():
            raise InputError(f"{folder} holds no {name}. {_TRAIN_AGAIN}")
    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        # What `PeftModel.from_pretrained` does, which does not tell the tensors that fit nothing.
        tuned = PeftModelForCausalLM(model, config)
        found = tuned.load_adapter(
            str(folder),
            "default",
            # Else PEFT reads it through the GPU wherever there is one.
            torch_device=str(model.device),
            key_mapping=getattr(model, "_checkpoint_conversion_mapping", None),
        )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder} holds no adapter that PEFT can read "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}): it is damaged, or of "
            f"another model. {_TRAIN_AGAIN}"
        ) from error
    except RuntimeError as error:
        if "size mismatch" not in str(error):  # out of memory, for example
            raise
        raise InputError(
            f"The adapter in {folder} has tensors of other shapes than the model's layers: it is "
            f"another model's. Give it its own, or train it again. {str(error).splitlines()[-1]}"
        ) from error
    if strange := sorted([*found.missing_keys, *found.unexpected_keys]):
        raise InputError(
            f"The adapter in {folder} is none of this {type(model).__name__}: {_some(strange)} "
            "stand in one of the two alone. Give it its own model, or train it again."
        )
    return tuned


def _targets(model: "PreTrainedModel", settings: LoraSettings) -> str | list[str]:
    """What PEFT is told; refuses names that fit no linear layer: it is content when one does."""
    targets = settings.target_modules
    if targets == "all-linear" and settings.layers is None:
        return targets
    linear = _linear_layers(model, model.get_decoder())
    known = sorted({name.rsplit(".")[-1] for name in linear})
    if targets == "all-linear":  # PEFT takes the word for all layers only
        return known
    names = [targets] if isinstance(targets, str) else list(targets)
    for target in names:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise InputError(
                f"--target-modules: this model has no linear layer {target!r} to adapt. "
                f"Use all-linear, or some of {', '.join(known)}."
            )
    return names


def _upper_layers(model: "PreTrainedModel", settings: LoraSettings) -> list[int] | None:
    """The layers that get adapters; None is all."""
    if settings.layers is None:
        return None
    total = int(model.config.get_text_config().num_hidden_layers)
    return list(range(total - adapted_layers(settings.layers, total), total))


def _beside_the_decoder(model: "PreTrainedModel") -> str | None:
    """A pattern of what PEFT must leave alone; None where that is nothing.

    Layers of a vision tower have names like the decoder's, but no text passes through them.
    """
    decoder = model.get_decoder()
    if len(_linear_layers(model, model)) == len(_linear_layers(model, decoder)):
        return None
    (name,) = (name for name, module in model.named_modules() if module is decoder)
    return rf"(?!{re.escape(name)}\.).*"


def _linear_layers(model: "PreTrainedModel", part: torch.nn.Module) -> list[str]:
    """Their names within `part` of `model`, without the model's head."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return [
        name
        for name, module in part.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    ]
