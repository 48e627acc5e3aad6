import json
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llabel.errors import InputError
from llabel.statistics.paired import (
    Pair,
    compare_pair,
    holm,
    mcnemar_exact,
    rows_needed,
    tango_interval,
)

SIMULATIONS = 2_000


def discordant(only_a, only_b, n):
    """Answers of two systems on n rows of class 1."""
    y, a, b = np.ones(n, int), np.ones(n, int), np.ones(n, int)
    b[:only_a] = 0
    a[only_a : only_a + only_b] = 0
    return y, a, b


def pair_of(**changes):
    values = {
        "difference": 0.0,
        "interval": (-0.03, 0.03),
        "confidence": 0.95,
        "p_value": 1.0,
        "test": "paired bootstrap",
        "rows": 1000,
        "groups": None,
        "seeds": (3, 3),
        "row_variance": 2e-4,
        "seed_variance": 0.0,
    }
    return Pair(**(values | changes))


def answers(rng, n, seeds, *, row=0.0, seed_sd=0.0, inter=0.5, shift=0.8):
    """(seeds, n) answers, 1 is right: effects of row, seed and both on a latent scale."""
    latent = shift + row + rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, inter, (seeds, n))
    return (latent + rng.normal(0, 0.5, n) > 0).astype(int)


def null_pairs(seeds_a, seeds_b, *, seed_sd=0.0, groups=0, n=150, runs=SIMULATIONS):
    """Shares of null pairs whose interval holds 0, whose p is at most 0.05, and where a "wins"."""
    rng = np.random.default_rng(20)
    held = rejected = wins = 0
    for _ in range(runs):
        names = None
        row = rng.normal(0, 1, n)
        if groups:
            names = np.repeat(np.arange(groups), 1 + rng.poisson(4, groups))
            n = len(names)
            # Systems differ group by group, so that resampling rows would not do.
            own = rng.normal(0, 1, (2, groups))[:, names]
            row_a, row_b = rng.normal(0, 1, n) + own
        else:
            row_a = row_b = row
        a = answers(rng, n, seeds_a, row=row_a, seed_sd=seed_sd)
        b = answers(rng, n, seeds_b, row=row_b, seed_sd=seed_sd)
        pair = compare_pair(np.ones(n, int), a, b, groups=names, resamples=300)
        held += pair.interval[0] <= 0 <= pair.interval[1]
        rejected += pair.p_value <= 0.05
        wins += pair.p_value <= 0.05 and pair.difference > 0
    return held / runs, rejected / runs, wins / runs


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(1, 5, 14 / 64), (0, 6, 2 / 64), (4, 4, 1.0), (0, 0, 1.0)],
)
def test_mcnemar_by_hand(only_a, only_b, p):
    assert mcnemar_exact(only_a, only_b) == pytest.approx(p)


@pytest.mark.parametrize(
    ("counts", "confidence", "expected", "digits"),
    [
        ((28, 25, 618), 0.90, (-0.0148, 0.0247), 4),  # R, PropCIs::scoreci.mp(25, 28, 618, 0.9)
        ((1, 7, 21), 0.95, (-0.517, -0.026), 3),  # R, ratesci's example
    ],
)
def test_tango_as_published(counts, confidence, expected, digits):
    assert np.round(tango_interval(*counts, confidence), digits).tolist() == list(expected)


def test_tango_without_discordance_has_a_width():
    z2 = 1.959964**2  # (n d)² = z² n d (1 - d) has the root d = z² / (n + z²)
    limit = z2 / (100 + z2)
    assert tango_interval(0, 0, 100) == pytest.approx((-limit, limit), abs=1e-6)


def test_tango_at_the_edges_and_refused():
    assert tango_interval(9, 0, 9)[1] == 1
    assert tango_interval(0, 9, 9)[0] == -1
    with pytest.raises(ValueError, match="need 0 <= counts"):
        tango_interval(5, 6, 10)


