"""Temperature, threshold, and what they do to answers."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from llabel.confidence import (
    Confidence,
    Judged,
    abstention_of,
    answered,
    calibration_of,
    coverage_curve,
    decide,
    fit_temperature,
    read_confidence,
    scaled,
    smallest_threshold,
    write_confidence,
)
from llabel.errors import InputError
from llabel.metrics import log_loss, wilson_interval, wilson_limits
from llabel.settings import RunSettings
from llabel.statistics.intervals import share_interval


@st.composite
def judged(draw):
    n, k = draw(st.integers(1, 60)), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    proba = rng.dirichlet(np.full(k, draw(st.sampled_from([0.1, 1.0, 10.0]))), n)
    if draw(st.booleans()):  # ties
        proba = np.round(proba, 1) + 0.01
        proba /= proba.sum(axis=1, keepdims=True)
    return rng.integers(0, k, n), proba


def drawn(temperature: float, rows: int = 20_000) -> Judged:
    """Labels drawn from softmax(z / temperature), where softmax(z) is what is said."""
    rng = np.random.default_rng(0)
    said = scaled(rng.dirichlet(np.ones(3), rows), 0.5)
    true = scaled(said, temperature)
    y = (true.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1)
    return Judged(np.minimum(y, 2), said)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    assert fit_temperature(*drawn(temperature)[:2]) == pytest.approx(temperature, rel=0.05)


@given(judged())
def test_no_temperature_makes_the_validation_loss_worse(case):
    y, proba = case
    fitted = scaled(proba, fit_temperature(y, proba))
    assert log_loss(y, fitted) <= log_loss(y, proba)


@given(judged(), st.floats(0.1, 10), st.floats(0.1, 10))
def test_scaling_keeps_the_order_and_adds_up(case, first, second):
    _, proba = case
    once = scaled(proba, first)
    assert once.sum(axis=1) == pytest.approx(1)
    top = np.take_along_axis(once, proba.argmax(axis=1)[:, None], axis=1)[:, 0]
    assert np.array_equal(top, once.max(axis=1))
    assert scaled(once, second) == pytest.approx(scaled(proba, first * second), abs=1e-6)
    assert scaled(proba, 1.0) is proba


def test_certainty_and_impossibility_stay():
    assert scaled(np.array([[1.0, 0.0], [0.5, 0.5]]), 3.0).tolist() == [[1.0, 0.0], [0.5, 0.5]]


def test_where_all_is_right_no_temperature_is_chosen():
    assert fit_temperature(np.array([0, 1]), np.array([[0.9, 0.1], [0.4, 0.6]])) == 1.0


def test_a_loss_that_is_nothing_over_a_range_chooses_no_temperature():
    proba = np.array([[0.99, 0.01]] * 30)  # the loss is exactly 0 at 0.1 as well as at 0.05
    assert log_loss(np.zeros(30, int), scaled(proba, 0.1)) == 0.0
    assert fit_temperature(np.zeros(30, int), proba) == 1.0


def test_a_coin_is_never_sure():
    y, proba = np.array([0, 1] * 50), np.array([[0.99, 0.01]] * 100)
    assert scaled(proba, fit_temperature(y, proba)).max() < 0.56


@given(judged(), st.floats(0, 1))
def test_the_curve_agrees_with_counting(case, threshold):
    y, proba = case
    right, confidence = proba.argmax(axis=1) == y, proba.max(axis=1)
    curve = coverage_curve(right, confidence, points=10)
    assert len(curve) <= 10
    assert curve[-1]["coverage"] == 1.0
    assert curve[-1]["accuracy"] == pytest.approx(right.mean())
    assert [p["coverage"] for p in curve] == sorted({p["coverage"] for p in curve})
    for point in curve:
        found = answered(right, confidence, point["threshold"])
        assert (found["coverage"], found["accuracy"]) == (point["coverage"], point["accuracy"])
    found = answered(right, confidence, threshold)
    assert found["answered"] == (confidence >= threshold).sum()
    assert (found["accuracy"] is None) == (found["answered"] == 0)


@given(judged(), st.floats(0.01, 0.99))
def test_the_smallest_threshold_that_reaches_the_target_is_taken(case, target):
    y, proba = case
    right, confidence = proba.argmax(axis=1) == y, proba.max(axis=1)
    bounds = {}
    for threshold in np.unique(confidence).tolist():
        taken = confidence >= threshold
        low, _ = wilson_interval(int(right[taken].sum()), int(taken.sum()), 0.90)
        bounds[threshold] = low
    reached = [threshold for threshold, low in bounds.items() if low >= target]
    found, attained = smallest_threshold(right, confidence, target)
    assert attained == bool(reached)
    if reached:
        assert found == min(reached)
    else:
        assert bounds[found] == pytest.approx(max(bounds.values()), abs=1e-12)


@pytest.mark.parametrize(("rows", "attained"), [(51, False), (52, True)])
def test_few_rows_prove_little(rows, attained):
    found = smallest_threshold(np.ones(rows, dtype=bool), np.full(rows, 0.9), 0.95)
    assert found == (0.9, attained)


@pytest.mark.parametrize(("groups", "attained"), [(51, False), (52, True)])
def test_few_groups_prove_little_however_many_their_rows(groups, attained):
    names = [f"user {row % groups}" for row in range(10 * groups)]
    right = np.ones(len(names), dtype=bool)
    confidence = np.linspace(0.5, 0.9, len(names))
    threshold, found = smallest_threshold(right, confidence, 0.95, names)
    assert found is (threshold == 0.5) is attained
    alone = [f"row {row}" for row in range(len(names))]
    assert smallest_threshold(right, confidence, 0.95, alone) == (0.5, True)


@given(judged(), st.integers(1, 8), st.floats(0.01, 0.99))
def test_rows_of_a_group_are_worth_what_their_sizes_leave(case, count, target):
    y, proba = case
    right, confidence = proba.argmax(axis=1) == y, proba.max(axis=1)
    names = np.random.default_rng(len(y)).integers(0, count, len(y))
    bounds = {}
    for threshold in np.unique(confidence).tolist():
        taken = confidence >= threshold
        sizes = np.bincount(names[taken])
        worth = sizes.sum() ** 2 / (sizes**2).sum()
        bounds[threshold] = float(wilson_limits(right[taken].mean(), worth, norm.ppf(0.95))[0])
    found, attained = smallest_threshold(right, confidence, target, list(map(str, names)))
    reached = [threshold for threshold, low in bounds.items() if low >= target]
    assert attained == bool(reached)
    best = min(reached) if reached else found
    assert found == best
    assert reached or bounds[found] == pytest.approx(max(bounds.values()), abs=1e-12)


def test_what_is_answered_has_intervals_over_groups():
    y, proba = drawn(3.0, 400)[:2]
    names = [f"user {row // 20}" for row in range(400)]
    settings = RunSettings(target_precision=0.6)
    part = Judged(y, proba, names)
    confidence = decide(settings, part)
    abstention = abstention_of(settings, confidence, part, part)
    taken = proba.max(axis=1) >= abstention["threshold"]
    found = abstention["test"]
    assert found["coverage_ci95"] == list(share_interval(taken, names))
    right = (proba.argmax(axis=1) == y)[taken]
    theirs = [name for name, one in zip(names, taken, strict=True) if one]
    assert found["accuracy_ci95"] == list(share_interval(right, theirs))
    assert confidence.abstain_below > decide(settings, Judged(y, proba)).abstain_below


def test_what_is_decided_and_recorded():
    validation, test = drawn(3.0, 2000), drawn(3.0, 500)
    settings = RunSettings(calibrate="temperature", target_precision=0.8)
    confidence = decide(settings, validation)
    assert confidence.temperature == pytest.approx(3.0, rel=0.2)
    calibration = calibration_of(settings, confidence, validation, test)
    abstention = abstention_of(settings, confidence, validation, test)
    assert calibration
    assert abstention
    for part in (calibration["validation"], calibration["test"]):
        assert part["after"]["log_loss"] < part["before"]["log_loss"]
        assert part["after"]["ece"] < part["before"]["ece"]
    assert abstention["attained"] is (confidence.missed_target is None) is True
    assert abstention["threshold"] == confidence.abstain_below
    assert abstention["validation"]["accuracy"] >= 0.8
    answered_rows = confidence.scaled(test.proba).max(axis=1) >= abstention["threshold"]
    assert abstention["test"]["answered"] == answered_rows.sum()
    assert json.loads(json.dumps([calibration, abstention])) == [calibration, abstention]


def test_without_being_asked_nothing_is_decided():
    validation = drawn(3.0, 100)
    assert decide(RunSettings(), validation) == Confidence()
    assert calibration_of(RunSettings(), Confidence(), validation, None) is None
    assert abstention_of(RunSettings(), Confidence(), validation, None) is None
    assert not Confidence().withheld(validation.proba).any()


def test_a_target_out_of_reach_is_recorded_as_missed():
    y = np.array([0, 1] * 30)
    validation = Judged(y, np.array([[0.9, 0.1]] * 60))
    settings = RunSettings(target_precision=0.95)
    confidence = decide(settings, validation)
    assert confidence == Confidence(1.0, 0.9, missed_target=0.95)
    assert abstention_of(settings, confidence, validation, None)["attained"] is False


@pytest.mark.parametrize(
    "confidence", [Confidence(), Confidence(1.7), Confidence(0.3, 1 / 3, missed_target=0.95)]
)
def test_what_is_written_is_read(confidence: Confidence, tmp_path: Path):
    write_confidence(tmp_path, Confidence(9.0))
    write_confidence(tmp_path, confidence)
    assert read_confidence(tmp_path) == confidence
    assert [path.name for path in tmp_path.iterdir()] == (
        [] if confidence == Confidence() else ["confidence.json"]
    )


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"schema": 2}', '{"schema": 1, "temperature": 0}', '{"schema": 1, "new": 1}'],
)
def test_a_damaged_file_is_named(content: str, tmp_path: Path):
    (tmp_path / "confidence.json").write_text(content)
    with pytest.raises(InputError, match=r"confidence\.json cannot be read .* --overwrite"):
        read_confidence(tmp_path)
