"""A Llama-like decoder over rows that stand one after the other, on the CPU, in fused kernels.

No padding, no masks, no logits; in the last layer only the positions that are read go on after
attention; the backward pass ends at the lowest adapter, and what is kept for it stands in `_Kept`.
Each token's result depends on what it sees alone, to the bit: integers amplify rounding, so else a
row's probabilities would depend on the rows beside it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llabel.engine.native.kernels import Behind, Kernels
from llabel.engine.projection import Projection


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
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    read: Tensor
    behind: Behind | None = None
    past: Tensor | None = None


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
    """

    def __init__(self, model: Any, kernels: Kernels) -> None:
        self.kernels, self.decoder = kernels, model.get_decoder()
        config = model.config
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        self.heads = (config.num_attention_heads, config.num_key_value_heads, width)
        self.layers = [_Layer(layer, self.heads, kernels) for layer in self.decoder.layers]
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
            for adapter in projection.adapters
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

    def keys_and_values(self, tokens: Tokens) -> Tensor:
        """(layers, n, 2 · kv_heads · width) of tokens that others will see."""
        found: list[Tensor] = []
        self.forward(tokens, keys_and_values=found)
        return torch.stack(found)

    def forward(
        self,
        tokens: Tokens,
        kept: list[_Kept] | None = None,
        keys_and_values: list[Tensor] | None = None,
    ) -> Tensor:
        """(m, hidden) states before the last norm; fills the lists that are given."""
        longest = int(tokens.positions.max()) + 1
        if longest > len(self.tables[0]):
            self.tables = self._tables(max(longest, 2 * len(self.tables[0])))
        x: Tensor = self.decoder.embed_tokens(tokens.ids)
        lowest = self.lowest_adapter
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            saved = kept if kept is not None and number >= lowest else None
            x = layer.forward(x, tokens, number, self.tables, last, saved, keys_and_values)
        return x

    @property
    def lowest_adapter(self) -> int:
        """The first layer with an adapter."""
        adapted = (n for n, layer in enumerate(self.layers) if layer.adapted)
        return next(adapted, len(self.layers))

    def backward(self, grad: Tensor, tokens: Tokens, kept: list[_Kept]) -> list[Tensor]:
        """(m, hidden) gradient of `forward` → those of `parameters`."""
        gradients: list[list[Tensor]] = []
        lowest = self.lowest_adapter
        for number in reversed(range(lowest, len(self.layers))):
            last = number == len(self.layers) - 1
            d_x, own = self.layers[number].backward(
                grad, tokens, kept.pop(), self.tables, last, through=number > lowest
            )
            gradients.append(own)
            if d_x is not None:
                grad = d_x
        return [gradient for own in reversed(gradients) for gradient in own]


