"""Label log-probabilities at the answer position, without logits for the whole vocabulary."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llabel.engine.batching import FULL_VOCABULARY, Batch
from llabel.engine.plain import PlainReader
from llabel.engine.prefix import Prefix
from llabel.engine.reader import Reader
from llabel.errors import InputError
from llabel.labels import LabelTrie

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AnswerHead:
    """The rows of the language-model head that the labels need.

    Args:
        model: a causal language model of transformers (adapters may be injected).
        trie: what may be answered.
        reader: runs the model's decoder; by default as transformers does.

    Raises:
        InputError: the model does something to its logits that is not known here (found by
            comparing with the model's own logits).
    """

    def __init__(
        self, model: "PreTrainedModel", trie: LabelTrie, reader: Reader | None = None
    ) -> None:
        self.model, self.trie = model, trie
        self.reader: Reader = reader or PlainReader(model, trie)
        self.device = self.reader.device
        self._children = [torch.tensor(b.children, device=self.device) for b in trie.branchings]
        self._refuse_unknown_heads()

    def logits(self, hidden: Tensor, branching: int) -> Tensor:
        """(m, hidden) → (m, n_children) float32 logits; all tokens for `FULL_VOCABULARY`.

        Those of a branching are computed in float32 whatever the model's precision: bfloat16 would
        round logits around 16 to eighths.
        """
        head = self.model.get_output_embeddings()
        weight, bias = head.weight, head.bias
        if branching != FULL_VOCABULARY:
            chosen = self._children[branching]
            weight = weight[chosen].float()
            bias = None if bias is None else bias[chosen].float()
        raw = F.linear(hidden.to(weight.dtype), weight, bias).float()
        return _scaled(raw, self.model.config.get_text_config())

    def loss(self, batch: Batch) -> Tensor:
        """Sum of the cross-entropies (nats) of every choice in the batch, each times its weight."""
        hidden = self.reader.at_choices(batch)  # (m, hidden)
        total = hidden.new_zeros((), dtype=torch.float32)
        branchings, counts = batch.branchings.unique_consecutive(return_counts=True)
        sizes: list[int] = counts.tolist()
        weights = [None] * len(sizes) if batch.weights is None else batch.weights.split(sizes)
        parts = zip(
            branchings.tolist(),
            hidden.split(sizes),
            batch.targets.split(sizes),
            weights,
            strict=True,
        )
        for branching, here, targets, weight in parts:
            logits = self.logits(here, branching)
            total = total + weighted_cross_entropy(logits, targets, weight)
        return total

    def read_prefix(self, tokens: Sequence[int]) -> Prefix | None:
        """What `log_probs` needs to know of tokens that many rows begin with (see `Reader`)."""
        return self.reader.read_prefix(tokens)

    @torch.no_grad()
    def log_probs(self, batch: Batch, prefix: Prefix | None = None) -> Tensor:
        """(batch, n_classes) float32 log-probabilities of every label; rows sum to one.

        Args:
            batch: prompts, or what follows `prefix` in each, at least one token.
            prefix: what all of them begin with, from `read_prefix`.
        """
        hidden = self.reader.at_branchings(batch, prefix)  # (batch, n_branchings, hidden)
        steps = [
            F.log_softmax(self.logits(hidden[:, number], number), dim=-1)
            for number in range(len(self.trie.branchings))
        ]
        columns = [
            torch.stack([steps[number][:, child] for number, child in path]).sum(0)
            for path in self.trie.steps
        ]
        return torch.stack(columns, dim=1)

    @torch.no_grad()
    def _refuse_unknown_heads(self) -> None:
        """Compare with the model's own logits once: heads differ in what they do to them."""
        ids = torch.tensor([[self.trie.tokens[0][0]] * 2], device=self.device)
        training = self.model.training
        self.model.eval()
        theirs = self.model(input_ids=ids, use_cache=False).logits[:, -1].float()
        last = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
        ours = self.logits(last, FULL_VOCABULARY)
        self.model.train(training)
        if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2):
            raise InputError(
                f"--model: {type(self.model).__name__} treats its logits in a way that llabel does "
                f"not know (largest difference {(ours - theirs).abs().max():.3g}). "
                "Choose a model of another architecture."
            )


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Sum over rows of weight · cross-entropy (nats).

    Args:
        logits: (m, n) float32.
        targets: (m,) the right column.
        weights: (m,) float32; None is 1 each.
    """
    if weights is None:
        return F.cross_entropy(logits, targets, reduction="sum")
    return (weights * F.cross_entropy(logits, targets, reduction="none")).sum()


def _scaled(logits: Tensor, config: Any) -> Tensor:
    """What Cohere, Granite and Gemma 2 do to their logits after the head."""
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return logits
