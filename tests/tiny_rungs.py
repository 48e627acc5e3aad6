"""Language-model rungs on tiny tasks, for the tests of `llabel.ladder.llm`."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from llabel.ladder.llm import LLMRung
from llabel.settings import LLMSettings
from llabel.task import Task
from tiny_tasks import make_task

TASK = make_task()
# Tasks to learn by heart: validation on the training rows keeps the epoch that knows them best.
BOOL = make_task(train=8)
BOOL = replace(BOOL, validation=BOOL.train)
DEEP = make_task(("style", "style & beauty", "sports", "sports news"), train=8)
DEEP = replace(DEEP, validation=DEEP.train)


def untrained(settings: LLMSettings, task: Task = TASK) -> LLMRung:
    """With fresh adapters, which change nothing yet."""
    rung = LLMRung(settings).prepare(task.fields, task.classes)
    rung._load_model()
    return rung


@torch.no_grad()
def own_proba(model: Any, rung: LLMRung, texts: Any) -> np.ndarray:
    """(n, 2) probabilities by transformers alone: softmax over what tells the two labels apart."""
    rows = []
    for text in texts:
        prompt = rung.template_.render(text, rung.fields_)
        scores = []
        for word in rung.trie_.words:
            ids = rung.tokenizer_(prompt + rung.template_.joint + word)["input_ids"]
            scores.append(float(model(input_ids=torch.tensor([ids])).logits[0, -2, ids[-1]]))
        rows.append(torch.tensor(scores).softmax(0).numpy())
    return np.stack(rows)
