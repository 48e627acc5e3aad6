"""Rows → micro-batches of like length, so that little of a batch is padding."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

FULL_VOCABULARY = -1


@dataclass(frozen=True, slots=True)
class Example:
    """One row as the engine sees it.

    Attributes:
        input_ids: (seq,) prompt, and as much of the answer as has to be read.
        positions: (m,) where in `input_ids` a choice is read.
        branchings: (m,) which choice it is: an index into the trie's branchings, or
            `FULL_VOCABULARY`.
        targets: (m,) the right child of that branching, or the right token id.
        weights: what its choices count in the loss, above 0: one number, or one for each of
            `tails`; () is 1.
        tails: where in `input_ids` each of several endings begins. What stands before the first is
            read once and seen by all of them; none sees another. Empty where there is one ending.
    """

    input_ids: tuple[int, ...]
    positions: tuple[int, ...] = ()
    branchings: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    tails: tuple[int, ...] = ()

    def choice_weights(self) -> list[float]:
        """(m,) what each choice counts; one before all endings, as much as they do on average."""
        if len(self.weights) < 2:
            return list(self.weights or (1.0,)) * len(self.positions)
        mean = sum(self.weights) / len(self.weights)
        endings = (bisect_right(self.tails, position) for position in self.positions)
        return [self.weights[ending - 1] if ending else mean for ending in endings]


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples padded on the right.

    Causal attention never looks right, so padding needs no mask: it is simply never read.

    Attributes:
        input_ids: (batch, seq) int64.
        lengths: (batch,) tokens of each row.
        rows: (m,) row of each choice.
        positions: (m,) its position in the row.
        branchings: (m,) its branching, ascending; on the CPU wherever the rest is, so that choices
            can be told apart without waiting for a GPU.
        targets: (m,) its right answer.
        weights: (m,) float32, what it counts in the loss; None where each counts 1.
        tails: (batch,) those of each `Example`; None where no row has any.
        shared: first tokens of each row that are the same in all; a reader may read them once.
    """

    input_ids: Tensor
    lengths: Tensor
    rows: Tensor
    positions: Tensor
    branchings: Tensor
    targets: Tensor
    weights: Tensor | None = None
    tails: tuple[tuple[int, ...], ...] | None = None
    shared: int = 0

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`: to a GPU in one copy that nothing waits for."""
        if device.type == "cpu":
            return self
        parts = (self.input_ids, self.lengths, self.rows, self.positions, self.targets)
        flat = torch.cat([part.flatten() for part in parts])
        if device.type == "cuda":
            flat = flat.pin_memory()
        there = flat.to(device, non_blocking=True).split([part.numel() for part in parts])
        ids, lengths, rows, positions, targets = there
        ids = ids.view_as(self.input_ids)
        weights = None if self.weights is None else self.weights.to(device, non_blocking=True)
        return replace(
            self,
            input_ids=ids,
            lengths=lengths,
            rows=rows,
            positions=positions,
            targets=targets,
            weights=weights,
        )


def collate(examples: Sequence[Example], pad_token: int = 0, shared: int = 0) -> Batch:
    """Pad examples to the longest of them; all begin with `shared` tokens that are the same."""
    lengths = [len(example.input_ids) for example in examples]
    input_ids = torch.full((len(examples), max(lengths)), pad_token)
    for row, example in enumerate(examples):
        input_ids[row, : lengths[row]] = torch.tensor(example.input_ids)
    choices = [
        (number, *choice)
        for number, example in enumerate(examples)
        for choice in zip(
            example.positions,
            example.branchings,
            example.targets,
            example.choice_weights(),
            strict=True,
        )
    ]
    choices.sort(key=lambda choice: choice[2])  # stable: within a branching as they came
    rows, positions, branchings, targets = (
        torch.tensor([c[:4] for c in choices], dtype=torch.long).reshape(-1, 4).unbind(1)
    )
    weights = None
    if any(example.weights for example in examples):
        weights = torch.tensor([choice[4] for choice in choices])
    tails = tuple(example.tails for example in examples)
    return Batch(
        input_ids,
        torch.tensor(lengths),
        rows,
        positions,
        branchings,
        targets,
        weights,
        tails if any(tails) else None,
        shared,
    )


def shared_start(examples: Sequence[Example]) -> int:
    """Tokens that all examples begin with, before any ending; each keeps one of its own."""
    same = len(shared_tokens([example.input_ids for example in examples]))
    return min([same, *(example.tails[0] for example in examples if example.tails)])


def shared_tokens(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The longest run of tokens that all prompts begin with; one token of each is left over."""
    if not prompts:
        return ()
    first, last = min(prompts), max(prompts)  # these two differ the earliest
    most = min(map(len, prompts)) - 1
    same = 0
    while same < most and first[same] == last[same]:
        same += 1
    return first[:same]


def own_starts(batch: Batch) -> tuple[Tensor, Tensor]:
    """Where endings stand: a token sees what is before it, but not from the first up to the second.

    Returns:
        (batch, 1) where the first ending of each row begins, and (batch, seq) where that of each
        token does, which is the first for tokens that stand before. On the CPU.
    """
    rows, width = batch.input_ids.shape
    first = torch.full((rows, 1), width)
    own = torch.full((rows, width), width)
    for row, starts in enumerate(batch.tails or ()):
        if starts:
            first[row] = own[row] = starts[0]
        for start in starts:
            own[row, start:] = start
    return first, own


def apart(batch: Batch) -> Batch:
    """The same choices in rows of one ending each, what they share repeated in each of them."""
    assert batch.tails is not None
    rows: list[list[int]] = []
    place: dict[tuple[int, int], tuple[int, int]] = {}  # (row, position) here → there
    for row, starts in enumerate(batch.tails):
        ids = batch.input_ids[row, : batch.lengths[row]].tolist()
        shared = starts[0] if starts else len(ids)
        place |= {(row, at): (len(rows), at) for at in range(shared)}
        for start, stop in pairwise((*starts, len(ids))):
            place |= {(row, start + at): (len(rows), shared + at) for at in range(stop - start)}
            rows.append([*ids[:shared], *ids[start:stop]])
        if not starts:
            rows.append(ids)
    choices = zip(batch.rows.tolist(), batch.positions.tolist(), strict=True)
    moved = torch.tensor([place[choice] for choice in choices], dtype=torch.long).reshape(-1, 2)
    whole = collate([Example(tuple(ids)) for ids in rows]).to(batch.input_ids.device)
    there, at = moved.to(batch.input_ids.device).unbind(1)
    return Batch(
        whole.input_ids,
        whole.lengths,
        there,
        at,
        batch.branchings,
        batch.targets,
        batch.weights,
    )


def one_by_one(batch: Batch) -> list[Batch]:
    """Each row in a batch of its own, unpadded, for reading all of it: choices are left out."""
    none = batch.rows[:0]
    return [
        Batch(ids[None, : int(length)], length[None], none, none, batch.branchings[:0], none)
        for ids, length in zip(batch.input_ids, batch.lengths, strict=True)
    ]


def micro_batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Cut rows into groups of like length whose padded size stays within `token_budget`.

    Args:
        lengths: (n,) tokens of each row.
        token_budget: most tokens of a padded group; a longer row stands alone.

    Yields:
        Row indices, longest rows first: whoever runs out of memory does so at once.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    group: list[int] = []
    for row in order:
        if group and lengths[group[0]] * (len(group) + 1) > token_budget:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
