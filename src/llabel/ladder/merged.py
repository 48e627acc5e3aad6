"""A tuned LLM without its adapter: the same answers from a model of transformers alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llabel.engine.model import load_adapter
from llabel.ladder.label_model import LabelModel, engine_for, load_base
from llabel.ladder.llm import LLMRung
from llabel.ladder.llm_folder import ADAPTER
from llabel.ladder.prompting import build_prompting
from llabel.tensor_files import writing


def write_merged(rung: LLMRung, folder: Path, out: Path, dtype: torch.dtype) -> None:
    """Write W + scaling · B A in the place of each W, with tokenizer and config, into `out`.

    The sums are made in float32, on the CPU, and rounded once. W is NF4 numbers after QLoRA, else
    those of the model's files, not their rounding to int8. The NF4 numbers are rounded from the
    files' in float32, as on the CPU: those of a training in bfloat16 were rounded from bfloat16,
    and are others in a few places unless the files are in bfloat16, too.

    Args:
        rung: loaded from `folder`.
        folder: holds the adapter.
        out: a folder that exists.
        dtype: of the weights that are written.
    """
    base = "nf4" if rung.settings.base == "nf4-stored" else rung.settings.base
    settings = replace(rung.settings, base=base, device="cpu", precision="float32", compile=False)
    tuned: Any = load_adapter(load_base(rung.prompting_, settings), folder / ADAPTER)
    model = tuned.merge_and_unload(safe_merge=True).to(dtype)
    model.config.dtype = dtype
    with writing(out):
        model.save_pretrained(str(out))
    rung.tokenizer_.save_pretrained(str(out))


def read_merged(rung: LLMRung, model: Path) -> LabelModel:
    """The model at `model`, asked as `rung` asks: as the rung llm-zero-shot would read it."""
    settings = replace(
        rung.settings,
        model=str(model),
        base="auto",
        precision="auto",
        compile=False,
        rope_scaling=None,  # the merged model's own configuration has it
    )
    prompting = build_prompting(
        settings, model, rung.fields_, rung.template_, rung.trie_.words, rung.classes_
    )
    base = load_base(prompting, settings)
    head = engine_for(base, prompting.trie, settings).head
    return LabelModel(base, head, prompting, settings.token_budget)
