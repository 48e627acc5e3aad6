"""The language model, its prompt, its adapters and their training."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from llabel.settings.kinds import ClassWeight, Duration, Help, Long


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimiser steps of one pass over so many training rows; the last may be of fewer rows."""
    return math.ceil(rows / batch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMSettings:
    """A fine-tuned language model, from the prompt to the optimiser."""

    model: Annotated[str, Help("Built-in name, local folder or Hub id of a causal LM.")] = (
        "smollm2-135m"
    )
    template: Annotated[
        str, Help("qa, alpaca, plain, chat (the model's own), or a file with {column} holes.")
    ] = "qa"
    instruction: Annotated[
        str | None, Help("What the template alpaca or chat asks for; {labels} is the label list.")
    ] = None
    system: Annotated[str | None, Help("What the system says first, with --template chat.")] = None
    label_words: Annotated[
        dict[str, str] | None, Help("What to answer for a label: LABEL=WORDS (repeatable).")
    ] = None
    max_seq_length: Annotated[
        int | None, Ge(8), Help("Most tokens of prompt and answer. Default: the model's context.")
    ] = None
    long: Annotated[
        Long,
        Help(
            "What is read of a text that is too long: its head, its tail, or both (middle: the "
            "middle is cut out); or all of it, piece by piece (chunks: the answer is the mean over "
            "the pieces, learned from is the first)."
        ),
    ] = "head"
    rope_scaling: Annotated[
        str | None,
        Help(
            "Read more than the model's context: linear, dynamic, yarn or llama3, and how many "
            "times as much, as yarn:4."
        ),
    ] = None
    r: Annotated[int, Ge(1), Help("Rank of the LoRA update.")] = 16
    lora_alpha: Annotated[float, Ge(0), Help("LoRA scaling is lora-alpha / r.")] = 32
    lora_dropout: Annotated[
        float, Interval(ge=0, lt=1), Help("Dropout on the inputs of LoRA's A.")
    ] = 0.0
    target_modules: Annotated[
        tuple[str, ...], Help("Linear layers to adapt, as q_proj,v_proj.")
    ] = ("all-linear",)
    use_rslora: Annotated[bool, Help("Scale by lora-alpha / √r instead.")] = False
    init_lora: Annotated[
        Literal["default", "loftq"],
        Help(
            "LoRA starts from nothing (default), or from the best rank-r approximation of what "
            "--base nf4 rounded off (loftq)."
        ),
    ] = "default"
    adapt_layers: Annotated[
        int | None,
        Ge(1),
        Help(
            "Adapt the last so many layers only: less to train, and on the packed engine what the "
            "layers below give is computed once for all epochs and trials, for as many rows as fit "
            "into 2 GiB (930,000 tokens at hidden size 576); for others once an epoch."
        ),
    ] = None
    loss: Annotated[
        Literal["answer", "sft", "all"],
        Help(
            "Cross-entropy over the labels at the answer position (answer), over the answer's "
            "tokens (sft), or over prompt and answer (all)."
        ),
    ] = "answer"
    class_weight: Annotated[
        ClassWeight | None,
        Help(
            "balanced: in the training loss every class counts alike, each row in inverse "
            "proportion to the rows of its class. The validation loss stays as it is."
        ),
    ] = None
    learning_rate: Annotated[float, Gt(0), Help("Peak learning rate of AdamW.")] = 5e-4
    schedule: Annotated[
        Literal["cosine", "linear", "constant"], Help("Learning rate after the warm-up.")
    ] = "cosine"
    warmup_ratio: Annotated[
        float, Interval(ge=0, le=1), Help("Share of the steps with a rising learning rate.")
    ] = 0.05
    warmup_steps: Annotated[
        int | None, Ge(0), Help("Steps with a rising learning rate, in place of a share.")
    ] = None
    epochs: Annotated[int, Ge(1), Help("Passes over the training rows, at most.")] = 3
    max_steps: Annotated[
        int | None, Ge(1), Help("Steps of the optimiser, in place of --epochs.")
    ] = None
    patience: Annotated[
        int | None,
        Ge(1),
        Help("Stop after so many epochs without a better validation loss; none: never."),
    ] = 1
    batch_size: Annotated[int, Ge(1), Help("Rows of one optimiser step.")] = 16
    optim: Annotated[
        Literal["adamw", "adamw_8bit", "paged_adamw_8bit"],
        Help(
            "AdamW in float32, or with its state in 8 bits by bitsandbytes (and, on a GPU, paged "
            "out where memory is short)."
        ),
    ] = "adamw"
    weight_decay: Annotated[float, Ge(0), Help("AdamW's decay.")] = 0.0
    adam_beta2: Annotated[
        float,
        Interval(ge=0, lt=1),
        Help(
            "How long AdamW remembers squared gradients (0.999 in most tools: for long trainings)."
        ),
    ] = 0.99
    max_grad_norm: Annotated[float, Gt(0), Help("Gradients are clipped to this norm.")] = 1.0
    token_budget: Annotated[
        int,
        Ge(1),
        Help("Most tokens of a micro-batch: bounds memory, not the result; a GPU likes more."),
    ] = 1024
    trials: Annotated[
        int,
        Ge(1),
        Help(
            "Learning rates tried on validation: --learning-rate × 1, 1/3, 3, 1/9 … "
            "(other rungs: their usual one, or C)."
        ),
    ] = 1
    budget: Annotated[
        float | None,
        Duration(),
        Gt(0),
        Help("Training time for all trials of a rung together, as 90s, 10m or 1h."),
    ] = None
    shots: Annotated[int, Ge(1), Help("Examples in a few-shot prompt, as far as they fit.")] = 8
    refit: Annotated[
        bool, Help("Choose epochs on validation, then train anew on train + validation, as long.")
    ] = False
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "int8"],
        Help(
            "Of the frozen weights. auto: bfloat16 on CUDA, float32 on the CPU. int8 is for the "
            "CPU, and runs there unless --device says otherwise."
        ),
    ] = "auto"
    base: Annotated[
        Literal["auto", "nf4", "nf4-stored"],
        Help(
            "The frozen linear layers: as the model has them (auto), or rounded to 4-bit NF4 as in "
            "QLoRA. A GPU keeps the 4 bits; the CPU unpacks them once (nf4: fast, no memory is "
            "saved) or for every product (nf4-stored: small, slower)."
        ),
    ] = "auto"
    double_quant: Annotated[
        bool, Help("With --base nf4: round the scales of the 4-bit numbers, too, to 8 bits.")
    ] = True
    compute_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Help(
            "What 4-bit numbers are unpacked to for products. auto: as --precision. float16 is "
            "for prediction alone where they stay in 4 bits."
        ),
    ] = "auto"
    engine: Annotated[
        Literal["auto", "plain"],
        Help(
            "auto: fused layers of our own, on the CPU, for models built like Llama, where there "
            "is a C++ compiler; else, and with plain, the layers of transformers."
        ),
    ] = "auto"
    compile: Annotated[
        bool,
        Help(
            "Fuse the layers of transformers with torch.compile: fast after a minute. On the CPU "
            "our own engine is faster, and does not run then."
        ),
    ] = False
    gradient_checkpointing: Annotated[
        bool,
        Help(
            "Compute each layer again in the backward pass instead of keeping what it made: far "
            "less memory for long rows, half as much work again, the same result."
        ),
    ] = False
    device: Annotated[str, Help("auto, cpu, cuda or cuda:N.")] = "auto"
    seed: Annotated[
        int, Interval(ge=0, lt=2**31), Help("Splits, row order, adapter initialisation, dropout.")
    ] = 0

    def passes(self, rows: int) -> float:
        """Over so many training rows in one training, at most; the last one may be a part."""
        if self.max_steps is None:
            return self.epochs
        return self.max_steps / steps_per_epoch(rows, self.batch_size)
