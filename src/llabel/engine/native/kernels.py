"""The kernels, with tensors instead of pointers; what they do stands in the C++ files.

All tensors are on the CPU, contiguous and float32 unless said otherwise; widths are multiples of
`lanes`.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llabel.engine.native.library import load_library

# Up to so many columns our own product is the faster one: BLAS libraries like both sides long.
# Adapters of rank 16 have at most 48, where three share their input.
_SKINNY = 48


class Part(ctypes.Structure):
    """Some of a side's columns, and an adapter's matrix between these and some ranks.

    The matrix is (width, ranks) where rows enter and (ranks, width) where they leave. One of (k, n)
    stands as (n / lanes, k, lanes): what a register holds is followed by what it holds next.
    """

    _fields_ = (
        ("column", ctypes.c_int64), ("width", ctypes.c_int64), ("rank", ctypes.c_int64),
        ("ranks", ctypes.c_int64), ("matrix", ctypes.c_void_p),
    )  # fmt: skip


class Side(ctypes.Structure):
    """What enters a frozen product or leaves it: a view of tensors that are kept elsewhere."""

    _fields_ = (
        ("values", ctypes.c_void_p), ("middle", ctypes.c_void_p), ("rounded", ctypes.c_void_p),
        ("packed", ctypes.c_void_p), ("sums", ctypes.c_void_p), ("rows", ctypes.c_void_p),
        ("columns", ctypes.c_void_p), ("residual", ctypes.c_void_p), ("parts", ctypes.c_void_p),
        ("width", ctypes.c_int64), ("ranks", ctypes.c_int64), ("n_parts", ctypes.c_int64),
        ("ld_residual", ctypes.c_int64), ("depth", ctypes.c_int64),
    )  # fmt: skip


class _Rotary(ctypes.Structure):
    _fields_ = (
        ("cosines", ctypes.c_void_p), ("sines", ctypes.c_void_p), ("positions", ctypes.c_void_p),
        ("heads", ctypes.c_int64), ("width", ctypes.c_int64),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rotary:
    """How tokens turn.

    Attributes:
        cosines, sines: (length, width / 2) of every position.
        positions: (n,) int64, of each token.
        heads: how many of a token's heads turn, its first ones.
    """

    cosines: Tensor
    sines: Tensor
    positions: Tensor
    heads: int

    def _struct(self) -> _Rotary:
        pointers = (_p(self.cosines), _p(self.sines), _p(self.positions))
        return _Rotary(*pointers, self.heads, 2 * self.cosines.shape[1])


@dataclass(frozen=True, slots=True)
class Behind:
    """What segments see besides themselves.

    Attributes:
        ranges: (r, 2) int64 first token and tokens; those of the past are counted first.
        first_tree: segments from here on are label tries.
        tree: (size, size) bool, which of a trie's tokens each of them sees; None without tries.
    """

    ranges: Tensor
    first_tree: int = 0
    tree: Tensor | None = None


class Kernels:
    """The compiled library. `before` is what leaves a product, `following` what enters the next.

    Attributes:
        lanes: floats of a register.
        multiplies_integers: whether `pack` and `int_product` exist on this processor.

    Args:
        folder: where it is kept.

    Raises:
        CannotCompile: it cannot be had here.
    """

    def __init__(self, folder: Path) -> None:
        self._c = load_library(folder)
        self.lanes = int(self._c.lanes())
        self.multiplies_integers = hasattr(self._c, "int_product")
        if self.multiplies_integers:
            self._c.packed_size.restype = ctypes.c_int64

    def enter_rows(self, x: Tensor, following: Side) -> None:
        """(n, width) rows enter as they are."""
        self._c.enter_rows(_p(x), _i(len(x)), _ref(following))

    def leave_rows(self, before: Side, n: int) -> None:
        """n rows leave, into `before.values`."""
        self._c.leave_rows(_ref(before), _i(n))

    def norm(
        self, before: Side | None, x: Tensor, weight: Tensor, eps: float, following: Side
    ) -> Tensor:
        """RMSNorm of what leaves `before`, else of x (n, width); returns (n,) reciprocal roots."""
        roots = x.new_empty(len(x))
        self._c.norm(
            _ref(before), _p(x), _p(weight), ctypes.c_float(eps), _i(len(x)), _p(roots),
            _ref(following),
        )  # fmt: skip
        return roots

    def norm_backward(
        self, before: Side, x: Tensor, weight: Tensor, roots: Tensor, residual: Tensor,
        out: Tensor, following: Side | None,
    ) -> Tensor:  # fmt: skip
        """The gradient of the norm's output leaves `before`; `out` gets that of x plus `residual`.

        Returns:
            (n, width) the norm's output.
        """
        normed = torch.empty_like(x)
        self._c.norm_backward(
            _ref(before), _p(x), _p(weight), _p(roots), _p(residual), _i(len(x)), _p(out),
            _p(normed), _ref(following),
        )  # fmt: skip
        return normed

    def swiglu(self, before: Side, n: int, following: Side) -> None:
        """silu(gate) · up of n rows."""
        self._c.swiglu(_ref(before), _i(n), _ref(following))

    def swiglu_backward(self, before: Side, gate_up: Tensor, following: Side) -> Tensor:
        """The gradient of `swiglu`'s output leaves `before`, that of gate and up enters.

        Returns:
            (n, width) the output.
        """
        inner = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        self._c.swiglu_backward(
            _ref(before), _p(gate_up), _i(len(gate_up)), _p(inner), _ref(following)
        )
        return inner

    def rotary(self, before: Side, n: int, how: Rotary) -> None:
        """n rows leave and turn."""
        self._c.rotary(_ref(before), _i(n), _ref(how._struct()))

    def rotary_backward(self, grad: Tensor, how: Rotary, following: Side) -> None:
        """(n, width) gradient of turned rows, in place → that of the rows, which enters."""
        self._c.rotary_backward(_p(grad), _i(len(grad)), _ref(how._struct()), _ref(following))

    def transposed_product(self, a: Tensor, b: Tensor) -> Tensor:
        """(k, m) and (k, n), which may be columns of wider ones → a^T b (m, n)."""
        (k, m), n = a.shape, b.shape[1]
        if min(m, n) > _SKINNY:
            return a.t() @ b
        out = a.new_empty(m, n)
        self._c.transposed_product(
            _i(m), _i(n), _i(k), _p(a), _i(a.stride(0)), _p(b), _i(b.stride(0)), _p(out)
        )
        return out

    def pack(self, b: Tensor) -> Tensor:
        """(k, n) int8, in any layout → the same for `Side.packed`; k and n multiples of 8."""
        k, n = b.shape
        packed = b.new_empty(self._c.packed_size(_i(k), _i(n)))
        self._c.pack(
            _p(b), _i(k), _i(n), _i(b.stride(0)), _i(b.stride(1)), _p(packed)
        )  # fmt: skip
        return packed

    def int_product(self, a: Tensor, packed: Tensor, n: int) -> Tensor:
        """(m, k) int8 times a packed (k, n) → (m, n) int32."""
        m, k = a.shape
        out = a.new_empty(m, n, dtype=torch.int32)
        self._c.int_product(_p(a), _i(m), _i(k), _p(packed), _i(n), _p(out))
        return out

    def attention(
        self, tokens: Tensor, heads: tuple[int, int, int], segments: Tensor, scale: float,
        behind: Behind | None = None, past: Tensor | None = None, hidden: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(n, heads + 2 · kv_heads, width) flat → (n, heads · width) and (n, heads) logarithms.

        Args:
            tokens: queries, keys and values.
            heads: heads, key-value heads, width of a head.
            segments: (s, 4) int64.
            scale: of the scores.
            behind: what segments see besides themselves.
            past: (p, 2 · kv_heads · width).
            hidden: (n, 2) int64, the tokens of its segment that each does not see, from and up to.
        """
        n = len(tokens)
        out, logs = tokens.new_empty(n, heads[0] * heads[2]), tokens.new_empty(n, heads[0])
        tree = behind.tree if behind else None
        self._c.attention(
            _p(tokens), *map(_i, heads), _p(past), _i(0 if past is None else len(past)),
            _p(segments), _i(len(segments)), _p(behind.ranges if behind else None),
            _i(behind.first_tree if behind and tree is not None else len(segments)),
            _p(tree), _i(0 if tree is None else len(tree)), _p(hidden), ctypes.c_float(scale),
            _p(out), _p(logs),
        )  # fmt: skip
        return out, logs

    def attention_backward(
        self, grad: Tensor, tokens: Tensor, out: Tensor, logs: Tensor, heads: tuple[int, int, int],
        segments: Tensor, scale: float, behind: Behind | None = None, hidden: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(n, heads · width) gradient → that of `tokens`, for segments without past or trees."""
        d_tokens = torch.empty_like(tokens)
        self._c.attention_backward(
            _p(grad), _p(tokens), _p(out), _p(logs), *map(_i, heads), _p(segments),
            _i(len(segments)), _p(behind.ranges if behind else None), _p(hidden),
            ctypes.c_float(scale), _p(d_tokens),
        )  # fmt: skip
        return d_tokens


def has_avx2() -> bool:
    """What `Kernels.multiplies_integers` will be here, without compiling them."""
    return torch.backends.cpu.get_cpu_capability().startswith(("AVX2", "AVX512", "AMX"))


def parts_array(parts: Sequence[Part]) -> ctypes.Array[Part]:
    """What `Side.parts` points to."""
    return (Part * len(parts))(*parts)


def _p(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _i(number: int) -> ctypes.c_int64:
    return ctypes.c_int64(number)


def _ref(struct: ctypes.Structure | None) -> object:
    return None if struct is None else ctypes.byref(struct)
