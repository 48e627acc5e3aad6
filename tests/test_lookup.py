import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llabel.check import best_lookup_column, look_up
from llabel.data import load_task
from llabel.ladder import lookup
from llabel.ladder.contract import FitSettings
from llabel.ladder.lookup import LookupRung, field_order, key_of, remember
from llabel.ladder.majority import class_shares
from llabel.metrics import log_loss
from llabel.task import Split, Task


def split(part, rows):
    texts = tuple(tuple(texts) for *texts, _ in rows)
    y = np.array([label for *_, label in rows], dtype=np.int64)
    return Split(tuple(f"{part}:{n}" for n in range(1, len(rows) + 1)), texts, y)


def make(train, test, validation=(("v", "v", 0),), fields=("question", "passage"), classes="ab"):
    parts = split("train", train), split("validation", validation), split("test", test)
    return Task("made up", fields, tuple(classes), *parts, "0" * 64)


def fit(task, **settings):
    return LookupRung(FitSettings(**settings)).fit(task)


# Passages tell the class three times out of four where they recur; every question is new.
TRAIN = [
    ("q1", "Passage A", 1),
    ("q2", "passage  a ", 1),
    ("q3", "PASSAGE A", 1),
    ("q4", "passage a", 0),
    ("q5", "passage b", 0),
    ("q6", "passage b", 0),
    ("q7", "passage b", 1),
    ("q8", "passage c", 0),
    ("q9", "passage c", 0),
    ("q10", "", 0),
]


def test_probabilities_are_smoothed_counts_of_the_rows_that_share_a_field():
    rung = fit(make(TRAIN, [("t", "t", 0)]))
    share = 5 / 12  # of b, one row added to each class
    asked = [("new", "passage\tA"), ("new", "passage c"), ("new", "new"), ("", ""), ("Q1", "new")]
    proba = rung.predict_proba(asked)[:, 1]
    expected = [(3 + share) / 5, (0 + share) / 3, share, share, (1 + share) / 2]
    np.testing.assert_allclose(proba, expected)


def test_the_class_shares_decide_a_tie():
    train = [("x", "a", 2), ("x", "b", 1), ("y", "c", 1), ("z", "d", 0), ("w", "e", 0)]
    train += [("u", "f", 0), ("y", "g", 1), ("y", "h", 1)]
    rung = fit(make(train, [("t", "t", 0)], classes="abc"))
    assert rung.predict_proba([("x", "new")]).argmax() == 1


