"""Texts and pairs of texts as ids, the way a pre-trained encoder wants them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llabel.engine.batching import Example
from llabel.errors import InputError
from llabel.ladder.neural import CHARACTERS, example, share_room
from llabel.task import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WINDOW = 1000  # rows tokenised at once


class PairTokeniser:
    """Texts → ids as the encoder was pre-trained on them: one text, or a pair, with its marks.

    The marks come from the tokenizer. What looks like one in a text stays text.

    Args:
        tokenizer: the encoder's.
        max_length: most tokens of a row, its marks included; the longer text of a pair is cut.
        pair: whether rows have a second text.

    Raises:
        InputError: `max_length` leaves no room for a token of each text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_length: int, pair: bool) -> None:
        self.tokenizer, self.max_length, self.pair = tokenizer, max_length, pair
        first, second = self._tokens(["a", "b"])
        whole = tokenizer("a", "b") if pair else tokenizer("a")
        ids = list(whole["input_ids"])
        start = _find(first, ids, 0)
        self.before, rest = ids[:start], ids[start + len(first) :]
        end = _find(second, rest, 0) if pair else len(rest)
        self.between, self.after = rest[:end], rest[end + len(second) :] if pair else []
        types = list(whole.get("token_type_ids", [0] * len(ids)))[start + len(first) :]
        self.first_type = sum(kind == 0 for kind in types[:end])  # of the marks in between
        marks = len(self.before) + len(self.between) + len(self.after)
        self.room = max_length - marks
        if self.room < 1 + pair:
            raise InputError(
                f"--max-seq-length {max_length} leaves no room for text beside the {marks} marks "
                f"that this encoder needs: give at least {marks + 1 + pair}."
            )

    def encode(
        self, texts: Sequence[Text], labels: Sequence[int] | None = None
    ) -> tuple[list[Example], int]:
        """(n,) rows of fields, and perhaps their classes → examples, and how many were cut."""
        examples: list[Example] = []
        truncated = 0
        longest = self.max_length * CHARACTERS
        for start in range(0, len(texts), _WINDOW):
            window = texts[start : start + _WINDOW]
            firsts = [fields[0] for fields in window]
            seconds = ["\n".join(fields[1:]) for fields in window] if self.pair else []
            first_ids = self._tokens([text[:longest] for text in firsts])
            second_ids = self._tokens([text[:longest] for text in seconds]) or [[]] * len(window)
            for row, (one, two) in enumerate(zip(first_ids, second_ids, strict=True)):
                keep_one, keep_two = share_room((len(one), len(two)), self.room)
                label = labels[start + row] if labels is not None else 0
                examples.append(self._example(one[:keep_one], two[:keep_two], label))
                truncated += (
                    keep_one + keep_two < len(one) + len(two)
                    or len(firsts[row]) > longest
                    or (self.pair and len(seconds[row]) > longest)
                )
        return examples, truncated

    def _example(self, one: list[int], two: list[int], label: int) -> Example:
        ids = [*self.before, *one, *self.between, *two, *self.after]
        second = len(self.before) + len(one) + self.first_type
        return example(ids or [self.tokenizer.pad_token_id or 0], label, position=second)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        plain = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        ids: list[list[int]] = plain["input_ids"]
        return ids


def _find(part: list[int], whole: list[int], start: int) -> int:
    for at in range(start, len(whole) - len(part) + 1):
        if whole[at : at + len(part)] == part:
            return at
    raise InputError("This encoder's tokenizer changes texts when it adds its marks: not usable.")
