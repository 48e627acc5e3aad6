"""Linear layers that share their input, as one product, with the adapters' on top of it."""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llabel.engine.linear import (
    Int8Linear,
    has_matrix_unit,
    int_mm_is_fast,
    int_product,
    int_product_in_float,
)
from llabel.engine.native.kernels import Kernels, Part, Side, parts_array

COPIED = 2**30  # int8 weights, bytes: so many are copied for speed alone


class Adapter:
    """The LoRA matrices of one layer, and the copies that the kernels read.

    A copy of a matrix (k, n) is (n / lanes, k, lanes): see `Part.matrix`. Ranks are padded to a
    multiple of the lanes with zeros.

    Attributes:
        a: (r, in) the trained parameter A.
        b: (out, r) the trained parameter B.
        scaling: of their product.
        wide: copy of (in, r padded) A transposed; some columns of its projection's.
        tall: copy of (r padded, in) A; some rows of its projection's.
        up: copy of (r padded, out) B transposed, times `scaling`.
        down: copy of (out, r padded) B times `scaling`.
    """

    wide: Tensor
    tall: Tensor

    def __init__(self, a: nn.Parameter, b: nn.Parameter, scaling: float, lanes: int) -> None:
        self.a, self.b, self.scaling, self.lanes = a, b, scaling, lanes
        self.r = len(a)
        self.padded = -(-self.r // lanes) * lanes
        self.up = torch.zeros(len(b) // lanes, self.padded, lanes)
        self.down = torch.zeros(self.padded // lanes, len(b), lanes)
        self._seen: tuple[int, int] | None = None

    def refresh(self) -> None:
        """Copy the parameters if they changed."""
        versions = (self.a._version, self.b._version)
        if versions == self._seen:
            return
        a = F.pad(self.a.detach(), (0, 0, 0, self.padded - self.r))
        b = F.pad(self.b.detach() * self.scaling, (0, self.padded - self.r))
        for copy, matrix in ((self.wide, a.t()), (self.tall, a), (self.up, b.t()), (self.down, b)):
            copy.copy_(matrix.unflatten(1, (-1, self.lanes)).transpose(0, 1))
        self._seen = versions


class Way:
    """A projection in one direction: forward, or backward toward the input.

    Attributes:
        bias: (1, out) added where there is no residual; zeros unless it is written to.

    Args:
        weight: (out, in) of this direction; int8 or float32.
        before: (in,) what entering rows are multiplied with before they are rounded; None in
            float. With them, a float32 weight holds the integers.
        after: (out,) scales of the integer product; None in float.
        entering, leaving: the adapters' parts of both sides.
        ranks: of all adapters together.
        kernels: the library.
        own: whether the kernels multiply integers themselves, a block of rows on its way.
    """

    def __init__(
        self,
        weight: Tensor,
        before: Tensor | None,
        after: Tensor | None,
        entering: Sequence[Part],
        leaving: Sequence[Part],
        ranks: int,
        kernels: Kernels,
        *,
        own: bool,
    ) -> None:
        self.weight, self.before, self.after, self.ranks = weight, before, after, ranks
        self.kernels, self.own = kernels, own and before is not None
        self._packed: Tensor | None = None
        self.entering, self.leaving = parts_array(entering), parts_array(leaving)
        self.bias = torch.zeros(1, len(weight))
        self.float_product = _float_product()

    def begin(self, n: int, *, keep: bool = False) -> "Crossing":
        """n rows are about to enter; `keep` them where the kernel would not."""
        return Crossing(self, n, keep)

    @property
    def packed(self) -> Tensor | None:
        """A copy of the weight for the kernels to multiply integers with; None where they don't."""
        if self.own and self._packed is None:  # of the way back not before there is one
            self._packed = self.kernels.pack(self.weight.t())
        return self._packed

    def int_product(self, rows: Tensor) -> Tensor:
        """(n, in) int8 → (n, out) int32, where the kernels don't multiply."""
        product = int_product if self.weight.dtype == torch.int8 else int_product_in_float
        return product(rows, self.weight.t())


class Crossing:
    """Rows on their way through a frozen product and its adapters.

    Attributes:
        middle: (n, ranks) the rows in the adapters' ranks.
        entered: (n, in) the rows; None where only their integers are kept.
        left: (n, out) what left; None where it is not kept.
    """

    def __init__(self, way: Way, n: int, keep: bool) -> None:
        self.way, self.n = way, n
        self.middle = torch.empty(n, way.ranks)
        self.entered: Tensor | None = None
        self.left: Tensor | None = None
        self._residual: Tensor | None = None
        self._sums: Tensor | None = None
        width = way.weight.shape[1]
        if way.before is not None:
            self._rounded = torch.empty(n, width, dtype=torch.int8)
            self._rows = torch.empty(n)
        if keep or way.before is None:
            self.entered = torch.empty(n, width)

    @property
    def inside(self) -> Side:
        """What enters."""
        way, integers = self.way, self.way.before is not None
        return Side(
            values=_at(self.entered),
            middle=_at(self.middle),
            rounded=_at(self._rounded) if integers else None,
            rows=_at(self._rows) if integers else None,
            columns=_at(way.before),
            parts=ctypes.addressof(way.entering),
            width=way.weight.shape[1],
            ranks=way.ranks,
            n_parts=len(way.entering),
        )

    def enter(self, x: Tensor, kernels: Kernels) -> None:
        """(n, in) rows enter as they are."""
        kernels.enter_rows(x, self.inside)
        self.entered = x

    def multiply(self, residual: Tensor | None = None, *, keep: bool = True) -> "Crossing":
        """Through the product; `residual` (n, out), else the bias, is added; `keep` what leaves.

        In float, what entered has to be in `entered`.
        """
        way, self._residual = self.way, residual
        if way.before is not None:
            if way.packed is None:
                self._sums = way.int_product(self._rounded)
            self.left = torch.empty(self.n, len(way.weight)) if keep else None
        else:
            assert self.entered is not None
            self.left = way.float_product(self.entered, way.weight)
        return self

    @property
    def outside(self) -> Side:
        """What leaves, after `multiply`."""
        way, integers = self.way, self.way.before is not None
        residual = way.bias.expand(self.n, -1) if self._residual is None else self._residual
        return Side(
            values=_at(self.left),
            middle=_at(self.middle),
            rounded=_at(self._rounded) if integers else None,
            packed=_at(way.packed),
            sums=_at(self._sums),
            rows=_at(self._rows) if integers else None,
            columns=_at(way.after),
            residual=_at(residual),
            ld_residual=residual.stride(0),
            parts=ctypes.addressof(way.leaving),
            width=len(way.weight),
            ranks=way.ranks,
            n_parts=len(way.leaving),
            depth=way.weight.shape[1],
        )


class Projection:
    """Frozen layers with the same input, their weights one below the other, and their adapters.

    Args:
        layers: `nn.Linear`s or `Int8Linear`s, possibly wrapped by PEFT. Their weights become views
            of the joint one.
        kernels: the library.
        own: whether it may multiply int8 itself; see `own_int_products`.
    """

    def __init__(self, layers: Sequence[nn.Module], kernels: Kernels, *, own: bool = True) -> None:
        self.kernels = kernels
        own = own and kernels.multiplies_integers
        frozen: list[Any] = [getattr(layer, "base_layer", layer) for layer in layers]
        weight = torch.cat([layer.weight.detach() for layer in frozen])  # (out, in)
        self.columns: list[slice] = []
        self.adapters: list[Adapter | None] = []
        at = 0
        for layer, base in zip(layers, frozen, strict=True):
            columns = slice(at, at + len(base.weight))
            base.weight.data = weight[columns]
            self.columns.append(columns)
            self.adapters.append(_adapter_of(layer, kernels.lanes))
            at += len(base.weight)
        self.ranks = sum(adapter.padded for adapter in self.trained)
        width, lanes = weight.shape[1], kernels.lanes
        self.wide = torch.zeros(self.ranks // lanes, width, lanes)
        self.tall = torch.zeros(width // lanes, self.ranks, lanes)
        scales: tuple[Tensor | None, Tensor | None] = None, None
        if isinstance(frozen[0], Int8Linear):
            scales = frozen[0].unsmooth, torch.cat([layer.scale for layer in frozen])
            if not (own or int_mm_is_fast()):
                weight = weight.float()  # once, for products in float: the same sums
        ups, downs = self._parts()
        self.forward = Way(
            weight, *scales, [Part(0, width, 0, self.ranks, _at(self.wide))], ups, self.ranks,
            kernels, own=own,
        )  # fmt: skip
        self.backward = Way(
            weight.t(), scales[1], scales[0], downs,
            [Part(0, width, 0, self.ranks, _at(self.tall))], self.ranks, kernels, own=own,
        )  # fmt: skip

        for columns, base in zip(self.columns, frozen, strict=True):
            if base.bias is not None:
                self.forward.bias[0, columns] = base.bias.detach()

    def _parts(self) -> tuple[list[Part], list[Part]]:
        """Of each layer's columns, forward and backward; ranks are given out in order."""
        ups, downs, rank = [], [], 0
        for columns, adapter in zip(self.columns, self.adapters, strict=True):
            at, width = columns.start, columns.stop - columns.start
            if adapter is None:
                ups.append(Part(at, width, 0, 0, None))
                continue
            ranks = slice(rank, rank + adapter.padded)
            adapter.wide = self.wide[ranks.start // adapter.lanes : ranks.stop // adapter.lanes]
            adapter.tall = self.tall[:, ranks]
            ups.append(Part(at, width, rank, adapter.padded, _at(adapter.up)))
            downs.append(Part(at, width, rank, adapter.padded, _at(adapter.down)))
            rank += adapter.padded
        return ups, downs

    @property
    def trained(self) -> list[Adapter]:
        """The adapters that there are, in order."""
        return [adapter for adapter in self.adapters if adapter]

    def begin(self, n: int) -> Crossing:
        """n rows are about to enter, forward."""
        for adapter in self.trained:
            adapter.refresh()
        return self.forward.begin(n)

    def gradients(self, grad: Tensor, x: Tensor, d_middle: Tensor, middle: Tensor) -> list[Tensor]:
        """A's and B's of each adapter.

        Args:
            grad: (n, out) of the output.
            x: (n, in) the input.
            d_middle: (n, ranks) the gradient, and
            middle: (n, ranks) the input in the adapters' ranks.
        """
        found: list[Tensor] = []
        d_a = self.kernels.transposed_product(d_middle, x) if self.ranks else x  # (ranks, in)
        rank = 0
        for columns, adapter in zip(self.columns, self.adapters, strict=True):
            if adapter is None:
                continue
            own = middle[:, rank : rank + adapter.padded]
            d_up = self.kernels.transposed_product(own, grad[:, columns])[: adapter.r]  # (r, out)
            found += [d_a[rank : rank + adapter.r], (d_up * adapter.scaling).t()]
            rank += adapter.padded
        return found


def own_int_products(weights: int, *, possible: bool) -> bool:
    """Whether the kernels multiply int8 themselves, a block of rows on its way from stage to stage.

    They read copies of the weights, one for each direction. So a large model is left to PyTorch
    where that is fast, too, and every model where it has a unit for it.

    Args:
        weights: of all linear layers.
        possible: whether this processor can (`Kernels.multiplies_integers`, `has_avx2`).
    """
    return possible and not (int_mm_is_fast() and (has_matrix_unit() or weights > COPIED))


def _adapter_of(layer: nn.Module, lanes: int) -> Adapter | None:
    if not hasattr(layer, "lora_A"):
        return None
    module: Any = layer
    (name,) = module.active_adapters
    return Adapter(
        module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name], lanes
    )


def _float_product() -> Callable[[Tensor, Tensor], Tensor]:
    """(n, in) and (out, in) → (n, out): oneDNN's where PyTorch has it, on AMD twice MKL's speed."""
    return _onednn_product if torch.backends.mkldnn.is_available() else F.linear


def _onednn_product(rows: Tensor, weight: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
    return product


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
