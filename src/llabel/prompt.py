"""Template + field texts → text → token ids. Truncates the texts, never the template."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llabel.errors import InputError
from llabel.settings import Long
from llabel.task import Text
from llabel.template import CHAT, Hole, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Half of a UTF-16 pair is no character, and tokenizers refuse it; the count of characters stays.
_HALVES = re.compile("[\ud800-\udfff]")
# So many characters a token are read to find a piece; most texts have four or five.
_WINDOW = 16


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row, ready for the model.

    Attributes:
        input_ids: (seq,) token ids; the answer is read at the last of them.
        truncated: True where long fields were cut to fit.
        text: the fields as far as they stand in the prompt.
    """

    input_ids: tuple[int, ...]
    truncated: bool
    text: Text


class PromptEncoder:
    """Rows → token ids of at most `max_length`, the answer's own tokens not counted.

    The whole prompt is tokenised as one text, so that tokens may cross from template to field as
    they do in any text. Special tokens are parsed where the template itself has them; in a user's
    text they are split into ordinary tokens, so no text can end the prompt or fake an answer mark.

    Args:
        tokenizer: a fast one.
        template: the prompt.
        fields: what the texts of a row are.
        max_length: most tokens of a prompt.
        begin: put the tokenizer's begin tokens before each prompt.
        long: what is kept of a field that is too long: its `head`, its `tail`, or both ends, of
            which the first has the odd token (`middle`: the middle is cut out). With `chunks` it
            is the head; `pieces` gives all of it.

    Attributes:
        begin_tokens: what the tokenizer puts before any text, if the template does not.
        least_length: tokens of a prompt without any text.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        template: Template,
        fields: Sequence[str],
        max_length: int,
        *,
        begin: bool = True,
        long: Long = "head",
    ) -> None:
        self.long = long
        if not tokenizer.is_fast:
            raise InputError(
                f"The tokenizer of {tokenizer.name_or_path} ({type(tokenizer).__name__}) cannot "
                "tell which characters a token stands for. Use a model with a tokenizer.json."
            )
        self.tokenizer = tokenizer
        self.template = template
        self.fields = tuple(fields)
        self.max_length = max_length
        self._runs = _split_at_special_tokens(template, self.fields, tokenizer)
        self.begin_tokens = _head_tokens(tokenizer)
        if template.name == CHAT:  # it has a begin token of its own, or wants none
            own = self._runs[0] == tokenizer.bos_token_id
            self.begin_tokens = [tokenizer.bos_token_id] if own else []
            self._runs = self._runs[len(self.begin_tokens) :]
        elif self._runs[0] in self.begin_tokens:  # the template's file has its own begin token
            self.begin_tokens = []
        self._head = self.begin_tokens if begin else []
        self.least_length = len(self._encode(("",) * len(self.fields))[0])
        if self.least_length >= max_length:
            raise InputError(
                f"The template alone takes {self.least_length} tokens, but only {max_length} are "
                "allowed for the prompt. Raise --max-seq-length, or shorten the template or the "
                "label list."
            )

    def lengths(self, texts: Sequence[Text]) -> list[int]:
        """Tokens of each whole prompt, before any truncation."""
        return [len(ids) for ids, _ in map(self._encode, texts)]

    def encode(self, texts: Sequence[Text]) -> list[Prompt]:
        """(n,) prompts; rows that are too long lose a part of their longest fields (`long`)."""
        return [self._fit(text) for text in texts]

    def pieces(self, text: Text) -> list[Text]:
        """The row as rows that fit: of `chunks`, its longest field cut into consecutive parts.

        They are as long as they can be, but for the last. Of other fields that are too long each
        has the head. Whatever else `long` is, a row is one piece.
        """
        if self.long != "chunks":
            return [text]
        ids, spans = self._encode(text)
        if len(ids) <= self.max_length:
            return [text]
        longest = max(range(len(spans)), key=lambda field: len(spans[field]))
        found, rest = [], text[longest]
        while True:
            piece = self._first_piece((*text[:longest], rest, *text[longest + 1 :]), longest)
            found.append(piece)
            rest = rest[len(piece[longest]) :]
            if not piece[longest] or not rest:
                return found

    def _first_piece(self, text: Text, longest: int) -> Text:
        """What `_fit` keeps of a row, found without reading all of its longest field.

        Else each piece would read all that is left, in time that grows with the text's square.
        """
        whole, window = text[longest], _WINDOW * self.max_length
        while True:
            piece = self._fit((*text[:longest], whole[:window], *text[longest + 1 :])).text
            # Near its end a window may have other tokens than the text has there.
            if window >= len(whole) or 2 * len(piece[longest]) <= window:
                return piece
            window *= 2

    def _fit(self, text: Text) -> Prompt:
        ids, spans = self._encode(text)
        level, truncated = self.max_length, False
        while len(ids) > self.max_length:
            truncated = True
            counts = [len(ends) for ends in spans]
            budget = max(0, sum(counts) - (len(ids) - self.max_length))
            # Cutting may merge or split a token at the edge: never keep more than last time.
            level = min(water_level(counts, budget), level - 1)
            text = tuple(
                value if count <= level else self._cut(value, ends, max(0, level))
                for value, ends, count in zip(text, spans, counts, strict=True)
            )
            ids, spans = self._encode(text)
        return Prompt(tuple(ids), truncated, text)

    def _cut(self, value: str, ends: Sequence[int], level: int) -> str:
        """At most `level` tokens of a field with more than that; `ends` as `_encode` has them."""
        first = {"tail": 0, "middle": -(-level // 2)}.get(self.long, level)
        last = level - first
        head = value[: ends[first - 1]] if first else ""
        return head + (value[ends[-last - 1] :] if last else "")

    def _encode(self, text: Text) -> tuple[list[int], list[list[int]]]:
        """Token ids, and for each field the end (in characters) of each of its tokens."""
        ids = list(self._head)
        ends: list[list[int]] = [[] for _ in self.fields]
        for run in self._runs:
            if isinstance(run, int):
                ids.append(run)
                continue
            spans, parts, position = [], [], 0
            for piece in run:
                value = piece if isinstance(piece, str) else _readable(text[piece.field])
                if not isinstance(piece, str):
                    spans.append((position, position + len(value), piece.field))
                parts.append(value)
                position += len(value)
            encoding = self.tokenizer(
                "".join(parts),
                add_special_tokens=False,
                split_special_tokens=True,
                return_offsets_mapping=True,
                verbose=False,  # no warning about lengths that we are about to cut
            )
            ids += encoding["input_ids"]
            for start, stop, field in spans:
                ends[field] += [
                    min(end, stop) - start
                    for begin, end in encoding["offset_mapping"]
                    if begin < stop and end > start
                ]
        # A field that stands in the template twice has both places' tokens, in turns.
        return ids, [sorted(field) for field in ends]


def _readable(text: str) -> str:
    return _HALVES.sub("\N{REPLACEMENT CHARACTER}", text)


def water_level(counts: Sequence[int], budget: int) -> int:
    """The greatest level L with Σ min(count, L) ≤ budget: only what stands above it is cut."""
    remaining, level = budget, 0
    ordered = sorted(counts)
    for position, count in enumerate(ordered):
        share = remaining // (len(ordered) - position)
        if count > share:
            return share
        remaining -= count
        level = count
    return level


def _head_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """What the tokenizer puts before any text (Llama 3: `<|begin_of_text|>`; SmolLM2: nothing)."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    with_special = tokenizer("a")["input_ids"]
    for start in range(len(with_special) - len(plain) + 1):
        if with_special[start : start + len(plain)] == plain:
            return list(with_special[:start])
    return []


