import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llabel.errors import InputError
from llabel.metrics import (
    NOT_ASKED,
    expected_calibration_error,
    log_loss,
    macro_f1,
    score,
    wilson_interval,
)
from llabel.statistics.intervals import (
    bootstrap_scores,
    effective_wilson,
    score_with_groups,
    share_interval,
)
from llabel.statistics.resampling import Spread, resampled, units_of

SIMULATIONS = 600
NAMES = ["accuracy_ci95", "macro_f1_ci95", "log_loss_ci95", "ece_ci95"]


def draw(rng, n, seeds=1, *, seed_sd=0.0, groups=0, sharpness=1.5):
    """Rows of a two-class task with (seeds, n, 2) probabilities, and groups where asked."""
    names, effect = None, 0.0
    if groups:
        names = np.repeat(np.arange(groups), 1 + rng.poisson(4, groups))
        n, effect = len(names), rng.normal(0, 1, groups)[names]
    z = rng.normal(0.4, 1, n) + effect
    y = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(int)
    logit = z + rng.normal(0, 0.8, (seeds, n)) + rng.normal(0, seed_sd, (seeds, 1))
    positive = 1 / (1 + np.exp(-sharpness * logit))
    proba = np.stack([1 - positive, positive], axis=-1)
    return y, proba, proba.argmax(axis=-1), names


