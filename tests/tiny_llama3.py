"""Tiny models in exactly the form of Llama 3.1 and 3.2, tokenizer.model included."""

import base64
import json
from itertools import islice
from pathlib import Path
from typing import Any

from tiny_models import random_model

RANKS, VOCABULARY = 128_000, 128_256
CONFIG = {
    **{"vocab_size": VOCABULARY, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5},
    **{"rope_theta": 500_000.0, "bos_token_id": 128_000, "eos_token_id": 128_001},
}
ROPE = {
    **{"high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3"},
    "original_max_position_embeddings": 8192,
}
LLAMA_3_1 = CONFIG | {"rope_scaling": ROPE | {"factor": 8.0}, "tie_word_embeddings": False}
LLAMA_3_2 = CONFIG | {"rope_scaling": ROPE | {"factor": 32.0}, "tie_word_embeddings": True}
ONE_BILLION = {
    **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64},
    **{"num_attention_heads": 32, "num_key_value_heads": 8},
}
TINY = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "head_dim": 16},
    **{"num_attention_heads": 4, "num_key_value_heads": 1, "initializer_range": 0.1},
}


def ranks() -> dict[bytes, int]:
    """128,000 tokens: all bytes, all pairs of bytes, and triples that begin with common pairs."""
    single = [bytes([byte]) for byte in (*range(32, 127), *range(32), *range(127, 256))]
    pairs = [first + second for second in single for first in single]
    triples = (pair + third for third in single for pair in pairs)
    tokens = [*single, *pairs, *islice(triples, RANKS - len(single) - len(pairs))]
    return {token: rank for rank, token in enumerate(tokens)}


def write_ranks(path: Path) -> None:
    """In tiktoken's format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks().items())
    path.write_text("".join(lines), encoding="ascii")


def save_llama3(folder: Path, settings: dict[str, Any]) -> Path:
    """A random model whose config.json is written as Meta has it, and tokenizer.model."""
    from transformers import LlamaConfig

    random_model(LlamaConfig(**settings)).save_pretrained(folder)
    names = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(settings | names), encoding="utf-8")
    write_ranks(folder / "tokenizer.model")
    return folder
