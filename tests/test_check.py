import gzip
import io
import json
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from llabel.check import best_lookup_column, check, look_up, overlaps
from llabel.check.estimate import estimate_run
from llabel.check.view import render
from llabel.metrics import wilson_interval
from llabel.task import Split, Task
from test_estimate import SMOLLM2

SHARED = Path(os.environ.get("LLABEL_SHARED", Path(__file__).parents[2] / "shared"))


def split(part, rows):
    """Make a part from (field, ..., class index) rows."""
    return Split(
        ids=tuple(f"{part}:{number}" for number in range(1, len(rows) + 1)),
        texts=tuple(tuple(row[:-1]) for row in rows),
        y=np.array([row[-1] for row in rows], dtype=np.int64),
    )


def make_task(train, test=(), validation=(), fields=("text",), classes=("no", "yes")):
    return Task(
        name="toy",
        fields=fields,
        classes=classes,
        train=split("train", train),
        validation=split("validation", validation),
        test=split("test", test),
        fingerprint="f" * 64,
    )


def count_words(texts):
    return [sum(len(field.split()) for field in row) for row in texts]


def run(task, max_length=100, **options):
    return check(task, count_words, max_length=max_length, **options)


FIELDS = ("question", "passage")
LONG = "and so on " * 10  # what makes a field one that gives answers away
# Training: passage A is yes twice and no once, B ties, C is no; the majority is no (4 of 7).
QA_TRAIN = [
    ("q one alpha", "Passage A", 1),
    ("q two beta", "passage  a ", 1),
    ("q three gamma", "passage a", 0),
    ("q four delta", "passage b", 1),
    ("q five epsilon", "passage b", 0),
    ("q six zeta", "passage c", 0),
    ("q seven eta", "passage d", 0),
]
QA_TEST = [
    ("t one", "PASSAGE\tA", 1),  # look-up yes: right
    ("t two", "passage a", 0),  # look-up yes: wrong
    ("t three", "passage b", 0),  # tie: majority no, right
    ("t four", "passage new", 1),  # majority no: wrong
    ("t five", "passage c", 0),  # look-up no: right
]


def lengthened(rows):
    return [(question, f"{passage} {LONG}", label) for question, passage, label in rows]


def qa_task(**parts):
    return make_task(
        lengthened(QA_TRAIN), **{k: lengthened(v) for k, v in parts.items()}, fields=FIELDS
    )


def test_overlap_and_lookup_by_field():
    task = qa_task(test=QA_TEST)
    report = run(task)
    question, passage = report.overlap
    assert (question.part, question.field, question.rows) == ("test", "question", 0)
    assert question.shared_accuracy is None
    assert question.lookup_accuracy == question.majority_accuracy == 3 / 5
    assert (passage.field, passage.rows, passage.share) == ("passage", 4, 0.8)
    assert passage.lookup_accuracy == 3 / 5
    assert passage.lookup_ci95 == wilson_interval(3, 5)
    assert passage.shared_accuracy == 3 / 4
    assert report.best_lookup == passage
    told = (
        "80 % of test rows share their `passage` with training or validation; looking those up "
        "scores 0.6000 (majority class 0.6000)"
    )
    assert told + "; the test part is given: report its unseen rows apart" in report.warnings
    advice = told + ", so hold out by it: --group passage"
    assert advice in run(task, cut=("validation", "test")).warnings
    assert advice not in run(task, cut=("validation",)).warnings


def test_shared_short_texts_are_no_leak():
    task = make_task([("yes", LONG + "a", 1), ("no", LONG + "b", 0)], [("yes", LONG + "c", 1)],
                     fields=FIELDS)  # fmt: skip
    report = run(task, cut=("test",))
    assert report.overlap[0].rows == 1
    assert not any("share their" in line for line in report.warnings)


