import inspect
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score

from llabel import LLMClassifier
from llabel.errors import InputError
from llabel.settings import DataSettings, LLMSettings

SNOW = ["cold snow", "winter frost", "snow and frost", "cold winter", "frost"] * 4
SUN = ["warm light", "summer sand", "light and sand", "warm summer", "sand"] * 4
TEXTS, LABELS = [*SNOW, *SUN], ["ice"] * 20 + ["sun"] * 20


@pytest.fixture
def classifier(tiny_llama: Path) -> LLMClassifier:
    return LLMClassifier(
        str(tiny_llama), r=4, learning_rate=3e-3, batch_size=8, epochs=3, device="cpu"
    )


@pytest.fixture(scope="module")
def fitted(tiny_llama: Path) -> LLMClassifier:
    made = LLMClassifier(
        str(tiny_llama), r=4, learning_rate=3e-3, batch_size=8, epochs=3, device="cpu"
    )
    return made.fit(TEXTS, LABELS)


def test_it_learns_and_answers_in_the_order_of_classes(fitted: LLMClassifier) -> None:
    assert fitted.classes_.tolist() == ["ice", "sun"]
    proba = fitted.predict_proba(["cold snow", "warm sand", ""])
    assert proba.shape == (3, 2)
    assert proba.sum(axis=1) == pytest.approx(np.ones(3))
    assert fitted.predict(["cold snow", "warm sand"]).tolist() == ["ice", "sun"]
    assert fitted.score(TEXTS, LABELS) > 0.9
    assert fitted.predict_proba([]).shape == (0, 2)


def test_saved_is_loaded(fitted: LLMClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    loaded = LLMClassifier.load(tmp_path / "model", device="cpu")
    assert (loaded.predict_proba(TEXTS) == fitted.predict_proba(TEXTS)).all()
    assert loaded.classes_.tolist() == fitted.classes_.tolist()
    assert loaded.get_params() == fitted.get_params()


def test_clone_forgets_what_was_learned(fitted: LLMClassifier) -> None:
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        copy.predict(["snow"])
    with pytest.raises(NotFittedError):
        copy.save("nowhere")


def test_the_same_seed_gives_the_same_classifier(
    fitted: LLMClassifier, classifier: LLMClassifier
) -> None:
    again = classifier.fit(TEXTS, LABELS)
    assert (again.predict_proba(TEXTS) == fitted.predict_proba(TEXTS)).all()


def test_data_frames_bring_their_columns(classifier: LLMClassifier) -> None:
    frame = pd.DataFrame({"title": TEXTS, "day": range(40)})
    classifier.fit(frame, np.array([label == "ice" for label in LABELS]))
    assert classifier.feature_names_in_.tolist() == ["title", "day"]
    assert classifier.classes_.tolist() == [False, True]
    assert classifier.rung_.trie_.words == ("false", "true")
    turned = classifier.predict_proba(frame[["day", "title"]])
    assert (turned == classifier.predict_proba(frame)).all(), "columns go by name"
    assert classifier.predict(frame).dtype == bool
    with pytest.raises(ValueError, match="lacks the column 'day'"):
        classifier.predict(frame[["title"]])
    with pytest.raises(ValueError, match="data frame"):
        classifier.predict(["only text"])


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        ("one text", ["a"], "not one text"),
        (["a", 3], ["x", "y"], r"X\[1\] is int"),
        (["a"], ["x", "y"], "1 rows, y has 2"),
    ],
)
def test_wrong_input_is_named(
    classifier: LLMClassifier, X: object, y: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        classifier.fit(X, y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 0}, "--r"),
        ({"epochs": "many"}, "--epochs"),
        ({"loss": "hinge"}, "--loss"),
        ({"model": "no-such-model"}, "no-such-model"),
    ],
)
def test_settings_are_checked_when_fitted(
    classifier: LLMClassifier, change: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        classifier.set_params(**change).fit(TEXTS, LABELS)


def test_it_works_inside_scikit_learn(classifier: LLMClassifier) -> None:
    scores = cross_val_score(classifier, TEXTS, LABELS, cv=2)
    assert scores.mean() > 0.7


def test_its_parameters_are_the_settings_of_fit() -> None:
    """Same names, same defaults: one documentation serves both."""
    parameters = inspect.signature(LLMClassifier).parameters
    settings = {field.name: field.default for field in fields(LLMSettings)}
    settings["random_state"] = settings.pop("seed")
    settings["validation_size"] = next(
        field.default for field in fields(DataSettings) if field.name == "validation_size"
    )
    assert {name: p.default for name, p in parameters.items()} == settings
    assert MISSING not in settings.values()
