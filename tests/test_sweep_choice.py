from typing import Any

import numpy as np
import pytest

from llabel.metrics import log_loss
from llabel.sweep.axes import read_axes
from llabel.sweep.cells import grid
from llabel.sweep.choose import DoneCell, choose
from llabel.sweep.results import works_of
from llabel.task import Split

ROWS = 200
DATA = {"data": "x.csv", "text": ("text",), "label": "label"}


def validation(groups: int | None = None) -> Split:
    y = np.random.default_rng(0).integers(2, size=ROWS)
    names = None if groups is None else tuple(str(row % groups) for row in range(ROWS))
    return Split(tuple(map(str, range(ROWS))), (("text",),) * ROWS, y, names)


def cells(**values: str):
    seeds = int(values.pop("seeds", "1"))
    return grid(read_axes(DATA | values, searching=False, seeds=seeds))


def done(
    cell, loss: float, spread: float = 0.3, seed: int = 0, work: float = 1.0, trained: int = 0
) -> DoneCell:
    """Answers that cost about `loss` on each row."""
    y = validation().y
    noise = np.random.default_rng(seed).normal(0, spread, ROWS)
    truth = np.exp(-np.clip(loss + noise - noise.mean(), 0.001, None))
    proba = np.stack([1 - truth, truth], axis=1)
    proba[y == 0] = proba[y == 0][:, ::-1]
    return DoneCell(cell, cell.name, proba, work, trained)


def test_the_lowest_log_loss_is_chosen_and_the_cheapest_like_it_recommended() -> None:
    small, middle, large = planned = cells(r="1,16,256")
    found = [
        done(small, 0.61, seed=1, work=1),
        done(middle, 0.45, seed=2, work=16),
        done(large, 0.44, seed=3, work=256),
    ]
    chosen = choose(found, planned, validation())
    assert chosen["cell"] == large.name
    assert chosen["cells"] == [large.name]
    (near,) = chosen["not_worse"]
    assert near["cell"] == middle.name == chosen["recommended"]
    losses = [log_loss(validation().y, one.proba) for one in found]
    assert near["difference"] == pytest.approx(losses[1] - losses[2])
    assert near["ci95"][0] < 0 < near["ci95"][1]
    assert near["p_value"] > 0.05
    assert chosen["metrics"]["validation"]["log_loss"] == pytest.approx(losses[2])
    low, high = chosen["metrics"]["validation"]["log_loss_ci95"]
    assert low < losses[2] < high
    assert "rows" in chosen["rule"]
    assert "seeds" not in chosen["rule"]


def test_hundreds_of_settings_do_not_hide_that_they_are_worse() -> None:
    planned = cells(r=",".join(map(str, range(1, 151))))
    found = [
        done(cell, 0.05 if number == 100 else 1.2, seed=number, work=150 - number)
        for number, cell in enumerate(planned)
    ]
    chosen = choose(found, planned, validation())
    assert chosen["cell"] == chosen["recommended"] == planned[100].name
    assert chosen["not_worse"] == []


def test_the_untouched_model_stands_once_and_costs_nothing() -> None:
    planned = cells(r="1,16", lora_alpha="0,8")
    controls = [cell for cell in planned if cell.control]
    tuned = [cell for cell in planned if not cell.control]
    found = [done(cell, 0.50, work=0) for cell in controls]
    found += [done(cell, 0.49, seed=n, work=9) for n, cell in enumerate(tuned, 1)]
    chosen = choose(found, planned, validation())
    assert chosen["cell"] in {cell.name for cell in tuned}
    assert chosen["recommended"] == controls[0].name
    near = {entry["cell"] for entry in chosen["not_worse"]}
    assert controls[0].name in near
    assert controls[1].name not in near


def test_seeds_are_averaged_and_one_of_them_stands_for_all() -> None:
    planned = cells(r="1,2", seeds="2")
    losses = {(1, 0): 0.30, (1, 1): 0.60, (2, 0): 0.43, (2, 1): 0.41}
    found = [
        done(cell, losses[cell.settings["r"], cell.settings["seed"]], spread=0.1, seed=n)
        for n, cell in enumerate(planned)
    ]
    chosen = choose(found, planned, validation())
    assert chosen["cells"] == [planned[3].name, planned[2].name]
    assert chosen["cell"] == planned[3].name
    assert chosen["metrics"]["validation"]["log_loss"] == pytest.approx(0.42, abs=0.01)
    assert "mean over the seeds" in chosen["rule"]


def test_a_setting_that_failed_with_a_seed_is_out() -> None:
    planned = cells(r="1,2", seeds="2")
    found = [done(planned[0], 0.1), done(planned[2], 0.5), done(planned[3], 0.5, seed=1)]
    assert choose(found, planned, validation())["cell"] in {planned[2].name, planned[3].name}
    assert choose(found[:1], planned, validation())["cell"] == planned[0].name
    assert choose([], planned, validation()) is None


def test_rungs_rank_before_the_work_of_training() -> None:
    bag, lora = planned = cells(rung="llm-lora,bag-of-words")[::-1]
    found = [done(bag, 0.5, work=1e9), done(lora, 0.49, seed=1, work=1)]
    chosen = choose(found, planned, validation())
    assert (chosen["cell"], chosen["recommended"]) == (lora.name, bag.name)


def test_of_equal_work_fewer_trained_parameters_are_cheaper() -> None:
    large, small = planned = cells(r="16,1")
    found = [done(large, 0.44, seed=1, trained=16), done(small, 0.45, seed=2, trained=1)]
    assert choose(found, planned, validation())["recommended"] == small.name


def cost(**more: float) -> Any:
    usual = {"train_seconds": 10.0, "train_rows_per_second": 6.0, "steps": 5, "epochs": 1}
    return usual | {"trainable_parameters": 100, "parameters": 1000} | more


def test_work_is_what_training_read_times_the_model() -> None:
    once = cost(rows=60, tokens=600, trainable_parameters=1600)
    often = cost(rows=180, tokens=1800, epochs=3)
    shorter = cost(rows=60, tokens=300)
    smaller = cost(rows=60, tokens=600, parameters=500)
    control = cost(rows=0, tokens=0, steps=0, train_seconds=0.0, train_rows_per_second=None)
    costs = [once, often, shorter, smaller, control]
    assert works_of(["llm-lora"] * 5, costs) == [6e5, 18e5, 3e5, 3e5, 0]


def test_cells_that_do_not_tell_their_tokens_are_compared_by_rows() -> None:
    old, new = cost(), cost(rows=30, tokens=900)
    old_control = cost(steps=0, train_seconds=0.0, train_rows_per_second=None)
    encoder = cost(rows=30, tokens=700)
    rungs = ["llm-lora", "llm-lora", "llm-lora", "encoder"]
    assert works_of(rungs, [old, new, old_control, encoder]) == [6e4, 3e4, 0, 7e5]


def test_rows_of_a_group_stand_together() -> None:
    planned = cells(r="1,2")
    found = [done(planned[0], 0.45, seed=1), done(planned[1], 0.40, seed=2)]
    chosen = choose(found, planned, validation(groups=20))
    assert "groups of rows" in chosen["rule"]
    assert choose(found, planned, validation(groups=1))["rule"] != chosen["rule"]
