"""What many prompts begin with, read once: its keys and values, and rows packed behind them.

The rows of a batch stand one after the other in a single sequence behind the shared prefix, each
seeing the prefix and itself. So the prefix's keys and values are never copied row by row, there is
no padding, and the label trie's tokens ride along in the same pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llabel.engine.batching import Batch

if TYPE_CHECKING:
    from llabel.engine.tree import Tree

# A prefix must spare the rows more than its mask and its bookkeeping cost.
LEAST_TOKENS = 16
LEAST_ROWS = 4


@dataclass(slots=True)
class Prefix:
    """Tokens that rows begin with, and what the layers made of them.

    Attributes:
        tokens: (n,) the token ids.
        cache: keys and values of every layer, of one row: transformers' `DynamicCache`, or of
            `PackedReader` a tensor (layers, n, 2 · kv_heads · width).
    """

    tokens: tuple[int, ...]
    cache: Any

    def __len__(self) -> int:
        return len(self.tokens)


def pays(tokens: int, rows: int) -> bool:
    """Whether so many rows that share so many first tokens are read faster with a prefix."""
    return tokens >= LEAST_TOKENS and rows >= LEAST_ROWS


@torch.no_grad()
def read_prefix(run: Callable[..., Any], tokens: Sequence[int], device: torch.device) -> Prefix:
    """One pass over the shared tokens alone."""
    ids = torch.tensor([list(tokens)], device=device)
    return Prefix(tuple(tokens), run(input_ids=ids, use_cache=True).past_key_values)


def whole_rows(prefix: Prefix, batch: Batch) -> Batch:
    """The batch with the prefix before each row, for models or lengths that need it whole."""
    rows = len(batch.input_ids)
    start = torch.tensor(prefix.tokens, device=batch.input_ids.device).expand(rows, len(prefix))
    return Batch(
        torch.cat([start, batch.input_ids], dim=1),
        batch.lengths + len(prefix),
        batch.rows,
        batch.positions + len(prefix),
        batch.branchings,
        batch.targets,
    )


@torch.no_grad()
def hidden_behind(run: Callable[..., Any], prefix: Prefix, batch: Batch, tree: "Tree") -> Tensor:
    """(batch, n_branchings, hidden) of rows that go on after the prefix, all in one pass.

    Args:
        run: runs the model without its head.
        prefix: what the rows begin with.
        batch: the rest of each row, at least one token.
        tree: the label trie's inner tokens, which are read behind each row.
    """
    device, size = batch.input_ids.device, len(tree.tokens)
    rows, width = batch.input_ids.shape
    place = torch.arange(width + size, device=device)
    length = batch.lengths[:, None]
    # Each row is its prompt, then the tree: (batch, seq + tree), with a hole between the two.
    ids = torch.cat([batch.input_ids, tree.tokens.expand(rows, size)], dim=1)
    depths = torch.cat([torch.arange(width, device=device), tree.depths]).expand(rows, -1)
    position = torch.where(place < width, depths, depths + length) + len(prefix)
    kept = (place < length) | (place >= width)
    flat = kept.flatten().nonzero().squeeze(1)  # (packed,) places in the (batch, seq + tree) table
    row, column = flat // (width + size), flat % (width + size)
    seen = _within_row(width, tree)[column][:, column] & (row[:, None] == row)
    dtype = prefix.cache.layers[0].keys.dtype
    mask = torch.zeros(len(flat), len(prefix) + len(flat), dtype=dtype, device=device)
    mask[:, len(prefix) :].masked_fill_(~seen, torch.finfo(dtype).min)
    hidden = run(
        input_ids=ids.flatten()[flat][None],
        attention_mask=mask[None, None],  # (1, 1, packed, prefix + packed)
        position_ids=position.flatten()[flat][None],
        past_key_values=prefix.cache,
        use_cache=True,
    ).last_hidden_state[0]  # (packed, hidden)
    prefix.cache.crop(-len(flat))  # views of what was; the next pass makes its own
    start = kept.sum(1).cumsum(0) - kept.sum(1)
    at = [
        start + batch.lengths + (-1 if node is None else node)  # None: at the answer position
        for node in tree.read_at
    ]
    return torch.stack([hidden[index] for index in at], dim=1)


def _within_row(width: int, tree: "Tree") -> Tensor:
    """(seq + tree, seq + tree) which places of its own row each place sees."""
    size, device = len(tree.tokens), tree.tokens.device
    seen = torch.ones(width + size, width + size, dtype=torch.bool, device=device).tril_()
    seen[width:, width:] = tree.ancestors
    return seen
