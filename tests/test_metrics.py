import json
import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import classification_report

from llabel.metrics import UNKNOWN, majority_accuracy, report, score, wilson_interval

Y = np.array([0, 0, 1, 1, 2])
PROBA = np.array(
    [
        [0.7, 0.2, 0.1],
        [0.3, 0.6, 0.1],
        [0.1, 0.9, 0.0],
        [0.25, 0.5, 0.25],
        [0.0, 1.0, 0.0],
    ]
)


def one_hot(y, n_classes):
    return np.eye(n_classes)[y]


@st.composite
def predictions(draw):
    n, k = draw(st.integers(1, 30)), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    concentration = draw(st.sampled_from([0.1, 1.0, 10.0]))
    predicted = rng.integers(-1, k, n)
    return rng.integers(0, k, n), rng.dirichlet(np.full(k, concentration), n), predicted


def test_scores_equal_hand_calculation():
    found = score(Y, PROBA)
    # Right: rows 0, 2, 3. F1: class 0 P 1 R 1/2 -> 2/3; class 1 P 2/4 R 1 -> 2/3; class 2 -> 0.
    assert found["rows"] == 5
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["macro_f1"] == pytest.approx(4 / 9)
    logs = [math.log(p) for p in (0.7, 0.3, 0.9, 0.5, 1e-15)]
    assert found["log_loss"] == pytest.approx(-sum(logs) / 5)
    # Bins of 1/15: 0.7, 0.6, 0.9, 0.5 and 1.0 stand alone.
    gaps = [0.3, 0.6, 0.1, 0.5, 1.0]
    assert found["ece"] == pytest.approx(sum(gaps) / 5)
    assert json.loads(json.dumps(found)) == found


def test_ece_sums_signed_gaps_within_a_bin_and_closes_bins_above():
    # 0.62 and 0.66 share the bin (0.6, 0.667]; 0.6 itself belongs to the bin below.
    proba = np.array([[0.62, 0.38], [0.66, 0.34], [0.6, 0.4]])
    assert score(np.array([0, 1, 0]), proba)["ece"] == pytest.approx(
        (abs(0.38 - 0.66) + abs(1 - 0.6)) / 3
    )


@given(predictions())
def test_scores_equal_scikit_learn(case):
    y, proba, _ = case
    labels = np.arange(proba.shape[1])
    found, best = score(y, proba), proba.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(y, best))
    assert found["macro_f1"] == pytest.approx(
        sklearn.metrics.f1_score(y, best, labels=labels, average="macro", zero_division=0)
    )
    clipped = np.clip(proba, 1e-15, 1)
    assert found["log_loss"] == pytest.approx(
        sklearn.metrics.log_loss(y, clipped, labels=labels), rel=1e-6, abs=1e-9
    )


@given(predictions(), st.randoms())
def test_row_order_does_not_matter_and_scores_stay_in_range(case, random):
    y, proba, predicted = case
    order = list(range(len(y)))
    random.shuffle(order)
    found = score(y, proba, predicted)
    shuffled = score(y[order], proba[order], predicted[order])
    for name in ("accuracy", "macro_f1", "ece", "log_loss"):
        assert shuffled[name] == pytest.approx(found[name])
    low, high = found["accuracy_ci95"]
    assert 0 <= low <= found["accuracy"] <= high <= 1
    assert 0 <= found["macro_f1"] <= 1
    assert 0 <= found["ece"] <= 1
    assert 0 <= found["log_loss"] <= -math.log(1e-15)


@given(st.integers(2, 6), st.integers(1, 5))
def test_perfect_predictions(k, repeats):
    y = np.tile(np.arange(k), repeats)
    found = score(y, one_hot(y, k))
    assert (found["accuracy"], found["macro_f1"], found["ece"]) == (1.0, 1.0, 0.0)
    assert found["log_loss"] == 0


def test_unknown_is_wrong_and_costs_recall_only():
    y = np.array([0, 0, 1, 1])
    found = score(y, one_hot(y, 2), predicted=np.array([0, -1, 1, 1]))
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)  # recall 1/2, precision 1
    assert found["log_loss"] == 0  # the probabilities are judged as they are
    assert score(y, one_hot(y, 2), np.full(4, -1))["accuracy"] == 0


def test_a_class_never_seen_counts_as_zero_in_macro_f1():
    y = np.array([0, 1])
    assert score(y, one_hot(y, 4))["macro_f1"] == 0.5


def test_no_rows_have_no_score():
    assert score(np.array([], dtype=np.int64), np.empty((0, 3))) is None


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [  # centre and half-width of Wilson (1927) by hand, z = 1.959964
        (0, 1, 0.0, 0.793451),
        (1, 1, 0.206549, 1.0),
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (5, 10, 0.236593, 0.763407),
        (2199, 3270, 0.656197, 0.688352),
    ],
)
def test_wilson_interval(correct, n, low, high):
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(correct, n):
    with pytest.raises(ValueError, match=f"got correct={correct}, n={n}"):
        wilson_interval(correct, n)


