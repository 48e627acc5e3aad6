"""Which rung reads which setting, trains with a seed, or tunes adapters."""

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType

from llabel.settings import LLMSettings, RungName, SimplerSettings

_SPLITS = frozenset({"seed", "refit"})  # every rung is fitted on the same rows
_TRAINED = _SPLITS | {"trials", "budget", "class_weight"}
_NEURAL = _TRAINED | {"device", "max_seq_length"}
_LLM = frozenset(field.name for field in fields(LLMSettings))
_PROMPTED = frozenset({
    *("seed", "model", "template", "instruction", "system", "label_words"),
    *("max_seq_length", "rope_scaling", "long"),
    *("token_budget", "precision", "base", "double_quant", "compute_dtype", "engine", "device"),
})  # fmt: skip
READS: Mapping[RungName, frozenset[str]] = MappingProxyType({
    "majority": _SPLITS,
    "lookup": _SPLITS,
    "bag-of-words": _TRAINED,
    "word-embeddings": _TRAINED | {"embeddings"},
    "rnn": _NEURAL | {"embeddings"},
    "transformer": _NEURAL,
    "encoder": _NEURAL | {"encoder"},
    "llm-zero-shot": _PROMPTED,
    "llm-zero-shot-calibrated": _PROMPTED,
    "llm-few-shot": _PROMPTED | {"shots"},
    "llm-few-shot-calibrated": _PROMPTED | {"shots"},
    "llm-lora": _LLM - {"shots"},
    "llm-qlora": _LLM - {"shots"},
})  # fmt: skip
"""Which settings of `LLMSettings` and `SimplerSettings` decide what a rung becomes."""

UNTOUCHED = (READS["llm-zero-shot"] - {"seed"}) | {"text"}
"""Settings that decide what a model says before it is tuned."""

SEEDED: tuple[RungName, ...] = (
    *("rnn", "transformer", "encoder"),
    *("llm-few-shot", "llm-few-shot-calibrated", "llm-lora", "llm-qlora"),
)
"""Rungs that come out otherwise with another seed."""

PROMPTED: tuple[RungName, ...] = (
    *("llm-zero-shot", "llm-zero-shot-calibrated"),
    *("llm-few-shot", "llm-few-shot-calibrated"),
)
"""Rungs that ask an untouched model."""

ADAPTED: tuple[RungName, ...] = ("llm-lora", "llm-qlora")
"""Rungs that train adapters, and learn several targets together where there are some."""

VARIED = (
    frozenset({"text", "train_rows", "rung"})
    | frozenset(field.name for room in (LLMSettings, SimplerSettings) for field in fields(room))
) - {"label_words"}
"""Settings that a sweep may vary. The others decide on which rows cells are judged, or nothing."""


def readers_of(setting: str) -> frozenset[RungName]:
    """The rungs whose results a setting may change; one of the rows changes all of them."""
    if setting == "seed":  # all read it, to cut the rows, which a sweep cuts once
        return frozenset(SEEDED)
    if not any(setting in read for read in READS.values()):
        return frozenset(READS)
    return frozenset(rung for rung, read in READS.items() if setting in read)
