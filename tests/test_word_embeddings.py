import json
from pathlib import Path

import numpy as np
import pytest

from llabel.data import load_task
from llabel.errors import InputError
from llabel.ladder.contract import FitSettings
from llabel.ladder.word_embeddings import WordEmbeddingsRung
from llabel.rung_settings import SEEDED
from llabel.task import Split, Task


@pytest.fixture
def vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLABEL_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "vectors.txt"
    lines = ["good 1 0 1", "great 1.1 0 1", "bad -1 0 1", "awful -1.2 0 1", "film 0 1 1"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def task_of(*texts, labels=None) -> Task:
    y = np.array(labels or [n % 2 for n in range(len(texts))])
    part = Split(tuple(f"train:{n}" for n in range(len(texts))), texts, y)
    fields = ("question", "passage", "more")[: len(texts[0])]
    return Task("words", fields, ("no", "yes"), part, part, part, "0" * 64)


REVIEWS = task_of(("bad film",), ("good film",), ("film bad bad",), ("good",))


def fit(task: Task, vectors: Path, **settings) -> WordEmbeddingsRung:
    return WordEmbeddingsRung(FitSettings(embeddings=str(vectors), **settings)).fit(task)


def test_words_that_training_lacked_count_by_their_vectors_even_after_loading(
    vectors: Path, tmp_path: Path
):
    rung = fit(REVIEWS, vectors)
    rung.save(tmp_path / "rung")
    for each in (rung, WordEmbeddingsRung.load(tmp_path / "rung")):
        proba = each.predict_proba([("awful",), ("great",)])
        assert proba.argmax(axis=1).tolist() == [0, 1]


def test_pooling_by_hand(vectors: Path):
    rung = fit(REVIEWS, vectors)
    (pooled,) = rung._pooled([("Good, film: qwxzy good",)])
    mean = [2 / 3, 1 / 3, 1]
    np.testing.assert_allclose(pooled, [*mean, 1, 1, 1, 0, 0, 1], rtol=1e-6)
    np.testing.assert_array_equal(rung._pooled([("qwxzy",), ("",)]), np.zeros((2, 9)))


@pytest.mark.parametrize(("fields", "width"), [(1, 9), (2, 36), (3, 27)])
def test_fields_are_embedded_apart_and_two_are_compared(vectors: Path, fields: int, width: int):
    texts = [("good", "film", "bad")[:fields], ("bad", "film", "good")[:fields]]
    rung = fit(task_of(*texts), vectors)
    pooled = rung._pooled(texts)
    assert pooled.shape == (2, width)
    assert rung.record_.settings["features"] == width
    if fields == 2:
        a, b = pooled[:, :9], pooled[:, 9:18]
        np.testing.assert_array_equal(pooled[:, 18:27], np.abs(a - b))
        np.testing.assert_array_equal(pooled[:, 27:], a * b)


def test_whether_two_texts_are_alike_can_be_learnt(vectors: Path):
    alike = [("good", "good"), ("bad", "bad"), ("film", "film"), ("awful", "awful")]
    unlike = [("good", "bad"), ("bad", "good"), ("film", "awful"), ("awful", "film")]
    task = task_of(*alike, *unlike, labels=[1] * 4 + [0] * 4)
    proba = fit(task, vectors).predict_proba(task.test.texts)
    assert proba.argmax(axis=1).tolist() == [1] * 4 + [0] * 4


def test_features_are_standardised_and_constant_ones_do_no_harm(vectors: Path):
    rung = fit(REVIEWS, vectors)  # the third number of every vector is 1
    scaled = rung._scaled(rung._pooled(REVIEWS.train.texts))
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=0)[[0, 1, 3, 6]], 1, rtol=1e-5)
    assert np.abs(scaled[:, [2, 5, 8]]).max() == 0
    assert np.abs(rung._scaled(rung._pooled([("qwxzy",)]))).max() < 10


def test_a_constant_feature_of_many_rows_has_no_spread(vectors: Path):
    rung = WordEmbeddingsRung(FitSettings(embeddings=str(vectors)))
    rung._learn_scale(np.full((1000, 1), 3.8317, dtype=np.float32))
    assert rung._scaled(np.array([[3.8317], [0]], dtype=np.float32)).ravel().tolist() == [
        0,
        pytest.approx(-3.8317),
    ]


def test_no_seed_matters(vectors: Path):
    one, other = fit(REVIEWS, vectors, seed=0), fit(REVIEWS, vectors, seed=7)
    np.testing.assert_array_equal(one.validation_proba_, other.validation_proba_)
    assert one.name not in SEEDED


def test_changed_or_lost_vectors_are_noticed(vectors: Path, tmp_path: Path):
    fit(REVIEWS, vectors).save(tmp_path / "rung")
    vectors.write_text(vectors.read_text(encoding="utf-8").replace("1.1", "1.2"), encoding="utf-8")
    with pytest.raises(InputError, match="are not those it was trained with"):
        WordEmbeddingsRung.load(tmp_path / "rung")
    vectors.unlink()
    with pytest.raises(InputError, match="cannot find word embeddings"):
        WordEmbeddingsRung.load(tmp_path / "rung")


def test_words_that_changed_places_are_noticed_unless_the_rung_is_older(
    vectors: Path, tmp_path: Path
):
    fit(REVIEWS, vectors).save(tmp_path / "rung")
    text = vectors.read_text(encoding="utf-8")
    swapped = text.replace("good", "x").replace("bad", "good").replace("x", "bad")
    vectors.write_text(swapped, encoding="utf-8")
    with pytest.raises(InputError, match="are not those it was trained with"):
        WordEmbeddingsRung.load(tmp_path / "rung")
    vectors.write_text(text, encoding="utf-8")
    record = json.loads((tmp_path / "rung/rung.json").read_text(encoding="utf-8"))
    del record["settings"]["words_digest"]
    (tmp_path / "rung/rung.json").write_text(json.dumps(record), encoding="utf-8")
    WordEmbeddingsRung.load(tmp_path / "rung")


def test_vectors_are_found_from_another_folder(
    vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(vectors.parent)
    fit(REVIEWS, Path(vectors.name)).save(tmp_path / "rung")
    monkeypatch.chdir("/")
    assert WordEmbeddingsRung.load(tmp_path / "rung").predict_proba([("good",)]).shape == (1, 2)


def test_unknown_vectors_are_refused_before_any_work():
    with pytest.raises(InputError, match="cannot find word embeddings named 'word2vec'"):
        WordEmbeddingsRung(FitSettings(embeddings="word2vec")).prepare(("text",), ("a", "b"))


def test_real_reviews(shared_data: Path):
    found = load_task(str(shared_data / "imdb/imdb.jsonl.gz"), text=("text",), label="sentiment")
    task = found.task
    rung = WordEmbeddingsRung(FitSettings()).fit(task)
    predicted = rung.predict_proba(task.test.texts).argmax(axis=1)
    assert (predicted == task.test.y).mean() > 0.7
