import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llabel.compare.diagnosis import (
    CURVE_POINTS,
    LISTED,
    RungAnswers,
    analyse_errors,
    confusion,
    loss_curve,
    reliability,
)
from llabel.events import EpochDone, StepDone
from llabel.folder import TrainingLog
from llabel.metrics import expected_calibration_error, report
from llabel.task import Split, Task

LISTS = ("all_wrong", "only_llm", "only_simpler", "most_confident")


def make_task(y, classes=("no", "yes")):
    def split(rows):
        texts = tuple((f"question {row}", f"passage {row}") for row in range(len(rows)))
        ids = tuple(f"test:{row + 1}" for row in range(len(rows)))
        return Split(ids, texts, np.array(rows, dtype=np.int64))

    none = split([])
    return Task("made", ("question", "passage"), classes, none, none, split(y), "0" * 64)


def rung(name, kind, yes, answers=None):
    """A rung of two classes by its probability of the second one."""
    proba = np.array([[1 - p, p] for p in yes]).reshape(-1, 2)
    answers = proba.argmax(axis=1) if answers is None else np.array(answers)
    return RungAnswers(name=name, kind=kind, answers=answers, proba=proba)


def ids(rows):
    return [int(row["id"].removeprefix("test:")) - 1 for row in rows]


@st.composite
def answered(draw):
    """A task, its rungs, the best one, and the best LLM or None; coarse numbers make ties."""
    n, k = draw(st.integers(0, 60)), draw(st.integers(2, 4))
    kinds = draw(st.lists(st.sampled_from(["control", "simpler", "llm"]), min_size=1, max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    rungs = []
    for number, kind in enumerate(kinds):
        counts = rng.integers(1, 5, (n, k))
        proba = counts / counts.sum(axis=1, keepdims=True)
        answers = np.where(rng.random(n) < 0.1, -1, proba.argmax(axis=1))
        rungs.append(RungAnswers(name=f"r{number}", kind=kind, answers=answers, proba=proba))
    best = draw(st.sampled_from(rungs)).name
    llms = [r.name for r in rungs if r.kind == "llm"]
    llm = draw(st.sampled_from([*llms, None]))
    return make_task(rng.integers(0, k, n), tuple(range(k))), rungs, best, llm


# --- confusion -----------------------------------------------------------------------------------


def test_confusion_has_true_classes_down_answers_across_and_unknown_last():
    y, answers = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, -1, -1, 0])
    assert confusion(y, answers, 3) == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 2]]
    assert confusion(y[:0], answers[:0], 2) == [[0, 0, 0], [0, 0, 0]]


@given(answered())
def test_confusion_agrees_with_the_classification_report(case):
    task, rungs, *_ = case
    y, answers, k = task.test.y, rungs[0].answers, len(task.classes)
    counts = np.array(confusion(y, answers, k))
    assert counts.shape == (k, k + 1)
    assert counts.sum() == len(y)
    if len(y):
        rows = report(y, answers, task.classes)[:k]
        assert counts.sum(axis=1).tolist() == [row["support"] for row in rows]
        assert counts.sum(axis=0)[:k].tolist() == [row["predicted"] for row in rows]


# --- reliability ---------------------------------------------------------------------------------


def test_reliability_closes_bins_above_and_leaves_empty_ones_none():
    proba = np.array([[0.75, 0.25], [0.6, 0.4], [0.1, 0.9]])  # 0.75 belongs to (0.5, 0.75]
    bins = reliability(np.array([0, 1, 1]), proba, bins=4)
    assert [(b["low"], b["high"]) for b in bins] == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]
    assert [b["rows"] for b in bins] == [0, 0, 2, 1]
    assert bins[0] | {"confidence": None, "accuracy": None} == bins[0]
    assert (bins[2]["confidence"], bins[2]["accuracy"]) == (pytest.approx(0.675), 0.5)
    assert (bins[3]["confidence"], bins[3]["accuracy"]) == (0.9, 1.0)