def test_a_field_that_misleads_is_not_used():
    # Equal colours never have equal labels: to look them up is worse than to know nothing.
    train = [(f"colour {n // 2}", f"p {n // 4}", n % 2 if n < 4 else n // 4 % 2) for n in range(4)]
    train += [(f"colour {n // 2}", "passage of ones", n % 2) for n in range(4, 12)]
    rung = fit(make(train, [("t", "t", 0)], fields=("colour", "passage")))
    assert rung.record_.settings == {"fields": []}
    assert np.ptp(rung.predict_proba([("colour 1", "p 0"), ("new", "new")])[:, 0]) == 0


def test_fields_that_recur_are_asked_in_the_order_of_how_often_they_are_right():
    train = [(f"good {n % 4}", f"fair {n % 6}", n % 4 // 2) for n in range(24)]
    train = [(a, b if n % 8 else "odd", y) for n, (a, b, y) in enumerate(train)]
    names = ("sure", "less sure")
    for flip in (1, -1):
        rows = [(*row[:2][::flip], row[2]) for row in train]
        task = make(rows, [("t", "t", 0)], fields=names[::flip])
        assert fit(task).record_.settings["fields"][0] == "sure"


def test_fields_that_never_recur_are_asked_first_and_the_longest_before_the_others():
    train = [(f"q{n}", f"a long passage {n}", f"topic {n % 2}", n % 2) for n in range(8)]
    fields = ("question", "passage", "topic")
    rung = fit(make(train, [("t", "t", "t", 0)], [("v", "v", "v", 0)], fields))
    assert rung.record_.settings["fields"] == ["passage", "question", "topic"]
    (copy,) = rung.predict_proba([("new", "a long passage 3", "topic 0")])
    assert copy[1] == (1 + 0.5) / 2


def test_refit_knows_validation_too_and_keeps_the_fields():
    validation = [("v1", "passage v", 1), ("v2", "passage v", 1), ("v3", "passage b", 1)]
    task = make(TRAIN, [("t", "t", 0)], validation)
    before, after = fit(task), fit(task, refit=True)
    assert after.record_.settings == before.record_.settings
    np.testing.assert_array_equal(after.validation_proba_, before.validation_proba_)
    share = 8 / 15
    asked = [("new", "passage v"), ("new", "passage b"), ("new", "new")]
    np.testing.assert_allclose(
        after.predict_proba(asked)[:, 1], [(2 + share) / 3, (2 + share) / 5, share]
    )


@given(
    st.lists(st.tuples(st.sampled_from(["", "a", "A ", "b", "c"]), st.integers(0, 2)), min_size=1),
    st.lists(st.sampled_from(["", "a", "b", "c", "d"])),
)
def test_what_is_found_are_the_counts(rows: list[tuple[str, int]], asked: list[str]):
    keys = [key_of(text) for text, _ in rows]
    memory = remember(keys, np.array([label for _, label in rows]), 3)
    known, rows_of_found = memory.rows_of([key_of(text) for text in asked])
    counts = [row for _, block in memory.blocks(rows_of_found) for row in block.tolist()]
    seen = [(text.strip().lower(), label) for text, label in rows]
    found = [text for text in asked if text and text in dict(seen)]
    assert known.tolist() == [bool(text) and text in dict(seen) for text in asked]
    assert counts == [[seen.count((text, k)) for k in range(3)] for text in found]


def test_many_rows_of_many_classes_are_never_written_out_at_once():
    """As a table of rows by classes the counts would take 160 MB."""
    rng = np.random.default_rng(0)
    n, n_classes = 20_000, 1000
    fields = ("once", "often")
    rows = [(f"q{i}", f"p{i // 4}", int(y)) for i, y in enumerate(rng.integers(0, n_classes, n))]
    keys = {f: [key_of(row[at]) for row in rows] for at, f in enumerate(fields)}
    y = np.array([row[-1] for row in rows])
    y[: n // 2] = np.arange(n // 2) // 4 % n_classes  # where the value tells the class
    shares = class_shares(y, n_classes)
    memories = {field: remember(keys[field], y, n_classes) for field in fields}
    tracemalloc.start()
    order = field_order(memories, keys, y, shares, dict.fromkeys(fields, 1.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert order == fields
    assert peak < 100e6


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 2)), min_size=1), st.data())
def test_rows_are_answered_alike_however_few_at_a_time(rows, data):
    task = make([("", text, label) for text, label in rows], [("t", "t", 0)], classes="abc")
    asked = [("", text) for text in data.draw(st.lists(st.sampled_from("abcdxyz")))]
    whole = fit(task)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "_CELLS", 6)
        few = fit(task)
        assert few.record_ == whole.record_
        assert np.array_equal(few.predict_proba(asked), whole.predict_proba(asked))


def test_a_saved_rung_holds_no_text(tmp_path: Path):
    fit(make([("secret words", "more of them", n % 2) for n in range(4)], [("t", "t", 0)])).save(
        tmp_path
    )
    for path in tmp_path.iterdir():
        assert b"secret" not in path.read_bytes()


def test_a_rung_saved_before_texts_were_composed_is_asked_as_they_were(tmp_path: Path):
    train = [("cafe\u0301", 1), ("cafe\u0301", 1), ("b", 0), ("b", 0)]
    asked = [("caf\u00e9",), ("Cafe\u0301",)]
    rung = fit(make(train, [("t", 0)], [("v", 0)], fields=("text",)))
    assert (rung.predict_proba(asked)[:, 1] > 0.8).all()
    rung.save(tmp_path)
    assert (LookupRung.load(tmp_path).predict_proba(asked)[:, 1] > 0.8).all()

    old = LookupRung(FitSettings())
    old.fold_ = lookup._folded_in_any_form
    old.fit(make(train, [("t", 0)], [("v", 0)], fields=("text",))).save(tmp_path)
    record = json.loads((tmp_path / "rung.json").read_text())
    del record["settings"]["unicode_form"]  # which was not written then
    (tmp_path / "rung.json").write_text(json.dumps(record))
    known = LookupRung.load(tmp_path).predict_proba(asked)[:, 1] > 0.8
    assert known.tolist() == [False, True]


def test_boolq_by_passage(boolq: Path):
    """What the published look-up scores, though validation shares no passage with training."""
    task = load_task(str(boolq), text=("question", "passage"), label="answer", group="passage").task
    rung = fit(task, refit=True)
    proba = rung.predict_proba(task.test.texts)
    right = proba.argmax(axis=1) == task.test.y
    assert round(float(right.mean()), 4) == pytest.approx(0.6725, abs=1e-4)
    assert log_loss(task.test.y, proba) < 0.62
    column = best_lookup_column(task)
    assert column == "passage"
    assert abs((look_up(task, column) == task.test.y).mean() - right.mean()) < 1e-3
