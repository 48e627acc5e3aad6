"""A Llama-like decoder over rows that stand one after the other, on the CPU, in fused kernels.

No padding, no masks, no logits; in the last layer only the positions that are read go on after
attention; the backward pass ends at the lowest adapter, and what is kept for it stands in `_Kept`.
In int8 each token's result depends on what it sees alone, to the bit: integers amplify rounding, so
else a row's probabilities would depend on the rows beside it. In float32 the last bits do depend on
them, since BLAS adds up in another order where there are more rows.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llabel.engine.linear import Int8Linear
from llabel.engine.native.kernels import Behind, Kernels, Rotary
from llabel.engine.packable import head_width
from llabel.engine.projection import Projection, own_int_products


@dataclass(frozen=True, slots=True)
class Tokens:
    """What is read in one pass.

    Attributes:
        ids: (n,) token ids of all rows.
        positions: (n,) their places in their rows.
        segments: (s, 4) first token, tokens, first range, ranges: its tokens see each other
            causally, and before that the segment's ranges whole.
        read: (m,) tokens whose hidden states are wanted, ascending.
        behind: what the segments' ranges are.
        past: (layers, p, 2 · kv_heads · width) keys and values of earlier tokens.
        states: (n, hidden) what `PackedDecoder.lower` gives for them, if that is known.
        hidden: (n, 2) int64, which tokens of its own segment each does not see though they stand
            before it: from the first up to the second, counted in the segment.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    read: Tensor
    behind: Behind | None = None
    past: Tensor | None = None
    states: Tensor | None = None
    hidden: Tensor | None = None


@dataclass(slots=True)
class _Kept:
    """What a layer's backward pass needs of its forward pass."""

    x: Tensor  # (n, hidden) its input
    root: Tensor  # (n,) of its first norm
    tokens: Tensor  # (n, heads + 2 · kv_heads, width) flat: queries, keys, values
    seen: Tensor  # (n or m, heads · width) attention's output, those that go on
    attended: Tensor  # (n, heads · width) all of it
    logs: Tensor  # (n, heads)
    middle: Tensor  # (n or m, hidden) after attention
    middle_root: Tensor
    gate_up: Tensor  # (n or m, 2 · inner)
    ranks: tuple[Tensor, Tensor, Tensor, Tensor]  # x A^T of the four projections