@given(answered(), st.integers(1, 20))
def test_the_calibration_error_follows_from_the_bins(case, count):
    task, rungs, *_ = case
    y, proba = task.test.y, rungs[0].proba
    bins = reliability(y, proba, count)
    filled = [b for b in bins if b["rows"]]
    assert sum(b["rows"] for b in bins) == len(y)
    assert all(b["low"] - 1e-9 <= b["confidence"] <= b["high"] + 1e-9 for b in filled)
    assert json.loads(json.dumps(bins)) == bins
    if len(y):
        gap = sum(b["rows"] * abs(b["accuracy"] - b["confidence"]) for b in filled) / len(y)
        assert gap == pytest.approx(expected_calibration_error(y, proba, count))


# --- loss curve ----------------------------------------------------------------------------------


def step(number, loss, stage="training", steps=1000, rows=16):
    return StepDone(stage, number, steps, number / 100, loss, 1e-3, rows, 500, 0.1)


def line_of(event):
    return json.dumps({name: getattr(event, name) for name in event.__slots__})


def logged(path, *events):
    with TrainingLog(path, lambda event: None) as log:
        for event in events:
            log(event)
    return path


def test_a_short_curve_is_its_steps(tmp_path):
    events = [step(1, 0.9), step(2, 0.7), EpochDone("training", 1, 0.8, True), step(3, 0.123456789)]
    curve = loss_curve(logged(tmp_path / "log", *events), ["training"])
    assert curve == {"epoch": [0.01, 0.02, 0.03], "loss": [0.9, 0.7, 0.12346]}


def test_the_first_stage_that_was_logged_is_read(tmp_path):
    log = logged(tmp_path / "log", step(1, 0.9, "first"), step(1, 0.5, "second"))
    assert loss_curve(log, ["refit", "second", "first"])["loss"] == [0.5]
    assert loss_curve(log, ["first", "second"])["loss"] == [0.9]
    assert loss_curve(log, ["refit"]) is None
    assert loss_curve(tmp_path / "none", ["first"]) is None


def test_validation_alone_is_no_curve(tmp_path):
    assert loss_curve(logged(tmp_path / "log", EpochDone("s", 1, 0.8, True)), ["s"]) is None


def test_steps_that_were_taken_again_count_once_as_they_were_last(tmp_path):
    lines = [line_of(step(n, float(n))) for n in (1, 2, 3, 4)]
    lines += ['{"stage": "trai']  # killed here; a copy of the log goes on at step 3
    lines += [line_of(step(n, 10.0 * n)) for n in (3, 4, 5)]
    log = tmp_path / "log"
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert loss_curve(log, ["training"])["loss"] == [1, 2, 30, 40, 50]
    # The log itself drops what is taken again, and what followed it.
    logged(log, step(2, 7.0))
    assert loss_curve(log, ["training"])["loss"] == [1, 7]


@pytest.mark.parametrize("n", [1, 49, 50, 199, 200, 201, 5003])
def test_smoothing_keeps_a_straight_line_and_thins_it(tmp_path, n):
    log = tmp_path / "log"
    log.write_text("".join(line_of(step(i, 3 - i / 5003)) + "\n" for i in range(1, n + 1)))
    curve = loss_curve(log, ["training"])
    epoch, loss = np.array(curve["epoch"]), np.array(curve["loss"])
    assert len(epoch) == len(loss) == min(n, CURVE_POINTS)
    assert (np.diff(epoch) > 0).all()
    np.testing.assert_allclose(loss, 3 - epoch * 100 / 5003, rtol=1e-3)


