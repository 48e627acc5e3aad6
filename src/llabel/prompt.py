"""Template + field texts → text → token ids. Truncates the texts, never the template."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING

from llabel.errors import InputError
from llabel.settings import Long
from llabel.task import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUILT_IN_TEMPLATES = ("qa", "alpaca", "plain")
CHAT = "chat"  # made from the tokenizer's own, see `llabel.chat_template`
DEFAULT_INSTRUCTION = "Classify the input. Answer with exactly one of these labels: {labels}"

# The published BoolQ template calls its passage "Context".
_HEADINGS = {"passage": "Context", "context": "Context", "paragraph": "Context"}
# Half of a UTF-16 pair is no character, and tokenizers refuse it; the count of characters stays.
_HALVES = re.compile("[\ud800-\udfff]")
_ALPACA_HEAD = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request."
)


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt with one hole per text field; the answer follows its last character.

    Attributes:
        name: a built-in name or the file it was read from.
        literals: the n_fields + 1 texts around the holes; the last is never empty.
        fields: the n_fields holes in reading order (a field may occur more than once).
        joint: what stands between the prompt and the answer: a space, or nothing after a newline.
            It belongs to the answer, since a prompt that ends in a space changes how the answer
            is tokenised.
        tails: where several targets are asked for, what follows the prompt for each of them, up to
            its answer and without the joint.
        end: the special token that ends the answer; the tokenizer's end token, if there is none.
    """

    name: str
    literals: tuple[str, ...]
    fields: tuple[str, ...]
    joint: str
    tails: tuple[str, ...] = ()
    end: str = ""

    def render(self, text: Text, fields: Sequence[str]) -> str:
        """The prompt as text; `text` gives the values of `fields` in their order."""
        values = dict(zip(fields, text, strict=True))
        holes = [values[field] for field in self.fields]
        return self.literals[0] + "".join(
            value + literal for value, literal in zip(holes, self.literals[1:], strict=True)
        )


def load_template(
    name: str,
    fields: Sequence[str],
    label_words: Sequence[str],
    instruction: str | None = None,
) -> Template:
    """A built-in template by name, or the text file at that path.

    A file holds the prompt with `{column}` for each text column, optionally `{labels}` for the
    list of label words, and `{{`, `}}` for braces. One newline at its end is the editor's and is
    dropped: a prompt that shall end in a newline, as chat templates do, needs two.

    Args:
        name: one of `BUILT_IN_TEMPLATES`, or a path.
        fields: the text columns; each must occur in the template.
        label_words: what the answers look like, in class order.
        instruction: what `alpaca` asks for; `{labels}` in it is the list of label words, other
            braces are text.

    Raises:
        InputError: unknown name, unreadable file, unknown or unused column, no text after the
            last column.
    """
    refuse_instruction(name, instruction)
    labels = ", ".join(label_words)
    if name in BUILT_IN_TEMPLATES:
        asked = (instruction or DEFAULT_INSTRUCTION).replace("{labels}", labels)
        return assemble(name, built_in(name, fields, asked), fields)
    return assemble(name, parse_template(name, read_template(name), fields, labels), fields)


def refuse_instruction(name: str, instruction: str | None) -> None:
    """Refuse an instruction that the template called `name` has no place for.

    Raises:
        InputError: there is one.
    """
    if instruction and name not in {"alpaca", CHAT}:
        raise InputError(
            f"--instruction was given, but template {name!r} has no place for it. "
            "Use --template alpaca or chat, or write the instruction into your own template file."
        )


@dataclass(frozen=True, slots=True)
class Hole:
    """Where a text field goes: its position in the task's fields."""

    field: int


def built_in(
    name: str, fields: Sequence[str], instruction: str, *, targets: bool = False
) -> list[str | Hole]:
    """Pieces of a built-in template; made of pieces, since a column may have any name.

    With `targets` it ends where their headings begin.
    """
    headings = [heading_of(field) for field in fields]
    pieces: list[str | Hole] = []
    if name == "qa":
        for number, heading in enumerate(headings):
            pieces += [f"### {heading}: ", Hole(number), "\n "]
        return [*pieces, "###" if targets else "### Answer:"]
    if name == "plain":
        for number in range(len(fields)):
            pieces += [Hole(number), "\n"]
        return [*pieces, *([] if targets else ["Label:"])]
    for number, heading in enumerate(headings):
        pieces += [f"{heading}: " if len(fields) > 1 else "", Hole(number), "\n"]
    head = f"{_ALPACA_HEAD}\n\n### Instruction:\n{instruction}\n\n### Input:\n"
    return [head, *pieces, "\n### Response:\n"]


def heading_of(field: str) -> str:
    """What a prompt calls a column."""
    return _HEADINGS.get(field.lower()) or field.replace("_", " ").strip().capitalize()


def read_template(name: str) -> str:
    """The text of a template file.

    Raises:
        InputError: it cannot be read.
    """
    path = Path(name)
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n")  # Windows writes a mark
    except UnicodeDecodeError as error:
        raise InputError(f"Template {name} is not UTF-8 at byte {error.start}.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        near = difflib.get_close_matches(name, (*BUILT_IN_TEMPLATES, CHAT), 1)
        hint = f"Did you mean {near[0]!r}?" if near else "Write your template into a file."
        raise InputError(
            f"--template {name!r} is neither a built-in template "
            f"({', '.join(BUILT_IN_TEMPLATES)}, {CHAT}) nor a file that can be read "
            f"({getattr(error, 'strerror', None) or error}). {hint}"
        ) from error


def parse_template(name: str, source: str, fields: Sequence[str], labels: str) -> list[str | Hole]:
    """Cut a template file at its holes; `{labels}` is filled at once."""
    pieces: list[str | Hole] = []
    try:
        parsed = list(Formatter().parse(source))
    except ValueError as error:
        raise InputError(
            f"Template {name!r} cannot be read: {error}. Write {{{{ and }}}} for literal braces."
        ) from error
    for literal, hole, spec, conversion in parsed:
        pieces.append(literal)
        if hole is None:
            continue
        column = hole + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
        if column in fields:  # a column's name may well hold a colon
            pieces.append(Hole(fields.index(column)))
        elif column == "labels":
            pieces.append(labels)
        else:
            raise InputError(
                f"Template {name!r} asks for {{{column}}}, which is no text column. "
                f"Text columns given by --text: {', '.join(fields)}; {{labels}} is the label list."
            )
    return pieces


def assemble(name: str, pieces: Sequence[str | Hole], fields: Sequence[str]) -> Template:
    """Join pieces to a template; settle what stands between prompt and answer."""
    literals, holes = [""], []
    for piece in pieces:
        if isinstance(piece, str):
            literals[-1] += piece
        else:
            holes.append(fields[piece.field])
            literals.append("")
    unused = [field for field in fields if field not in holes]
    if unused:
        raise InputError(
            f"Template {name!r} does not use the text column {unused[0]!r}. "
            f"Put {{{unused[0]}}} into the template or leave the column out of --text."
        )
    stripped = literals[-1].rstrip(" ")
    if not stripped:
        raise InputError(
            f"Template {name!r} ends with {{{holes[-1]}}}. Put a mark such as '\\n### Answer:' "
            "after it, so that the model can tell where the text ends."
        )
    joint = literals[-1][len(stripped) :] or ("" if stripped[-1].isspace() else " ")
    literals[-1] = stripped
    return Template(name, tuple(literals), tuple(holes), joint)


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
            piece = self._fit((*text[:longest], rest, *text[longest + 1 :])).text
            found.append(piece)
            rest = rest[len(piece[longest]) :]
            if not piece[longest] or not rest:
                return found

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
