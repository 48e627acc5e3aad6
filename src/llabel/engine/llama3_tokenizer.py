"""Llama 3's tokenizer as Meta publishes it: `tokenizer.model`, ranks in tiktoken's format.

Each line holds the bytes of a token in base64, a space, and its rank; what splits texts before the
merges, and the 256 special tokens behind the ranks, stand in Meta's code and not in the file
(https://github.com/meta-llama/llama-models, models/llama3/tokenizer.py).
"""

import base64
import binascii
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llabel.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BEGIN, END, END_OF_TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
_NAMED = {  # by their place behind the ranks; the others are reserved, and numbered
    **{0: BEGIN, 1: END, 4: "<|finetune_right_pad_id|>", 6: "<|start_header_id|>"},
    **{7: "<|end_header_id|>", 8: "<|eom_id|>", 9: END_OF_TURN, 10: "<|python_tag|>"},
}
_SPECIALS = 256
_FILES = ("tokenizer.model", "original/tokenizer.model")
_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")


def special_tokens() -> list[str]:
    """The 256 special tokens of Llama 3.1 and 3.2, in the order of their ids."""
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(_SPECIALS))
    return [_NAMED.get(place) or next(reserved) for place in range(_SPECIALS)]


def ranks_file(folder: Path) -> Path | None:
    """The file in tiktoken's format that the tokenizer of a model must be made from, if any.

    A `tokenizer.json` comes first; a `tokenizer.model` may be SentencePiece's, too.
    """
    if (folder / "tokenizer.json").is_file():
        return None
    for name in _FILES:
        path = folder / name
        if path.is_file():
            with path.open("rb") as source:
                return path if _LINE.fullmatch(source.readline(1000)) else None
    return None


def load_llama3_tokenizer(folder: Path, ranks: Path) -> "PreTrainedTokenizerFast":
    """Convert `ranks` (see `ranks_file`) to a fast tokenizer.

    Chat template and end token are those of the folder: an instruct model ends its turns with
    `<|eot_id|>`, which its `config.json` lists among the ends of a text.

    Raises:
        InputError: the file is damaged, or not Llama 3's.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    known = _read_ranks(ranks)
    config = _json(folder / "config.json")
    size, total = config.get("vocab_size"), len(known) + _SPECIALS
    if not isinstance(size, int) or size < total:
        raise InputError(
            f"{ranks} holds {len(known):,} byte-pair ranks, with Llama 3's {_SPECIALS} special "
            f"tokens {total:,} tokens, but the model has {size or 'an unknown number of'} "
            "(vocab_size in config.json). It is not the tokenizer of this model: "
            "save the model with a tokenizer.json."
        )

    class Converter(TikTokenConverter):  # tiktoken's own reader keeps copies of files by name
        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            return known

    specials = special_tokens()
    tokenizer = Converter(str(ranks), PATTERN, extra_special_tokens=specials).converted()
    _begin_texts(tokenizer)
    ends = config.get("eos_token_id")
    turns = isinstance(ends, list) and len(known) + specials.index(END_OF_TURN) in ends
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END_OF_TURN if turns else END,
        clean_up_tokenization_spaces=False,
        name_or_path=str(folder),
        chat_template=_chat_template(folder),
        model_input_names=["input_ids", "attention_mask"],
    )


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise InputError(
                f"{path}, line {number}: not a token in base64 and its rank. "
                "The file is damaged: fetch it again."
            ) from error
    whole = sorted(ranks.values()) == list(range(len(ranks)))
    if not whole or any(bytes([byte]) not in ranks for byte in range(256)):
        raise InputError(
            f"{path}: its {len(ranks):,} ranks are not those from 0 on of all 256 bytes and their "
            "merges. The file is damaged: fetch it again."
        )
    return ranks


def _begin_texts(tokenizer: Any) -> None:
    from tokenizers import processors

    begin = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN}:1 $B:1",
        special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))],
    )
    tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, begin])


def _chat_template(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = _json(folder / "tokenizer_config.json").get("chat_template")
    return found if isinstance(found, str) else None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    return found