class PackedDecoder:
    """The decoder of a Llama-like model of transformers, with its adapters.

    Args:
        model: the causal language model; its linear layers' weights become views of joint ones.
        kernels: the library.

    Attributes:
        recompute: keep each layer's input alone for the backward pass, and run the layer again
            there (Chen et al. 2016, arXiv 1604.06174).
    """

    def __init__(self, model: Any, kernels: Kernels) -> None:
        self.kernels, self.decoder = kernels, model.get_decoder()
        self.recompute = False
        config = model.config
        self.heads = (config.num_attention_heads, config.num_key_value_heads, head_width(config))
        weights = sum(
            layer.weight.numel()
            for layer in self.decoder.modules()
            if isinstance(layer, Int8Linear)
        )
        own = own_int_products(weights, possible=kernels.multiplies_integers)
        self.layers = [_Layer(layer, self.heads, kernels, own) for layer in self.decoder.layers]
        self.tables = self._tables(0)

    def _tables(self, length: int) -> tuple[Tensor, Tensor]:
        """(length, width / 2) cosines and sines of every position."""
        positions = torch.arange(length)[None]
        cosines, sines = self.decoder.rotary_emb(torch.empty(0), positions)
        half = cosines.shape[-1] // 2
        return cosines[0, :, :half].contiguous(), sines[0, :, :half].contiguous()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """A and B of every adapter, in the order of `backward`'s gradients."""
        return [
            parameter
            for layer in self.layers
            for projection in layer.projections
            for adapter in projection.trained
            for parameter in (adapter.a, adapter.b)
        ]

    def hidden(self, tokens: Tokens) -> Tensor:
        """(m, hidden) states after the last norm at `tokens.read`, differentiable."""
        if torch.is_grad_enabled():
            states: Tensor = _Pass.apply(self, tokens, *self.parameters)
        else:
            states = self.forward(tokens)
        normed: Tensor = self.decoder.norm(states)
        return normed

    @torch.no_grad()
    def lower(self, tokens: Tokens) -> Tensor:
        """(n, hidden) states that enter the lowest layer with an adapter."""
        rotary = self._rotary(tokens)
        x: Tensor = self.decoder.embed_tokens(tokens.ids)
        for layer in self.layers[: self.lowest_adapter]:
            x = layer.forward(x, tokens, rotary, None, None, None, None)
        return x

    def keys_and_values(self, tokens: Tokens) -> Tensor:
        """(layers, n, 2 · kv_heads · width) of tokens that others will see."""
        found: list[Tensor] = []
        self.forward(tokens, keys_and_values=found)
        return torch.stack(found)

    def forward(
        self,
        tokens: Tokens,
        kept: list[_Kept | Tensor] | None = None,
        keys_and_values: list[Tensor] | None = None,
    ) -> Tensor:
        """(m, hidden) states before the last norm; fills the lists that are given."""
        rotary, lowest = self._rotary(tokens), self.lowest_adapter
        first = 0 if tokens.states is None else lowest
        x = self.decoder.embed_tokens(tokens.ids) if tokens.states is None else tokens.states
        for number, layer in enumerate(self.layers[first:], first):
            read = tokens.read if number == len(self.layers) - 1 else None
            past = None if tokens.past is None else tokens.past[number]
            saved = kept if kept is not None and number >= lowest else None
            if saved is not None and self.recompute:
                saved.append(x)
                saved = None
            x = layer.forward(x, tokens, rotary, read, past, saved, keys_and_values)
        return x

    def _rotary(self, tokens: Tokens) -> Rotary:
        longest = int(tokens.positions.max()) + 1
        if longest > len(self.tables[0]):
            self.tables = self._tables(max(longest, 2 * len(self.tables[0])))
        return Rotary(*self.tables, tokens.positions, sum(self.heads[:2]))

    @property
    def lowest_adapter(self) -> int:
        """The first layer with an adapter."""
        adapted = (n for n, layer in enumerate(self.layers) if layer.adapted)
        return next(adapted, len(self.layers))

    def backward(self, grad: Tensor, tokens: Tokens, kept: list[_Kept | Tensor]) -> list[Tensor]:
        """(m, hidden) gradient of `forward` → those of `parameters`."""
        gradients: list[list[Tensor]] = []
        rotary, lowest = self._rotary(tokens), self.lowest_adapter
        for number in reversed(range(lowest, len(self.layers))):
            read = tokens.read if number == len(self.layers) - 1 else None
            layer, last = self.layers[number], kept.pop()
            if isinstance(last, Tensor):
                again: list[_Kept | Tensor] = []
                layer.forward(last, tokens, rotary, read, None, again, None)
                last = again.pop()
            assert isinstance(last, _Kept)
            d_x, own = layer.backward(grad, tokens, last, rotary, read, through=number > lowest)
            gradients.append(own)
            if d_x is not None:
                grad = d_x
        return [gradient for own in reversed(gradients) for gradient in own]


