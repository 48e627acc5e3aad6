"""Is alpha the learning rate in disguise? Losses that are made so, and others that are not."""

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest

from llabel.statistics.effects import analyse
from llabel.statistics.scaling import STEP, STEP_OF_ALL, Beyond, Scaling

Cell = dict[str, Any]
CELLS: list[Cell] = [
    {"r": r, "lora_alpha": alpha, "lr": lr, "seed": seed}
    for r, alpha, lr, seed in product((1, 16, 128, 256), (1, 16, 128, 256), (1e-4, 1e-3), (0, 1))
]


def scaling_lr(cell: Mapping[str, Any]) -> float:
    return cell["lora_alpha"] / cell["r"] * cell["lr"]


def disguised(cell: Cell) -> float:
    """Depends on scaling × lr alone: nothing is learned below, much is broken above."""
    x = np.log10(scaling_lr(cell))
    return 0.3 + 0.35 / (1 + np.exp(2 * (x + 4))) + 0.05 * max(0.0, x + 2)


def of_all_columns(cell: Cell) -> float:
    """The same of alpha × lr: r does nothing."""
    return disguised(cell | {"r": 16})


def alpha_alone(cell: Cell) -> float:
    return 0.6 - 0.1 * np.log10(cell["lora_alpha"])


def found_in(loss: Callable[[Cell], float], cells: list[Cell] = CELLS, sd: float = 0.01) -> Scaling:
    rng = np.random.default_rng(4)
    y = [loss(cell) + rng.normal(0, sd) for cell in cells]
    found = analyse(cells, y, scaling_lr=[scaling_lr(cell) for cell in cells]).scaling
    assert found is not None
    return found


def r2(found: Scaling, *predictors: str) -> float:
    value = next(model.r2_cv for model in found.models if model.predictors == predictors)
    assert value is not None
    return value


def beyond(found: Scaling, curve: str) -> dict[str, Beyond]:
    return {entry.axis: entry for entry in found.beyond if entry.curve == curve}


@pytest.mark.parametrize(
    ("loss", "right", "wrong"),
    [(disguised, STEP, STEP_OF_ALL), (of_all_columns, STEP_OF_ALL, STEP)],
)
def test_a_learning_rate_in_disguise_is_found_out(
    loss: Callable[[Cell], float], right: str, wrong: str
) -> None:
    """Whether r divides it or not: the right curve predicts all, the wrong one lacks r."""
    found = found_in(loss)
    curve, factors = r2(found, right), r2(found, "r", "lora_alpha", "lr")
    assert curve > 0.95
    assert curve > factors
    assert curve > r2(found, wrong) + 0.3
    assert all(entry.share < 0.01 for entry in beyond(found, right).values())
    assert beyond(found, wrong)["r"].ci95 is not None
    assert beyond(found, wrong)["r"].ci95[0] > 0.2


def test_alpha_that_matters_by_itself_is_not_called_a_disguise() -> None:
    found = found_in(alpha_alone)
    assert r2(found, "lora_alpha") > 0.95
    assert max(r2(found, STEP), r2(found, STEP_OF_ALL)) < 0.9
    for curve in (STEP, STEP_OF_ALL):
        added = beyond(found, curve)["lora_alpha"].ci95
        assert added is not None
        assert added[0] > 0.05


def test_r_that_does_not_differ_leaves_one_curve() -> None:
    found = found_in(disguised, [cell for cell in CELLS if cell["r"] == 16])
    assert {entry.curve for entry in found.beyond} == {STEP}
    assert not any(STEP_OF_ALL in model.predictors for model in found.models)


def test_noise_alone_is_predicted_by_nothing() -> None:
    found = found_in(lambda cell: 0.6)
    assert all(model.r2_cv is not None and model.r2_cv < 0.1 for model in found.models)
    assert all(entry.ci95 is not None and entry.ci95[0] == 0 for entry in found.beyond)


def test_what_axes_add_to_the_curve_has_an_interval_that_holds() -> None:
    """The curve can tell a line exactly, so that r adds nothing."""
    rng = np.random.default_rng(5)
    clean = np.array([0.5 - 0.05 * np.log10(scaling_lr(cell)) for cell in CELLS])
    steps = [scaling_lr(cell) for cell in CELLS]
    sure = 0
    for _ in range(40):
        found = analyse(CELLS, clean + rng.normal(0, 0.02, len(CELLS)), scaling_lr=steps).scaling
        assert found is not None
        added = beyond(found, STEP)["r"].ci95
        assert added is not None
        sure += added[0] > 0
    assert sure <= 3


def test_without_replicates_curve_and_factors_leave_the_noise() -> None:
    found = found_in(disguised, [cell for cell in CELLS if cell["seed"] == 0])
    assert r2(found, STEP) > 0.95
    assert all(entry.ci95 and entry.ci95[0] == 0 for entry in beyond(found, STEP).values())


def test_other_axes_are_known_to_all_models() -> None:
    cells = [cell | {"epochs": epochs} for cell in CELLS for epochs in (1, 3)]
    found = found_in(lambda cell: disguised(cell) - 0.1 * (cell["epochs"] > 1), cells)
    assert found.others == ("epochs",)
    assert found.models[0].predictors == ("epochs",)
    assert all("epochs" in model.predictors for model in found.models)
    assert r2(found, "epochs", STEP) > 0.95


@pytest.mark.parametrize(
    "cells",
    [
        [cell for cell in CELLS if cell["r"] == 1 and cell["lr"] == 1e-4],
        CELLS[:6],
        [cell for cell in CELLS if cell["r"] == cell["lora_alpha"]],
    ],
    ids=["one axis", "few settings", "two values of scaling × lr"],
)
def test_a_question_that_cells_do_not_allow_is_not_asked(cells: list[Cell]) -> None:
    y = np.random.default_rng(1).normal(0.5, 0.1, len(cells))
    assert analyse(cells, y, scaling_lr=[scaling_lr(cell) for cell in cells]).scaling is None


def test_a_cell_without_lora_ends_the_question() -> None:
    y = np.random.default_rng(1).normal(0.5, 0.1, len(CELLS))
    steps = [None, *(scaling_lr(cell) for cell in CELLS[1:])]
    assert analyse(CELLS, y, scaling_lr=steps).scaling is None


def test_a_value_of_one_setting_only_is_not_predicted_from_others() -> None:
    cells = [cell for cell in CELLS if cell["r"] < 256 or cell["lora_alpha"] == 1]
    cells = [cell for cell in cells if cell["r"] < 256 or cell["lr"] == 1e-4]
    found = found_in(disguised, cells)
    told = {model.predictors: model.r2_cv for model in found.models}
    assert told[("r",)] is None
    assert told[(STEP,)] is not None