@given(st.integers(1, 200), st.data())
def test_tango_holds_the_estimate_and_mirrors(n, data):
    only_a = data.draw(st.integers(0, n))
    only_b = data.draw(st.integers(0, n - only_a))
    lower, upper = tango_interval(only_a, only_b, n)
    assert -1 <= lower <= (only_a - only_b) / n <= upper <= 1
    assert tango_interval(only_b, only_a, n) == pytest.approx((-upper, -lower), abs=1e-7)


@pytest.mark.parametrize(("p_a", "p_b"), [(0.05, 0.05), (0.08, 0.03), (0.25, 0.15), (0.02, 0.01)])
def test_tango_covers(p_a, p_b):
    rng = np.random.default_rng(1)
    cells = rng.multinomial(200, [p_a, p_b, 1 - p_a - p_b], size=SIMULATIONS)
    limits = np.array([tango_interval(a, b, 200) for a, b, _ in cells])
    covered = (limits[:, 0] <= p_a - p_b) & (p_a - p_b <= limits[:, 1])
    assert 0.93 <= covered.mean() <= 0.97


def test_holm_as_r_does():
    # p.adjust(c(0.01, 0.04, 0.03, 0.02, 0.9), "holm")
    assert holm([0.01, 0.04, 0.03, 0.02, 0.9]) == pytest.approx([0.05, 0.09, 0.09, 0.08, 0.9])
    assert holm([]) == []


def test_holm_refuses_no_probability():
    with pytest.raises(ValueError, match=r"p values lie in 0\.\.1"):
        holm([0.5, 1.5])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_between_raw_and_bonferroni_and_keeps_order(p):
    adjusted = holm(p)
    assert all(x <= a <= min(1, len(p) * x) + 1e-12 for x, a in zip(p, adjusted, strict=True))
    ordered = [a for _, a in sorted(zip(p, adjusted, strict=True))]
    assert all(x <= y for x, y in pairwise(ordered))


def test_one_seed_is_mcnemar_with_tango():
    pair = compare_pair(*discordant(30, 12, 400))
    assert pair.difference == pytest.approx(18 / 400)
    assert pair.interval == tango_interval(30, 12, 400)
    assert pair.p_value == mcnemar_exact(30, 12)
    assert (pair.test, pair.rows, pair.seeds, pair.groups) == ("exact McNemar", 400, (1, 1), None)
    assert json.loads(json.dumps(asdict(pair)))["seeds"] == [1, 1]


def test_bootstrap_agrees_with_tango_where_both_apply():
    y, a, b = discordant(60, 30, 1000)
    plain = compare_pair(y, a, b)
    drawn = compare_pair(y, a, b, groups=np.arange(1000))  # every row its own group
    assert drawn.test == "paired bootstrap"
    assert drawn.difference == plain.difference
    assert drawn.interval == pytest.approx(plain.interval, abs=0.002)
    assert drawn.p_value == pytest.approx(plain.p_value, abs=0.002)
    assert drawn.row_variance == pytest.approx(plain.row_variance, rel=0.05)


def test_equal_seeds_change_nothing_and_unknown_is_wrong():
    y, a, b = discordant(60, 30, 1000)
    b[b == 0] = -1
    pair = compare_pair(y, np.stack([a, a, a]), b)
    assert pair.difference == pytest.approx(0.03)
    assert pair.seed_variance == pytest.approx(0, abs=1e-12)
    assert pair.interval == pytest.approx(tango_interval(60, 30, 1000), abs=0.002)


def test_swapping_the_systems_mirrors_the_result():
    rng = np.random.default_rng(3)
    row = rng.normal(size=500)
    a, b = answers(rng, 500, 3, row=row), answers(rng, 500, 2, row=row, shift=0.6)
    there, back = compare_pair(np.ones(500), a, b), compare_pair(np.ones(500), b, a)
    assert there.difference == -back.difference
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=0.01)


