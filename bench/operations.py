"""How many operations a training step or a prediction needs, at the least.

One multiplication and one addition are two operations, so a product of (m, k) and (k, n) is 2·m·n·k
of them. Only matrix products are counted (norms, activations and softmaxes are below 1 %), only of
real tokens, and only what must be computed by any method:

- forward, a decoder layer: seven linear layers, 2·tokens·in·out each; attention, for each head
  2·pairs·head_dim for the scores and as much for their sum over values, where a row of L tokens has
  L·(L + 1)/2 causal pairs.
- in the last layer only the answer position asks: its query, output projection and MLP are of one
  token a row, its attention has L pairs, and only keys and values are of all tokens.
- label logits: 2·hidden·labels a row.
- LoRA, in training: 2·tokens·r·(in + out) forward for each linear layer. A prediction has its
  adapter merged.
- backward: for each linear layer the gradient toward its input, 2·tokens·in·out (but not for the
  query, key and value of the first layer, below which nothing is trained; frozen weights have no
  gradient), and for LoRA's matrices: dB and the gradient toward A's output, 2·tokens·r·out each, dA
  and the gradient toward the input, 2·tokens·r·in each. Attention: four products (toward values,
  probabilities, queries and keys) where forward had two. Recomputing for checkpointing or flash
  attention is not useful work, and is not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Decoder:
    """Sizes of a Llama-like decoder."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Any) -> "Decoder":
        """From transformers' configuration, or the same as read from config.json."""
        get = config.get if isinstance(config, dict) else lambda name: getattr(config, name, None)
        heads = get("num_attention_heads")
        return cls(
            layers=get("num_hidden_layers"),
            hidden=get("hidden_size"),
            intermediate=get("intermediate_size"),
            heads=heads,
            kv_heads=get("num_key_value_heads") or heads,
            head_dim=get("head_dim") or get("hidden_size") // heads,
        )

    def linear(self) -> dict[str, tuple[int, int]]:
        """Name → (in, out) of a layer's linear layers."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q": (self.hidden, queries),
            "k": (self.hidden, keys),
            "v": (self.hidden, keys),
            "o": (queries, self.hidden),
            "gate": (self.hidden, self.intermediate),
            "up": (self.hidden, self.intermediate),
            "down": (self.intermediate, self.hidden),
        }


def needed(
    decoder: Decoder,
    lengths: Sequence[int],
    *,
    labels: int,
    training: bool = False,
    r: int = 0,
    whole: bool = False,
) -> int:
    """Operations for rows of these lengths.

    Args:
        decoder: the model.
        lengths: (n,) tokens of each row, padding not counted.
        labels: rows of the head that are read at the answer position.
        training: count the backward pass, too.
        r: rank of LoRA on all linear layers; 0 for none, or a merged one.
        whole: count as a plain implementation computes: all pairs of tokens, and the whole last
            layer.
    """
    total = 0
    for layer in range(decoder.layers):
        last = layer == decoder.layers - 1 and not whole
        for name, (wide_in, wide_out) in decoder.linear().items():
            tokens = len(lengths) if last and name not in {"k", "v"} else sum(lengths)
            adapters = r * (wide_in + wide_out)
            total += 2 * tokens * (wide_in * wide_out + adapters)
            if training:
                lowest = layer == 0 and name in {"q", "k", "v"}
                toward_input = 0 if lowest else wide_in * wide_out + r * wide_in
                toward_adapters = 2 * r * wide_out + r * wide_in
                total += 2 * tokens * (toward_input + toward_adapters)
        pairs = sum(
            length if last else length**2 if whole else length * (length + 1) // 2
            for length in lengths
        )
        products = 6 if training else 2
        total += products * 2 * pairs * decoder.heads * decoder.head_dim
    return total + (2 if training else 1) * 2 * len(lengths) * decoder.hidden * labels