def true_scores(groups, seed_sd):
    rng = np.random.default_rng(99)
    found = []
    for _ in range(300 if seed_sd else 4):
        n = 10_000 if seed_sd else 300_000
        y, proba, answers, _ = draw(rng, n, seed_sd=seed_sd, groups=n // 5 if groups else 0)
        found.append(
            [
                (answers[0] == y).mean(),
                macro_f1(y, answers[0], 2),
                log_loss(y, proba[0]),
                expected_calibration_error(y, proba[0]),
            ]
        )
    return np.mean(found, axis=0)


@pytest.mark.parametrize(
    "case",
    [
        {"n": 200},
        {"n": 0, "groups": 60},
        {"n": 200, "seeds": 3, "seed_sd": 0.2},
        {"n": 0, "seeds": 3, "seed_sd": 0.2, "groups": 60},
    ],
    ids=str,
)
def test_intervals_cover(case):
    truth = true_scores(case.get("groups", 0), case.get("seed_sd", 0))
    rng = np.random.default_rng(5)
    covered = np.zeros(4)
    for _ in range(SIMULATIONS):
        y, proba, answers, groups = draw(rng, **case)
        found = bootstrap_scores(y, proba, answers, groups=groups, resamples=250)
        covered += [
            found[name][0] <= t <= found[name][1] for name, t in zip(NAMES, truth, strict=True)
        ]
    shares = covered / SIMULATIONS
    assert (shares[:3] >= 0.93).all(), shares
    assert (shares[:3] <= 0.97).all(), shares
    assert 0.93 <= shares[3] <= 0.99, shares  # the ECE's is made wide on purpose


def many_classes(rare):
    """Joint shares (truth, answer) of 34 classes, equally frequent or few of them frequent."""
    rng = np.random.default_rng(5)
    shares = 1 / np.arange(1, 35) if rare else np.ones(34)
    joint = rng.gamma(0.5, 1, (34, 34)) * shares
    np.fill_diagonal(joint, 0)
    right = np.clip(0.64 + rng.normal(0, 0.12, 34), 0.2, 0.99)
    joint *= ((1 - right) / joint.sum(axis=1))[:, None]
    joint[np.diag_indices(34)] = right
    return joint * (shares / shares.sum())[:, None]


@pytest.mark.parametrize(
    ("rare", "n", "least"),
    [(False, 200, 0.92), (True, 500, 0.92), (True, 200, 0.78)],  # at last classes without rows
)
def test_macro_f1_interval_covers_with_many_classes(rare, n, least):
    """A class that a resample lacks lowers its F1: plain percentiles cover 70, 74 and 16 %."""
    joint = many_classes(rare)
    truth = (2 * np.diag(joint) / (joint.sum(axis=0) + joint.sum(axis=1))).mean()
    rng = np.random.default_rng(6)
    covered = 0
    for _ in range(200):
        y, answers = np.divmod(rng.choice(34 * 34, n, p=joint.ravel()), 34)
        low, high = bootstrap_scores(y, np.eye(34)[answers], answers, resamples=200)[
            "macro_f1_ci95"
        ]
        assert low <= macro_f1(y, answers, 34) <= high
        covered += low <= truth <= high
    assert least <= covered / 200 <= 0.99


def test_rows_as_groups_and_equal_seeds_change_little():
    y, proba, answers, _ = draw(np.random.default_rng(0), 500)
    plain = bootstrap_scores(y, proba[0], answers[0])
    grouped = bootstrap_scores(y, proba, answers, groups=[f"row {i}" for i in range(500)])
    repeated = bootstrap_scores(y, proba.repeat(4, axis=0), answers.repeat(4, axis=0))
    for name in NAMES:
        assert grouped[name] == pytest.approx(plain[name], abs=0.01)
        assert repeated[name] == pytest.approx(plain[name], abs=0.01)
    assert plain["accuracy_ci95"] == list(wilson_interval(int((answers == y).sum()), 500))


def test_a_share_has_the_interval_that_the_accuracy_has():
    y, proba, answers, _ = draw(np.random.default_rng(7), 90)
    y, proba, answers = y.repeat(5), proba[0].repeat(5, axis=0), answers[0].repeat(5)
    names = [f"user {row // 5}" for row in range(450)]
    found = bootstrap_scores(y, proba, answers, groups=resampled(names))["accuracy_ci95"]
    rows = wilson_interval(int((answers == y).sum()), 450)
    assert share_interval(answers == y, names) == tuple(found)
    scores = score(y, proba)
    right = proba.argmax(axis=1) == y
    of_users = list(share_interval(right, names))
    assert score_with_groups(y, proba, groups=names) == scores | {"accuracy_ci95": of_users}
    assert np.ptp(found) > 1.5 * np.ptp(rows)
    for groups in (None, ["one user"] * 450):
        assert share_interval(answers == y, groups) == rows
    assert score_with_groups(y, proba) == scores


def test_groups_that_share_their_fate_widen_every_interval():
    y, proba, answers, _ = draw(np.random.default_rng(1), 300)
    y, proba, answers = y.repeat(5), proba.repeat(5, axis=1), answers.repeat(5, axis=1)
    rows = bootstrap_scores(y, proba, answers)
    groups = bootstrap_scores(y, proba, answers, groups=np.arange(300).repeat(5))
    for name in NAMES:
        assert np.ptp(groups[name]) == pytest.approx(np.sqrt(5) * np.ptp(rows[name]), rel=0.2)


def test_weighted_scores_are_those_of_metrics():
    """Draw the resamples again by hand: macro-F1 and log loss have the same distribution."""
    rng = np.random.default_rng(2)
    proba = rng.dirichlet(np.ones(4), 120)
    y, answers = rng.integers(4, size=120), proba.argmax(1)
    answers[::7] = -1
    found = bootstrap_scores(y, proba, answers, resamples=2000)
    by_hand = []
    for _ in range(500):
        i = rng.integers(120, size=120)
        by_hand.append((macro_f1(y[i], answers[i], 4), log_loss(y[i], proba[i])))
    f1, loss = np.quantile(by_hand, [0.025, 0.975], axis=0).T
    f1 -= (np.mean(by_hand, axis=0)[0] - macro_f1(y, answers, 4)) * np.array([1, 2])
    assert found["macro_f1_ci95"] == pytest.approx(f1, abs=0.015)
    assert found["log_loss_ci95"] == pytest.approx(loss, abs=0.05)


@pytest.mark.parametrize("right", [True, False])
def test_all_right_or_all_wrong_still_has_a_width(right):
    y = np.arange(40) % 2
    proba = np.eye(2)[y if right else 1 - y] * 0.8 + 0.1
    groups = np.repeat(np.arange(10), 4)
    found = bootstrap_scores(y, proba, proba.argmax(1), groups=groups)
    limits = wilson_interval(10 if right else 0, 10)  # the groups are all that is certain
    assert np.ptp(found["accuracy_ci95"]) > 0.2
    assert found["accuracy_ci95"] == pytest.approx(limits, abs=0.08)
    assert found["macro_f1_ci95"] == found["accuracy_ci95"]


def test_macro_f1_of_rows_all_right_lies_within_its_interval_though_a_class_is_missing():
    y = np.zeros(200, dtype=int)
    found = bootstrap_scores(y, np.tile([0.9, 0.1], (200, 1)), y)
    assert macro_f1(y, y, 2) == found["macro_f1_ci95"][1] == 0.5
    assert found["macro_f1_ci95"][0] == found["accuracy_ci95"][0] / 2


def test_effective_wilson_is_wilson_for_independent_rows():
    error = Spread(np.zeros(1), 0.8 * 0.2 / 500, 0.0, 1e9)
    assert effective_wilson(0.8, error, 500) == pytest.approx(wilson_interval(400, 500))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(1, 3), st.integers(2, 5), st.integers(0, 2**31))
