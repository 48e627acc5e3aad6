"""Random language models with tokenizers of their own, small enough to make in a test."""

from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BEGIN = "<|begin_of_text|>"
# Sentences from which the merges are learnt: template marks, label words, ordinary prose.
SENTENCES = (
    "### Question: is the answer to this question true\n ### Context: it is\n ### Answer: true",
    "### Question: was the other answer false\n ### Context: it was false\n ### Answer: false",
    "### Review: the film was good and the music was great\n ### Sentiment: positive",
    "### Review: the film was bad and the music was worse\n ### Sentiment: negative",
    "Below is an instruction that describes a task, paired with an input.\n\n### Response:\n",
    "style and beauty, sports, business and politics are some of the labels of the news",
)


def save_tokenizer(folder: Path, *, begin: bool = False) -> int:
    """Train a byte-level BPE of some 400 tokens and save it; returns the size of its vocabulary.

    Args:
        folder: where AutoTokenizer shall find it.
        begin: put `BEGIN` before every text, by a post-processor as Llama 3 has it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = [*SPECIAL_TOKENS, *([BEGIN] if begin else [])]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if begin:
        tokenizer.post_processor = processors.Sequence(
            [
                tokenizer.post_processor,
                processors.TemplateProcessing(
                    single=f"{BEGIN} $A",
                    pair=f"{BEGIN} $A {BEGIN}:1 $B:1",
                    special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))],
                ),
            ]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|im_end|>",
        bos_token=BEGIN if begin else None,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    return len(fast)


def llama_config(vocabulary: int, **changes: Any) -> Any:
    """Two layers, hidden size 64, four heads over two key-value heads, a context of 512."""
    from transformers import LlamaConfig

    settings = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,  # 0.02 would give every label the same probability
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    return LlamaConfig(**(settings | changes))


def random_model(config: Any, seed: int = 0) -> Any:
    """A causal language model with random weights, the same for the same seed, for reading."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def save_llama(folder: Path, *, begin: bool = False, tied: bool = True) -> Path:
    """Write tokenizer, config and safetensors weights of a random Llama."""
    vocabulary = save_tokenizer(folder, begin=begin)
    config = llama_config(vocabulary, tie_word_embeddings=tied)
    random_model(config).save_pretrained(folder)
    return folder
