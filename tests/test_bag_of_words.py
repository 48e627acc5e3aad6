import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llabel.ladder import bag_of_words
from llabel.ladder.bag_of_words import BagOfWordsRung
from llabel.ladder.contract import FitSettings
from llabel.task import Split, Task
from tiny_tasks import make_task


def two_fields(pairs, labels):
    texts = tuple(pairs)
    part = Split(tuple(f"train:{n}" for n in range(len(texts))), texts, np.array(labels))
    return Task("pairs", ("question", "passage"), ("no", "yes"), part, part, part, "0" * 64)


def fit(task, **settings):
    return BagOfWordsRung(FitSettings(**settings)).fit(task)


def test_each_field_has_words_of_its_own():
    pairs = [("alpha", "beta"), ("beta", "alpha")] * 6
    task = two_fields(pairs, [0, 1] * 6)
    proba = fit(task).predict_proba(task.test.texts)
    assert proba.argmax(axis=1).tolist() == [0, 1] * 6


def test_features_are_words_and_pairs_of_them_and_parts_of_words():
    rung = fit(two_fields([("A b", "xyz")] * 2, [0, 1]))
    terms = {(block.field, block.kind): set(block.vectoriser.vocabulary_) for block in rung.blocks_}
    assert terms[0, "words"] == {"a", "b", "a b"}
    assert terms[1, "words"] == {"xyz"}
    assert {" x", "xyz", "yz ", " xyz "} <= terms[1, "characters"]
    assert rung.record_.settings["features"]["words of question"] == 3


@pytest.mark.parametrize(
    ("texts", "unheard"),
    [
        (("好电影 很喜欢", "坏电影 不喜欢"), ("很喜欢这部", "不喜欢这部")),
        (("отличный фильм", "ужасный фильм"), ("отличная", "ужасная")),
        (("فيلم رائع", "فيلم سيئ"), ("رائعة", "سيئة")),
    ],
    ids=["Chinese", "Russian", "Arabic"],
)
def test_parts_of_words_tell_in_any_script(texts, unheard):
    rung = fit(two_fields([(text, "") for text in texts] * 4, [1, 0] * 4))
    assert rung.predict_proba([(text, "") for text in unheard]).argmax(axis=1).tolist() == [1, 0]


def test_without_any_word_there_are_the_class_shares(tmp_path: Path):
    task = two_fields([("", " "), ("", "")] * 4, [0, 1, 0, 0, 0, 1, 0, 0])
    rung = fit(task, refit=True)
    np.testing.assert_allclose(rung.predict_proba([("", ""), ("a", "b")])[:, 1], 0.25, rtol=1e-6)
    rung.save(tmp_path)
    again = BagOfWordsRung.load(tmp_path)
    np.testing.assert_allclose(again.predict_proba([("a", "b")])[:, 1], 0.25, rtol=1e-6)


def test_punctuation_alone_still_has_characters():
    rung = fit(two_fields([("!!!", ""), ("???", "")] * 4, [1, 0] * 4))
    assert {block.kind for block in rung.blocks_} == {"characters"}
    assert rung.predict_proba([("!!", ""), ("??", "")]).argmax(axis=1).tolist() == [1, 0]


def test_bounds_hold_and_no_seed_matters(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bag_of_words, "FEATURES", 7)
    monkeypatch.setattr(bag_of_words, "VOCABULARY_ROWS", 5)
    task = make_task(train=30)
    rung, again, other = fit(task), fit(task), fit(task, seed=1)
    sizes = [len(block.vectoriser.vocabulary_) for block in rung.blocks_]
    assert max(sizes) == 7

    def terms(rung):
        return [sorted(block.vectoriser.vocabulary_) for block in rung.blocks_]

    assert terms(rung) == terms(again) == terms(other)


def test_files_are_json_and_safetensors(tmp_path: Path):
    rung = fit(make_task())
    rung.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    words = json.loads((tmp_path / "words.json").read_text(encoding="utf-8"))
    assert [len(terms) for terms in words.values()] == list(
        rung.record_.settings["features"].values()
    )


def test_windows_do_not_matter(monkeypatch: pytest.MonkeyPatch):
    task = make_task(train=30)
    rung = fit(task)
    whole = rung.predict_proba(task.train.texts)
    monkeypatch.setattr(bag_of_words, "WINDOW", 7)
    np.testing.assert_allclose(rung.predict_proba(task.train.texts), whole, rtol=0, atol=1e-12)


def test_a_budget_leaves_out_trials_not_the_rung():
    record = fit(make_task(), trials=5, budget=1e-9).record_
    assert len(record.trials) == 1
    assert record.chosen == 0


def test_fields_without_words_are_left_out():
    task = make_task()
    blank = replace(task.train, texts=tuple((q, "") for q, _ in task.train.texts))
    rung = fit(replace(task, train=blank))
    assert {block.field for block in rung.blocks_} == {0}
    assert rung.predict_proba(task.test.texts).shape == (4, 2)


@pytest.mark.parametrize("module", ["majority", "lookup", "bag_of_words", "glove"])
def test_torch_is_not_imported(module: str):
    code = f"import sys, llabel.ladder.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
