"""What an LLM rung asks: tokenizer, template, label trie, and how long a prompt may be."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llabel.assets import BUILT_IN, is_hub_id, resolve_model
from llabel.chat_template import load_chat_template
from llabel.errors import InputError
from llabel.events import Fetching, Listener, ignore
from llabel.labels import (
    AnswerTokeniser,
    LabelTrie,
    by_target,
    compile_labels,
    join_tries,
    label_words,
    target_words,
)
from llabel.ladder.sample_text import SAMPLE
from llabel.prompt import PromptEncoder, answer_tail, special_tokens
from llabel.settings import LLMSettings, parse_rope
from llabel.target_template import load_targets_template
from llabel.task import Label
from llabel.template import CHAT, Template, load_template, refuse_system

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Prompting:
    """Everything of an LLM rung but the weights.

    Attributes:
        folder: the model's.
        tokenizer: the model's.
        template: the prompt.
        trie: what may be answered.
        encoder: rows → token ids of at most `max_total` less the longest answer.
        context: tokens that the model can read.
        max_total: tokens of a row's prompt and answer together.
    """

    folder: Path
    tokenizer: "PreTrainedTokenizerBase"
    template: Template
    trie: LabelTrie
    encoder: PromptEncoder
    context: int
    max_total: int

    def sample_tokens(self) -> list[int]:
        """A text that has nothing to do with the task, as far as the context reaches."""
        return self.encode_text(SAMPLE)[: self.context]

    def encode_text(self, text: str) -> list[int]:
        """Text → token ids; nothing added, nothing parsed."""
        return _encode(self.tokenizer, text)


def prepare_prompting(
    settings: LLMSettings,
    fields: Sequence[str],
    classes: Sequence[Label],
    *,
    few_shot: bool = False,
    notify: Listener = ignore,
) -> Prompting:
    """Read the template and compile the labels; the model is fetched if need be, but not loaded.

    Raises:
        InputError: the model, template, label words or lengths do not fit together.
    """
    from llabel.engine.model import load_tokenizer

    parse_rope(settings.rope_scaling)  # before the model is fetched
    folder = resolve_model(
        settings.model, progress=lambda what, share: notify(Fetching(what, share))
    )
    name, instruction = settings.template, settings.instruction
    refuse_system(name, settings.system)
    if targets := by_target(classes):
        asked = target_words(targets, settings.label_words)
        words = [word for own in asked.values() for word in own]
        if name != CHAT:
            template = load_targets_template(name, tuple(fields), asked, instruction)
    else:
        asked, words = None, label_words(classes, settings.label_words)
        if name != CHAT:
            template = load_template(name, tuple(fields), words, instruction)
    tokenizer = None
    if name == CHAT:
        tokenizer = load_tokenizer(folder)
        template = load_chat_template(
            tokenizer, fields, words, instruction, targets=asked, system=settings.system
        )
    return build_prompting(
        settings,
        folder,
        tuple(fields),
        template,
        words,
        classes,
        few_shot=few_shot,
        tokenizer=tokenizer,
    )


def build_prompting(
    settings: LLMSettings,
    folder: Path,
    fields: tuple[str, ...],
    template: Template,
    words: Sequence[str],
    classes: Sequence[Label],
    *,
    few_shot: bool = False,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> Prompting:
    """The same from a template and label words that are known already.

    Args:
        settings: `model` for messages, `max_seq_length`, `rope_scaling`, `long`.
        folder: the model's.
        fields: text columns.
        template: the prompt.
        words: (n_classes,) what is answered.
        classes: (n_classes,) the labels.
        few_shot: examples stand before the rows: without `max_seq_length`, a row may take half of
            the context, and they get the other half.
        tokenizer: the model's, where it was read already.

    Raises:
        InputError: as `prepare_prompting`.
    """
    from llabel.engine.model import load_tokenizer
    from llabel.engine.rope import scaled_config

    rope = parse_rope(settings.rope_scaling)
    context = (
        _context(folder)
        if rope is None
        else int(scaled_config(folder, rope).max_position_embeddings)
    )
    tokenizer = tokenizer or load_tokenizer(folder)
    if targets := by_target(classes):
        trie = _targets_trie(template, words, targets, tokenizer)
    else:
        answers = AnswerTokeniser(
            lambda text: _encode(tokenizer, text), answer_tail(template, tokenizer), template.joint
        )
        trie = compile_labels(words, answers, _end_token(template, tokenizer))
    asked = settings.max_seq_length
    if asked is not None and asked > context:
        raise InputError(
            f"--max-seq-length {asked} is more than the context of {settings.model}: {context} "
            f"tokens{' with --rope-scaling' if rope else ''}. Give at most {context} (what is "
            "given wins over a preset), or let the model read more than it was trained for: "
            f"--rope-scaling yarn:{math.ceil(asked / _context(folder))}."
        )
    total = asked or (context // 2 if few_shot else context)
    encoder = PromptEncoder(
        tokenizer,
        template,
        fields,
        total - trie.longest,
        begin=not few_shot,
        long=settings.long,
    )
    return Prompting(folder, tokenizer, template, trie, encoder, context, total)


def _targets_trie(
    template: Template,
    words: Sequence[str],
    targets: Mapping[str, Sequence[Label]],
    tokenizer: "PreTrainedTokenizerBase",
) -> LabelTrie:
    """The labels of several targets behind the same prompt, each behind its own tail."""
    before, tries, start = answer_tail(template, tokenizer), {}, 0
    specials = special_tokens(tokenizer)
    ask = AnswerTokeniser(lambda text: _encode(tokenizer, text), before, "")
    for (name, labels), tail in zip(targets.items(), template.tails, strict=True):
        if found := [token for token in specials if token in tail]:
            raise InputError(
                f"Template {template.name!r} has the special token {found[0]} behind {{target}}, "
                "where it would be read as text. Put it before {target}."
            )
        answers = AnswerTokeniser(
            lambda text: _encode(tokenizer, text), before + tail, template.joint
        )
        own = words[start : start + len(labels)]
        try:
            tries[name] = ask(tail), compile_labels(own, answers, _end_token(template, tokenizer))
        except InputError as error:
            raise InputError(f"Target {name}: {error}") from error
        start += len(labels)
    return join_tries(tries)


def _end_token(template: Template, tokenizer: "PreTrainedTokenizerBase") -> int | None:
    return special_tokens(tokenizer)[template.end] if template.end else tokenizer.eos_token_id


def lasting_name(settings: LLMSettings, folder: Path) -> str:
    """The base model's name, from whatever folder it is asked for later."""
    name = settings.model
    return name if name in BUILT_IN or is_hub_id(name) else str(folder.resolve())


def _encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    return list(plain["input_ids"])


def _context(folder: Path) -> int:
    """Tokens that the model at `folder` can read."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(
        config.get("max_position_embeddings")
        or config.get("n_positions")
        or config.get("text_config", {}).get("max_position_embeddings")
        or 2048
    )
