"""How well a language model knows the texts themselves: what tuning may have spoilt."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

import torch

from llabel.engine.batching import FULL_VOCABULARY, Example, collate, micro_batches
from llabel.events import Listener, RowsDone, ignore
from llabel.ladder.label_model import LabelModel
from llabel.task import Text


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Of a model on some prompts.

    Attributes:
        value: exp of the mean next-token loss, nats.
        tokens: that were predicted: all but the first of each prompt.
    """

    value: float
    tokens: int


@torch.no_grad()
def perplexity(model: LabelModel, texts: Sequence[Text], notify: Listener = ignore) -> Perplexity:
    """Read the prompts of `texts`, without any answer, as plain text.

    Args:
        model: to be read.
        texts: (n,) rows.
        notify: told of the rows that are done.
    """
    prompts = [prompt.input_ids for prompt in model.prompting.encoder.encode(texts)]
    examples = [
        Example(
            input_ids=ids[:-1],
            positions=tuple(range(len(ids) - 1)),
            branchings=(FULL_VOCABULARY,) * (len(ids) - 1),
            targets=ids[1:],
        )
        for ids in prompts
    ]
    loss, tokens = 0.0, sum(len(ids) - 1 for ids in prompts)
    lengths = [len(example.input_ids) for example in examples]
    for rows in micro_batches(lengths, model.token_budget):
        batch = collate([examples[row] for row in rows]).to(model.head.device)
        loss += float(model.head.loss(batch))
        notify(RowsDone(len(rows)))
    return Perplexity(exp(loss / tokens), tokens)
