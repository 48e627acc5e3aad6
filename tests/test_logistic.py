import weakref
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from llabel.ladder import logistic
from llabel.ladder.logistic import FURTHER, MAX_ITERATIONS, Logistic, fit_logistic, search_c


def rows(n=60, width=5, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)).astype(np.float32)
    y = (x[:, 0] * 2 + x[:, 1] + rng.normal(size=n)).astype(np.float64)
    return x, np.digitize(y, np.quantile(y, np.arange(1, classes) / classes)).astype(np.int64)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", [np.asarray, csr_matrix], ids=["dense", "sparse"])
def test_probabilities_are_scikit_learns(classes, kind):
    x, y = rows(classes=classes)
    model, trial = fit_logistic(kind(x), y, classes, C=0.5)
    expected = LogisticRegression(C=0.5, max_iter=MAX_ITERATIONS).fit(x, y).predict_proba(x)
    np.testing.assert_allclose(model.predict_proba(kind(x)), expected, atol=1e-5)
    assert (trial.settings, trial.stopped) == ({"C": 0.5}, "converged")
    assert trial.rows == trial.steps * len(y) > 0


def test_classes_that_training_lacked():
    x, y = rows(classes=2)
    model, _ = fit_logistic(x, y * 2 + 1, 5, C=1.0)  # labels 1 and 3 of 5
    proba = model.predict_proba(x)
    np.testing.assert_allclose(proba[:, [0, 2, 4]], 1 / (60 + 5))
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    known, _ = fit_logistic(x, y, 2, C=1.0)
    np.testing.assert_allclose(
        proba[:, [1, 3]] / proba[:, [1, 3]].sum(axis=1, keepdims=True), known.predict_proba(x)
    )


def test_one_class_and_no_features():
    x, y = rows()
    model, _ = fit_logistic(x, y * 0 + 2, 3, C=1.0)
    np.testing.assert_allclose(model.predict_proba(x[:2]), [[1 / 63, 1 / 63, 61 / 63]] * 2)
    model, _ = fit_logistic(csr_matrix((4, 0), dtype=np.float32), np.array([0, 0, 0, 1]), 2, C=1.0)
    np.testing.assert_allclose(model.predict_proba(csr_matrix((1, 0))), [[0.75, 0.25]], rtol=1e-6)


def test_large_features_stay_finite():
    x, y = rows()
    model, _ = fit_logistic(x, y, 3, C=100.0)
    proba = model.predict_proba(np.array([[1e20] * 5, [-1e20] * 5], dtype=np.float32))
    assert np.isfinite(proba).all()
    np.testing.assert_allclose(proba.sum(axis=1), 1)


def test_arrays_hold_all_of_it():
    x, y = rows(classes=2)
    model, _ = fit_logistic(x, y, 3, C=1.0)
    again = Logistic.from_arrays(model.arrays(), 3)
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
    assert model.parameters == 2 * 5 + 2


def search(**changes):
    told = []
    settings = {"usual": 1.0, "trials": 3, "notify": told.append} | changes
    return search_c(rows(), rows(40, seed=1), 3, **settings), told


def test_search_keeps_the_value_that_validation_likes_best():
    found, told = search()
    tried = [trial.settings["C"] for trial in found.trials]
    assert tried[:3] == pytest.approx([1, 1 / 3, 3])
    assert [trial.number for trial in found.trials] == list(range(len(tried)))
    losses = [trial.validation_loss for trial in found.trials]
    assert found.best == int(np.argmin(losses))
    alone, trial = fit_logistic(*rows(), 3, found.C)
    x, _ = rows(40, seed=1)
    np.testing.assert_array_equal(found.validation_proba, alone.predict_proba(x))
    np.testing.assert_array_equal(found.chosen.weights, alone.weights)
    assert replace(trial, seconds=0) == replace(
        found.trials[found.best], seconds=0, validation_loss=None, number=0
    )
    assert [event.total for event in told[::2]] == [60] * len(tried)


@pytest.mark.parametrize("trials", [1, 2, 3])
@pytest.mark.parametrize("usual", [1e-6, 1.0])
def test_search_goes_on_until_the_best_lies_between_worse_ones(usual, trials):
    found, _ = search(usual=usual, trials=trials)
    by_c = sorted(found.trials, key=lambda trial: trial.settings["C"])
    values = [trial.settings["C"] for trial in by_c]
    assert np.allclose(np.diff(np.log(values)), np.log(3)), "neighbours, none left out"
    losses = [trial.validation_loss for trial in by_c]
    best = int(np.argmin(losses))
    assert values[best] == found.C
    within = 0 < best < len(values) - 1
    assert within or len(values) == trials + FURTHER
    assert within == (usual == 1.0), "both ways out are shown"


def test_what_lost_is_gone_before_the_next_value_is_tried(monkeypatch):
    made, alive = [], []

    def fit(*args, **options):
        alive.append(sum(ref() is not None for ref in made))
        model, trial = fit_logistic(*args, **options)
        made.append(weakref.ref(model.weights))
        return model, trial

    monkeypatch.setattr(logistic, "fit_logistic", fit)
    search(trials=5)
    assert len(alive) >= 5
    assert max(alive) == 1


def test_what_lies_beyond_is_tried_within_the_budget():
    few, _ = search(usual=1e-6, trials=1, budget=1e-9)
    assert len(few.trials) == 1
    all_of_them, _ = search(usual=1e-6, trials=1, budget=1e9)
    assert len(all_of_them.trials) == 1 + FURTHER


def test_seconds_spent_on_features_count_once_and_against_the_budget():
    found, _ = search(spent=100.0)
    assert [trial.seconds > 50 for trial in found.trials][:3] == [True, False, False]
    found, _ = search(spent=100.0, budget=90.0)
    (trial,) = found.trials
    assert trial.stopped in {"budget", "converged"}


def test_seconds_spent_on_features_are_not_the_first_trials_alone(monkeypatch):
    limits = []

    def fit(*args, limit, **more):
        limits.append(limit)
        return fit_logistic(*args, limit=limit, **more)

    monkeypatch.setattr(logistic, "fit_logistic", fit)
    found, _ = search(spent=300.0, budget=600.0)  # a third each of the other 300
    assert limits[:3] == pytest.approx([100, 150, 300], rel=0.02)
    assert 300 < sum(trial.seconds for trial in found.trials) < 310


def test_a_limit_ends_the_training():
    x, y = rows(n=400, width=200)
    _, trial = fit_logistic(x, y, 3, C=1e4, limit=0.0)
    assert (trial.stopped, trial.epochs) == ("budget", logistic.PROBE)


@pytest.mark.parametrize("C", [1.0, 1e4])
def test_an_ample_limit_changes_nothing(C):
    x, y = rows(n=200, width=60)
    x *= np.logspace(-2, 1, 60, dtype=np.float32)
    free, unlimited = fit_logistic(x, y, 3, C)
    model, limited = fit_logistic(x, y, 3, C, limit=1e9)
    assert limited.epochs > logistic.PROBE
    assert replace(limited, seconds=0) == replace(unlimited, seconds=0)
    np.testing.assert_array_equal(model.weights, free.weights)
    np.testing.assert_array_equal(model.bias, free.bias)