class _Layer:
    """One decoder layer."""

    def __init__(self, layer: Any, heads: tuple[int, int, int], kernels: Kernels) -> None:
        self.heads, self.kernels = heads, kernels
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = Projection([attention.q_proj, attention.k_proj, attention.v_proj], kernels)
        self.out = Projection([attention.o_proj], kernels)
        self.gate_up = Projection([mlp.gate_proj, mlp.up_proj], kernels)
        self.down = Projection([mlp.down_proj], kernels)
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
        number: int,
        tables: tuple[Tensor, Tensor],
        last: bool,
        kept: list[_Kept] | None,
        keys_and_values: list[Tensor] | None,
    ) -> Tensor:
        k, (heads, kv_heads, width) = self.kernels, self.heads
        normed, root, rounded = self._norm(self.first, x, self.qkv)
        qkv, ranks = self.qkv.forward(normed, rounded)
        k.rotate(qkv, tables, tokens.positions, heads + kv_heads, 1)
        if keys_and_values is not None:
            keys_and_values.append(qkv[:, heads * width :].clone())
        past = None if tokens.past is None else tokens.past[number]
        attended, logs = k.attention(
            qkv, self.heads, tokens.segments, self.scale, tokens.behind, past
        )
        residual, seen = (x[tokens.read], attended[tokens.read]) if last else (x, attended)
        middle, out_ranks = self.out.forward(seen, self.out.quantise(seen), residual)
        again, middle_root, rounded = self._norm(self.second, middle, self.gate_up)
        gate_up, inner_ranks = self.gate_up.forward(again, rounded)
        inner, rounded = k.swiglu(gate_up, self.down.unsmooth)
        result, down_ranks = self.down.forward(inner, rounded, middle)
        if kept is not None:
            kept.append(
                _Kept(
                    x, root, qkv, seen, attended, logs, middle, middle_root, gate_up,
                    (ranks, out_ranks, inner_ranks, down_ranks),
                )
            )  # fmt: skip
        return result

    def _norm(
        self, norm: Any, x: Tensor, following: Projection | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        unsmooth = following.unsmooth if following else None
        return self.kernels.rms_norm(x, norm.weight, norm.variance_epsilon, unsmooth)

    def backward(
        self,
        grad: Tensor,
        tokens: Tokens,
        kept: _Kept,
        tables: tuple[Tensor, Tensor],
        last: bool,
        *,
        through: bool,
    ) -> tuple[Tensor | None, list[Tensor]]:
        """The gradient of `x` (None without `through`), and A's and B's of each adapter."""
        k, (heads, kv_heads, _) = self.kernels, self.heads
        d_ranks, down_b = self.down.rank_gradients(grad, kept.ranks[3])
        d_inner = self.down.input_gradient(grad, d_ranks)
        d_gate_up, inner, rounded = k.swiglu_backward(d_inner, kept.gate_up, self.gate_up.columns)
        down_a = self.down.adapter_gradients(d_ranks, inner)

        d_ranks, gate_up_b = self.gate_up.rank_gradients(d_gate_up, kept.ranks[2])
        d_again = self.gate_up.input_gradient(d_gate_up, d_ranks, rounded)
        d_middle, again, rounded = k.rms_norm_backward(
            d_again, kept.middle, self.second.weight, kept.middle_root, grad, self.out.columns
        )
        gate_up_a = self.gate_up.adapter_gradients(d_ranks, again)

        d_ranks, out_b = self.out.rank_gradients(d_middle, kept.ranks[1])
        d_seen = self.out.input_gradient(d_middle, d_ranks, rounded)
        out_a = self.out.adapter_gradients(d_ranks, kept.seen)
        if last:
            d_middle = torch.zeros_like(kept.x).index_copy_(0, tokens.read, d_middle)
            d_seen = torch.zeros_like(kept.attended).index_copy_(0, tokens.read, d_seen)
        d_qkv = k.attention_backward(
            d_seen, kept.tokens, kept.attended, kept.logs, self.heads, tokens.segments, self.scale
        )
        k.rotate(d_qkv, tables, tokens.positions, heads + kv_heads, -1)
        d_ranks, qkv_b = self.qkv.rank_gradients(d_qkv, kept.ranks[0])
        d_x: Tensor | None = None
        if through:
            d_normed = self.qkv.input_gradient(d_qkv, d_ranks)
            d_x, normed, _ = k.rms_norm_backward(
                d_normed, kept.x, self.first.weight, kept.root, d_middle, None
            )
        else:
            normed, _, _ = self._norm(self.first, kept.x, None)
        qkv_a = self.qkv.adapter_gradients(d_ranks, normed)
        pairs = zip(
            [*qkv_a, *out_a, *gate_up_a, *down_a], [*qkv_b, *out_b, *gate_up_b, *down_b],
            strict=True,
        )  # fmt: skip
        return d_x, [gradient for pair in pairs for gradient in pair]


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


# Llama's layer under other names. Others differ in norms, activations, scores or residuals.
_ALIKE = frozenset({"llama", "mistral", "qwen2"})
_FIXED_ROTARY = frozenset({"default", "linear", "llama3", "yarn"})  # no tables that change


def why_not(model: Any, lanes: int = 1) -> str | None:
    """What keeps `model` out of a `PackedDecoder`; None if nothing does."""
    config, kind = model.config, type(model).__name__
    if getattr(config, "model_type", "") not in _ALIKE:
        return f"{kind} is not built like Llama"
    if next(model.parameters()).device.type != "cpu":
        return "it is for the CPU"
    if config.hidden_act not in {"silu", "swish"}:
        return f"its activation is {config.hidden_act}"
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotary not in _FIXED_ROTARY:
        return f"its rotary positions are {rotary}"
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True):
        return f"its attention slides over {window} tokens"
    if any(n % lanes for n in (config.hidden_size, config.intermediate_size, _head_width(config))):
        return f"its widths are no multiples of {lanes}"
    for layer in model.get_decoder().layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
            found = getattr(layer.mlp if name in _MLP else layer.self_attn, name)
            if reason := _odd(found, adds=name in {"o_proj", "down_proj"}):
                return f"{name} {reason}"
    return None


_MLP = frozenset({"gate_proj", "up_proj", "down_proj"})


def _head_width(config: Any) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _odd(layer: Any, *, adds: bool) -> str | None:
    """What is unusual about a linear layer; `adds` to the residual stream."""
    frozen = getattr(layer, "base_layer", layer)
    if not isinstance(frozen, nn.Linear) or frozen.weight.dtype not in {torch.float32, torch.int8}:
        return "is no linear layer in float32 or int8"
    if frozen.weight.requires_grad:
        return "is trained itself"
    if adds and frozen.bias is not None:
        return "has a bias"
    if frozen is layer:
        return None
    if not hasattr(layer, "lora_A") or len(layer.active_adapters) != 1 or layer.merged:
        return "has something other than one LoRA adapter"
    (name,) = layer.active_adapters
    if any(layer.use_dora.values()) or any(layer.lora_bias.values()):
        return "has an unusual adapter"
    if not isinstance(layer.lora_dropout[name], nn.Identity):
        return "has dropout"
    return None
