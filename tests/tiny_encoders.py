"""Random encoders with tokenizers of their own, small enough to make in a test."""

from pathlib import Path
from typing import Any

from tiny_models import save_tokenizer
from tiny_tasks import NOUNS

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (*NOUNS, "is", "it", "this", "sep", "cl", "##s", "[", "]", *map(str, range(20)))
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.1,  # 0.02 would give every row the same probability
}


def save_bert(folder: Path, **changes: Any) -> Path:
    """A random BERT that reads 64 tokens, the words of `make_task` among its word pieces."""
    return save_kin(folder, "bert", **changes)


def save_kin(folder: Path, kind: str, **changes: Any) -> Path:
    """A random model of another kind, with the tokenizer of `save_bert`."""
    from transformers import AutoConfig, AutoModel, BertTokenizer

    tokens = {token: row for row, token in enumerate((*SPECIAL_TOKENS, *WORDS))}
    BertTokenizer(vocab=tokens, model_max_length=64).save_pretrained(folder)
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokens), max_position_embeddings=64, **(SIZES | changes)
    )
    return _save(AutoModel.from_config, config, folder)


def save_roberta(folder: Path) -> Path:
    """A random RoBERTa that reads 62 tokens: two marks between the texts, no token types."""
    from tokenizers import processors
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel

    save_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    begin, end = "<|im_start|>", "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} {end} $B {end}",
        special_tokens=[(mark, tokenizer.convert_tokens_to_ids(mark)) for mark in (begin, end)],
    )
    tokenizer.save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        type_vocab_size=1,
        pad_token_id=1,
        **SIZES,
    )
    return _save(RobertaModel, config, folder)


def _save(kind: Any, config: Any, folder: Path) -> Path:
    import torch

    from llabel.quiet import quiet_libraries

    with torch.random.fork_rng(), quiet_libraries():
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    return folder
