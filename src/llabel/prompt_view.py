"""One row's prompt for people: as text, and token by token with what the loss reads where."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text as RichText

from llabel.data.cells import printable
from llabel.engine.batching import FULL_VOCABULARY
from llabel.ladder.examples import example_of
from llabel.ladder.llm import LLMRung
from llabel.task import Label, TargetLabel, Text

FOLD, FIRST, LAST = 24, 10, 5  # a field of more tokens shows so many of its first and last ones
MOST_LABELS = 20
TEMPLATE, START, ANSWER, OPEN = "template", "start", "answer", "prompt"
_STYLES = {TEMPLATE: "dim", START: "dim", ANSWER: "bold green"}
_FIELD_STYLES = ("cyan", "magenta", "yellow", "blue")
_MOST_HEAD_TOKENS = 3  # that a tokenizer may put before any text
_BROKEN = "\N{REPLACEMENT CHARACTER}"
_MOST_BYTES = 4  # of a character in UTF-8, and so of its tokens


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a term of the loss compares at a position.

    Attributes:
        choices: tokens, the right one first.
        among: how many compete.
    """

    choices: tuple[str, ...]
    among: int


@dataclass(frozen=True, slots=True)
class Token:
    """One token of what the model reads.

    Attributes:
        position: index in `input_ids`.
        id: token id.
        text: what it stands for; the whole character where it is a part of one.
        source: name of the text column it is from, or `TEMPLATE`, `START` (what the tokenizer
            puts before any text), `ANSWER`, or `OPEN` where that cannot be told.
        read: the terms of the loss that are read at this position, none or more: targets may share
            one.
    """

    position: int
    id: int
    text: str
    source: str
    read: tuple[Comparison, ...] = ()


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text of a token, and where it stands in the text of all."""

    text: str
    start: int
    stop: int


def explain(rung: LLMRung, text: Text, label: int | Sequence[int]) -> list[Token]:
    """The tokens that training reads of one row, in their order.

    Args:
        rung: a prepared one.
        text: the row's fields.
        label: index of its class; of several targets one each.
    """
    (encoded,) = rung.encoder_.encode([text])
    prompt = encoded.input_ids
    example = example_of(prompt, label, rung.trie_, rung.settings.loss)
    pieces = _pieces(rung, prompt)
    sources = _sources(rung, encoded.text, pieces)
    sources += [ANSWER] * (len(example.input_ids) - len(prompt))
    pieces += _pieces(rung, example.input_ids[len(prompt) :])
    read: dict[int, list[Comparison]] = defaultdict(list)
    for position, branching, target in zip(
        example.positions, example.branchings, example.targets, strict=True
    ):
        if branching == FULL_VOCABULARY:
            found = Comparison((_decode(rung, [target]),), len(rung.tokenizer_))
        else:
            children = rung.trie_.branchings[branching].children
            first = children[target]
            ordered = (first, *(child for child in children if child != first))
            found = Comparison(tuple(_decode(rung, [child]) for child in ordered), len(children))
        read[position].append(found)
    return [
        Token(position, number, pieces[position].text, sources[position], tuple(read[position]))
        for position, number in enumerate(example.input_ids)
    ]


def render(
    rung: LLMRung,
    name: str,
    text: Text,
    label: int | Sequence[int],
    *,
    all_tokens: bool = False,
) -> RenderableType:
    """Lay one row out for a terminal.

    Args:
        rung: a prepared one.
        name: what the row is called.
        text: its fields.
        label: index of its class; of several targets one each.
        all_tokens: show the middle of long fields, too.
    """
    tokens = explain(rung, text, label)
    styles = _STYLES | {
        field: _FIELD_STYLES[number % len(_FIELD_STYLES)]
        for number, field in enumerate(rung.fields_)
    }
    return Group(
        RichText(printable(f"{name}, label {_named(rung, label)}"), style="bold"),
        RichText(),
        _as_text(rung, tokens, styles, label),
        RichText(),
        _as_table(tokens, styles, all_tokens),
        *(RichText(printable(line)) for line in _summary(rung, text, tokens)),
    )


def _named(rung: LLMRung, label: int | Sequence[int]) -> str:
    if isinstance(label, int):
        return str(rung.classes_[label])
    return ", ".join(_class_name(rung.classes_[own]) for own in label)


def _class_name(label: Label) -> str:
    return f"{label.target} {label.label}" if isinstance(label, TargetLabel) else str(label)


def _as_text(
    rung: LLMRung, tokens: Sequence[Token], styles: dict[str, str], label: int | Sequence[int]
) -> RichText:
    whole = RichText()
    for source, run in groupby(tokens, key=lambda token: token.source):
        if source != ANSWER:
            ids = [token.id for token in run]
            whole.append(printable(_decode(rung, ids)), styles.get(source, ""))
    joint, words = rung.template_.joint, rung.trie_.words
    if isinstance(label, int):
        answer = joint + words[label]
    else:  # none sees another, though they stand one after the other
        answers = zip(rung.template_.tails, label, strict=True)
        answer = "\n".join(tail + joint + words[own] for tail, own in answers)
    return whole.append(printable(answer), styles[ANSWER])


def _as_table(tokens: Sequence[Token], styles: dict[str, str], all_tokens: bool) -> Table:
    table = Table(title="What training reads", title_justify="left", title_style="bold")
    for name in ("position", "id"):
        table.add_column(name, justify="right")
    for name in ("token", "from", "the loss reads (right | wrong)"):
        table.add_column(name)
    for source, run in groupby(tokens, key=lambda token: token.source):
        rows = list(run)
        folded = 0 if all_tokens or len(rows) <= FOLD else len(rows) - FIRST - LAST
        for number, token in enumerate(rows):
            if folded and number == FIRST:
                table.add_row("…", "", f"{folded:,} more", "", "", style="dim")
            if not folded or number < FIRST or number >= FIRST + folded:
                style = styles.get(source, "")
                table.add_row(
                    str(token.position),
                    str(token.id),
                    RichText(repr(token.text), style=style),
                    RichText(printable(source), style=style),
                    RichText("\n").join(map(_choices, token.read)),
                )
    return table


def _choices(read: Comparison) -> RichText:
    right, *wrong = map(repr, read.choices[: MOST_LABELS + 1])
    told = RichText(right, style=_STYLES[ANSWER])
    if wrong:
        told.append(" | " + " | ".join(wrong), style="default")
    if read.among > len(read.choices) or read.among > MOST_LABELS + 1:
        told.append(f" (of {read.among:,} tokens)", style="dim")
    return told


def _summary(rung: LLMRung, text: Text, tokens: Sequence[Token]) -> Iterator[str]:
    used = sum(token.source != ANSWER for token in tokens)
    whole = rung.encoder_.lengths([text])[0]
    limit = f"{rung.max_length_:,} are allowed for the prompt"
    if whole > rung.max_length_:
        yield f"Cut: the prompt has {whole:,} tokens, {limit}; {_cut(rung, text)}."
    else:
        yield f"Nothing is cut: the prompt has {used:,} tokens, {limit}."
    read = [token.position for token in tokens if token.read]
    yield f"The prompt ends at position {used - 1}; the loss reads {_positions(read)}."
    words = [
        f"{_class_name(label)} → {_decode(rung, ids)!r} {list(ids)}"
        for label, ids in zip(rung.classes_, rung.trie_.tokens, strict=True)
    ]
    more = f", and {len(words) - MOST_LABELS} more" if len(words) > MOST_LABELS else ""
    yield "Answers: " + ", ".join(words[:MOST_LABELS]) + more + "."


def _cut(rung: LLMRung, text: Text) -> str:
    """What became of the longest field."""
    if rung.settings.long == "chunks":
        pieces = len(rung.encoder_.pieces(text))
        return (
            f"the longest field is cut into {pieces:,} pieces: training reads the first, "
            "prediction all of them"
        )
    lost = {"head": "end", "tail": "beginning", "middle": "middle"}[rung.settings.long]
    return f"the longest field lost its {lost}"


def _positions(read: Sequence[int]) -> str:
    """``position 3``, or ``positions 3, 5 to 9``: neighbours are drawn together."""
    runs: list[list[int]] = []
    for position in read:
        if runs and position == runs[-1][-1] + 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    told = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return f"position{'s' if len(read) > 1 else ''} {', '.join(told)}"


def _decode(rung: LLMRung, ids: Sequence[int]) -> str:
    return str(
        rung.tokenizer_.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
    )


def _pieces(rung: LLMRung, ids: Sequence[int]) -> list[_Piece]:
    """Each token's text; tokens that make up one character together all get that character."""
    pieces: list[_Piece] = []
    waiting: list[int] = []
    at = 0
    for number, token in enumerate(ids, start=1):
        waiting.append(token)
        text = _decode(rung, waiting)
        if not text.endswith(_BROKEN) or len(waiting) == _MOST_BYTES or number == len(ids):
            pieces += [_Piece(text, at, at + len(text))] * len(waiting)
            at += len(text)
            waiting = []
    return pieces