def test_group_advice_can_be_pasted_into_a_shell():
    rows = [(LONG + "a", 0), (LONG + "b", 1)]
    found = run(make_task(rows, rows, fields=("my text",)), cut=("test",)).warnings
    assert any(line.endswith("--group 'my text'") for line in found)


def test_look_up_answers_from_training_and_validation():
    task = qa_task(validation=[("v", "passage c", 1), ("w", "passage new", 1)], test=QA_TEST)
    # Known now: yes 5, no 4. A yes, B ties: majority yes, new yes, C ties: majority yes.
    assert look_up(task, "passage").tolist() == [1, 1, 1, 1, 1]
    assert look_up(task, "passage", validation=False).tolist() == [1, 1, 0, 0, 0]
    without = qa_task(test=QA_TEST)
    assert look_up(without, "passage").tolist() == [1, 1, 0, 0, 0]
    assert look_up(without, "question").tolist() == [0] * 5
    for field in FIELDS:
        right = (look_up(task, field) == task.test.y).mean()
        (entry,) = (e for e in overlaps(task) if (e.part, e.field) == ("test", field))
        assert entry.lookup_accuracy == right


def test_the_column_to_look_up_is_chosen_without_test_labels():
    train = [("q1", "p1", 0), ("q2", "p2", 1), ("q3", "p3", 1), ("q4", "p4", 0)]
    validation = [("q1", "p2", 0), ("q2", "p1", 1)]  # here the question tells the answer
    test = [("q1", "p2", 1), ("q2", "p1", 0), ("x", "p3", 1)]  # here the passage does
    chosen = best_lookup_column(make_task(train, test, validation, FIELDS))
    assert chosen == "question"
    report = run(make_task(train, test, validation, FIELDS))
    assert (report.best_lookup.part, report.best_lookup.field) == ("test", "question")


@pytest.mark.parametrize(
    ("validation", "test", "column"),
    [
        # Held out by passage: the question alone could be judged, and so neither is.
        ([("q1", "new", 0)], [("q1", "p1", 0), ("x", "p2", 1)], "passage"),
        ([], [("x", "p2", 1)], "passage"),
        ([("q1", "p1", 0)], [("x", "new", 1)], None),
    ],
)
def test_the_column_to_look_up_where_validation_cannot_judge(validation, test, column):
    train = [("q1", "p1", 0), ("q2", "p2", 1)]
    assert best_lookup_column(make_task(train, test, validation, FIELDS)) == column


def test_small_classes_share_one_line():
    names = tuple(f"c{i:02}" for i in range(12))
    rows = [
        (f"{i} {row} {i * row}", i) for i in range(12) for row in range(30 if i > 7 else 1 + i % 8)
    ]
    (line,) = (w for w in run(make_task(rows, classes=names)).warnings if "learnable" in w)
    assert line == (
        "7 classes have fewer than 8 training rows: 'c00' (1), 'c01' (2), 'c02' (3), 'c03' (4), "
        "'c04' (5) and 2 more: hardly learnable"
    )


def test_control_characters_are_spelt_out():
    evil = "\x1b[31mred\x07"
    task = make_task([("same", 0), ("same", 1)] * 4, [("same", 0)], classes=(evil, "b"),
                     fields=(evil,))  # fmt: skip
    report = run(task, max_length=1)
    file = io.StringIO()
    Console(file=file, width=200, force_terminal=False).print(render(report))
    assert "\x1b" not in file.getvalue()
    assert "\x07" not in file.getvalue()
    assert "\\x1b[31mred\\x07" in file.getvalue()
    assert report.classes[0].label == evil  # the JSON keeps it


def test_validation_is_looked_up_in_training_and_test_in_both():
    task = make_task(
        train=[("a a a", 0), ("b b b", 0), ("x x x", 0), ("y y y", 0), ("z z z", 1)],
        validation=[("a a a", 1), ("c c c", 1)],
        test=[("c c c", 1), ("d d d", 0)],
    )
    validation, test = run(task).overlap
    assert (validation.part, validation.rows, validation.lookup_accuracy) == ("validation", 1, 0)
    assert (test.part, test.rows, test.lookup_accuracy) == ("test", 1, 1.0)


