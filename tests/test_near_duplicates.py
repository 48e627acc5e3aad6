import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llabel.check.near_duplicates import first_neighbours, jaccard

RNG = np.random.default_rng(0)
WORDS = ["".join(RNG.choice(list("abcdefghijklmnopqrstuvwxyz"), 6)) for _ in range(400)]


def text(words=60, seed=0):
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def test_jaccard_by_hand():
    assert jaccard("abcdef", "abcdeg") == pytest.approx(1 / 3)  # abcde | bcdef, bcdeg
    assert jaccard("AB  cd e", "ab cd e") == 1
    assert jaccard("", "") == 1
    assert jaccard("ab", "abc") == 0


def test_finds_the_first_of_several_and_nothing_else():
    original = text(seed=1)
    rows = [(text(seed=2),), (original,), (original + " more",), (original + " end",), ("x",)]
    assert first_neighbours(rows).tolist() == [-1, -1, 1, 1, -1]


def test_every_field_must_be_near():
    passage = text(seed=1)
    rows = [("is the sky blue", passage), ("who built this bridge", passage + " x")]
    assert first_neighbours(rows).tolist() == [-1, -1]
    assert first_neighbours([row[1:] for row in rows]).tolist() == [-1, 0]


def test_works_without_spaces_between_words():
    original = "".join(chr(0x4E00 + code) for code in RNG.integers(0, 3000, 120))
    assert first_neighbours([(original,), (original[:-3] + "。",)]).tolist() == [-1, 0]


@given(st.lists(st.text("ab ", max_size=12), max_size=12))
def test_short_texts_agree_with_comparing_all_pairs(texts):
    found = first_neighbours([(value,) for value in texts])
    for i, value in enumerate(texts):
        near = [j for j in range(i) if jaccard(value, texts[j]) >= 0.8]
        # A missed pair is possible by design, a false one is not.
        assert found[i] in [*near, -1]
        if any(jaccard(value, texts[j]) == 1 for j in range(i)):
            assert found[i] >= 0


def test_misses_almost_nothing():
    originals = [text(seed=seed) for seed in range(300)]
    edited = [value[:-60] for value in originals]
    assert all(0.8 <= jaccard(a, b) < 0.9 for a, b in zip(originals, edited, strict=True))
    found = first_neighbours([(value,) for value in originals + edited])
    assert (found[:300] == -1).all()
    assert (found[300:] == np.arange(300)).sum() >= 298


def test_a_family_of_look_alikes_is_found_without_comparing_all_pairs():
    base = text()
    rows = [(f"{base} {number}",) for number in range(3000)]
    assert (first_neighbours(rows)[1:] >= 0).all()  # 4.5 million pairs would take a quarter hour


@pytest.mark.parametrize("threshold", [0.5, 1.01])
def test_threshold_out_of_range(threshold):
    with pytest.raises(ValueError, match=r"above 0\.5 and at most 1"):
        first_neighbours([("a",)], threshold)