def test_interval_and_p_value_agree():
    rng = np.random.default_rng(4)
    for _ in range(100):
        a, b = answers(rng, 200, 2, seed_sd=0.1), answers(rng, 200, 2, seed_sd=0.1, shift=0.6)
        pair = compare_pair(np.ones(200), a, b, resamples=999)
        leaves_out_0 = pair.interval[0] > 0 or pair.interval[1] < 0
        if abs(pair.p_value - 0.05) > 0.004:
            assert leaves_out_0 == (pair.p_value < 0.05)


def test_grouped_rows_count_less_and_agreeing_groups_keep_a_width():
    y, a, b = discordant(60, 30, 1000)
    alike = np.repeat(np.arange(100), 10)  # whole groups are discordant
    grouped, plain = compare_pair(y, a, b, groups=alike), compare_pair(y, a, b)
    assert grouped.row_variance == pytest.approx(10 * plain.row_variance, rel=0.1)
    assert grouped.groups == 100
    same = compare_pair(y, a, a, groups=alike)
    assert same.interval[0] < -0.01 < 0.01 < same.interval[1]
    assert same.p_value > 0.9


@pytest.mark.parametrize(
    "case",
    [
        {"seeds_a": 1, "seeds_b": 1},
        {"seeds_a": 3, "seeds_b": 3, "seed_sd": 0.1},
        {"seeds_a": 5, "seeds_b": 5, "seed_sd": 0.2, "runs": 1000},
        {"seeds_a": 1, "seeds_b": 1, "groups": 60},
        {"seeds_a": 3, "seeds_b": 3, "seed_sd": 0.1, "groups": 60},
        {"seeds_a": 1, "seeds_b": 1, "groups": 12},
    ],
    ids=str,
)
def test_null_pairs_hold_their_level(case):
    held, rejected, wins = null_pairs(**case)
    assert 0.93 <= held <= 0.97
    assert rejected <= 0.065  # 0.05 and three standard errors
    assert wins <= 0.05


@pytest.mark.parametrize("seed_sd", [0.0, 0.1])
def test_two_seeds_are_rather_too_careful(seed_sd):
    """Two trainings tell little of their spread; the interval errs on the wide side."""
    held, rejected, wins = null_pairs(2, 2, seed_sd=seed_sd)
    assert 0.93 <= held <= 0.99
    assert rejected <= 0.065
    assert wins <= 0.05


def test_resampling_seeds_naively_would_not_hold():
    """The reason for Student's t: three seeds resampled with replacement see too little spread."""
    rng = np.random.default_rng(6)
    held, runs = 0, 300
    for _ in range(runs):
        a, b = (answers(rng, 300, 3, seed_sd=0.2).mean(axis=1) for _ in range(2))
        draws = a[rng.integers(3, size=(400, 3))].mean(1) - b[rng.integers(3, size=(400, 3))].mean(
            1
        )
        lower, upper = np.quantile(draws, [0.025, 0.975])
        held += lower <= 0 <= upper
    assert held / runs < 0.9


def test_holm_keeps_the_family_wise_error():
    rng = np.random.default_rng(7)
    false_claims = 0
    for _ in range(1000):
        best = rng.random(200) < 0.8
        p = [
            mcnemar_exact(int((best & ~other).sum()), int((other & ~best).sum()))
            for other in rng.random((5, 200)) < 0.8
        ]
        false_claims += min(holm(p)) <= 0.05
    assert false_claims / 1000 <= 0.05


def test_rows_needed_by_hand():
    # z sum 2.8016; V n = 0.2; (0.01 / 2.8016)² = 1.2741e-5; N = 0.2 / 1.2741e-5
    assert rows_needed(pair_of(), margin=0.01).rows == pytest.approx(15_698, abs=2)
    assert rows_needed(pair_of(difference=0.01), margin=0.01).rows == pytest.approx(3_925, abs=2)
    assert rows_needed(pair_of(row_variance=4e-4), margin=0.01).rows == pytest.approx(31_396, abs=3)


