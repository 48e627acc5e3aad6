"""A decoder as transformers runs it: any architecture, any device."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llabel.engine.batching import Batch, Example, apart, collate, one_by_one, own_starts
from llabel.engine.four_bit import is_four_bit
from llabel.engine.linear import Int8Linear
from llabel.engine.prefix import Prefix, hidden_behind, read_prefix, whole_rows
from llabel.engine.tree import Tree
from llabel.errors import InputError
from llabel.labels import LabelTrie

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROBE = 40  # tokens of the longer row with which a way of reading is tried


class PlainReader:
    """Rows padded on the right; the label trie in one pass where the architecture allows it.

    Args:
        model: a causal language model of transformers (adapters may be injected).
        trie: what may be answered.
    """

    def __init__(self, model: "PreTrainedModel", trie: LabelTrie) -> None:
        self.model, self.trie = model, trie
        self.decoder: nn.Module = model.get_decoder()
        self.device: torch.device = next(self.decoder.parameters()).device
        config = model.config.get_text_config()
        self._window, self._context = _window(config), _rotary_context(config)
        prefixes = [branching.prefix for branching in trie.branchings]
        self._depth = max(map(len, prefixes))
        tree = Tree(prefixes, self.device)
        # Some architectures derive their positions from the mask (ALiBi) or keep no keys and
        # values at all. Each way of reading is tried once, against a pass of its own.
        self.tree = tree if any(prefixes) and self._equals_plain(self._tree_hidden, tree) else None
        packs = not any(prefixes) or self.tree is not None
        self._packed = tree if packs and self._equals_plain(self._packed_hidden, tree) else None

    @property
    def reads_start_once(self) -> bool:
        """No: rows are padded, and each is read whole."""
        return False

    @property
    def tree_tokens(self) -> int:
        """Tokens of the label trie that ride along with each row."""
        tree = self.tree or self._packed
        return len(tree.tokens) if tree else 0

    def room_behind(self, prefix: int) -> float:
        """Tokens of rows, trie included, that may be packed behind a prefix of so many tokens."""
        return self._window - prefix - 1

    def checkpoint_layers(self) -> None:
        """Keep each layer's input alone for the backward pass.

        Raises:
            InputError: the architecture cannot do it.
        """
        model: Any = self.model
        enable = getattr(model, "activation_checkpointing_enable", None)
        try:  # older versions of transformers know the other name only
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        except ValueError as error:
            raise InputError(
                f"--gradient-checkpointing does not know {type(model).__name__}. Leave it out, and "
                "lower --token-budget."
            ) from error
        # It also makes the embeddings require gradients, which only reentrant checkpoints need: the
        # backward pass would go on below the lowest adapter.
        if hasattr(model, "_require_grads_hook"):
            model.disable_input_require_grads()

    def at_choices(self, batch: Batch) -> Tensor:
        """(m, hidden) at every choice of the batch, differentiable."""
        width = batch.input_ids.shape[1]
        if batch.tails is None:
            return self._hidden_of_rows(batch)[batch.rows, batch.positions]
        if self.tree is not None and self._within_window(width) and width <= self._context:
            return self._hidden_of_tails(batch)[batch.rows, batch.positions]
        return self.at_choices(apart(batch))

    def at_branchings(self, batch: Batch, prefix: Prefix | None) -> Tensor:
        """(batch, n_branchings, hidden) where each branching of the trie is read; no gradient."""
        rows, width = batch.input_ids.shape
        if prefix is not None:
            assert self._packed is not None
            packed = len(prefix) + int(batch.lengths.sum())
            if self._within_window(packed, rows) and self._within_context(len(prefix) + width):
                return self._packed_hidden(batch, self._packed, prefix)
            return self.at_branchings(whole_rows(prefix, batch), None)
        if rows > 1 and not self._within_context(width):
            return torch.cat([self.at_branchings(row, None) for row in one_by_one(batch)])
        if self.tree is not None and self._within_window(width) and self._within_context(width):
            return self._tree_hidden(batch, self.tree)
        each = [self._hidden_after(batch, b.prefix) for b in self.trie.branchings]
        return torch.stack(each, dim=1)

    def read_prefix(self, tokens: Sequence[int]) -> Prefix | None:
        """Keys and values of what many rows begin with; None where they cannot be reused."""
        fits = self._within_window(len(tokens)) and self._within_context(len(tokens))
        if self._packed is None or not fits:
            return None
        return read_prefix(self._run, tokens, self.device)

    def _run(self, **inputs: Any) -> Any:
        """The decoder's output. Adapters are kept in float32, and multiplied as the model is."""
        dtype = self.model.dtype
        with torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return self.decoder(**inputs)

    def _hidden(self, input_ids: Tensor) -> Tensor:
        """(batch, seq) → (batch, seq, hidden), causal, padding on the right and never read."""
        output: Tensor = self._run(input_ids=input_ids, use_cache=False).last_hidden_state
        return output

    def _hidden_of_rows(self, batch: Batch) -> Tensor:
        """(batch, seq, hidden), each row with the rotary tables of its own length."""
        if batch.input_ids.shape[1] <= self._context:
            return self._hidden(batch.input_ids)
        each = [self._hidden(row.input_ids)[0] for row in one_by_one(batch)]
        return nn.utils.rnn.pad_sequence(each, batch_first=True)

    def _hidden_of_tails(self, batch: Batch) -> Tensor:
        """(batch, seq, hidden) of rows with several endings, none of which sees another."""
        first, own = own_starts(batch)
        place = torch.arange(batch.input_ids.shape[1])
        seen = (place <= place[:, None]) & ((place < first[..., None]) | (place >= own[..., None]))
        dtype = self.model.dtype
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
        output: Tensor = self._run(
            input_ids=batch.input_ids,
            attention_mask=mask[:, None].to(self.device),  # (batch, 1, seq, seq)
            position_ids=(place - own + first).to(self.device),
            use_cache=False,
        ).last_hidden_state
        return output

    def _hidden_after(self, batch: Batch, prefix: Sequence[int]) -> Tensor:
        """(batch, hidden) at the end of prompt and prefix: a pass of its own for one branching."""
        ids = F.pad(batch.input_ids, (0, len(prefix)))
        rows = torch.arange(len(ids), device=self.device)
        for depth, token in enumerate(prefix):
            ids[rows, batch.lengths + depth] = token
        return self._hidden(ids)[rows, batch.lengths - 1 + len(prefix)]

    def _within_window(self, tokens: int, rows: int = 1) -> bool:
        """Whether all layers see all tokens: a sliding layer's cache forgets the prompt's start."""
        return tokens + rows * self.tree_tokens < self._window

    def _within_context(self, tokens: int) -> bool:
        """Whether prompts of so many tokens, and all answers, have the same rotary tables."""
        return tokens + self._depth <= self._context

    def _tree_hidden(self, batch: Batch, tree: Tree) -> Tensor:
        """(batch, n_branchings, hidden): one pass over the prompts, one over the whole trie.

        The second pass reads the prompts from the cache. Each trie token sees the prompt and its
        own ancestors (see `Tree`).
        """
        prompts = self._run(input_ids=batch.input_ids, use_cache=True)
        rows, width = batch.input_ids.shape
        size = len(tree.tokens)
        inside = torch.arange(width, device=self.device) < batch.lengths[:, None]  # (batch, seq)
        seen = torch.cat(
            [inside[:, None].expand(rows, size, width), tree.ancestors.expand(rows, size, size)],
            dim=-1,
        )
        dtype = self.model.dtype
        mask = torch.zeros(seen.shape, dtype=dtype, device=self.device)
        mask.masked_fill_(~seen, torch.finfo(dtype).min)
        answers = self._run(
            input_ids=tree.tokens.expand(rows, size),
            attention_mask=mask[:, None],  # (batch, 1, tree, seq + tree)
            position_ids=batch.lengths[:, None] + tree.depths,
            past_key_values=prompts.past_key_values,
            use_cache=True,
        ).last_hidden_state
        first = torch.arange(rows, device=self.device)
        at_answer = prompts.last_hidden_state[first, batch.lengths - 1]
        return torch.stack(
            [at_answer if at is None else answers[:, at] for at in tree.read_at], dim=1
        )

    def _packed_hidden(self, batch: Batch, tree: Tree, prefix: Prefix | None = None) -> Tensor:
        """(batch, n_branchings, hidden); without a prefix, the first token of all rows is one."""
        if prefix is None:
            prefix = read_prefix(self._run, batch.input_ids[0, :1].tolist(), self.device)
            rest = replace(batch, input_ids=batch.input_ids[:, 1:], lengths=batch.lengths - 1)
            return self._packed_hidden(rest, tree, prefix)
        return hidden_behind(self._run, prefix, batch, tree)

    @torch.no_grad()
    def _equals_plain(self, read: Callable[[Batch, Tree], Tensor], tree: Tree) -> bool:
        """Whether `read` finds at the deepest branching what a plain pass finds there."""
        deepest = self.trie.branchings[-1].prefix
        # Of lengths so unequal that it shows where a key's place in memory is taken for its
        # position, but within what is read that way at all.
        fits = self._window - 2 * len(tree.tokens) - 3, self._context - self._depth
        long = int(max(3, min(_PROBE, *fits)))
        # The longer one first: packed behind it, the shorter one has its first token far away.
        prompts = Example(tuple(1 + n % 5 for n in range(long))), Example((1, 2))
        batch = collate(prompts).to(self.device)
        training = self.model.training
        self.model.eval()
        try:
            expected = self._hidden_after(batch, deepest).float()
            found = read(batch, tree)[:, -1].float()
            return bool((found - expected).norm() <= self._rounding() * expected.norm())
        except Exception:  # whatever went wrong inside the model, the other way is right for all
            return False
        finally:
            self.model.train(training)

    def _rounding(self) -> float:
        """How far two ways of computing the same may be apart, relative to it."""
        coarse = (isinstance(m, Int8Linear) or is_four_bit(m) for m in self.decoder.modules())
        return 0.05 if self.model.dtype != torch.float32 or any(coarse) else 1e-3


def _window(config: Any) -> float:
    """Tokens that every layer sees; `window_size` is GPT-Neo's name for it."""
    names = ("sliding_window", "attention_chunk_size", "window_size")
    return min((n for name in names if (n := getattr(config, name, None))), default=math.inf)


def _rotary_context(config: Any) -> float:
    """Longest row that has the rotary tables of all shorter ones.

    Some models have others beyond it, or one for each length, for all positions of a pass.
    """
    rotary = getattr(config, "rope_parameters", None) or {}
    found = math.inf
    # Of one kind, or of one for each kind of layer.
    for kind in (rotary, *(value for value in rotary.values() if isinstance(value, dict))):
        name = kind.get("rope_type", "default")
        if name == "longrope":
            original = kind.get("original_max_position_embeddings")
            found = min(found, original or config.original_max_position_embeddings)
        elif name == "dynamic":
            found = min(found, config.max_position_embeddings)
    return found
