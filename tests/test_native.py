"""The compiled kernels, each against PyTorch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from llabel.assets import cache_folder
from llabel.engine.linear import Int8Linear
from llabel.engine.native.kernels import Behind, Kernels, has_avx2
from llabel.engine.native.library import compiler
from llabel.engine.projection import Crossing, Projection, own_int_products

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(cache_folder() / "kernels")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def crossing(kernels: Kernels, x: Tensor, *, smooth: Tensor | None = None) -> Crossing:
    """Rows that have gone through an int8 layer of 32 outputs without adapters."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer = Int8Linear(nn.Linear(x.shape[1], 32, bias=False).requires_grad_(False), smooth)
    made = Projection([layer], kernels).begin(len(x))
    made.enter(x, kernels)
    made.layer = layer
    return made


@pytest.mark.parametrize("rows", [1, 5, 23, 24, 25, 200])
def test_rows_are_rounded_as_int8_linear_rounds_them(kernels, rows):
    x, smooth = normal(rows, 96) * torch.logspace(-6, 6, 96), torch.linspace(0.3, 3, 96)
    made = crossing(kernels, x, smooth=smooth)
    kernels.leave_rows(made.multiply().outside, rows)
    torch.testing.assert_close(made.left, made.layer(x), rtol=1e-5, atol=1e-2)


@given(
    m=st.integers(1, 130),
    k=st.integers(1, 24).map(lambda eighths: 8 * eighths),
    n=st.integers(1, 12).map(lambda eighths: 8 * eighths),
    transposed=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_integer_products_are_exact(m, k, n, transposed, seed):
    library = Kernels(cache_folder() / "kernels")
    if not library.multiplies_integers:
        pytest.skip("this processor has no AVX2")
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=generator)
    b = torch.randint(-128, 128, (k, n), dtype=torch.int8, generator=generator)
    laid_out = b.t().contiguous().t() if transposed else b
    found = library.int_product(a, library.pack(laid_out), n)
    assert torch.equal(found, (a.double() @ b.double()).to(torch.int32))


@pytest.mark.parametrize(
    ("fast", "unit", "weights", "own"),
    [
        (True, False, 2**30, True),
        (True, False, 2**30 + 1, False),  # too large for copies: PyTorch is as fast
        (True, True, 10, False),  # AMX is faster
        (False, False, 2**40, True),  # AVX2: PyTorch has a plain loop
    ],
)
def test_integers_are_multiplied_by_whom_it_pays(monkeypatch, fast, unit, weights, own):
    monkeypatch.setattr("llabel.engine.projection.int_mm_is_fast", lambda: fast)
    monkeypatch.setattr("llabel.engine.projection.has_matrix_unit", lambda: unit)
    assert own_int_products(weights, possible=True) is own
    assert not own_int_products(weights, possible=False)


def test_where_there_are_integer_products_is_known_without_compiling(kernels):
    assert has_avx2() == kernels.multiplies_integers


def test_without_integer_products_weights_become_floats_once(kernels, monkeypatch):
    """As on ARM: the same to the bit, also where float32 cannot hold a whole row's sum."""
    x = normal(5, 1152)
    expected = crossing(kernels, x)
    kernels.leave_rows(expected.multiply().outside, 5)
    monkeypatch.setattr("llabel.engine.projection.int_mm_is_fast", lambda: False)
    without = Kernels(cache_folder() / "kernels")
    without.multiplies_integers = False
    made = crossing(without, x)
    without.leave_rows(made.multiply().outside, 5)
    assert torch.equal(made.left, expected.left)
    assert made.way.weight.dtype == torch.float32
    assert made.layer.weight.dtype == torch.int8  # the plain engine reads it, too


ODD = st.sampled_from([float("inf"), float("-inf"), float("nan")])


@given(value=ODD | st.floats(-(2.0**100), 2.0**100, width=32), place=st.integers(0, 95))
@settings(max_examples=60)
def test_no_value_spoils_other_rows_and_none_is_hidden(value, place):
    library = Kernels(cache_folder() / "kernels")
    x = normal(4, 96)
    x[2, place] = value
    made = crossing(library, x)
    library.leave_rows(made.multiply().outside, 4)
    expected = made.layer(x)
    others = [0, 1, 3]
    torch.testing.assert_close(made.left[others], expected[others], rtol=1e-5, atol=1e-5)
    bad = not torch.isfinite(torch.tensor(value, dtype=torch.float32))
    assert bool(torch.isfinite(made.left[2]).all()) is not bad


def test_a_row_of_zeros_stays_one(kernels):
    made = crossing(kernels, torch.zeros(3, 96))
    kernels.leave_rows(made.multiply().outside, 3)
    assert torch.equal(made.left, torch.zeros(3, 32))