def test_empty_values_are_not_shared():
    report = run(make_task([("", "a", 0), (" ", "b", 1)], [("", "c", 1)], fields=("title", "body")))
    assert [entry.rows for entry in report.overlap] == [0, 0]
    assert report.best_lookup is None


def test_class_counts_and_class_warnings():
    train = [(f"text number {i}", 0) for i in range(95)] + [(f"odd one {i}", 1) for i in range(5)]
    report = run(make_task(train, [("t", 1)], classes=(False, True)))
    assert [(row.label, row.train, row.validation, row.test) for row in report.classes] == [
        ("False", 95, 0, 0),
        ("True", 5, 0, 1),
    ]
    assert any("class 'True' has only 5 training rows" in line for line in report.warnings)
    assert any("class 'False' makes up 95 % of training" in line for line in report.warnings)
    assert any("test has only 1 rows: an accuracy of 0.00" in line for line in report.warnings)


def test_token_lengths_are_of_the_whole_prompt_and_totals_of_the_cut_one():
    train = [(" ".join(["w"] * length), length % 2) for length in range(1, 21)]
    report = run(make_task(train, [("w w w", 0)]), max_length=15)
    lengths, test = report.tokens
    assert (lengths.part, lengths.rows) == ("train", 20)
    assert (lengths.p50, lengths.p95, lengths.max) == (10, 19, 20)
    assert lengths.truncated == 5
    assert lengths.total == sum(range(1, 16)) + 5 * 15
    assert (test.part, test.truncated, test.total) == ("test", 0, 3)
    assert (
        "5 of 20 training rows (25 %) are longer than 15 tokens (longest 20) and lose a part of "
        "their longest field (--long): raise --max-seq-length if it matters"
    ) in report.warnings


def test_rows_that_are_predicted_piece_by_piece_lose_nothing():
    long, short = (" ".join(["w"] * length) for length in (25, 5))
    task = make_task([(long, 0), (short, 1)], [(long, 0), (short, 1)], [(long, 0)])
    report = run(task, max_length=10, template_length=4)
    train, validation, test = report.tokens
    # Beside the template's 4 tokens there are 21 of text, 6 of which a piece has room for.
    assert (train.total, validation.total, test.total) == (10 + 5, 25 + 3 * 4, 25 + 3 * 4 + 5)
    assert (train.truncated, validation.truncated, test.truncated) == (1, 0, 0)
    (told,) = [line for line in report.warnings if "lose a part" in line]
    assert told.startswith("1 of 2 training rows")


def test_duplicates_are_counted_once_and_by_their_gravest_kind():
    one, two, three = (
        " ".join(np.random.default_rng(seed).permutation(list("abcdefghijklmnopqrstuvwxyz") * 2))
        for seed in range(3)
    )
    task = make_task(
        train=[(one, 0), (one.upper(), 0), (one + " end", 1), (two, 1)],
        validation=[(two + " ", 0), (three, 0)],
        test=[(one, 0), (one, 0), (three + " end", 0), ("fresh text", 0), ("fresh  text", 0)],
    )
    train, validation, test = run(task).repeats
    assert (train.exact_within, train.near_within) == (1, 1)
    assert (train.exact_earlier, train.near_earlier) == (0, 0)
    assert (validation.exact_earlier, validation.near_earlier) == (1, 0)
    assert (test.exact_earlier, test.near_earlier) == (2, 1)
    assert (test.exact_within, test.near_within) == (1, 0)
    assert any(
        "3 test rows (60 %) repeat an earlier part's row (2 exactly, 1 nearly)" in line
        for line in run(task).warnings
    )