def answer_tail(template: Template, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The template's text after its last field and last special token.

    The tokens of an answer may depend on it, never on what stands before.
    """
    last = _split_at_special_tokens(template, template.fields, tokenizer)[-1]
    return "" if isinstance(last, int) else str(last[-1])


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """Ids of the tokens that are never text, by how they are written."""
    return {str(t): i for i, t in tokenizer.added_tokens_decoder.items() if t.special}


def _split_at_special_tokens(
    template: Template, fields: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
) -> list[int | list[str | Hole]]:
    """Special tokens of the template as ids; between them runs of literal text and holes."""
    specials = special_tokens(tokenizer)
    longest_first = sorted(specials, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first))) if specials else None
    runs: list[int | list[str | Hole]] = [[]]

    def add(piece: str | Hole) -> None:
        if isinstance(runs[-1], int):
            runs.append([])
        run = runs[-1]
        assert isinstance(run, list)
        run.append(piece)

    for number, literal in enumerate(template.literals):
        position = 0
        for match in pattern.finditer(literal) if pattern else ():
            if match.start() > position:
                add(literal[position : match.start()])
            runs.append(specials[match.group()])
            position = match.end()
        if position < len(literal):
            add(literal[position:])
        if number < len(template.fields):
            add(Hole(fields.index(template.fields[number])))
    return [run for run in runs if run != []]