class _Layer:
    """One decoder layer."""

    def __init__(
        self, layer: Any, heads: tuple[int, int, int], kernels: Kernels, own: bool
    ) -> None:
        self.heads, self.kernels = heads, kernels
        attention, mlp = layer.self_attn, layer.mlp
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv = Projection(qkv, kernels, own=own)
        self.out = Projection([attention.o_proj], kernels, own=own)
        self.gate_up = Projection([mlp.gate_proj, mlp.up_proj], kernels, own=own)
        self.down = Projection([mlp.down_proj], kernels, own=own)
        self.projections = (self.qkv, self.out, self.gate_up, self.down)
        self.first, self.second = layer.input_layernorm, layer.post_attention_layernorm
        self.scale = float(attention.scaling)

    @property
    def adapted(self) -> bool:
        return any(projection.ranks for projection in self.projections)

    def forward(
        self,
        x: Tensor,
        tokens: Tokens,
        rotary: Rotary,
        read: Tensor | None,
        past: Tensor | None,
        kept: list[_Kept | Tensor] | None,
        keys_and_values: list[Tensor] | None,
    ) -> Tensor:
        """(n, hidden) → the same, or (m, hidden) of those to `read`."""
        k, first, second = self.kernels, self.first, self.second
        into = self.qkv.begin(len(x))
        root = k.norm(None, x, first.weight, first.variance_epsilon, into.inside)
        k.rotary(into.multiply().outside, len(x), rotary)
        qkv = _kept(into.left)
        if keys_and_values is not None:
            keys_and_values.append(qkv[:, self.heads[0] * self.heads[2] :].clone())
        attended, logs = k.attention(
            qkv, self.heads, tokens.segments, self.scale, tokens.behind, past, tokens.hidden
        )
        residual, seen = (x, attended) if read is None else (x[read], attended[read])
        n = len(seen)
        back = self.out.begin(n)
        back.enter(seen, k)
        back.multiply(residual)
        inner = self.gate_up.begin(n)
        middle = _kept(back.left)
        middle_root = k.norm(
            back.outside, middle, second.weight, second.variance_epsilon, inner.inside
        )
        inner.multiply(keep=kept is not None)
        down = self.down.begin(n)
        k.swiglu(inner.outside, n, down.inside)
        k.leave_rows(down.multiply(middle).outside, n)
        if kept is not None:
            kept.append(
                _Kept(
                    x, root, qkv, seen, attended, logs, middle, middle_root, _kept(inner.left),
                    (into.middle, back.middle, inner.middle, down.middle),
                )
            )  # fmt: skip
        return _kept(down.left)

    def backward(
        self,
        grad: Tensor,
        tokens: Tokens,
        kept: _Kept,
        rotary: Rotary,
        read: Tensor | None,
        *,
        through: bool,
    ) -> tuple[Tensor | None, list[Tensor]]:
        """The gradient of `x` (None without `through`), and A's and B's of each adapter."""
        k, n, m = self.kernels, len(kept.x), len(grad)
        ranks = kept.ranks
        down = self.down.backward.begin(m)
        down.enter(grad, k)
        inner = self.gate_up.backward.begin(m, keep=True)
        output = k.swiglu_backward(down.multiply(keep=False).outside, kept.gate_up, inner.inside)
        d_down = self.down.gradients(grad, output, down.middle, ranks[3])

        back = self.out.backward.begin(m, keep=True)
        d_middle, d_gate_up = _kept(back.entered), _kept(inner.entered)
        again = k.norm_backward(
            inner.multiply(keep=False).outside, kept.middle, self.second.weight, kept.middle_root,
            grad, d_middle, back.inside,
        )  # fmt: skip
        d_inner = self.gate_up.gradients(d_gate_up, again, inner.middle, ranks[2])
        k.leave_rows(back.multiply().outside, m)
        d_seen = _kept(back.left)
        d_out = self.out.gradients(d_middle, kept.seen, back.middle, ranks[1])
        if read is not None:
            d_middle = torch.zeros_like(kept.x).index_copy_(0, read, d_middle)
            d_seen = torch.zeros_like(kept.attended).index_copy_(0, read, d_seen)

        d_tokens = k.attention_backward(
            d_seen, kept.tokens, kept.attended, kept.logs, self.heads, tokens.segments, self.scale,
            tokens.behind, tokens.hidden,
        )  # fmt: skip
        into = self.qkv.backward.begin(n)
        into.entered = d_tokens
        k.rotary_backward(d_tokens, rotary, into.inside)
        d_x = torch.empty_like(kept.x) if through else None
        if d_x is None:
            with torch.no_grad():
                normed = self.first(kept.x)
        else:
            normed = k.norm_backward(
                into.multiply(keep=False).outside, kept.x, self.first.weight, kept.root, d_middle,
                d_x, None,
            )  # fmt: skip
        d_qkv = self.qkv.gradients(d_tokens, normed, into.middle, ranks[0])
        return d_x, [*d_qkv, *d_out, *d_inner, *d_down]


def _kept(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


class _Pass(torch.autograd.Function):
    """`PackedDecoder.forward` and `backward` for autograd."""

    @staticmethod
    def forward(ctx: Any, decoder: PackedDecoder, tokens: Tokens, *parameters: Tensor) -> Tensor:
        ctx.decoder, ctx.tokens, ctx.kept = decoder, tokens, []
        return decoder.forward(tokens, ctx.kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept, ctx.kept = ctx.kept, None
        gradients = ctx.decoder.backward(grads[0].contiguous(), ctx.tokens, kept)
        return (None, None, *gradients)