def test_rows_needed_says_when_rows_are_not_the_trouble():
    seeds = rows_needed(pair_of(seed_variance=3e-4), margin=0.01)
    assert (seeds.rows, seeds.reason) == (None, "seeds")
    near = rows_needed(pair_of(difference=-0.0099, row_variance=2e-6), margin=0.01)
    assert (near.rows, near.reason) == (None, "too near the margin")
    few = rows_needed(pair_of(rows=29), margin=0.01)
    assert (few.rows, few.reason) == (None, "too few rows")
    equal = rows_needed(pair_of(difference=0.0))
    assert (equal.rows, equal.reason) == (None, "too near the margin")


@pytest.mark.parametrize(
    ("rows", "needed", "told"),
    [
        (40, 10_000, True),  # 250 times the rows at hand, and still advice
        (40, 99_000, True),
        (40, 101_000, False),
        (20_000, 199_000, True),
        (20_000, 201_000, False),
    ],
)
def test_rows_needed_are_told_up_to_a_cap(rows, needed, told):
    gap = 0.005
    variance = needed * (gap / 2.80158) ** 2 / rows  # by the formula, turned round
    found = rows_needed(pair_of(difference=gap, rows=rows, row_variance=variance))
    assert found.rows == (pytest.approx(needed, rel=0.001) if told else None)


def test_rows_needed_to_rule_out_a_gain():
    ruled_out = rows_needed(pair_of(difference=0.01), margin=-0.03)
    assert ruled_out == rows_needed(pair_of(difference=-0.01), margin=0.03)


def test_rows_needed_near_the_margin_reckons_with_half_of_it():
    at_half = rows_needed(pair_of(difference=-0.005), margin=0.01)
    assert at_half.rows == pytest.approx(62_790, abs=5)
    assert rows_needed(pair_of(difference=-0.0101), margin=0.01) == at_half
    seeds_cost_rows = rows_needed(pair_of(seed_variance=5e-6), margin=0.01)
    assert seeds_cost_rows.rows == pytest.approx(0.2 / (1.2741e-5 - 5e-6), rel=0.001)


def test_rows_needed_is_right_four_times_in_five():
    """Ask with the true difference put in: that many rows then settle it with 80 % power."""
    rng = np.random.default_rng(8)
    p_a, p_b, margin = 0.06, 0.06, 0.03
    needed = rows_needed(compare_pair(*discordant(60, 60, 1000)), margin).rows
    cells = rng.multinomial(needed, [p_a, p_b, 1 - p_a - p_b], size=SIMULATIONS)
    settled = [tango_interval(a, b, needed)[0] > -margin for a, b, _ in cells]
    assert np.mean(settled) == pytest.approx(0.8, abs=0.04)


def test_an_undecided_pair_needs_more_rows_than_it_has():
    for only_a, only_b in [(10, 12), (0, 0), (8, 5), (3, 6)]:
        pair = compare_pair(*discordant(only_a, only_b, 300))
        assert pair.interval[0] < -0.01 < pair.interval[1]
        needed = rows_needed(pair, 0.01)
        assert needed.rows is None or needed.rows > 300


def test_refuses_wrong_shapes_and_a_single_group():
    y, a, b = discordant(1, 1, 10)
    with pytest.raises(ValueError, match=r"b must have shape \(n_seeds, n\) with n = 10 rows"):
        compare_pair(y, a, b[:9])
    with pytest.raises(ValueError, match=r"groups must have shape \(10,\)"):
        compare_pair(y, a, b, groups=np.arange(9))
    with pytest.raises(InputError, match=r"the 10 test rows form 1 group.*need at least 2"):
        compare_pair(y, a, b, groups=["same"] * 10)
