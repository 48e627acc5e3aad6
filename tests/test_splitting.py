import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from llabel.data.group_folds import GroupFolds
from llabel.data.splitting import Sampling, hold_out, subsample
from llabel.errors import InputError


@given(
    counts=st.lists(st.integers(3, 40), min_size=2, max_size=6),
    size=st.floats(0.05, 0.5),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_hold_out_is_a_stratified_partition(counts: list[int], size: float, seed: int) -> None:
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    kept, held = hold_out(y, size, classes=range(len(counts)), seed=seed)
    assert sorted([*kept, *held]) == list(range(len(y)))
    assert np.all(np.diff(kept) > 0)
    assert np.all(np.diff(held) > 0)
    assert len(held) == max(int(np.ceil(size * len(y) - 1e-9)), len(counts))
    expected = np.array(counts) * len(held) / len(y)
    per_class = np.bincount(y[held], minlength=len(counts))
    assert per_class.min() >= 1
    if expected.min() >= 1:
        assert np.all(np.abs(per_class - expected) <= 1)
    again = hold_out(y, size, classes=range(len(counts)), seed=seed)
    assert np.array_equal(held, again[1])


@given(
    counts=st.lists(st.integers(3, 30), min_size=2, max_size=6),
    sizes=st.tuples(st.floats(0.01, 0.6), st.floats(0.01, 0.6)),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_two_cuts_leave_every_class_in_three_parts(
    counts: list[int], sizes: tuple[float, float], seed: int
) -> None:
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    classes = range(len(counts))
    left, test = hold_out(
        y, sizes[0], classes=classes, seed=seed, parts=("train", "validation", "test")
    )
    train, validation = hold_out(
        y[left], sizes[1], classes=classes, seed=seed, parts=("train", "validation")
    )
    for part in (y[test], y[left][train], y[left][validation]):
        assert np.bincount(part, minlength=len(counts)).min() >= 1


def test_a_class_of_five_rows_in_three_hundred() -> None:
    y = np.repeat([0, 1], [295, 5])
    for seed in range(20):
        _, held = hold_out(y, 0.05, classes=(0, 1), seed=seed)
        assert np.bincount(y[held]).tolist() == [14, 1]


@given(n_groups=st.integers(30, 80), size=st.sampled_from([0.1, 0.2, 0.3]), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_groups_are_never_shared(n_groups: int, size: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [f"g{g}" for g in rng.integers(0, n_groups, 400)]
    y = rng.integers(0, 2, 400)
    kept, held = hold_out(y, size, classes=(0, 1), seed=seed, groups=groups)
    assert sorted([*kept, *held]) == list(range(400))
    assert not {groups[i] for i in kept} & {groups[i] for i in held}
    assert abs(len(held) / 400 - size) < 0.1
    assert abs(y[held].mean() - y.mean()) < 0.15


@given(
    counts=st.lists(st.integers(1, 50), min_size=2, max_size=5),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_subsample_keeps_order_shares_and_every_class(
    counts: list[int], share: float, seed: int
) -> None:
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    n = len(counts) + int(share * (len(y) - len(counts)))
    rows = subsample(y, n, classes=range(len(counts)), seed=seed)
    assert len(set(rows.tolist())) == n
    assert np.all(np.diff(rows) > 0)
    drawn = np.bincount(y[rows], minlength=len(counts))
    assert drawn.min() >= 1
    assert np.all(np.abs(drawn - np.array(counts) * n / len(y)) <= len(counts))


counted = st.lists(st.integers(1, 50), min_size=2, max_size=5)


@given(counts=counted, share=st.floats(0, 1), seed=st.integers(0, 99))
def test_a_balanced_draw_is_as_equal_as_the_classes_allow(
    counts: list[int], share: float, seed: int
) -> None:
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    n = len(counts) + int(share * (len(y) - len(counts)))
    rows = subsample(y, n, classes=range(len(counts)), seed=seed, sampling="balanced")
    assert len(set(rows.tolist())) == n
    assert np.all(np.diff(rows) > 0)
    drawn = np.bincount(y[rows], minlength=len(counts))
    whole = drawn < counts  # these could have given more
    assert drawn.min() >= 1
    assert not whole.any() or drawn.max() - drawn[whole].min() <= 1


@pytest.mark.parametrize(
    ("counts", "n", "drawn"),
    [
        ([100, 100, 100], 30, [10, 10, 10]),
        ([100, 3, 100], 31, [14, 3, 14]),
        ([5, 100, 50], 12, [4, 4, 4]),
        ([5, 100, 50], 13, [4, 5, 4]),
        ([5, 100, 50], 14, [4, 5, 5]),
        ([5, 100, 50], 155, [5, 100, 50]),
        ([2, 0, 9], 6, [2, 0, 4]),
    ],
)
def test_balanced_draws(counts: list[int], n: int, drawn: list[int]) -> None:
    y = np.repeat(np.arange(3), counts)
    rows = subsample(y, n, classes="abc", sampling="balanced")
    assert np.bincount(y[rows], minlength=3).tolist() == drawn


@given(counts=counted, seed=st.integers(0, 99), data=st.data())
def test_a_natural_draw_takes_all_rows_alike(
    counts: list[int], seed: int, data: st.DataObject
) -> None:
    y = np.repeat(np.arange(len(counts)), counts)
    n = data.draw(st.integers(1, len(y)))
    rows = subsample(y, n, classes=range(len(counts)), seed=seed, sampling="natural")
    fewer = subsample(y, (n + 1) // 2, classes=range(len(counts)), seed=seed, sampling="natural")
    assert len(set(rows.tolist())) == n
    assert np.all(np.diff(rows) > 0)
    assert set(fewer.tolist()) <= set(rows.tolist())
    other = subsample(y[::-1].copy(), n, classes=range(len(counts)), seed=seed, sampling="natural")
    assert rows.tolist() == other.tolist(), "labels have no say in it"


@pytest.mark.parametrize(
    ("sampling", "n", "message"),
    [
        (
            "stratified",
            1,
            r"--test-rows 1: choose from 2 \(one a class\) to 6, .* in the test part",
        ),
        ("balanced", 7, r"--test-rows 7: choose from 2 \(one a class\) to 6"),
        ("natural", 7, "--test-rows 7: choose from 1 to 6"),
    ],
)
def test_draws_that_cannot_be_made(sampling: Sampling, n: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        subsample(np.array([0, 0, 0, 1, 1, 1]), n, classes="ab", sampling=sampling, part="test")


def test_spellings_of_groups_move_rows_only_where_they_leak() -> None:
    rng = np.random.default_rng(0)
    y, numbers = rng.integers(2, size=120), rng.integers(25, size=120)
    first, *others = np.flatnonzero(numbers == 1).tolist()
    leaked = []
    for seed in range(12):
        held = []
        for spelling in ("X", "G1"):  # another group, and that of the others
            groups = [f"g{number}" for number in numbers]
            groups[first] = spelling
            found = hold_out(y, 0.4, classes="ab", seed=seed, groups=groups)[1]
            held.append(set(found.tolist()))
        leaked.append((first in held[0]) != (others[0] in held[0]))
        assert len(held[1] & {first, *others}) in {0, 1 + len(others)}
        assert leaked[-1] or held[1] == held[0]
    assert 0 < sum(leaked) < len(leaked)


@pytest.mark.filterwarnings("ignore:The least populated class")
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), min_size=12, max_size=120),
    st.integers(2, 8),
    st.integers(0, 99),
)
def test_folds_of_groups_are_scikit_learn_s(
    rows: list[tuple[int, int]], folds: int, seed: int
) -> None:
    y, groups = np.array(rows).T
    assume(folds <= min(len(set(groups)), np.bincount(y).max()))
    ours, theirs = (
        [
            held.tolist()
            for _, held in kind(folds, shuffle=True, random_state=seed).split(y, y, groups)
        ]
        for kind in (GroupFolds, StratifiedGroupKFold)
    )
    assert ours == theirs
    assert "_find_best_fold" in vars(StratifiedGroupKFold), "what GroupFolds does faster"
