"""Rows → micro-batches of like length, so that little of a batch is padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
        weight: what each of its choices counts in the loss, above 0.
    """

    input_ids: tuple[int, ...]
    positions: tuple[int, ...] = ()
    branchings: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()
    weight: float = 1.0


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
    """

    input_ids: Tensor
    lengths: Tensor
    rows: Tensor
    positions: Tensor
    branchings: Tensor
    targets: Tensor
    weights: Tensor | None = None

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
        return Batch(ids, lengths, rows, positions, self.branchings, targets, weights)


def collate(examples: Sequence[Example], pad_token: int = 0) -> Batch:
    """Pad examples to the longest of them."""
    lengths = [len(example.input_ids) for example in examples]
    input_ids = torch.full((len(examples), max(lengths)), pad_token)
    for row, example in enumerate(examples):
        input_ids[row, : lengths[row]] = torch.tensor(example.input_ids)
    choices = [
        (row, position, branching, target)
        for row, example in enumerate(examples)
        for position, branching, target in zip(
            example.positions, example.branchings, example.targets, strict=True
        )
    ]
    choices.sort(key=lambda choice: choice[2])  # stable: within a branching as they came
    rows, positions, branchings, targets = (
        torch.tensor(choices, dtype=torch.long).reshape(-1, 4).unbind(1)
    )
    weights = None
    if any(example.weight != 1 for example in examples):
        weights = torch.tensor([examples[row].weight for row, *_ in choices])
    lengths_of_rows = torch.tensor(lengths)
    return Batch(input_ids, lengths_of_rows, rows, positions, branchings, targets, weights)


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
