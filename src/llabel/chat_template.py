"""A model's own chat template → our template: cut where the texts and the answer stand."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from llabel.errors import InputError
from llabel.prompt import special_tokens as specials_of
from llabel.target_template import TARGETS_INSTRUCTION, label_list
from llabel.template import CHAT, DEFAULT_INSTRUCTION, Template, heading_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Llama 3.1's default. Templates that ask for today's date would say something else every day.
TODAY = datetime(2024, 7, 26)
_DATE_CODES = "aAbBdmyYHIpMSj"
# Mixed case, two spaces, a line's end: a template that changes texts changes these.
_ANSWER = "aNswer  sTands\nhEre"


def load_chat_template(
    tokenizer: "PreTrainedTokenizerBase",
    fields: Sequence[str],
    words: Sequence[str],
    instruction: str | None = None,
    *,
    targets: Mapping[str, Sequence[str]] | None = None,
    system: str | None = None,
) -> Template:
    """One user's turn with instruction and texts, and the beginning of the model's answer.

    Where the template shows a date, it is always `TODAY`; models that may think aloud are asked
    not to.

    Args:
        tokenizer: the model's.
        fields: text columns, in reading order.
        words: what the answers look like, in class order.
        instruction: stands before the texts; `{labels}` in it is the list of label words.
        targets: for each of several targets what its answers look like; each is asked behind its
            heading, in the model's turn.
        system: what the system says before; without it, what the template has it say, if anything.

    Raises:
        InputError: there is no chat template, it fails, or it drops or changes the system's
            message, text or answer.
    """
    labels = ", ".join(words) if targets is None else label_list(targets)
    default = DEFAULT_INSTRUCTION if targets is None else TARGETS_INSTRUCTION
    asked = (instruction or default).replace("{labels}", labels).strip()
    holes = [f"tExt  {number}\neNds" for number in range(len(fields))]
    named = [
        f"{heading_of(field)}: {hole}" if len(fields) > 1 else hole
        for field, hole in zip(fields, holes, strict=True)
    ]
    user = "\n".join([f"{asked}\n", *named])
    turns = [{"role": "user", "content": user}]
    system = (system or "").strip()
    if system:
        turns.insert(0, {"role": "system", "content": system})
    prompt = _render(tokenizer, turns, add_generation_prompt=True)
    if prompt.count(user) != 1:
        raise InputError(
            f"{_of(tokenizer)} drops, repeats or changes what the user says. {_INSTEAD}"
        )
    if system not in prompt.partition(user)[0]:
        raise InputError(
            f"{_of(tokenizer)} drops or changes what the system says. Leave --system out, and say "
            "it in --instruction."
        )
    whole = _render(tokenizer, [*turns, {"role": "assistant", "content": _ANSWER}])
    if whole.count(_ANSWER) != 1:
        raise InputError(f"{_of(tokenizer)} drops, repeats or changes the answer. {_INSTEAD}")
    before, _, after = whole.partition(_ANSWER)
    if not before.startswith(prompt.rstrip(" ")):
        raise InputError(
            f"{_of(tokenizer)} begins an answer with {prompt.partition(user)[2]!r} when it asks "
            f"for one, but with {before.partition(user)[2]!r} when there is one. {_INSTEAD}"
        )
    literals, rest = [], before
    for hole in holes:
        literal, _, rest = rest.partition(hole)
        literals.append(literal)
    last = rest.rstrip(" ")
    if not last:
        raise InputError(f"{_of(tokenizer)} puts no mark before the answer. {_INSTEAD}")
    ends = [token for token in specials_of(tokenizer) if after.lstrip().startswith(token)]
    end = max(ends, key=len, default="")
    found = Template(
        CHAT,
        (*literals, last),
        tuple(fields),
        rest[len(last) :],
        end=end,
        gap=_text_before(specials_of(tokenizer), after.lstrip()[len(end) :]) if end else "",
    )
    if targets is None:
        return found
    tails = tuple(f"{found.joint}{heading_of(target)}:" for target in targets)
    return replace(found, joint=" ", tails=tails)


def _text_before(specials: Iterable[str], text: str) -> str:
    """What stands before the first special token: Phi-3's ends whole conversations, not turns."""
    return text[: min((at for token in specials if (at := text.find(token)) >= 0), default=None)]


_INSTEAD = "Use --template alpaca, or a template file."


def _of(tokenizer: "PreTrainedTokenizerBase") -> str:
    return f"--template chat: the chat template of {tokenizer.name_or_path}"


def _render(
    tokenizer: "PreTrainedTokenizerBase",
    turns: list[dict[str, str]],
    *,
    add_generation_prompt: bool = False,
) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise InputError(
            f"--template chat: the tokenizer of {tokenizer.name_or_path} has no chat template; "
            f"models that were not tuned for chats have none. {_INSTEAD}"
        )
    # transformers lets no function through, but what a template defines itself goes first.
    dates = "".join(f" | replace('%{c}', '{TODAY.strftime(f'%{c}')}')" for c in _DATE_CODES)
    clock = "{% macro strftime_now(format) %}{{ format" + dates + " }}{% endmacro %}"
    try:
        source = tokenizer.get_chat_template()
        return str(
            tokenizer.apply_chat_template(
                turns,
                chat_template=clock + source,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                date_string=TODAY.strftime("%d %b %Y"),
                enable_thinking=False,
            )
        )
    except (TemplateError, ValueError, TypeError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{_of(tokenizer)} fails: {why}. {_INSTEAD}") from error