def test_same_text_with_different_labels():
    task = make_task(
        train=[("same", 0), ("same", 0), ("same", 0), ("same", 0), ("Same ", 1), ("other", 0)],
        test=[("other", 1), ("clear", 1)],
    )
    report = run(task)
    assert report.conflicting_rows == 7
    same, other = report.conflicts
    assert same.ids == ("train:1", "train:5", "train:2", "train:3")
    assert same.labels == ("no", "yes", "no", "no")
    assert (other.ids, other.labels) == (("train:6", "test:1"), ("no", "yes"))
    assert any("7 rows share their text with a row of another label" in w for w in report.warnings)


def test_a_clean_task_has_nothing_to_warn_about():
    rng = np.random.default_rng(0)
    rows = [(" ".join(map(str, rng.integers(0, 10**6, 8))), i % 2) for i in range(1200)]
    report = run(make_task(rows[:600], rows[600:]))
    assert report.warnings == ()
    assert report.conflicts == ()
    assert "Nothing to warn about" in rendered(report)


def test_report_is_json_ready_and_rendered_whole():
    cost = partial(estimate_run, model=SMOLLM2, epochs=2, flops_per_second=1e11, token_budget=1024)
    task = make_task(QA_TRAIN, QA_TEST, fields=("question", "[bold]"), classes=("[/no]", "yes"))
    report = run(task, max_length=4, cost=cost)
    assert json.loads(json.dumps(asdict(report)))["classes"][0]["label"] == "[/no]"
    shown = rendered(report)
    for expected in ("[/no]", "[bold]", "over 4 (cut)", "80.0%", "0.6000", "factor of two"):
        assert expected in shown
    for warning in report.warnings:
        assert f"! {warning}" in shown


def rendered(report):
    console = Console(width=400, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(render(report))
    return console.export_text()


def test_tokens_and_cost_are_optional():
    report = check(make_task(QA_TRAIN, fields=("q", "p")), None, max_length=9, cost=pytest.fail)
    assert report.tokens is None
    assert report.estimate is None
    assert report.overlap == ()


def test_cost_gets_tokens_after_truncation():
    asked = []

    def cost(train_tokens, predict_tokens):
        asked.append((train_tokens, predict_tokens))

    task = make_task([("a b c d", 0), ("e f", 1)], test=[("g h i j k", 0)], validation=[("l", 1)])
    run(task, max_length=3, cost=cost)
    assert asked == [(5, 4)]


@pytest.mark.parametrize(
    ("count_tokens", "max_length", "message"),
    [
        (count_words, 0, "max_length must be at least 1, got 0"),
        (lambda texts: [1], 9, "each of the 7 train rows"),
    ],
)
def test_misuse_is_named(count_tokens, max_length, message):
    with pytest.raises(ValueError, match=message):
        check(make_task(QA_TRAIN, fields=("q", "p")), count_tokens, max_length=max_length)


def boolq(part):
    path = SHARED / "data" / "boolq" / f"{part}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"needs {path}")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [(row["question"], row["passage"], int(row["answer"])) for row in rows]


@pytest.mark.parametrize("held_out", [0, 900])
def test_boolq_passages_looked_up_beat_the_majority(held_out):
    rows = boolq("train")
    task = make_task(
        rows[held_out:],
        test=boolq("validation"),
        validation=rows[:held_out],
        fields=("question", "passage"),
        classes=(False, True),
    )
    report = check(task, None, max_length=256)
    found = report.best_lookup
    assert (found.field, found.part, found.rows) == ("passage", "test", 952)
    assert round(found.share, 2) == 0.29
    assert round(found.lookup_accuracy, 4) == 0.6725
    assert round(found.shared_accuracy, 2) == 0.81
    assert round(found.majority_accuracy, 4) == 0.6217
    assert (
        "29 % of test rows share their `passage` with training or validation; looking those up "
        "scores 0.6725 (majority class 0.6217); the test part is given: report its unseen rows "
        "apart"
    ) in report.warnings
