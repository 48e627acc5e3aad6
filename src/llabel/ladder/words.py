"""Texts as ids of whole words, for networks that bring no tokenizer of their own."""

import zlib
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence

from llabel.engine.batching import Example
from llabel.ladder.neural import CHARACTERS, example, share_room
from llabel.ladder.word_cutting import form_of, words_of
from llabel.task import Text

PAD, SEPARATOR = 0, 1
BUCKETS = 512  # ids shared by all unknown words, by hash
FIRST_WORD = 2 + BUCKETS
MAX_WORDS = 20_000
MIN_COUNT = 2  # a word seen once cannot be told from noise
MAX_LENGTH = 256


class WordTokeniser:
    """Rows of fields → word ids, the fields parted by a separator; long rows lose their ends.

    Ids: 0 padding, 1 separator, then `BUCKETS` for unknown words by their hash, then `vocabulary`
    in its order, then the rows of `more`.

    Args:
        vocabulary: words with ids of their own.
        more: further words → number, for example those of word vectors; a text's word is taken as
            it is written where that is among them, else in lower case.
        max_length: most ids of a row; the longest fields are cut.
    """

    def __init__(
        self, vocabulary: Sequence[str], more: Mapping[str, int] | None = None, *, max_length: int
    ) -> None:
        self.vocabulary, self.max_length = tuple(vocabulary), max_length
        self.more = more or {}
        self._own = {word: FIRST_WORD + row for row, word in enumerate(self.vocabulary)}
        self.own_ids = FIRST_WORD + len(self.vocabulary)

    def encode(
        self, texts: Sequence[Text], labels: Sequence[int] | None = None
    ) -> tuple[list[Example], int]:
        """(n,) rows of fields, and perhaps their classes → examples, and how many were cut."""
        examples: list[Example] = []
        truncated = 0
        longest = self.max_length * CHARACTERS
        for row, fields in enumerate(texts):
            ids = [self.ids(text[:longest]) for text in fields]
            lengths = [len(part) for part in ids]
            keep = share_room(lengths, max(0, self.max_length - (len(ids) - 1)))
            joined: list[int] = []
            for part, kept in zip(ids, keep, strict=True):
                joined += [*part[:kept], SEPARATOR]
            # One id at least: an empty text is a separator.
            joined = (joined[:-1] or joined)[: self.max_length]
            examples.append(example(joined, labels[row] if labels else 0))
            truncated += keep != lengths or any(len(text) > longest for text in fields)
        return examples, truncated

    def ids(self, text: str) -> list[int]:
        """Ids of a text's words; a compound that is unknown counts as its parts."""
        found: list[int] = []
        for written in words_of(text, lower=False):
            word = form_of(written, self.more)
            number = self._known(word)
            if number is not None:
                found.append(number)
            elif "-" in word:
                parts = (form_of(part, self.more) for part in written.split("-") if part)
                found += map(self._id, parts)
            else:
                found.append(self._id(word))
        return found

    def _known(self, word: str) -> int | None:
        number = self._own.get(word)
        if number is None and word in self.more:
            number = self.own_ids + self.more[word]
        return number

    def _id(self, word: str) -> int:
        known = self._known(word)
        if known is not None:
            return known
        return 2 + zlib.crc32(word.encode("utf-8", "surrogatepass")) % BUCKETS


def frequent_words(texts: Iterable[Text], more: Container[str] = ()) -> list[str]:
    """The training rows' words that occur `MIN_COUNT` times, the most frequent ones first.

    Args:
        texts: of the training rows.
        more: words that are kept as they are written; others are taken in lower case.

    Returns:
        At most `MAX_WORDS`; equally frequent ones in alphabetical order.
    """
    counts = Counter(
        form_of(word, more)
        for fields in texts
        for text in fields
        for word in words_of(text, lower=False)
    )
    often = [(-n, word) for word, n in counts.items() if n >= MIN_COUNT]
    return [word for _, word in sorted(often)[:MAX_WORDS]]
