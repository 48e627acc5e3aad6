"""The kernels, with tensors instead of pointers; what they do stands in the C++ files.

All tensors are on the CPU and float32 unless said otherwise; widths are multiples of `lanes`.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llabel.engine.native.library import load_library

Quantised = tuple[Tensor, Tensor]  # (n, width) int8 and (n,) scales


@dataclass(frozen=True, slots=True)
class Sums:
    """An integer product that waits for its scales.

    Attributes:
        sums: (n, width) int32.
        rows: (n,) scales.
        columns: (width,) scales.
        residual: (n, width) to add; None adds nothing.
    """

    sums: Tensor
    rows: Tensor
    columns: Tensor
    residual: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Behind:
    """What segments see besides themselves.

    Attributes:
        ranges: (r, 2) int64 first token and tokens; those of the past are counted first.
        first_tree: segments from here on are label tries.
        tree: (size, size) bool, which of a trie's tokens each of them sees.
    """

    ranges: Tensor
    first_tree: int
    tree: Tensor


class Kernels:
    """The compiled library.

    Args:
        folder: where it is kept.

    Raises:
        CannotCompile: it cannot be had here.
    """

    def __init__(self, folder: Path) -> None:
        self._c = load_library(folder)
        self.lanes = int(self._c.lanes())

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, unsmooth: Tensor | None
    ) -> tuple[Tensor, Tensor, Quantised | None]:
        """(n, width) → normed, (n,) reciprocal roots, and, given `unsmooth`, int8 and scales."""
        n, width = x.shape
        out, reciprocal = torch.empty_like(x), x.new_empty(n)
        quantised = None if unsmooth is None else _quantised(n, width)
        self._c.rms_norm(
            _p(x), _p(weight), _p(unsmooth), ctypes.c_float(eps), _i(n), _i(width), _p(out),
            _p(reciprocal), *map(_p, quantised or (None, None)),
        )  # fmt: skip
        return out, reciprocal, quantised

    def rms_norm_backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, reciprocal: Tensor, residual: Tensor,
        columns: Tensor | None,
    ) -> tuple[Tensor, Tensor, Quantised | None]:  # fmt: skip
        """(n, width) gradient of the norm's output → that of x plus `residual`, and the output.

        Given `columns` (width,), also the gradient times these in int8, with scales.
        """
        n, width = x.shape
        out, normed = torch.empty_like(x), torch.empty_like(x)
        quantised = None if columns is None else _quantised(n, width)
        self._c.rms_norm_backward(
            _p(grad), _p(x), _p(weight), _p(reciprocal), _p(residual), _p(columns), _i(n),
            _i(width), _p(out), _p(normed), *map(_p, quantised or (None, None)),
        )  # fmt: skip
        return out, normed, quantised

    def quantise(self, x: Tensor, weight: Tensor) -> Quantised:
        """(n, width) times (width,) → (n, width) int8 and (n,) scales."""
        n, width = x.shape
        out, scales = _quantised(n, width)
        self._c.quantise(_p(x), _i(x.stride(0)), _p(weight), _i(n), _i(width), _p(out), _p(scales))
        return out, scales

    def matmul(
        self, a: Tensor, b: Tensor, out: Tensor, start: Sums | None = None, *, keep: bool = False
    ) -> Tensor:
        """`out` (m, n) = start + a (m, k) @ b (k, n), and `out` itself is a start with `keep`.

        `a` may have any strides, `b` and `out` any between rows; n is a multiple of `lanes`.
        """
        (m, k), n = a.shape, b.shape[1]
        none = (None, _i(0), None, None, None, _i(0))
        self._c.matmul(
            _i(m), _i(n), _i(k), _p(a), _i(a.stride(0)), _i(a.stride(1)), _p(b), _i(b.stride(0)),
            _p(out), _i(out.stride(0)), ctypes.c_int(keep),
            *(none if start is None else (
                _p(start.sums), _i(start.sums.stride(0)), _p(start.rows), _p(start.columns),
                _p(start.residual), _i(0 if start.residual is None else start.residual.stride(0)),
            )),
        )  # fmt: skip
        return out

    def rotate(
        self, x: Tensor, tables: tuple[Tensor, Tensor], positions: Tensor, heads: int, sign: int
    ) -> None:
        """Rotate the first `heads` heads of (n, any) in place; tables are (length, width / 2)."""
        cosines, sines = tables
        self._c.rotate(
            _p(x), _i(x.stride(0)), _p(cosines), _p(sines), _p(positions), _i(len(x)), _i(heads),
            _i(2 * cosines.shape[1]), ctypes.c_float(sign),
        )  # fmt: skip

    def swiglu(self, x: Tensor, unsmooth: Tensor | None) -> tuple[Tensor, Quantised | None]:
        """(n, 2 · width) → (n, width), and, given `unsmooth`, int8 and scales."""
        n, width = len(x), x.shape[1] // 2
        out = x.new_empty(n, width)
        quantised = None if unsmooth is None else _quantised(n, width)
        self._c.swiglu(
            _p(x), _p(unsmooth), _i(n), _i(width), _p(out), *map(_p, quantised or (None, None))
        )
        return out, quantised

    def swiglu_backward(
        self, grad: Tensor, x: Tensor, columns: Tensor | None
    ) -> tuple[Tensor, Tensor, Quantised | None]:
        """(n, width) gradient → (n, 2 · width) gradient, and `swiglu`'s output.

        Given `columns` (2 · width,), also the gradient times these in int8, with scales.
        """
        out, product = torch.empty_like(x), torch.empty_like(grad)
        quantised = None if columns is None else _quantised(*x.shape)
        self._c.swiglu_backward(
            _p(grad), _p(x), _p(columns), *map(_i, grad.shape), _p(out), _p(product),
            *map(_p, quantised or (None, None)),
        )  # fmt: skip
        return out, product, quantised

    def attention(
        self, tokens: Tensor, heads: tuple[int, int, int], segments: Tensor, scale: float,
        behind: "Behind | None" = None, past: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(n, heads + 2 · kv_heads, width) flat → (n, heads · width) and (n, heads) logarithms.

        Args:
            tokens: queries, keys and values.
            heads: heads, key-value heads, width of a head.
            segments: (s, 4) int64.
            scale: of the scores.
            behind: what segments see besides themselves.
            past: (p, 2 · kv_heads · width).
        """
        n = len(tokens)
        out, logs = tokens.new_empty(n, heads[0] * heads[2]), tokens.new_empty(n, heads[0])
        self._c.attention(
            _p(tokens), *map(_i, heads), _p(past), _i(0 if past is None else len(past)),
            _p(segments), _i(len(segments)), _p(behind.ranges if behind else None),
            _i(behind.first_tree if behind else len(segments)), _p(behind.tree if behind else None),
            _i(len(behind.tree) if behind else 0), ctypes.c_float(scale), _p(out), _p(logs),
        )  # fmt: skip
        return out, logs

    def attention_backward(
        self, grad: Tensor, tokens: Tensor, out: Tensor, logs: Tensor, heads: tuple[int, int, int],
        segments: Tensor, scale: float,
    ) -> Tensor:  # fmt: skip
        """(n, heads · width) gradient → that of `tokens`, for segments without ranges."""
        d_tokens = torch.empty_like(tokens)
        self._c.attention_backward(
            _p(grad), _p(tokens), _p(out), _p(logs), *map(_i, heads), _p(segments),
            _i(len(segments)), ctypes.c_float(scale), _p(d_tokens),
        )  # fmt: skip
        return d_tokens


def _quantised(n: int, width: int) -> Quantised:
    return torch.empty(n, width, dtype=torch.int8), torch.empty(n)


def _p(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _i(number: int) -> ctypes.c_int64:
    return ctypes.c_int64(number)