def test_smoothing_removes_noise_and_weighs_steps_by_rows(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.normal(0.7, 0.2, 1000)
    log = tmp_path / "log"
    log.write_text("".join(line_of(step(i, loss)) + "\n" for i, loss in enumerate(noise, 1)))
    assert np.std(loss_curve(log, ["training"])["loss"]) < 0.06  # windows of 21 to 41 steps
    # 100 steps: the last point is the mean of the last three, one of which is nearly empty.
    steps = [step(i, 1.0) for i in range(1, 100)] + [step(100, 100.0, rows=1)]
    log.write_text("".join(line_of(s) + "\n" for s in steps))
    assert loss_curve(log, ["training"])["loss"][-1] == pytest.approx((32 + 100) / 33, rel=1e-4)


# --- rows to read --------------------------------------------------------------------------------

Y = [1, 1, 1, 1, 0, 0]


def ladder():
    return [
        rung("majority", "control", [0.6] * 6),
        #                      wrong wrong right wrong wrong right
        rung("bag", "simpler", [0.4, 0.1, 0.9, 0.3, 0.8, 0.2]),
        rung("enc", "simpler", [0.3, 0.2, 0.7, 0.2, 0.7, 0.1]),
        #                   wrong wrong wrong right right right
        rung("llm", "llm", [0.4, 0.3, 0.2, 0.9, 0.4, 0.3]),
    ]


def test_lists_of_a_small_ladder():
    found = analyse_errors(make_task(Y), ladder(), best="bag", llm="llm")
    # Mean probability of the label: row 0 has 0.367, row 1 0.2. The majority class is no reader.
    assert (ids(found["all_wrong"]), found["all_wrong_count"]) == ([1, 0], 2)
    assert (ids(found["only_llm"]), found["only_llm_count"]) == ([3, 4], 2)
    assert (ids(found["only_simpler"]), found["only_simpler_count"]) == ([2], 1)
    # Wrong with 0.9, 0.8, 0.7, 0.6.
    assert (ids(found["most_confident"]), found["most_confident_count"]) == ([1, 4, 3, 0], 4)
    assert (found["best"], found["llm"]) == ("bag", "llm")


def test_a_row_tells_text_label_and_every_answer_the_best_first():
    row = analyse_errors(make_task(Y), ladder(), best="llm", llm="llm")["all_wrong"][0]
    assert row == {
        "id": "test:2",
        "label": "yes",
        "text": {"question": "question 1", "passage": "passage 1"},
        "answers": [
            {"rung": "llm", "answer": "no", "probability": 0.7},
            {"rung": "majority", "answer": "yes", "probability": 0.6},
            {"rung": "bag", "answer": "no", "probability": 0.9},
            {"rung": "enc", "answer": "no", "probability": 0.8},
        ],
    }


def test_without_texts_none_is_told():
    found = analyse_errors(make_task(Y), ladder(), best="bag", llm="llm", with_texts=False)
    assert all(row["text"] is None for name in LISTS for row in found[name])
    assert "passage" not in json.dumps(found)


@pytest.mark.parametrize(
    ("right", "majority"), [(1, False), (2, False), (3, True)], ids=["1 of 4", "2 of 4", "3 of 4"]
)
def test_only_simpler_needs_more_than_half_of_the_simpler_rungs(right, majority):
    rungs = [rung(f"s{i}", "simpler", [0.9 if i < right else 0.1]) for i in range(4)]
    rungs.append(rung("llm", "llm", [0.1]))
    found = analyse_errors(make_task([1]), rungs, best="llm", llm="llm")
    assert found["only_simpler_count"] == majority


def test_only_simpler_begins_where_the_simpler_rungs_are_surest():
    rungs = [rung("bag", "simpler", [0.6, 0.9, 0.7]), rung("llm", "llm", [0.1, 0.2, 0.3])]
    found = analyse_errors(make_task([1, 1, 1]), rungs, best="llm", llm="llm")
    assert ids(found["only_simpler"]) == [1, 2, 0]


def test_another_llm_rung_does_not_keep_a_row_from_only_llm():
    rungs = [*ladder(), rung("zero-shot", "llm", [0.9] * 6)]
    found = analyse_errors(make_task(Y), rungs, best="bag", llm="llm")
    assert ids(found["only_llm"]) == [3, 4]
    assert ids(found["all_wrong"]) == []  # zero-shot is right on rows 0 and 1


def test_one_rung_and_no_llm():
    only = [rung("bag", "simpler", [0.4, 0.1, 0.9, 0.3, 0.8, 0.2])]
    found = analyse_errors(make_task(Y), only, best="bag", llm=None)
    assert ids(found["all_wrong"]) == ids(found["most_confident"]) == [1, 4, 3, 0]
    assert found["only_llm_count"] == found["only_simpler_count"] == 0
    assert found["only_llm"] == found["only_simpler"] == []
    assert found["llm"] is None


@pytest.mark.parametrize(
    ("rungs", "llm", "empty"),
    [
        ([rung("r", "control", [0.6] * 6)], None, ["all_wrong", "only_llm", "only_simpler"]),
        ([rung("r", "llm", [0.6] * 6)], "r", ["only_llm", "only_simpler"]),
    ],
    ids=["a control alone", "an LLM alone"],
)
def test_lists_without_anything_to_compare_are_empty(rungs, llm, empty):
    found = analyse_errors(make_task(Y), rungs, best="r", llm=llm)
    assert [name for name in LISTS if not found[f"{name}_count"]] == empty
    assert ids(found["most_confident"]) == [4, 5]


def test_unknown_is_wrong_and_the_least_sure():
    answers = [-1, 0, 1]
    rungs = [rung("llm", "llm", [0.99, 0.4, 0.9], answers), rung("bag", "simpler", [0.9, 0.3, 0.3])]
    found = analyse_errors(make_task([1, 1, 1]), rungs, best="llm", llm="llm")
    assert ids(found["most_confident"]) == [1, 0]
    assert ids(found["only_simpler"]) == [0]
    unknown = found["most_confident"][1]["answers"][0]
    assert unknown == {"rung": "llm", "answer": "unknown", "probability": 0.0}


def test_lists_are_cut_and_ties_keep_the_order_of_the_rows():
    n = 3 * LISTED
    # Sums of 0.1, 0.2 and 0.3 differ in the last bit with their order.
    orders = [(0.1, 0.2, 0.3), (0.3, 0.2, 0.1), (0.2, 0.3, 0.1)]
    yes = [orders[row % 3] for row in range(n)]
    rungs = [rung(f"r{i}", "simpler", [p[i] for p in yes]) for i in range(3)]
    found = analyse_errors(make_task([1] * n), rungs, best="r0", llm=None)
    assert ids(found["all_wrong"]) == list(range(LISTED))
    assert found["all_wrong_count"] == n
    assert ids(found["most_confident"]) == list(range(0, n, 3))  # 0.9 comes before 0.8 and 0.7


@given(answered())
def test_lists_hold_the_rows_they_should(case):
    task, rungs, best, llm = case
    y = task.test.y
    right = {r.name: r.answers == y for r in rungs}
    readers = [right[r.name] for r in rungs if r.kind != "control"]
    simpler = [right[r.name] for r in rungs if r.kind == "simpler"]
    expected = {name: np.zeros(len(y), bool) for name in LISTS}
    expected["most_confident"] = ~right[best]
    if readers:
        expected["all_wrong"] = ~np.any(readers, axis=0)
    if simpler and llm is not None:
        expected["only_llm"] = right[llm] & ~np.any(simpler, axis=0)
        expected["only_simpler"] = ~right[llm] & (np.mean(simpler, axis=0) > 0.5)

    found = analyse_errors(task, rungs, best=best, llm=llm)
    assert json.loads(json.dumps(found)) == found
    for name, rows in expected.items():
        listed = ids(found[name])
        assert found[f"{name}_count"] == rows.sum()
        assert len(listed) == len(set(listed)) == min(rows.sum(), LISTED)
        assert rows[listed].all()
    for row in found["most_confident"]:
        names = [answer["rung"] for answer in row["answers"]]
        assert names == [best, *(r.name for r in rungs if r.name != best)]
    sure = [row["answers"][0]["probability"] for row in found["most_confident"]]
    assert all(a >= b - 1e-9 for a, b in pairwise(sure))


@given(answered(), st.randoms())
def test_the_order_of_the_rungs_changes_no_list(case, random):
    task, rungs, best, llm = case
    found = analyse_errors(task, rungs, best=best, llm=llm)
    random.shuffle(rungs)
    again = analyse_errors(task, rungs, best=best, llm=llm)
    assert [ids(found[name]) for name in LISTS] == [ids(again[name]) for name in LISTS]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"best": "rnn", "llm": None}, r"best must be one of \['majority', .*'llm'\], got 'rnn'"),
        ({"best": "bag", "llm": "enc"}, r"llm must be one of \['llm'\], got 'enc'"),
    ],
)
def test_rungs_that_are_not_there_are_named(names, message):
    with pytest.raises(ValueError, match=message):
        analyse_errors(make_task(Y), ladder(), **names)


def test_answers_to_other_rows_are_refused():
    message = (
        r"bag: answers and proba must have shapes \(6,\) and \(6, 2\), got \(5,\) and \(5, 2\)"
    )
    with pytest.raises(ValueError, match=message):
        analyse_errors(make_task(Y), [rung("bag", "simpler", [0.5] * 5)], best="bag", llm=None)
