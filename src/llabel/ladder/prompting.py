"""What an LLM rung asks: tokenizer, template, label trie, and how long a prompt may be."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llabel.assets import BUILT_IN, is_hub_id, resolve_model
from llabel.errors import InputError
from llabel.events import Fetching, Listener, ignore
from llabel.labels import AnswerTokeniser, LabelTrie, compile_labels, label_words
from llabel.ladder.sample_text import SAMPLE
from llabel.prompt import PromptEncoder, Template, answer_tail, load_template
from llabel.settings import LLMSettings
from llabel.task import Label

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
    folder = resolve_model(
        settings.model, progress=lambda what, share: notify(Fetching(what, share))
    )
    words = label_words(classes, settings.label_words)
    template = load_template(settings.template, tuple(fields), words, settings.instruction)
    return build_prompting(settings, folder, tuple(fields), template, words, few_shot=few_shot)


def build_prompting(
    settings: LLMSettings,
    folder: Path,
    fields: tuple[str, ...],
    template: Template,
    words: Sequence[str],
    *,
    few_shot: bool = False,
) -> Prompting:
    """The same from a template and label words that are known already.

    Args:
        settings: `model` for messages, `max_seq_length`.
        folder: the model's.
        fields: text columns.
        template: the prompt.
        words: (n_classes,) what is answered.
        few_shot: examples stand before the rows: without `max_seq_length`, a row may take half of
            the context, and they get the other half.

    Raises:
        InputError: as `prepare_prompting`.
    """
    from llabel.engine.model import load_tokenizer

    tokenizer = load_tokenizer(folder)
    answers = AnswerTokeniser(
        lambda text: _encode(tokenizer, text), answer_tail(template, tokenizer), template.joint
    )
    trie = compile_labels(words, answers, tokenizer.eos_token_id)
    context = _context(folder)
    asked = settings.max_seq_length
    if asked is not None and asked > context:
        raise InputError(
            f"--max-seq-length {asked} is more than the context of {settings.model}: "
            f"{context} tokens."
        )
    total = asked or (context // 2 if few_shot else context)
    encoder = PromptEncoder(tokenizer, template, fields, total - trie.longest, begin=not few_shot)
    return Prompting(folder, tokenizer, template, trie, encoder, context, total)


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
