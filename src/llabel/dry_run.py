"""All of a run but the weights: what `llabel check` and `llabel prompt` look at."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from statistics import mean
from typing import Any

import numpy as np

from llabel.assessment import TRAIN_SAMPLE
from llabel.assets import Progress, resolve_model
from llabel.check.check import Cost, tokens_read
from llabel.check.estimate import (
    RunEstimate,
    estimate_run,
    measure_matmul_rate,
    model_size,
)
from llabel.config import RunConfig
from llabel.engine.batching import shared_tokens
from llabel.engine.linear import int_mm_is_fast
from llabel.engine.lower_states import LIMIT
from llabel.engine.model import adapted_layers, add_lora, outline
from llabel.engine.native.kernels import has_avx2
from llabel.engine.prefix import pays
from llabel.engine.projection import own_int_products
from llabel.errors import InputError
from llabel.ladder.base_form import form_in_use, four_bit_of
from llabel.ladder.llm import LLMRung
from llabel.ladder.lora import keeps_lower_states, lora_settings
from llabel.run import load
from llabel.settings import LLMSettings
from llabel.task import Task, Text

SAMPLE = 64  # validation rows that show what prompts begin with
_WEIGHT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "nf4-stored": 0.5}
# Training, against the plain engine in float32: ratios of tokens a second in single runs of
# SmolLM2-135M on two cores (docs/performance-log.md), good for the promised factor of two.
_SPEED = {
    ("plain", "int8"): 2.1,
    ("compiled", "float32"): 1.3,
    ("compiled", "int8"): 2.7,
    ("packed", "float32"): 2.4,
    ("packed", "int8"): 5.0,
}
_SPEED_WITHOUT_AVX512 = {("packed", "float32"): 1.6, ("packed", "int8"): 2.2}


def _engine(settings: LLMSettings, config: Any, device: str, form: str) -> str:
    """Which engine a run would most likely get; `form` is that of the base."""
    from llabel.engine.native.library import compiler
    from llabel.engine.packable import why_not_config

    if settings.compile:
        return "compiled"
    if form == "nf4-stored":
        return "plain"
    packs = device == "cpu" and compiler() is not None and settings.lora_dropout == 0
    fits = packs and settings.engine == "auto" and why_not_config(config) is None
    return "packed" if fits and settings.precision != "bfloat16" else "plain"


def _weight_bytes(precision: str, form: str, engine: str, weights: int) -> float:
    """Of a frozen weight, with the copies that the packed engine makes of it."""
    if form == "nf4-stored":
        return _WEIGHT_BYTES[form]
    alone = _WEIGHT_BYTES[precision]
    if engine != "packed" or precision != "int8":
        return alone
    if own_int_products(weights, possible=has_avx2()):
        return alone + 2  # one for each direction
    return alone if int_mm_is_fast() else alone + _WEIGHT_BYTES["float32"]


def _adapter_weights(config: Any, settings: LLMSettings) -> int:
    """Of all adapters that a run would train; they are made without memory to be counted.

    Raises:
        InputError: as `add_lora`.
    """
    import torch

    with torch.device("meta"):
        tuned = add_lora(outline(config), lora_settings(settings))
    return sum(weight.numel() for weight in tuned.parameters() if weight.requires_grad)


def find_row(config: RunConfig, row: str | None) -> tuple[Task, str, Text, int | list[int]]:
    """One row by its name in `predictions.jsonl`.

    Args:
        config: whose samples are let aside, so that any row can be looked at.
        row: ``part:number``, or a number for a row of the training data; None is its first one
            that has not been left out for want of a label.

    Returns:
        Its task, name, texts and class index; of several targets the index of each.

    Raises:
        InputError: there is no such row, or as `load`.
    """
    whole = replace(config.data, train_rows=None, test_rows=None, sampling="stratified")
    task = load(replace(config, data=whole)).task
    parts: dict[str, list[int]] = defaultdict(list)
    places = {}
    for split in (task.train, task.validation, task.test):
        for at, name in enumerate(split.ids):
            part, _, number = name.rpartition(":")
            parts[part].append(int(number))
            places[name] = split, at
    own = task.train.ids[0].rpartition(":")[0]
    chosen = min(parts[own]) if row is None else row
    wanted = row if row and ":" in row else f"{own}:{chosen}"
    if wanted in places:
        split, at = places[wanted]
        return task, wanted, split.texts[at], split.y[at].tolist()
    there = ", ".join(_span(part, numbers) for part, numbers in sorted(parts.items()))
    raise InputError(f"--row {row}: there is no such row in {task.name}. There are {there}.")


def _span(part: str, numbers: Sequence[int]) -> str:
    """``train:2 to train:60``, with how many there are where some between are left out."""
    first, last = min(numbers), max(numbers)
    some = f" ({len(numbers):,} rows)" if len(numbers) <= last - first else ""
    return f"{part}:{first} to {part}:{last}{some}"


def prepare(config: RunConfig, task: Task, progress: Progress | None = None) -> LLMRung:
    """Tokenizer, template and label trie of the run; its model is downloaded, but not loaded.

    Raises:
        InputError: as `LLMRung.prepare`.
    """
    resolve_model(config.llm.model, progress=progress)
    return LLMRung(config.llm).prepare(task.fields, task.classes)


def run_cost(rung: LLMRung, task: Task) -> Cost:
    """What a run with these settings would cost on this machine, which is measured for it.

    A run predicts more than validation and test once: validation after each epoch, and a sample of
    the training rows.

    Raises:
        InputError: layers are to be adapted that the model does not have.
    """
    from transformers import AutoConfig

    settings = rung.settings
    config = AutoConfig.from_pretrained(
        rung.folder_, local_files_only=True, trust_remote_code=False
    )
    size = model_size(config)
    form = form_in_use(four_bit_of(settings, rung.folder_, rung.device))
    engine = _engine(settings, config, str(rung.device), form)
    speeds = _SPEED if int_mm_is_fast() else _SPEED_WITHOUT_AVX512 if has_avx2() else {}
    speed = speeds.get((engine, rung.precision), 1.0)
    # Adapters are in float32 where the frozen layers are in int8.
    adapter_speed = speeds.get((engine, "float32"), 1.0) if rung.precision == "int8" else speed
    measured = "float32" if rung.precision == "int8" else rung.precision
    rate = measure_matmul_rate(
        size.hidden, size.intermediate, device=str(rung.device), dtype=measured
    )
    adapted = adapted_layers(settings.adapt_layers, size.layers)
    adapters = _adapter_weights(config, settings)
    keeps = adapted < size.layers and keeps_lower_states(settings, len(task.train))
    limit = LIMIT if keeps and engine == "packed" else 0
    trained, predicted = _read(rung, task, engine, whole=limit > 0)
    validation = _predicted(rung, task.validation.texts)
    sample = min(1, TRAIN_SAMPLE / len(task.train))
    epochs = settings.passes(len(task.train))

    def cost(train_tokens: int, other_tokens: int) -> RunEstimate:
        more = ceil(epochs) * settings.trials * validation + round(sample * train_tokens)
        return estimate_run(
            round(trained * train_tokens),
            round(predicted * (other_tokens + more)),
            model=size,
            epochs=epochs * (settings.trials + settings.refit),
            flops_per_second=rate,
            token_budget=settings.token_budget,
            speed=speed,
            adapters=adapters,
            adapter_speed=adapter_speed,
            bytes_per_weight=_weight_bytes(rung.precision, form, engine, size.linear_parameters),
            adapted=adapted,
            recompute=settings.gradient_checkpointing,
            lower_limit=limit,
            how=f"{rung.precision}, {engine} engine",
        )

    return cost


def template_length(rung: LLMRung) -> int | None:
    """Tokens of a prompt without texts, where long rows are predicted piece by piece; else None."""
    return rung.encoder_.least_length if rung.settings.long == "chunks" else None


def _predicted(rung: LLMRung, texts: Sequence[Text]) -> int:
    """Tokens that are read to predict rows."""
    lengths = np.array(rung.encoder_.lengths(texts), dtype=np.int64)
    return int(tokens_read(lengths, rung.max_length_, template_length(rung)).sum())


def _read(rung: LLMRung, task: Task, engine: str, *, whole: bool) -> tuple[float, float]:
    """Which shares of the tokens are read in training and in prediction, in 0 ... 1.

    What prompts begin with is read once for all that are predicted, and in the packed engine once
    a micro-batch of a training step, unless rows are read `whole` there, as where the lower layers'
    states are kept.
    """
    few = rung.encoder_.encode(task.validation.texts[:SAMPLE])
    shared = len(shared_tokens([prompt.input_ids for prompt in few]))
    if engine == "compiled" or not few or not pays(shared, len(few)):
        return 1.0, 1.0
    length = mean(len(prompt.input_ids) for prompt in few)
    own, settings = length - shared, rung.settings
    together = max(1, min(settings.batch_size, int((settings.token_budget - shared) / own)))
    once = engine == "packed" and not whole and pays(shared, settings.batch_size)
    return (own + shared / together) / length if once else 1.0, own / length
