"""Let the model write an answer token by token, greedily."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from llabel.engine.batching import micro_batches


@torch.no_grad()
def write_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_token: int,
    token_budget: int,
) -> Iterator[dict[int, list[int]]]:
    """Answer prompts in groups of like length.

    Args:
        model: of transformers or PEFT, on the device where it shall run, in evaluation mode.
        prompts: (n,) token ids of each prompt.
        max_new_tokens: longest answer.
        end_token: ends an answer; also pads the prompts, where it is masked.
        token_budget: most padded tokens of a group.

    Yields:
        For each group, prompt number → the token ids written, end tokens included.
    """
    for rows in micro_batches([len(prompt) for prompt in prompts], token_budget):
        width = len(prompts[rows[0]])
        ids = torch.full((len(rows), width), end_token)
        mask = torch.zeros_like(ids)
        for at, row in enumerate(rows):  # left padding: generation goes on at the right end
            start = width - len(prompts[row])
            ids[at, start:] = torch.tensor(prompts[row])
            mask[at, start:] = 1
        written = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,  # some models bring their own, and would shun our labels
            eos_token_id=end_token,
            pad_token_id=end_token,
        )
        yield dict(zip(rows, written[:, width:].tolist(), strict=True))
