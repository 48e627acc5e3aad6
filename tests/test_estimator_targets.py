"""`LLMClassifier` on labels of several targets, as scikit-learn has them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.utils import get_tags

from llabel import LLMClassifier
from llabel.confidence import Confidence, write_confidence
from llabel.ladder.targets import target_folder
from two_targets import CLASSES, joint_task

TASK = joint_task(train=24)
X = [text for _, text in TASK.train.texts]
Y = pd.DataFrame({
    name: [CLASSES[index].label for index in TASK.train.y[:, column]]
    for column, name in enumerate(("weather", "place"))
})  # fmt: skip


@pytest.fixture(scope="module")
def fitted(tiny_llama: Path) -> LLMClassifier:
    settings: dict[str, Any] = {"r": 4, "epochs": 1, "learning_rate": 1e-2, "device": "cpu"}
    return LLMClassifier(str(tiny_llama), **settings).fit(X, Y)


def test_several_targets_give_lists_as_scikit_learn_does(fitted: LLMClassifier) -> None:
    assert [list(classes) for classes in fitted.classes_] == [
        ["ice", "sun"], ["hill", "sea", "town"]
    ]  # fmt: skip
    proba = fitted.predict_proba(X)
    assert isinstance(proba, list)
    assert [own.shape for own in proba] == [(24, 2), (24, 3)]
    for own in proba:
        np.testing.assert_allclose(own.sum(axis=1), 1)
    answers = fitted.predict(X)
    assert answers.shape == (24, 2)
    assert answers[3, 1] == fitted.classes_[1][proba[1][3].argmax()]
    assert fitted.rung_.template_.tails == (" Weather:", " Place:")


def test_what_was_saved_says_the_same(fitted: LLMClassifier, tmp_path: Path) -> None:
    old = target_folder(tmp_path / "both", "place")  # of another model that was saved here
    old.mkdir(parents=True)
    write_confidence(old, Confidence(abstain_below=0.99))
    fitted.save(tmp_path / "both")
    again = LLMClassifier.load(tmp_path / "both")
    assert again.confidences_ == fitted.confidences_
    for ours, theirs in zip(fitted.predict_proba(X), again.predict_proba(X), strict=True):
        assert np.array_equal(ours, theirs)


def test_a_row_counts_where_every_target_is_right(fitted: LLMClassifier) -> None:
    right = (fitted.predict(X) == Y.to_numpy()).all(axis=1)
    assert fitted.score(X, Y) == pytest.approx(right.mean())
    weights = np.arange(24)
    assert fitted.score(X, Y, weights) == pytest.approx(np.average(right, weights=weights))
    assert get_tags(fitted).target_tags.multi_output


def test_an_array_has_numbered_targets(fitted: LLMClassifier) -> None:
    again = clone(fitted).fit(X, Y.to_numpy())
    assert again.rung_.template_.tails == (" Target 1:", " Target 2:")


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (Y.assign(place="sea"), "y, column 'place', holds one class only, 'sea'"),
        (Y[:5], "X has 24 rows, y has 5"),
        (Y.assign(place=[None] * 24), r"y\[0\] is missing"),
        (Y.to_numpy()[None], r"y must be a sequence of labels, one a row, not an array of shape"),
        (Y.rename(columns={"place": "id"}), "y has a column 'id'"),
    ],
)
def test_labels_that_cannot_be_are_refused(fitted: LLMClassifier, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clone(fitted).fit(X, y)
