import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llabel.ladder.words import BUCKETS, FIRST_WORD, SEPARATOR, WordTokeniser, frequent_words

OURS = WordTokeniser(["film", "good"], {"good": 0, "bad": 1}, max_length=8)
FILM, GOOD, BAD = FIRST_WORD, FIRST_WORD + 1, FIRST_WORD + 3


def encode(*fields: str) -> list[int]:
    (row,), _ = OURS.encode([fields])
    return list(row.input_ids)


def test_own_words_come_first_then_others_then_shared_ids():
    assert encode("Good film, bad") == [GOOD, FILM, OURS.ids(",")[0], BAD]
    assert 2 <= OURS.ids(",")[0] < FIRST_WORD == 2 + BUCKETS


def test_a_compound_counts_as_its_parts_unless_it_is_known():
    assert encode("good-bad") == [GOOD, BAD]
    known = WordTokeniser(["good-bad"], max_length=8)
    assert known.ids("good-bad") == [FIRST_WORD]


def test_words_are_taken_as_written_where_that_is_known():
    known = {"US": 0, "us": 1}
    ours = WordTokeniser(
        frequent_words([("US film us us",), ("Film US",)], known), known, max_length=8
    )
    assert ours.vocabulary == ("US", "film", "us")
    us = FIRST_WORD
    assert ours.ids("US us Us FILM US-us") == [us, us + 2, us + 2, us + 1, us, us + 2]


def test_fields_are_parted_and_the_longest_is_cut():
    assert encode("good", "bad") == [GOOD, SEPARATOR, BAD]
    assert encode("good", "film " * 20) == [GOOD, SEPARATOR, *[FILM] * 6]
    assert encode("", "") == [SEPARATOR]
    assert encode("") == [SEPARATOR]
    rows = [("good", "film " * 20), ("good", "film"), ("film", "good" + " " * 1000)]
    assert OURS.encode(rows)[1] == 2  # of the last one, blanks were not even looked at


def test_labels_are_the_targets():
    rows, _ = OURS.encode([("good",), ("bad",)], [1, 0])
    assert [row.targets for row in rows] == [(1,), (0,)]


@given(st.lists(st.text(), min_size=1, max_size=12))
def test_any_text_has_a_row_that_fits(fields):
    ids = encode(*fields)
    assert 1 <= len(ids) <= 8
    assert min(ids) > 0
    assert max(ids) <= BAD


def test_unknown_words_have_the_same_ids_in_another_process():
    program = (
        "from llabel.ladder.words import WordTokeniser; "
        "print(WordTokeniser([], max_length=9).ids('zork quux'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(WordTokeniser([], max_length=9).ids("zork quux"))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([("b a", "a"), ("b once", "c c")], ["a", "b", "c"]),
        ([("a a a b b",), ("B c c c",)], ["a", "b", "c"]),
        ([("one two",)], []),
    ],
)
def test_frequent_words_are_counted_over_all_fields(texts, expected):
    assert frequent_words(texts) == expected
