import errno
import hashlib
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llabel.assets.gguf import convert_gguf
from llabel.errors import InputError
from small_disk import full_disk

HIDDEN, HEADS, KV_HEADS, LAYERS, MLP = 64, 4, 2, 2, 96
SHAPES = {
    "attn_q": ("self_attn.q_proj", (HIDDEN, HIDDEN)),
    "attn_k": ("self_attn.k_proj", (HIDDEN * KV_HEADS // HEADS, HIDDEN)),
    "attn_v": ("self_attn.v_proj", (HIDDEN * KV_HEADS // HEADS, HIDDEN)),
    "attn_output": ("self_attn.o_proj", (HIDDEN, HIDDEN)),
    "ffn_gate": ("mlp.gate_proj", (MLP, HIDDEN)),
    "ffn_up": ("mlp.up_proj", (MLP, HIDDEN)),
    "ffn_down": ("mlp.down_proj", (HIDDEN, MLP)),
}


def byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def rotate_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """(out, in): order of rows in a llama.cpp file for q and k, from that in transformers."""
    out, width = weight.shape
    return weight.reshape(heads, 2, out // heads // 2, width).swapaxes(1, 2).reshape(out, width)


def write_tiny_gguf(path: Path, pre: str = "smollm") -> dict[str, np.ndarray]:
    """Write a random two-layer Llama in Q4_1; return what its blocks say, by our names."""
    rng = np.random.default_rng(0)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_alphabet(), "ĠĠ", "Ġt", "12"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ Ġ", "Ġ t", "1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")

    expected: dict[str, np.ndarray] = {}

    def add(name: str, ours: str, shape: tuple[int, ...], kind=gguf.GGMLQuantizationType.Q4_1):
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2], 0)
        weight = rng.normal(0, 0.1, shape).astype(np.float32)
        blocks = gguf.quantize(weight, kind)
        expected[ours] = gguf.dequantize(blocks, kind)
        if heads:
            blocks = rotate_rows(blocks, heads)
        writer.add_tensor(name, blocks, raw_dtype=kind)

    f32 = gguf.GGMLQuantizationType.F32
    embedding = (len(tokens), HIDDEN)
    q8 = gguf.GGMLQuantizationType.Q8_0
    add("token_embd.weight", "model.embed_tokens.weight", embedding, q8)
    add("output_norm.weight", "model.norm.weight", (HIDDEN,), f32)
    for i in range(LAYERS):
        layer, block = f"model.layers.{i}", f"blk.{i}"
        add(f"{block}.attn_norm.weight", f"{layer}.input_layernorm.weight", (HIDDEN,), f32)
        add(f"{block}.ffn_norm.weight", f"{layer}.post_attention_layernorm.weight", (HIDDEN,), f32)
        for name, (ours, shape) in SHAPES.items():
            add(f"{block}.{name}.weight", f"{layer}.{ours}.weight", shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    expected = write_tiny_gguf(folder / "tiny.gguf")
    out = folder / "model"
    out.mkdir()
    convert_gguf(folder / "tiny.gguf", out)
    return out, expected


def test_every_weight_is_what_the_blocks_say_to_the_last_bit(tiny):
    folder, expected = tiny
    model = AutoModelForCausalLM.from_pretrained(folder)
    weights = dict(model.named_parameters())
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert weight.dtype == torch.float32
        assert np.array_equal(weight.detach().numpy(), expected[name]), name
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_config_is_the_files_and_names_no_quantisation(tiny):
    folder, _ = tiny
    config = AutoModelForCausalLM.from_pretrained(folder).config
    assert config.architectures == ["LlamaForCausalLM"]
    assert config.rms_norm_eps == pytest.approx(1e-5)
    assert (config.num_attention_heads, config.num_key_value_heads) == (HEADS, KV_HEADS)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    assert not hasattr(config, "quantization_config")


def test_the_folder_holds_safetensors_and_no_trace_of_the_gguf_file(tiny):
    folder, _ = tiny
    assert {path.name for path in folder.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert "gguf" not in (folder / "config.json").read_text()
    assert str(folder.parent) not in (folder / "tokenizer_config.json").read_text()


def test_digits_stand_alone_even_where_a_merge_would_join_them(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny[0])
    assert tokenizer.tokenize("1212") == ["1", "2", "1", "2"]
    # Spaces before a digit stay together; GPT-2's split alone would set the last one apart.
    assert tokenizer.tokenize("  1") == ["ĠĠ", "1"]
    assert tokenizer.tokenize(" t") == ["Ġt"]
    assert tokenizer.model_max_length == 128


def test_an_unknown_pre_tokenizer_is_refused(tmp_path):
    write_tiny_gguf(tmp_path / "other.gguf", pre="qwen2")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match=r"other\.gguf: its pre-tokenizer is 'qwen2'"):
        convert_gguf(tmp_path / "other.gguf", out)
    assert not any(out.iterdir())


def test_a_full_disk_is_an_error_of_the_files(tmp_path):
    write_tiny_gguf(tmp_path / "tiny.gguf")
    out = tmp_path / "out"
    out.mkdir()
    with full_disk(10_000), pytest.raises(OSError, match="too large") as raised:
        convert_gguf(tmp_path / "tiny.gguf", out)
    assert raised.value.errno == errno.EFBIG
    assert raised.value.filename.endswith("model.safetensors")


# SHA-256 of float32 weights dequantised with gguf.dequantize alone, rows of q put in order by hand.
SMOLLM2_WEIGHTS = {
    "model.embed_tokens.weight": "3fd491c8066dd9dc1a2bf6796701526c82817d95c0ecabacdef3013c2b8bbbaa",
    "model.layers.0.self_attn.q_proj.weight": (
        "54b377bbfa2deab945dfdba7fb59e0ca3eb74329358bd1b53b635b3ff37c1a56"
    ),
    "model.layers.29.mlp.down_proj.weight": (
        "c19605745425a11e704e305ce3d27b632c406195d39eb3377e9cfb140ac643d1"
    ),
}


def test_smollm2_weights_text_and_answer(smollm2):
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)

    weights = dict(model.named_parameters())
    for name, sha256 in SMOLLM2_WEIGHTS.items():
        assert hashlib.sha256(weights[name].detach().numpy().tobytes()).hexdigest() == sha256, name

    assert len(tokenizer) == model.config.vocab_size == 49_152
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 8_192
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    assert tokenizer.tokenize("in   5th") == ["in", "ĠĠĠ", "5", "th"]
    assert tokenizer("").input_ids == []  # no BOS is added
    text = "Zoë’s café: 20 °C\n\t<|im_end|> naïve 🙂"
    ids = tokenizer(text, split_special_tokens=True).input_ids
    assert tokenizer.decode(ids) == text
    assert min(ids) > 16  # 0 to 16 are the special tokens
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n")

    with torch.inference_mode():
        ids = tokenizer("The capital of France is", return_tensors="pt")
        log_probabilities = model(**ids).logits[0, -1].log_softmax(-1)
    assert tokenizer.decode(log_probabilities.argmax()) == " Paris"
    assert log_probabilities.max().exp() > 0.5
