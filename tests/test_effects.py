"""Which settings matter: shares of the variance that are known, because they were made."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import f_oneway, ncf

from llabel.statistics.effects import Effects, analyse
from llabel.statistics.shares import Squares, share_interval

GRID: dict[str, list[Any]] = {"r": [1, 16, 256], "lora_alpha": [1, 16, 64, 256]}
SIMULATIONS, FEW = 500, 150


def grid(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def share(found: Effects, *axes: str) -> float:
    return next(effect.share for effect in found.effects if effect.axes == axes)


def truth(cells: Sequence[Mapping[str, Any]], sd: float) -> tuple[np.ndarray, dict[str, float]]:
    """Losses without noise (r little, alpha much, both a little), and the shares they make."""
    r = np.array([{1: -0.02, 16: 0.0, 256: 0.02}[cell["r"]] for cell in cells])
    alpha = np.array([{1: 0.06, 16: 0.0, 64: -0.02, 256: -0.04}[c["lora_alpha"]] for c in cells])
    both = np.array(
        [0.03 * (1 if (c["r"] == 1) == (c["lora_alpha"] in (1, 64)) else -1) for c in cells]
    )
    both -= _mean_by(cells, both, "r") + _mean_by(cells, both, "lora_alpha") - both.mean()
    parts = {"r": r.var(), "lora_alpha": alpha.var(), "both": both.var()}
    whole = sum(parts.values()) + sd**2
    shares = {name: float(part / whole) for name, part in parts.items()}
    return 0.5 + r + alpha + both, shares | {"noise": sd**2 / whole}


def _mean_by(cells: Sequence[Mapping[str, Any]], y: np.ndarray, name: str) -> np.ndarray:
    return np.array([y[[other[name] == cell[name] for other in cells]].mean() for cell in cells])


def test_an_interval_holds_the_true_share() -> None:
    """Of three independent sums of squares, as they are made."""
    rng = np.random.default_rng(9)
    n, df, rest_df, noise_df = 24, 3, 8, 11
    held = 0
    for _ in range(400):
        found = share_interval(
            Squares(rng.noncentral_chisquare(df, 12), df),
            Squares(rng.noncentral_chisquare(rest_df, 20), rest_df),
            Squares(rng.chisquare(noise_df), noise_df),
            n,
        )
        held += found[0] <= 12 / (12 + 20 + n) <= found[1]
    assert 0.93 <= held / 400 <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "sd", "shift"), [(2, 0.03, 0.0), (3, 0.08, 0.05)])
def test_intervals_hold_the_true_share(seeds: int, sd: float, shift: float) -> None:
    """A shift of whole seeds takes nothing from the settings: seeds are blocks."""
    rng = np.random.default_rng(3)
    cells = grid(GRID | {"seed": range(seeds)})
    clean, shares = truth(cells, sd)
    clean = clean + shift * np.array([cell["seed"] == 0 for cell in cells])
    moved = shift**2 * (seeds - 1) / seeds**2
    scale = sd**2 / shares["noise"]
    shares = {name: value * scale / (scale + moved) for name, value in shares.items()}
    held = dict.fromkeys(shares, 0)
    means = dict.fromkeys(shares, 0.0)
    for _ in range(SIMULATIONS):
        found = analyse(cells, clean + rng.normal(0, sd, len(cells)))
        assert found.noise is not None
        told = {effect.axes: effect for effect in found.effects}
        for name, part in (
            ("r", told[("r",)]),
            ("lora_alpha", told[("lora_alpha",)]),
            ("both", told[("r", "lora_alpha")]),
            ("noise", found.noise),
        ):
            assert part.ci95 is not None
            assert part.share is not None
            held[name] += part.ci95[0] <= shares[name] <= part.ci95[1]
            means[name] += part.share / SIMULATIONS
    # 500 draws of 95 %: two standard errors are 2 points.
    assert all(0.93 <= count / SIMULATIONS <= 0.975 for count in held.values()), held
    for name, value in shares.items():
        assert means[name] == pytest.approx(value, abs=0.02)


def test_null_effects_are_around_zero() -> None:
    rng = np.random.default_rng(5)
    cells = grid(GRID | {"seed": range(2)})
    shares, sure = [], 0
    for _ in range(FEW):
        found = analyse(cells, 0.6 + rng.normal(0, 0.02, len(cells)))
        shares.append([effect.share for effect in found.effects])
        sure += any(effect.ci95[0] > 0 for effect in found.effects[:1] if effect.ci95)
    assert np.abs(np.mean(shares, axis=0)).max() < 0.02
    assert sure / FEW <= 0.05  # 2.5 % are true


def test_a_null_effect_beside_a_large_one_keeps_its_error() -> None:
    """Also without replicates, where interactions stand for the noise."""
    rng = np.random.default_rng(6)
    cells = grid(GRID)
    alpha = np.array([0.1 * (cell["lora_alpha"] > 1) for cell in cells])
    found = [analyse(cells, alpha + rng.normal(0, 0.02, len(cells))) for _ in range(FEW)]
    sure = sum(result.effects[0].ci95[0] > 0 for result in found if result.effects[0].ci95)
    assert sure / FEW <= 0.05
    assert all(result.noise and not result.noise.replicated for result in found)


def test_shares_of_a_balanced_grid_add_up_to_one() -> None:
    cells = grid(GRID | {"lr": [1e-4, 1e-3], "seed": [0, 1]})
    y = np.random.default_rng(8).gamma(2, 0.1, len(cells))
    found = analyse(cells, y)
    assert found.noise is not None
    assert sum(e.share for e in found.effects) + (found.noise.share or 0) == pytest.approx(1)
    kinds = [effect.kind for effect in found.effects]
    assert kinds == ["main"] * 3 + ["interaction"] * 3 + ["rest", "seed"]
    assert found.notes == ()


def test_type_two_squares_of_an_unbalanced_grid_are_statsmodels() -> None:
    """statsmodels 0.15, anova_lm(ols("y ~ C(r) * C(a) + C(s)", d).fit(), typ=2)."""
    y = [0.61, 0.58, 0.55, 0.60, 0.52, 0.47, 0.57, 0.50, 0.49]
    y += [0.63, 0.57, 0.53, 0.61, 0.50, 0.48, 0.58, 0.52, 0.47]
    cells = grid({"seed": [0, 1], "r": [1, 16, 256], "lora_alpha": [1, 16, 256]})
    kept = [place for place in range(18) if place not in (4, 11, 16)]
    found = analyse([cells[place] for place in kept], [y[place] for place in kept])
    squares = [0.009705, 0.029328, 0.002185, 0.000033]
    values = np.array([y[place] for place in kept])
    total, error = np.square(values - values.mean()).sum(), 0.000567 / 5
    wanted = [
        (ss - df * error) / (total + error) for ss, df in zip(squares, (2, 2, 4, 1), strict=True)
    ]
    assert [e.share for e in found.effects] == pytest.approx(wanted, abs=2e-4)
    assert [e.df for e in found.effects] == [2, 2, 4, 1]
    assert found.noise is not None
    assert (found.noise.df, found.noise.sd) == (5, pytest.approx(np.sqrt(error), rel=1e-3))
    # The adjusted means differ as the coefficients of "y ~ C(r) + C(a) + C(s)" do.
    means = [level.mean for level in found.levels]
    assert np.diff(means)[:2] == pytest.approx([-0.050090, -0.060198 + 0.050090], abs=1e-6)
    assert np.diff(means)[3:] == pytest.approx([-0.071691, -0.100701 + 0.071691], abs=1e-6)
    assert any("overlap" in note for note in found.notes)


def test_one_axis_is_the_classical_f_test() -> None:
    rng = np.random.default_rng(2)
    groups = [rng.normal(mean, 0.1, 4) for mean in (0.5, 0.55, 0.7)]
    cells = [{"lr": lr, "seed": seed} for lr in (1e-4, 1e-3, 1e-2) for seed in range(4)]
    y = np.concatenate(groups)
    # Seeds of their own, so that they are no blocks.
    for place, cell in enumerate(cells):
        cell["seed"] = place
    alone = analyse(cells, y)
    assert alone.noise is not None
    squares = np.square(y - y.mean()).sum()
    within = sum(np.square(group - group.mean()).sum() for group in groups)
    statistic = f_oneway(*groups).statistic
    assert statistic == pytest.approx((squares - within) / 2 / (within / 9))
    wanted = 2 * (statistic - 1) / (2 * (statistic - 1) + 12)  # omega² from F
    assert share(alone, "lr") == pytest.approx(wanted)
    assert any("No seed was used twice" in note for note in alone.notes)


@pytest.mark.parametrize(("ss", "df", "noise", "noise_df"), [(0.3, 3, 0.1, 12), (2.0, 1, 0.4, 4)])
def test_without_a_rest_the_interval_inverts_the_noncentral_f(
    ss: float, df: int, noise: float, noise_df: int
) -> None:
    statistic, n = ss / df / (noise / noise_df), 20

    def limit(p: float) -> float:
        if ncf.cdf(statistic, df, noise_df, 1e-9) < p:
            return 0.0
        nc = brentq(lambda nc: ncf.cdf(statistic, df, noise_df, nc) - p, 1e-9, 1e4)
        return nc / (nc + n)

    found = share_interval(Squares(ss, df), Squares(0, 0), Squares(noise, noise_df), n)
    assert found == pytest.approx((limit(0.975), limit(0.025)), abs=0.005)


def test_the_control_is_left_out_however_often_it_stands_there() -> None:
    trained = grid(GRID | {"seed": [0, 1]})
    y = np.random.default_rng(1).normal(0.5, 0.05, len(trained))
    untouched = grid({"r": [1, 16, 256], "lora_alpha": [0], "seed": [0, 1]})
    alone = analyse(trained, y)
    both = analyse([*trained, *untouched], [*y, *[0.9] * 6])
    assert both.effects == alone.effects
    assert both.noise == alone.noise
    assert "6 cells, one measurement" in both.notes[0]


@pytest.mark.parametrize("lost", [None, float("inf"), float("nan")])
def test_cells_without_a_loss_are_left_out_and_told(lost: float | None) -> None:
    cells = grid(GRID | {"seed": [0, 1]})
    y: list[float | None] = list(np.random.default_rng(1).normal(0.5, 0.05, len(cells)))
    y[3] = lost
    found = analyse(cells, y)
    assert found.cells == len(cells) - 1
    assert "1 of 24 cells has no finite loss" in found.notes[0]
    assert all(effect.ci95 for effect in found.effects)


@pytest.mark.parametrize(
    ("cells", "losses", "words"),
    [
        ([], [], "at least 3 trained cells with a finite loss; there are 0"),
        ([{"r": 1}] * 2, [0.5, 0.6], "there are 2"),
        ([{"r": 1}] * 4, [None] * 3 + [0.4], "there is 1"),
        ([{"r": 1, "lr": 1}] * 4, [0.5, 0.6, 0.4, 0.4], "No setting differs"),
        ([{"r": r} for r in (1, 2, 3)], [0.5, 0.5, 0.5], "the same loss"),
    ],
)
def test_what_cannot_be_told_is_refused_in_words(
    cells: list[dict[str, Any]], losses: list[float | None], words: str
) -> None:
    found = analyse(cells, losses)
    assert (found.effects, found.noise, found.levels, found.scaling) == ((), None, (), None)
    assert words in found.notes[-1]


def test_one_axis_trained_once_has_no_noise_to_compare_with() -> None:
    found = analyse([{"r": r, "seed": 0} for r in (1, 16, 256)], [0.5, 0.6, 0.4])
    assert [(e.share, e.ci95) for e in found.effects] == [(pytest.approx(1.0), None)]
    assert found.noise is not None
    assert (found.noise.df, found.noise.share) == (0, None)
    assert all(level.ci95 is None for level in found.levels)
    assert "shares have no interval" in found.notes[0]


def test_a_search_is_told_by_curves() -> None:
    rng = np.random.default_rng(4)
    cells = [
        {"r": int(rng.choice([4, 16])), "lr": float(10 ** rng.uniform(-5, -2))} for _ in range(40)
    ]
    y = [0.1 * (np.log10(cell["lr"]) + 3.5) ** 2 + rng.normal(0, 0.01) for cell in cells]
    found = analyse(cells, y)
    assert share(found, "lr") > 0.9
    assert abs(share(found, "r")) < 0.01
    assert {level.axis for level in found.levels} == {"r"}
    assert any("lr: so many values" in note for note in found.notes)


def test_an_axis_that_another_decides_has_no_effect_of_its_own() -> None:
    """Else type II would take its share from the other, and give it to none."""
    rungs = ("majority", "bag-of-words", "llm-lora")
    cells = [
        {"r": 16 if rung == "llm-lora" else None, "rung": rung, "train_rows": rows}
        for rung in rungs
        for rows in (20, 40)
    ]
    found = analyse(cells, [0.70, 0.69, 0.12, 0.07, 0.03, 0.02])
    assert found.axes == ("rung", "train_rows")
    assert share(found, "rung") > 0.98
    assert not any("together" in note for note in found.notes)
    cells = [{"r": r, "lr": r / 1000, "seed": seed} for r in (1, 2) for seed in range(3)]
    found = analyse(cells, [0.5, 0.6, 0.4, 0.7, 0.7, 0.8])
    assert found.axes == ("r", "seed")
    assert any("lr changes only together with r" in note for note in found.notes)


def test_one_wild_cell_is_told() -> None:
    cells = grid(GRID)
    found = analyse(cells, [0.5 + 0.001 * place for place in range(11)] + [9.0])
    assert any("One cell of 12 (log loss 9.0000) makes up" in note for note in found.notes)


VALUES = st.one_of(st.integers(1, 3), st.booleans(), st.none(), st.sampled_from(["a", "b"]))
CELLS = st.lists(
    st.fixed_dictionaries({"r": VALUES, "lr": st.sampled_from([1e-4, 1e-3]), "seed": VALUES}),
    max_size=12,
)


@given(CELLS, st.data())
def test_any_cells_are_analysed_or_refused(
    cells: list[dict[str, Any]], data: st.DataObject
) -> None:
    loss = st.one_of(st.none(), st.floats(0, 5))
    losses = data.draw(st.lists(loss, min_size=len(cells), max_size=len(cells)))
    found = analyse(cells, losses)
    json.dumps(asdict(found))
    assert all(effect.share <= 1 + 1e-9 for effect in found.effects)
    for part in (*found.effects, *([found.noise] if found.noise else [])):
        if part.ci95 is not None:
            assert 0 <= part.ci95[0] <= part.ci95[1] <= 1
    assert found.effects or found.notes