def attended(tokens: Tensor, spans: list[list[int]], heads: tuple[int, int, int]) -> Tensor:
    """Each token by itself: what it sees is listed in `spans`."""
    n_heads, kv_heads, width = heads
    shaped = tokens.view(len(tokens), -1, width)
    out = []
    for token, seen in enumerate(spans):
        query = shaped[token, :n_heads].view(1, n_heads, 1, width)
        keys = shaped[seen][:, n_heads : n_heads + kv_heads].transpose(0, 1)[None]
        values = shaped[seen][:, n_heads + kv_heads :].transpose(0, 1)[None]
        found = F.scaled_dot_product_attention(query, keys, values, enable_gqa=True)
        out.append(found.reshape(-1))
    return torch.stack(out)


HEADS = (6, 2, 16)
WIDTH = (HEADS[0] + 2 * HEADS[1]) * HEADS[2]


@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=5), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_attention_and_its_gradient_over_rows_of_any_length(lengths, seed):
    library = Kernels(cache_folder() / "kernels")
    n = sum(lengths)
    starts = [sum(lengths[:row]) for row in range(len(lengths))]
    spans = [
        list(range(start, token + 1))
        for start, length in zip(starts, lengths, strict=True)
        for token in range(start, start + length)
    ]
    segments = torch.tensor([[s, length, 0, 0] for s, length in zip(starts, lengths, strict=True)])
    tokens = normal(n, WIDTH, seed=seed).requires_grad_()
    expected = attended(tokens, spans, HEADS)
    out, logs = library.attention(tokens.detach(), HEADS, segments, 0.25)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    upstream = normal(*out.shape, seed=seed + 1)
    expected.backward(upstream)
    found = library.attention_backward(upstream, tokens.detach(), out, logs, HEADS, segments, 0.25)
    torch.testing.assert_close(found, tokens.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared", [0, 1, 40])
@pytest.mark.parametrize("prompt", [1, 30])
def test_attention_behind_a_past_and_within_a_tree(kernels, shared, prompt):
    """Two prompts behind a shared past, each with a trie of five tokens behind it."""
    parents = [None, 0, 0, None, 3]
    size = len(parents)
    tree = torch.eye(size, dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent is not None:
            tree[node] |= tree[parent]
    whole = normal(shared + 2 * prompt + 2 * size, WIDTH)
    past, tokens = whole[:shared, HEADS[0] * HEADS[2] :].contiguous(), whole[shared:].contiguous()
    ranges = [(0, shared)]
    segments, spans = [], []
    for row in range(2):
        segments.append([row * prompt, prompt, 0, 1])
        first = shared + row * prompt
        spans += [[*range(shared), *range(first, first + t + 1)] for t in range(prompt)]
    for row in range(2):
        first, own = shared + row * prompt, 2 * prompt + row * size
        ranges += [(0, shared), (first, prompt)]
        segments.append([own, size, 1 + 2 * row, 2])
        for node in range(size):
            seen = [shared + own + other for other in range(size) if tree[node, other]]
            spans.append([*range(shared), *range(first, first + prompt), *seen])
    # `attended` counts all tokens, those of the past first.
    expected = attended(whole, [[0]] * shared + spans, HEADS)[shared:]
    behind = Behind(torch.tensor(ranges), 2, tree)
    found, _ = kernels.attention(
        tokens, HEADS, torch.tensor(segments), 0.25, behind, past if shared else None
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_large_gates_overflow_nowhere(kernels):
    """silu(gate) · up at ±1e4: e^x must not become infinite on the way."""
    gate_up = torch.tensor([[-1e4, -90.0, -1.0, 0.0, 1.0, 90.0, 1e4, 3.0] * 8])
    gate, up = gate_up[:, :32], gate_up[:, 32:]
    with torch.random.fork_rng():
        torch.manual_seed(2)
        both = Projection([nn.Linear(64, 64, bias=False)], kernels)
        down = Projection([nn.Linear(32, 16, bias=False)], kernels)
    before = both.begin(1)
    before.enter(gate_up, kernels)
    before.multiply().left.copy_(gate_up)  # as if the product had been this
    after = down.begin(1)
    kernels.swiglu(before.outside, 1, after.inside)
    torch.testing.assert_close(after.entered, F.silu(gate) * up, rtol=1e-5, atol=1e-30)


@given(
    rows=st.integers(0, 700),
    m=st.sampled_from([1, 6, 16, 48, 49, 96]),
    n=st.sampled_from([1, 3, 8, 10]),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=60)
def test_gradients_of_weights_are_sums_over_rows(rows, m, n, seed):
    """Of columns of wider tensors, too; whether BLAS computes them or we."""
    kernels = Kernels(cache_folder() / "kernels")
    n *= kernels.lanes
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rows, m + 8, generator=generator)[:, 4 : 4 + m]
    b = torch.randn(rows, n + kernels.lanes, generator=generator)[:, :n]
    found = kernels.transposed_product(a, b)
    expected = (a.double().t() @ b.double()).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
