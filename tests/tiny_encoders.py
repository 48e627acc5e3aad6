"""Random encoders with tokenizers of their own, small enough to make in a test."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SENTENCES = (
    "is this question true or false",
    "it is film music answer question news task input politics",
    "### label: cls sep [ ] { } 0 1 2 3 4 5 6 7 8 9",
)


def save_bert(folder: Path, *, words: Iterable[str] = SENTENCES, **changes: Any) -> Path:
    """Write a random two-layer BERT of hidden size 32 with a word-piece tokenizer.

    Args:
        folder: where `AutoModel` and `AutoTokenizer` shall find them.
        words: sentences whose words get tokens of their own.
        changes: to its `BertConfig`.
    """
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = sorted({c for sentence in words for c in sentence if not c.isspace()})
    known = sorted({word for sentence in words for word in sentence.split()})
    tokens = [*SPECIAL_TOKENS, *known, *letters, *(f"##{c}" for c in letters)]
    vocabulary = {token: row for row, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    BertTokenizer(vocab=vocabulary, model_max_length=64).save_pretrained(folder)
    settings = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.1,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(BertConfig(**(settings | changes))).save_pretrained(folder)
    return folder
