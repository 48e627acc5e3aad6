import copy
import inspect
import io
import pickle
import warnings
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score

from llabel import LLMClassifier
from llabel.data import read_texts
from llabel.errors import InputError
from llabel.estimator import _texts
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


def test_a_run_of_fit_is_not_overwritten(fitted: LLMClassifier, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a run of llabel fit"):
        fitted.save(tmp_path)


def test_labels_and_seeds_are_taken_as_scikit_learn_takes_them(tiny_llama: Path) -> None:
    made = LLMClassifier(str(tiny_llama), epochs=1, device="cpu", random_state=None)
    labels = [f"{label}\0" for label in LABELS]  # NumPy's own texts would lose the NUL
    made.fit(TEXTS, pd.DataFrame({"label": labels}))
    assert made.classes_.tolist() == ["ice\0", "sun\0"]
    assert set(made.predict(TEXTS)) <= set(labels)
    assert made.random_state is None
    state = np.random.RandomState(7)
    seeds = [LLMClassifier(random_state=state)._settings().seed for _ in range(2)]
    again = np.random.RandomState(7)
    assert seeds == again.randint(2**31 - 1, size=2).tolist()
    assert seeds[0] != seeds[1]


@pytest.fixture(scope="module")
def fitted_int8(tiny_llama: Path) -> LLMClassifier:
    made = LLMClassifier(str(tiny_llama), r=4, epochs=1, precision="int8", device="cpu")
    return made.fit(TEXTS, LABELS)


def pickled(classifier: LLMClassifier) -> LLMClassifier:
    return pickle.loads(pickle.dumps(classifier))


def dumped(classifier: LLMClassifier) -> LLMClassifier:
    file = io.BytesIO()
    joblib.dump(classifier, file)
    file.seek(0)
    return joblib.load(file)


@pytest.mark.parametrize("copied", [pickled, dumped, copy.deepcopy])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_copy_answers_alike_and_learns_by_itself(
    request: pytest.FixtureRequest, precision: str, copied: Callable[..., LLMClassifier]
) -> None:
    name = "fitted" if precision == "float32" else "fitted_int8"
    original: LLMClassifier = request.getfixturevalue(name)
    before = original.predict_proba(TEXTS)
    made = copied(original)
    assert made.rung_.engine_ == original.rung_.engine_
    assert made.get_params() == original.get_params()
    assert (made.predict_proba(TEXTS) == before).all()
    with torch.no_grad():
        for parameter in made.rung_.model_.parameters():
            if parameter.requires_grad:
                parameter.mul_(-3)
    assert (made.predict_proba(TEXTS) != before).any()
    assert (original.predict_proba(TEXTS) == before).all()


def test_a_pickle_holds_each_weight_once(fitted: LLMClassifier) -> None:
    """The packed engine's layers share memory."""
    weights = fitted.rung_.record_.weight_bytes
    assert weights < len(pickle.dumps(fitted)) < 1.3 * weights


def test_a_pickle_is_read_where_kernels_cannot_be_compiled(
    fitted: LLMClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = pickle.dumps(fitted)
    monkeypatch.setenv("LLABEL_CACHE", str(tmp_path))  # where nothing is compiled yet
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", "")
    read = pickle.loads(written)
    assert read.rung_.engine_ == "plain"
    np.testing.assert_allclose(read.predict_proba(TEXTS), fitted.predict_proba(TEXTS), atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU it was on is here")
def test_a_pickle_from_a_gpu_is_read_where_there_is_none(
    fitted: LLMClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = copy.copy(fitted)
    on_gpu.rung_ = copy.copy(fitted.rung_)
    on_gpu.rung_.device_ = torch.device("cuda", 0)
    with monkeypatch.context() as patch:  # storages tell their place as those of a GPU do
        patch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
        written = pickle.dumps(on_gpu)
    read = pickle.loads(written)
    assert read.rung_.device_ == torch.device("cpu")
    np.testing.assert_allclose(read.predict_proba(TEXTS), fitted.predict_proba(TEXTS), atol=1e-5)


def test_clone_forgets_what_was_learned(fitted: LLMClassifier) -> None:
    blank = clone(fitted)
    assert blank.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        blank.predict(["snow"])
    with pytest.raises(NotFittedError):
        blank.save("nowhere")


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


def test_cells_of_a_frame_are_read_as_those_of_a_file(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "flag": [True, False], "mixed": [np.bool_(True), None], "size": [1.5, float("nan")],
            "day": pd.to_datetime(["2024-01-02", "2024-01-03"]).date,
        }
    )  # fmt: skip
    frame.assign(mixed=[True, None]).to_parquet(tmp_path / "t.parquet")
    names, rows = _texts(frame)
    assert list(rows) == [text for _, text in read_texts(str(tmp_path / "t.parquet"), names)]
    assert rows[0] == ("true", "true", "1.5", "2024-01-02")


def test_frames_may_have_missing_cells_and_numbers_for_names(
    classifier: LLMClassifier, tmp_path: Path
) -> None:
    frame = pd.DataFrame({0: TEXTS, 1: pd.array(["x", pd.NA] * 20, dtype="string")})
    classifier.set_params(epochs=1).fit(frame, LABELS)
    assert classifier.feature_names_in_.tolist() == ["0", "1"]
    proba = classifier.predict_proba(frame)
    assert (proba == classifier.predict_proba(frame.astype(object).fillna(""))).all()
    classifier.save(tmp_path)
    loaded = LLMClassifier.load(tmp_path, device="cpu")
    assert loaded.feature_names_in_.tolist() == ["0", "1"]
    assert (loaded.predict_proba(frame) == proba).all()
    classifier.fit(TEXTS, LABELS)
    assert not hasattr(classifier, "feature_names_in_"), "that was the frame's"


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (["a", "A"] * 20, ["A", "a"]),
        (pd.Series([0.0, 1.0] * 20), [0, 1]),
        (np.array([np.True_, np.False_] * 20, dtype=object), [False, True]),
        (pd.Categorical(["no", "yes"] * 20), ["no", "yes"]),
    ],
)
def test_labels_may_come_in_many_ways(
    classifier: LLMClassifier, y: object, classes: list[object]
) -> None:
    classifier.set_params(epochs=1).fit(TEXTS, y)
    assert classifier.classes_.tolist() == classes
    assert list(map(type, classifier.classes_.tolist())) == list(map(type, classes))
    assert set(classifier.predict(TEXTS).tolist()) <= set(classes)


def test_the_libraries_say_nothing(
    classifier: LLMClassifier, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        classifier.set_params(epochs=1).fit(TEXTS, LABELS).save(tmp_path)
        LLMClassifier.load(tmp_path, device="cpu").predict(["cold snow"])
    assert not [str(warning.message) for warning in caught]
    assert capfd.readouterr() == ("", "")


TWO = ["a", "b"]


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        ("one text", ["a"], "not one text"),
        (["a", 3], ["x", "y"], r"X\[1\] is int"),
        ([["a"], ["b"]], ["x", "y"], r"X\[0\] is list"),
        (["a"], ["x", "y"], "1 rows, y has 2"),
        ([], [], "X has no rows"),
        (pd.DataFrame(index=[0, 1]), ["x", "y"], "needs one text column"),
        (pd.DataFrame([["a", "b"]], columns=["t", "t"]), ["x"], "no name twice"),
        (TWO, ["x", "x"], "one class only, 'x'"),
        (TWO, "xy", "y must be a sequence of labels, one a row, not str"),
        (TWO, [["x"], ["y"]], r"y\[0\] is \['x'\] \(list\)"),
        (TWO, np.array([[["x"]], [["y"]]]), r"not an array of shape \(2, 1, 1\)"),
        (TWO, ["x", None], r"y\[1\] is missing \(None\)"),
        (TWO, ["x", float("nan")], r"y\[1\] is missing \(nan\)"),
        (TWO, pd.Series(["x", pd.NA], dtype="string"), r"y\[1\] is missing"),
        (TWO, pd.Series([1, None]), r"y\[1\] is missing"),
        (TWO, pd.to_datetime(["2020-01-01", None]), r"y\[0\] is .*Timestamp"),
        (TWO, [0.5, 1.5], r"y\[0\] is 0.5 \(float\)"),
        (TWO, ["x", 1], r"y mixes types: y\[0\] is 'x', y\[1\] is 1"),
        (TWO, [True, 1], r"y mixes types: y\[0\] is True, y\[1\] is 1"),
    ],
)
def test_wrong_input_is_named(
    classifier: LLMClassifier, X: object, y: object, message: str
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
        ({"validation_size": 2.0}, "--validation-size 2.0: it should be less than 1"),
        ({"validation_size": float("nan")}, "--validation-size nan"),
        ({"random_state": -1}, "--seed -1"),
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
    del settings["shots"]  # of prompts that show examples instead of training
    settings["validation_size"] = next(
        field.default for field in fields(DataSettings) if field.name == "validation_size"
    )
    assert {name: p.default for name, p in parameters.items()} == settings
    assert MISSING not in settings.values()
