"""Examples for a few-shot prompt: which rows, how much of each, as which tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llabel.errors import InputError
from llabel.ladder.prompting import Prompting
from llabel.prompt import PromptEncoder, water_level
from llabel.task import Split, Text

SEPARATOR = "\n\n"  # a blank line after each example's answer, where no token ends it
LEAST_TEXT = 32  # tokens of text that an example keeps, if it has as many; else there are fewer


@dataclass(frozen=True, slots=True)
class Shot:
    """A training row as the model is shown it.

    Attributes:
        id: the row's name in the user's data.
        label: its class index.
        text: its fields, as far as they stand in the prompt.
    """

    id: str
    label: int
    text: Text


def choose_rows(split: Split, n_classes: int, shots: int, seed: int) -> list[int]:
    """Rows to show, balanced over the classes, chosen by the seed alone.

    Round after round, each class gives one row; the order of the classes is drawn anew in every
    round, so that no class stands last by rule (models lean to the last answer: Zhao et al. 2021,
    section 4). Any number of the first rows is balanced, too. No two rows are of one group or have
    the same texts. With more classes than shots, some classes go without.

    Args:
        split: the training rows.
        n_classes: how many classes there are.
        shots: rows to choose; there may be too few.
        seed: decides.

    Returns:
        Indices of rows, in the order in which they are shown.
    """
    rng = np.random.default_rng(seed)
    queues = [rng.permutation(np.flatnonzero(split.y == c)).tolist() for c in range(n_classes)]
    chosen: list[int] = []
    taken: set[object] = set()

    def next_of(queue: list[int]) -> int | None:
        while queue:
            row = queue.pop()
            marks = {split.texts[row], *([split.groups[row]] if split.groups else [])}
            if not marks & taken:
                taken.update(marks)
                return row
        return None

    while len(chosen) < shots and any(queues):
        for number in rng.permutation(n_classes):
            row = next_of(queues[number]) if len(chosen) < shots else None
            if row is not None:
                chosen.append(row)
    return chosen


def fit_shots(
    split: Split, rows: Sequence[int], prompting: Prompting, room: int
) -> tuple[list[Shot], int]:
    """The examples as they fit into the room; how many of them lost the end of a text.

    The longest are cut first, to one length for all. Where that would leave less than `LEAST_TEXT`
    tokens of text, examples are dropped from the end.

    Args:
        split: the training rows.
        rows: which of them, in order.
        prompting: template, tokenizer and trie.
        room: tokens for all examples together, answers and their ends included.

    Raises:
        InputError: not even one fits.
    """
    begin = len(prompting.encoder.begin_tokens)
    separator = len(_separator(prompting))
    labels = [int(split.y[row]) for row in rows]
    prompts = prompting.encoder.encode([split.texts[row] for row in rows])
    lengths = [len(prompt.input_ids) for prompt in prompts]
    around = [len(prompting.trie.tokens[label]) + separator for label in labels]
    least = prompting.encoder.least_length
    for count in range(len(rows), 0, -1):
        level = water_level(lengths[:count], room - begin - sum(around[:count]))
        if level >= min(max(lengths[:count]), least + LEAST_TEXT):
            break
    else:
        raise InputError(
            f"Few-shot prompts: no example fits into the {max(room, 0)} tokens of the model's "
            f"context that --max-seq-length {prompting.max_total} leaves. Lower --max-seq-length, "
            "or choose a model with a longer context."
        )
    encoder = _encoder(prompting, max(level, least + 1))
    texts = [prompt.text for prompt in prompts[:count]]
    cut = [prompt.text for prompt in encoder.encode(texts)]
    shots = [
        Shot(split.ids[row], label, text)
        for row, label, text in zip(rows[:count], labels, cut, strict=False)
    ]
    return shots, sum(split.texts[row] != s.text for row, s in zip(rows, shots, strict=False))


def shot_tokens(shots: Sequence[Shot], prompting: Prompting) -> tuple[int, ...]:
    """What stands before every row: begin tokens, then prompt, answer and its end of each."""
    separator = _separator(prompting)
    prompts = _encoder(prompting, prompting.context).encode([shot.text for shot in shots])
    tokens = list(prompting.encoder.begin_tokens)
    for shot, prompt in zip(shots, prompts, strict=True):
        tokens += [*prompt.input_ids, *prompting.trie.tokens[shot.label], *separator]
    return tuple(tokens)


def _separator(prompting: Prompting) -> list[int]:
    """What ends an example: in a chat the end of the model's turn, else a blank line."""
    template = prompting.template
    if not template.end:
        return prompting.encode_text(SEPARATOR)
    return [prompting.trie.end_token, *prompting.encode_text(template.gap)]


def _encoder(prompting: Prompting, max_length: int) -> PromptEncoder:
    return PromptEncoder(
        prompting.tokenizer,
        prompting.template,
        prompting.encoder.fields,
        max_length,
        begin=False,
        long=prompting.encoder.long,
    )
