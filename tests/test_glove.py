from pathlib import Path

import numpy as np
import pytest

from llabel.assets import asset_status
from llabel.assets.catalogue import BUILT_IN
from llabel.errors import InputError
from llabel.ladder import glove
from llabel.ladder.glove import Glove, lasting_name, load_glove
from llabel.ladder.word_cutting import words_of
from small_disk import full_disk

TEXT = "the 1 2.5 -3e-1\n. . . 4 5 6\nthe 7 8 9\ncafé 0 0 1\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLABEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vectors.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_rows_skip_unknown_words_and_take_compounds_apart():
    known = Glove({"well": 0, "known": 1, "e-mail": 2}, np.eye(3, dtype=np.float32))
    assert known.rows(["known", "nobody", "e-mail", "well-known", "un-known"]) == [1, 2, 0, 1, 1]


def test_rows_are_of_the_word_as_written_else_in_lower_case():
    known = Glove({"US": 0, "us": 1, "Well": 2, "known": 3, "İ": 4}, np.eye(5, dtype=np.float32))
    words = ["US", "us", "Us", "Well-KNOWN", "well-known", "Known", "İ"]
    assert known.rows(words) == [0, 1, 1, 2, 3, 3, 3, 4]


@pytest.mark.parametrize("header", ["", "4 3\n", "\ufeff", "\ufeff4 3\n", "\n"])
def test_text_file(file: Path, header: str):
    file.write_text(header + TEXT + "\n \n", encoding="utf-8")
    found = load_glove(str(file))
    assert found.words == {"the": 0, ". . .": 1, "café": 3}  # the first of equal words
    assert found.vectors.dtype == np.float32
    np.testing.assert_allclose(
        found.vectors, [[1, 2.5, -0.3], [4, 5, 6], [7, 8, 9], [0, 0, 1]], rtol=1e-6
    )


def test_text_file_is_parsed_once_and_again_when_it_changes(
    file: Path, monkeypatch: pytest.MonkeyPatch
):
    first = load_glove(str(file))
    with monkeypatch.context() as patched:
        patched.setattr(glove, "_parse", None)
        second = load_glove(str(file))
    assert second.words == first.words
    np.testing.assert_array_equal(second.vectors, first.vectors)
    assert second.digests() == first.digests()
    file.write_text(TEXT.replace("2.5", "2.75"), encoding="utf-8")
    changed = load_glove(str(file))
    assert changed.vectors[0, 1] == 2.75
    assert changed.digests()["digest"] != first.digests()["digest"]


def test_a_damaged_or_closed_cache_does_not_matter(file: Path, cache: Path):
    expected = load_glove(str(file)).vectors
    (kept,) = (cache / "embeddings").iterdir()
    kept.write_bytes(b"broken")
    np.testing.assert_array_equal(load_glove(str(file)).vectors, expected)
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_bytes(b"a file where the folder should be")
    np.testing.assert_array_equal(load_glove(str(file)).vectors, expected)


def test_a_full_cache_does_not_matter(file: Path, cache: Path):
    with full_disk(50):
        assert load_glove(str(file)).words == {"the": 0, ". . .": 1, "café": 3}
    assert not list((cache / "embeddings").iterdir())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "it is empty"),
        ("the 1 2\ncat 1\n", "line 2: not a word and 2 numbers"),
        ("the 1 2\ncat 1 x\n", "line 2: not a word and 2 numbers"),
        ("the 1 2\ncat 1 nan\n", "line 2.*not finite"),
        ("3 2\nthe 1 2\ncat 1 2\n", "holds 2 word vectors where its first line promises 3.*again"),
        ("the end\ncat 1 2\n", "line 1: not a word"),
        ("\n \n", "it is empty"),
        ("<html>\n<body>\n", "line 1: not a word"),
    ],
)
def test_text_files_that_are_none(file: Path, content: str, told: str):
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=told):
        load_glove(str(file))


def test_unknown_name():
    with pytest.raises(InputError, match=r"cannot find word embeddings named 'glove-6b-5d'"):
        load_glove("glove-6b-5d")


def test_a_folder_without_vectors(tmp_path: Path):
    with pytest.raises(InputError, match=r"holds no word vectors that can be read.*_emb\.npy"):
        load_glove(str(tmp_path))


def test_lasting_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert lasting_name("glove-6b-50d") == "glove-6b-50d"
    assert lasting_name("vectors.txt") == str(tmp_path / "vectors.txt")


def test_the_built_in_vectors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LLABEL_CACHE")
    if not asset_status(BUILT_IN["glove-6b-50d"]).cached:
        pytest.skip("glove-6b-50d is not in the cache; `llabel assets fetch` brings it")
    found = load_glove("glove-6b-50d")
    assert found.vectors.shape == (400_000, 50)
    assert found.words["the"] == 0
    the = [0.418, 0.24968, -0.41242]  # as published
    np.testing.assert_allclose(found.vectors[0, :3], the, rtol=1e-6)
    text = "Isn't the state-of-the-art film “Heat” well-known in the U.S. since 1995?"
    assert len(found.rows(words_of(text))) == len(words_of(text))
