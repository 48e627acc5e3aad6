import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llabel.ladder.word_cutting import form_of, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop!", "do n't stop !"),
        ("I can’t; it’s HIS.", "i ca n't ; it 's his ."),
        ("they'll've", "they 'll 've"),
        ("a well-known 90% of 10,000.5", "a well-known 90 % of 10,000.5"),
        ("in the U.S. e.g. 1990s", "in the u.s. e.g. 1990s"),
        ("“Hm” ... (so?)", '" hm " ... ( so ? )'),
        ("это музыка", "это музыка"),
        ("हिन्दी की अच्छी फिल्म।", "हिन्दी की अच्छी फिल्म ।"),
        ("தமிழ் עִבְרִית مُحَمَّد 한국어", "தமிழ் עִבְרִית مُحَمَّد 한국어"),
        ("Cafe\u0301-cre\u0300me", "café-crème"),
        ("İstanbul’da", "i̇stanbul ' da"),
        ("❤️ 1️⃣", "❤ \ufe0f 1 \ufe0f \u20e3"),
        ("", ""),
        (" \n\t\u00a0", ""),
    ],
)
def test_words(text: str, words: str):
    assert words_of(text) == words.split()


@given(st.text())
def test_words_hold_every_letter_in_order(text: str):
    words = words_of(text)
    assert all(word and not any(map(str.isspace, word)) for word in words)
    whole, kept = unicodedata.normalize("NFC", text.lower()), "".join(words)
    assert [c for c in kept if c.isalnum()] == [c for c in whole if c.isalnum()]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("这部电影好看，5本iPhone手机", "这 部 电 影 好 看 ， 5 本 iphone 手 机"),
        ("日本語のテキスト。", "日 本 語 の テ キ ス ト 。"),
        ("ภาพดีมาก ๕๐", "ภ า พ ดี ม า ก ๕๐"),
        ("ລາວດີ", "ລ າ ວ ດີ"),
        ("ភាសាខ្មែរ", "ភា សា ខ្ មែ រ"),
        ("မြန်မာ", "မြ န် မာ"),
    ],
    ids=["Chinese", "Japanese", "Thai", "Lao", "Khmer", "Burmese"],
)
def test_characters_of_scripts_without_spaces_are_words(text: str, words: str):
    assert words_of(text) == words.split()


ENGLISH = "aehnrstvéïAENRSTV '’“”\"-.,!?0159$_\n"
CUT = re.compile(
    r"n't\b|'(?:s|m|d|re|ve|ll)\b|\.\.\.|(?:[^\W\d_]\.){2,}|\d+(?:[.,]\d+)*\w*|\w+(?:-\w+)*|[^\w\s]"
)


@given(st.text(alphabet=ENGLISH))
def test_english_is_cut_as_the_corpus_of_glove_was(text: str):
    plain = text.lower().translate(str.maketrans("’“”", '\'""'))
    assert words_of(text) == CUT.findall(re.sub(r"n't\b", " n't", plain))


@given(st.text(alphabet=ENGLISH))
def test_words_as_they_are_written_differ_by_case_alone(text: str):
    assert [word.lower() for word in words_of(text, lower=False)] == words_of(text)


def test_the_form_of_a_word():
    assert [form_of(word, {"US"}) for word in ("US", "Us", "THEM")] == ["US", "us", "them"]
