"""Rows one after the other through the packed decoder: no padding, the label trie in one pass."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llabel.engine.batching import Batch, own_starts
from llabel.engine.lower_states import LIMIT, LowerStates
from llabel.engine.native.kernels import Behind, Kernels
from llabel.engine.native.library import CannotCompile
from llabel.engine.packable import why_not
from llabel.engine.packed import PackedDecoder, Tokens
from llabel.engine.prefix import Prefix
from llabel.engine.tree import Tree
from llabel.events import Listener, ignore
from llabel.labels import LabelTrie

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PackedReader:
    """Reads a packed decoder for the choices of a label trie (a `Reader`)."""

    def __init__(self, decoder: PackedDecoder, trie: LabelTrie) -> None:
        self.decoder, self.device = decoder, torch.device("cpu")
        self.lower: LowerStates | None = None
        self.tree = Tree([branching.prefix for branching in trie.branchings], self.device)

    @property
    def reads_start_once(self) -> bool:
        """Yes, unless what lies below the adapters is kept, row by row."""
        return self.lower is None

    @property
    def tree_tokens(self) -> int:
        """Tokens of the label trie that ride along with each row."""
        return len(self.tree.tokens)

    def keep_lower(self, wanted: bool, notify: Listener = ignore) -> None:
        """Keep what lies below the adapters between passes over the same rows, or no longer.

        `notify` is told when no more of it fits (see `LowerStates`).
        """
        kept = wanted and self.decoder.lowest_adapter
        self.lower = LowerStates(LIMIT, notify) if kept else None

    def checkpoint_layers(self) -> None:
        """Keep each layer's input alone for the backward pass."""
        self.decoder.recompute = True

    def at_choices(self, batch: Batch) -> Tensor:
        """(m, hidden) at every choice of the batch, differentiable."""
        shared = batch.shared if self.reads_start_once else 0
        tokens = _one_after_the_other(batch, shared)
        own = tokens.segments[-len(batch.lengths) :]
        at = torch.where(
            batch.positions < shared,
            batch.positions,
            own[batch.rows, 0] - shared + batch.positions,
        )
        read, places = torch.unique(at, return_inverse=True)
        tokens = replace(tokens, read=read)
        if self.lower is not None:
            tokens = replace(tokens, states=self._lower(tokens, self.lower, batch.tails))
        return self.decoder.hidden(tokens)[places]

    def _lower(
        self, tokens: Tokens, known: LowerStates, tails: tuple[tuple[int, ...], ...] | None
    ) -> Tensor:
        """(n, hidden) states below the lowest adapter; rows that are not known are read."""
        spans = [slice(s, s + n) for s, n in tokens.segments[:, :2].tolist()]
        rows = [tuple(tokens.ids[span].tolist()) for span in spans]
        if tails is not None:  # the same tokens with other endings are another row
            rows = [(*row, *(-at for at in ats)) for row, ats in zip(rows, tails, strict=True)]
        states = [known.get(row) for row in rows]
        missing = [number for number, found in enumerate(states) if found is None]
        if missing:
            lengths = tokens.segments[missing, 1]
            taken = torch.cat([torch.arange(spans[n].start, spans[n].stop) for n in missing])
            found = self.decoder.lower(
                Tokens(
                    tokens.ids[taken],
                    tokens.positions[taken],
                    _segments(lengths),
                    taken[:0],
                    hidden=None if tokens.hidden is None else tokens.hidden[taken],
                )
            )
            for number, state in zip(missing, found.split(lengths.tolist()), strict=True):
                known.keep(rows[number], state)
                states[number] = state
        return torch.cat([state for state in states if state is not None])

    @torch.no_grad()
    def at_branchings(self, batch: Batch, prefix: Prefix | None) -> Tensor:
        """(batch, n_branchings, hidden) where each branching of the trie is read."""
        lengths, rows, size = batch.lengths, len(batch.lengths), self.tree_tokens
        shared = len(prefix) if prefix else 0
        prompt_tokens = _one_after_the_other(batch, 0)
        ids, positions = prompt_tokens.ids, prompt_tokens.positions
        starts, prompts = prompt_tokens.segments[:, 0], len(ids)
        tries = prompts + size * torch.arange(rows)
        zeros = torch.zeros(rows, dtype=torch.long)
        # Range 0 is the prefix; range 1 + row is the row's prompt, counted behind the past.
        ranges = torch.cat([
            torch.tensor([[0, shared]]), torch.stack([starts + shared, lengths], dim=1)
        ])  # fmt: skip
        begun = 1 if shared else 0
        segments = torch.stack([starts, lengths, zeros, zeros + begun], dim=1)
        if size:
            # A trie's ranges lie side by side: the prefix (perhaps empty), then its prompt.
            pairs = torch.stack([ranges[:1].expand(rows, 2), ranges[1:]], dim=1).reshape(-1, 2)
            ranges = torch.cat([ranges[:1], pairs])
            own = torch.stack([tries, zeros + size, 1 + 2 * torch.arange(rows), zeros + 2], dim=1)
            segments = torch.cat([segments, own])
            ids = torch.cat([ids, self.tree.tokens.repeat(rows)])
            depths = lengths[:, None] + self.tree.depths  # (batch, tree)
            positions = torch.cat([positions, depths.flatten()])
        at = [
            starts + lengths - 1 if node is None else tries + node for node in self.tree.read_at
        ]  # n_branchings × (batch,)
        read, places = torch.unique(torch.stack(at, dim=1), return_inverse=True)
        hidden = self.decoder.hidden(
            Tokens(
                ids,
                positions + shared,
                segments.contiguous(),
                read,
                Behind(ranges.contiguous(), rows, self.tree.ancestors),
                None if prefix is None else prefix.cache,
            )
        )
        return hidden[places]

    @torch.no_grad()
    def read_prefix(self, tokens: Sequence[int]) -> Prefix | None:
        """Keys and values of what many rows begin with."""
        n = len(tokens)
        segment = torch.tensor([[0, n, 0, 0]])
        whole = Tokens(torch.tensor(tokens), torch.arange(n), segment, torch.tensor([n - 1]))
        return Prefix(tuple(tokens), self.decoder.keys_and_values(whole))


