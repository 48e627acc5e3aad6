"""GGUF file (llama.cpp) → model folder with safetensors, once and without further loss."""

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llabel.errors import InputError
from llabel.tensor_files import writing

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer


def convert_gguf(source: Path, out: Path) -> None:
    """Dequantise a GGUF causal language model into a folder for ``from_pretrained``.

    Weights become float32, because the product scale × integer + minimum of 16-bit scales (Q4_1,
    Q8_0) needs more than the 11 significant bits of float16 and the 8 of bfloat16.

    Args:
        source: the GGUF file; its folder may be read-only.
        out: existing folder; gets config.json, generation_config.json, model.safetensors,
            tokenizer.json, tokenizer_config.json and chat_template.jinja where there is one.

    Raises:
        OSError: the weights cannot be written.
        InputError: the file's pre-tokenizer (``tokenizer.ggml.pre``) is not one we know.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pre_tokenizer = _pre_tokenizer(source)
    with contextlib.redirect_stderr(io.StringIO()):  # bars that nobody asked for; errors are raised
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)

    config = model.config
    # The weights are plain float32 now; left in, this entry makes from_pretrained ask for the GGUF.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(model).__name__]
    config.dtype = torch.float32
    config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    weights = {
        name: tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
        if not (config.tie_word_embeddings and name == "lm_head.weight")
    }
    with writing(out / "model.safetensors"):
        save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors makes it private; a cache may be shared

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.model_max_length = config.max_position_embeddings
    for trace in ("is_local", "local_files_only", "name_or_path"):  # left by this conversion
        tokenizer.init_kwargs.pop(trace, None)
    tokenizer.save_pretrained(out)


def _pre_tokenizer(source: Path) -> "PreTokenizer":
    """Return what splits the text before byte-pair merging, by the name the GGUF file gives.

    transformers builds a plain GPT-2 split for every GGUF file, under which SmolLM2 would read
    "  1234" as other tokens than those it was trained on: its own tokenizer sets each digit apart
    before GPT-2's split (llama.cpp: LLAMA_VOCAB_PRE_TYPE_SMOLLM).
    """
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    field: Any = GGUFReader(source).get_field("tokenizer.ggml.pre")
    name = field.contents() if field else None
    if name != "smollm":
        msg = (
            f"{source.name}: its pre-tokenizer is {name!r}, and only 'smollm' can be converted; "
            "give the model as a folder with safetensors and tokenizer.json instead"
        )
        raise InputError(msg)
    return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