def _sources(rung: LLMRung, text: Text, pieces: Sequence[_Piece]) -> list[str]:
    """Which column each token is from: template and texts are laid along the decoded tokens.

    `text` has the fields as far as they stand in the prompt.
    A token that crosses from template to text counts as text. Tokenizers that do not give back
    what they were given (lower case, other spaces) leave the sources open.
    """
    template = rung.template_
    values = [text[rung.fields_.index(field)] for field in template.fields]
    whole = "".join(piece.text for piece, _ in groupby(pieces))
    for head in range(min(_MOST_HEAD_TOKENS, len(pieces) - 1) + 1):
        spans = _lay(whole, template.literals, values, pieces[head].start)
        if spans is not None:
            found = [_source_of(piece, spans, template.fields) for piece in pieces]
            return [START] * head + found[head:]
    return [OPEN] * len(pieces)


def _source_of(piece: _Piece, spans: Sequence[tuple[int, int]], fields: Sequence[str]) -> str:
    for (start, stop), field in zip(spans, fields, strict=True):
        if piece.start < stop and piece.stop > start:
            return field
    return TEMPLATE


def _lay(
    whole: str, literals: Sequence[str], values: Sequence[str], at: int
) -> list[tuple[int, int]] | None:
    """Where each value stands in `whole` from `at` on; values may have lost their end."""
    if not whole.startswith(literals[0], at):
        return None
    start = at + len(literals[0])
    if not values:
        return [] if start == len(whole) else None
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(whole[start:], values[0], strict=False))
    longest = sum(1 for _ in alike)
    for length in range(longest, -1, -1):
        rest = _lay(whole, literals[1:], values[1:], start + length)
        if rest is not None:
            return [(start, start + length), *rest]
    return None