def packed_reader(model: "PreTrainedModel", trie: LabelTrie, kernels: Path) -> "PackedReader | str":
    """The fast way to read `model`, or why there is none.

    Args:
        model: frozen, adapters injected.
        trie: what may be answered.
        kernels: folder where compiled kernels are kept.
    """
    if reason := why_not(model):
        return reason
    try:
        library = Kernels(kernels)
    except CannotCompile as error:
        return str(error)
    if reason := why_not(model, library.lanes):
        return reason
    return PackedReader(PackedDecoder(model, library), trie)


def _segments(lengths: Tensor) -> Tensor:
    """(rows, 4) segments of rows that see nothing but themselves."""
    nothing = torch.zeros_like(lengths)
    return torch.stack([lengths.cumsum(0) - lengths, lengths, nothing, nothing], dim=1)


def _one_after_the_other(batch: Batch, shared: int) -> Tokens:
    """What a batch's rows begin with, once, and each row behind it; nothing is read yet."""
    places = torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids)
    inside = (places >= shared) & (places < batch.lengths[:, None])
    positions, hidden = places[inside], None
    if batch.tails is not None:  # rows with several endings, that do not see each other
        first, own = own_starts(batch)
        hidden = torch.stack([first.expand_as(own), own], dim=-1)[inside] - shared
        positions = (places - own + first)[inside]
    segments = _segments(batch.lengths - shared)
    tokens = Tokens(batch.input_ids[inside], positions, segments, positions[:0], hidden=hidden)
    if not shared:
        return tokens
    start = torch.arange(shared)
    segments = segments + torch.tensor([shared, 0, 0, 1])
    nothing = torch.zeros(shared, 2, dtype=torch.long)
    return replace(
        tokens,
        ids=torch.cat([batch.input_ids[0, :shared], tokens.ids]),
        positions=torch.cat([start, positions]),
        segments=torch.cat([torch.tensor([[0, shared, 0, 0]]), segments]),
        behind=Behind(torch.tensor([[0, shared]])),
        hidden=None if hidden is None else torch.cat([nothing, hidden]),
    )