@example(31, 2, 3, 31022576)  # two seeds so unlike that their t has one degree of freedom
@example(29, 2, 3, 31022576)
@example(2, 3, 3, 5074904)  # less than one
def test_every_interval_holds_its_score(n, seeds, n_classes, seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n)
    proba = rng.dirichlet(np.ones(n_classes), (seeds, n))
    answers = proba.argmax(-1)
    found = bootstrap_scores(y, proba, answers, resamples=200)
    accuracy = (answers == y).mean()
    assert 0 <= found["accuracy_ci95"][0] <= accuracy <= found["accuracy_ci95"][1] <= 1
    for name in NAMES:
        lower, upper = found[name]
        assert 0 <= lower <= upper
    ece = np.mean([expected_calibration_error(y, p) for p in proba])
    assert found["ece_ci95"][0] <= ece <= 1
    assert json.loads(json.dumps(found)) == found


def test_a_training_asked_one_row_of_many_or_none_spoils_nothing():
    y, proba, answers, _ = draw(np.random.default_rng(3), 20, seeds=3)
    answers[1, 1:] = NOT_ASKED  # most resamples lack its only row
    found = bootstrap_scores(y, proba, answers)
    assert np.isfinite([found[name] for name in NAMES]).all()
    answers[2] = NOT_ASKED
    without = bootstrap_scores(y, proba, answers)
    assert without == bootstrap_scores(y, proba[:2], answers[:2])
    assert np.isfinite([without[name] for name in NAMES]).all()


def test_same_seed_same_interval():
    y, proba, answers, _ = draw(np.random.default_rng(3), 100, 2)
    once, again = (bootstrap_scores(y, proba, answers, resamples=300) for _ in range(2))
    assert once == again
    assert once != bootstrap_scores(y, proba, answers, resamples=300, seed=1)


def test_log_loss_interval_holds_the_score():
    y, proba, answers, _ = draw(np.random.default_rng(4), 400)
    scores = score(y, proba[0])
    found = bootstrap_scores(y, proba, answers)
    assert found["log_loss_ci95"][0] < scores["log_loss"] < found["log_loss_ci95"][1]
    assert found["macro_f1_ci95"][0] < scores["macro_f1"] < found["macro_f1_ci95"][1]


def test_groups_of_long_names_take_no_memory():
    """A NumPy array of these names would take 2 GB."""
    y, proba, answers, _ = draw(np.random.default_rng(6), 500)
    long = [f"{row // 5}" for row in range(499)] + ["9" * 1_000_000]
    tracemalloc.start()
    found = bootstrap_scores(y, proba, answers, groups=resampled(long))
    units_of(len(long), long)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6
    short = np.unique([*long[:-1], "99999"], return_inverse=True)[1]
    assert found == bootstrap_scores(y, proba, answers, groups=short)


def test_refusals_say_what_to_do():
    y, proba, answers, _ = draw(np.random.default_rng(5), 20)
    with pytest.raises(ValueError, match=r"answers \(n_seeds, n\), with n = 20 rows"):
        bootstrap_scores(y, proba, answers[:, :5])
    with pytest.raises(ValueError, match=r"answers must lie in -1\.\.1"):
        bootstrap_scores(y, proba, answers + 1)
    with pytest.raises(InputError, match=r"form 1 group.*compare without a group column"):
        bootstrap_scores(y, proba, answers, groups=["a"] * 20)
    with pytest.raises(InputError, match="at least 2 test rows, got 1"):
        units_of(1, None)
