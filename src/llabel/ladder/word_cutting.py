"""Where a text's words begin and end."""

import re
import unicodedata
from collections.abc import Container, Iterable
from functools import cache

_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"'})
# As the corpus of GloVe 6B was cut (Penn Treebank): do n't, it 's, and punctuation on its own.
_NOT = re.compile(r"[nN]'[tT]\b")
_WORD = (
    r"[nN]'[tT]\b|'(?:[sSmMdD]|[rRvV][eE]|[lL][lL])\b|\.\.\.|(?:[^\W\d_]\.){{2,}}"
    r"|\d+(?:[.,]\d+)*{more}*|\w{more}*(?:-\w{more}*)*|[^\w\s]"
)
_ASCII_WORD = re.compile(_WORD.format(more=r"\w"))
# Scripts without spaces: Han, Hiragana, Katakana; Thai, Lao; Myanmar; Khmer. Not their digits.
_SPACELESS = (
    "\u3005-\u3007\u3021-\u3029\u3041-\u309f\u30a1-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
    "\u0e01-\u0e4e\u0e81-\u0ece\u0edc-\u0edf"
    "\u1000-\u103f\u1050-\u108f\u109a-\u109d\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa7f"
    "\u1780-\u17d3\u17d7-\u17dd"
)


def words_of(text: str, *, lower: bool = True) -> list[str]:
    """Cut a text into words and punctuation marks, as GloVe 6B knows them.

    ``"Don't!"`` gives ``do``, ``n't``, ``!``; compounds such as ``well-known`` stay whole. Text is
    taken in Unicode's composed form (NFC), and combining marks belong to their word. In scripts
    that leave no space between words, each character, with its marks, is a word.

    Args:
        text: any.
        lower: give the words in lower case, else as they are written.
    """
    text = text.translate(_QUOTES)
    if lower:
        text = text.lower()
    if text.isascii():
        return _ASCII_WORD.findall(_NOT.sub(r" \g<0>", text))
    word, alone = _patterns()
    text = alone.sub(lambda found: f" {found[0]} ", unicodedata.normalize("NFC", text))
    return word.findall(_NOT.sub(r" \g<0>", text))


def form_of(word: str, known: Container[str]) -> str:
    """The word as it is written where that is known, else in lower case."""
    return word if word in known else word.lower()


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A word of any script, and a character that is one; made at first use."""
    marks = _ranges(
        code
        for code in range(0x10000)  # beyond, brackets are slow, and few living scripts have marks
        # Variation selectors only choose the looks of the emoji before them.
        if unicodedata.category(chr(code))[0] == "M" and not 0xFE00 <= code <= 0xFE0F
    )
    return (
        re.compile(_WORD.format(more=rf"[\w{marks}]")),
        re.compile(rf"(?=[{_SPACELESS}])\w[{marks}]*"),
    )


def _ranges(codes: Iterable[int]) -> str:
    """What a regular expression's brackets hold for ascending codes."""
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
