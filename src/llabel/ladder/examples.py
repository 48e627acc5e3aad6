"""A prompt and its label → what the loss reads: which positions, and what should stand there."""

from collections.abc import Sequence

from llabel.engine.batching import FULL_VOCABULARY, Example
from llabel.labels import LabelTrie


def example_of(
    prompt: Sequence[int], label: int | Sequence[int], trie: LabelTrie, loss: str
) -> Example:
    """One row for the loss.

    Args:
        prompt: its tokens.
        label: the class index; of several targets one each, whose answers stand one after the
            other behind the prompt, and do not see each other.
        trie: what may be answered.
        loss: `answer`, `sft` or `all` (see `llabel.settings`).
    """
    if not isinstance(label, int):
        return target_example(prompt, label, trie, loss)
    answer, last = trie.tokens[label], len(prompt) - 1
    if loss == "answer":
        steps = trie.steps[label]
        depths = [len(trie.branchings[number].prefix) for number, _ in steps]
        return Example(
            input_ids=(*prompt, *answer[: max(depths)]),
            positions=tuple(last + depth for depth in depths),
            branchings=tuple(number for number, _ in steps),
            targets=tuple(child for _, child in steps),
        )
    tokens = (*prompt, *answer, trie.end_token)
    start = last if loss == "sft" else 0
    positions = tuple(range(start, len(tokens) - 1))
    return Example(
        input_ids=tokens[:-1],
        positions=positions,
        branchings=(FULL_VOCABULARY,) * len(positions),
        targets=tokens[start + 1 :],
    )


def target_example(
    prompt: Sequence[int], labels: Sequence[int], trie: LabelTrie, loss: str
) -> Example:
    """A row of several targets for the loss: one ending for each, none of which sees another.

    Args:
        prompt: tokens that all targets share.
        labels: (n_targets,) the row's class of each.
        trie: of all targets.
        loss: `answer`, `sft` or `all` (see `llabel.settings`). With `all` the headings that ask
            for the targets are learned, too.
    """
    ids, last = list(prompt), len(prompt) - 1
    tails: list[int] = []
    choices: list[tuple[int, int, int]] = []  # position, branching, right answer
    if loss == "all":
        choices += [(at, FULL_VOCABULARY, prompt[at + 1]) for at in range(last)]
    for target, label in zip(trie.targets, labels, strict=True):
        start, answer = len(ids), trie.tokens[label]
        tails.append(start)
        if loss == "answer":
            depths = [(len(trie.branchings[n].prefix), n, child) for n, child in trie.steps[label]]
            ids += answer[: max(depth for depth, _, _ in depths)]
            choices += [(start + depth - 1, n, child) for depth, n, child in depths]
            continue
        ids += answer
        whole = (*answer, trie.end_token)
        first = 0 if loss == "all" else len(target.tail)
        before = [last, *range(start, len(ids))]  # where each token of the ending is foretold
        choices += [(before[at], FULL_VOCABULARY, whole[at]) for at in range(first, len(whole))]
    positions, branchings, targets = zip(*choices, strict=True)
    return Example(tuple(ids), positions, branchings, targets, tails=tuple(tails))