def test_report_lists_classes_unknown_accuracy_and_macro_average():
    rows = report(np.array([0, 0, 1, 1]), np.array([0, -1, 1, 0]), [False, True])
    assert [(row["name"], row["kind"]) for row in rows] == [
        ("False", "class"),
        ("True", "class"),
        ("unknown", "unknown"),
        ("accuracy", "accuracy"),
        ("macro avg", "macro avg"),
        ("macro avg with unknown", "macro avg with unknown"),
        ("weighted avg", "weighted avg"),
    ]
    false, true, unknown, accuracy, macro, with_unknown, weighted = rows
    assert (false["precision"], false["recall"], false["f1"]) == (0.5, 0.5, 0.5)
    assert (false["support"], false["predicted"]) == (2, 2)
    assert (true["precision"], true["recall"]) == (1.0, 0.5)
    assert (unknown["f1"], unknown["support"], unknown["predicted"]) == (0.0, 0, 1)
    assert (accuracy["precision"], accuracy["recall"], accuracy["f1"]) == (None, None, 0.5)
    assert macro["precision"] == 0.75
    assert macro["f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert with_unknown["f1"] == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert weighted["f1"] == macro["f1"]  # as many rows of each class
    assert false["precision_ci95"] == false["recall_ci95"] == list(wilson_interval(1, 2))
    assert true["precision_ci95"] == list(wilson_interval(1, 1))
    assert [row["recall_ci95"] for row in rows[2:]] == [None] * 5
    assert json.loads(json.dumps(rows)) == rows


def test_report_without_unknown_has_no_such_row():
    rows = report(np.array([0, 1]), np.array([0, 1]), ["unknown", "b"])
    assert [row["kind"] for row in rows] == [
        *("class", "class", "accuracy", "macro avg", "weighted avg"),
    ]


def test_what_was_never_answered_has_precision_0_and_no_interval():
    rare = report(np.array([0, 0, 1]), np.array([0, 0, 0]), ["common", "rare"])[1]
    assert (rare["precision"], rare["precision_ci95"]) == (0.0, None)
    assert (rare["recall"], rare["recall_ci95"]) == (0.0, list(wilson_interval(0, 1)))


@given(predictions())
def test_averages_equal_scikit_learns_report(case):
    y, _, predicted = case
    n_classes = case[1].shape[1]
    rows = {row["kind"]: row for row in report(y, predicted, [*range(n_classes)])}
    labels = [*range(n_classes), UNKNOWN] if (predicted == UNKNOWN).any() else [*range(n_classes)]
    theirs = classification_report(y, predicted, labels=labels, zero_division=0, output_dict=True)
    macro = rows.get("macro avg with unknown", rows["macro avg"])
    for ours, name in ((macro, "macro avg"), (rows["weighted avg"], "weighted avg")):
        for measure in ("precision", "recall", "f1"):
            key = "f1-score" if measure == "f1" else measure
            assert ours[measure] == pytest.approx(theirs[name][key])


@given(predictions())
def test_the_average_of_classes_seen_is_scikit_learns_own(case):
    y, proba, predicted = case
    rows = {row["kind"]: row for row in report(y, predicted, [*range(proba.shape[1])])}
    seen = sorted({*y.tolist(), *predicted.tolist()} - {UNKNOWN})
    theirs = classification_report(y, predicted, labels=seen, zero_division=0, output_dict=True)
    assert ("macro avg of classes seen" in rows) == (len(seen) < proba.shape[1])
    ours = rows.get("macro avg of classes seen", rows["macro avg"])
    assert ours["f1"] == pytest.approx(theirs["macro avg"]["f1-score"])


@given(predictions())
def test_report_agrees_with_score(case):
    y, proba, predicted = case
    found = score(y, proba, predicted)
    rows = {row["kind"]: row for row in report(y, predicted, [*range(proba.shape[1])])}
    assert rows["accuracy"]["f1"] == pytest.approx(found["accuracy"])
    assert rows["macro avg"]["f1"] == pytest.approx(found["macro_f1"])


def test_majority_accuracy():
    assert majority_accuracy(np.array([1, 1, 0]), np.array([1, 0, 0, 0])) == 0.25
    assert majority_accuracy(np.array([1, 0]), np.array([0, 1, 1])) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="got 3 training and 0 test rows"):
        majority_accuracy(np.array([1, 1, 0]), np.array([], dtype=np.int64))


@pytest.mark.parametrize(
    ("y", "proba", "predicted", "message"),
    [
        ([0, 1], [0.5, 0.5], None, r"proba must have shape \(n, n_classes\), got \(2,\)"),
        ([0], [[0.5, 0.5]] * 2, None, r"y must have shape \(2,\), got \(1,\)"),
        ([0, 2], [[0.5, 0.5]] * 2, None, r"y must lie in 0..1; row 1 is 2"),
        ([0, -1], [[0.5, 0.5]] * 2, None, r"y must lie in 0..1; row 1 is -1"),
        ([0.0, 1.0], [[0.5, 0.5]] * 2, None, "y must hold class indices"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.6]], None, "must be a distribution.*row 1"),
        ([0, 1], [[1.5, -0.5], [0.5, 0.5]], None, "must be a distribution.*row 0"),
        ([0, 1], [[0.5, 0.5], [np.nan, 1]], None, "must be finite; row 1"),
        ([0, 1], [[0.5, 0.5]] * 2, [0, -2], r"predicted must lie in -1..1; row 1 is -2"),
        ([0, 1], [[0.5, 0.5]] * 2, [0], r"predicted must have shape \(2,\)"),
    ],
)
def test_wrong_input_is_named(y, proba, predicted, message):
    answers = None if predicted is None else np.array(predicted)
    with pytest.raises(ValueError, match=message):
        score(np.array(y), np.array(proba), answers)
