"""The text around a row's fields: a built-in template, or the user's own file."""

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

from llabel.errors import InputError
from llabel.paths import at_home
from llabel.task import Text

BUILT_IN_TEMPLATES = ("qa", "alpaca", "plain")
CHAT = "chat"  # made from the tokenizer's own, see `llabel.chat_template`
DEFAULT_INSTRUCTION = "Classify the input. Answer with exactly one of these labels: {labels}"

# The published BoolQ template calls its passage "Context".
_HEADINGS = {"passage": "Context", "context": "Context", "paragraph": "Context"}
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
        gap: what follows `end` before another turn begins.
    """

    name: str
    literals: tuple[str, ...]
    fields: tuple[str, ...]
    joint: str
    tails: tuple[str, ...] = ()
    end: str = ""
    gap: str = ""

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


def refuse_system(name: str, system: str | None) -> None:
    """Refuse a system message where the template called `name` has no turns.

    Raises:
        InputError: there is one.
    """
    if system and name != CHAT:
        raise InputError(
            f"--system was given, but template {name!r} has no turns for a system to speak in. "
            "Use --template chat, or say it in --instruction (alpaca) or a template file."
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
    try:
        text = at_home(name).read_text(encoding="utf-8-sig")  # Windows writes a mark
        return text.removesuffix("\n")
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


def template_digest(name: str) -> str | None:
    """SHA-256 of a template file; None where there is none, as of a built-in template."""
    if name in {*BUILT_IN_TEMPLATES, CHAT}:
        return None
    try:
        return hashlib.sha256(at_home(name).read_bytes()).hexdigest()
    except (OSError, ValueError):
        return None


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
