"""What a run should cost."""

import pytest

from llabel.check.estimate import ModelSize, estimate_run, measure_matmul_rate, model_size

SMOLLM2 = ModelSize(106_168_320, 28_346_688, layers=30, hidden=576, intermediate=1536)
P = SMOLLM2.linear_parameters
OF_A_LAYER = 4 * (7 * 576 + 4 * 1536)  # bytes that a layer keeps of a token
STATE = 4 * 576


def test_estimate_follows_its_formula():
    found = estimate_run(
        1_000_000,
        500_000,
        model=SMOLLM2,
        epochs=3,
        flops_per_second=200e9,
        token_budget=2048,
        efficiency=0.5,
    )
    assert found.train_seconds == pytest.approx(3 * 1e6 * 4 * 106_168_320 / 100e9)
    assert found.predict_seconds == pytest.approx(5e5 * 2 * 106_168_320 / 100e9)
    kept = 2048 * 30 * (7 * 576 + 4 * 1536) * 4
    weights = 4 * (106_168_320 + 28_346_688)
    assert found.peak_memory_mb == pytest.approx(600 + (weights + kept) / 2**20)
    assert "within a factor of two" in found.basis


def estimate(**changes):
    """Seconds of training in operations a token, and MiB beside weights and runtime."""
    asked = {"epochs": 3, "flops_per_second": 1.0, "efficiency": 1.0, "token_budget": 1000}
    found = estimate_run(10_000, 0, model=SMOLLM2, **(asked | changes))
    beside = found.peak_memory_mb - 600 - 4 * (P + SMOLLM2.other_parameters) / 2**20
    return found.train_seconds / (2 * P * 10_000), beside * 2**20


@pytest.mark.parametrize(
    ("changes", "operations", "beside"),
    [
        ({}, 3 * 2, 1000 * 30 * OF_A_LAYER),
        # Each layer once more, of which one is kept whole at a time.
        ({"recompute": True}, 3 * 3, 1000 * (30 * STATE + OF_A_LAYER)),
        # Below the adapters forward alone, in each pass where nothing of it is kept.
        ({"adapted": 3}, 3 * (0.1 * 2 + 0.9), 1000 * 3 * OF_A_LAYER),
        (
            {"adapted": 3, "recompute": True},
            3 * (0.1 * 3 + 0.9),
            1000 * (3 * STATE + OF_A_LAYER),
        ),
        (
            {"adapted": 3, "lower_limit": 2**40},
            3 * 0.1 * 2 + 0.9,
            1000 * 3 * OF_A_LAYER + 10_000 * STATE,
        ),
        # A quarter of the tokens fits.
        (
            {"adapted": 3, "lower_limit": 2500 * STATE},
            3 * 0.1 * 2 + 0.9 * (0.25 + 3 * 0.75),
            1000 * 3 * OF_A_LAYER + 2500 * STATE,
        ),
        # Half of the rows are read, none of them again.
        (
            {"adapted": 3, "lower_limit": 2**40, "epochs": 0.5},
            0.5 * (0.1 * 2 + 0.9),
            1000 * 3 * OF_A_LAYER + 5000 * STATE,
        ),
        ({"adapted": 30, "lower_limit": 2**40}, 3 * 2, 1000 * 30 * OF_A_LAYER),
    ],
)
def test_estimate_of_layers_that_are_run_again_or_not_trained(changes, operations, beside):
    assert estimate(**changes) == pytest.approx((operations, beside))


@pytest.mark.parametrize(
    ("changes", "operations"),
    [({}, 4 * P + 6 * 1e7), ({"recompute": True}, 6 * P + 8 * 1e7),
     ({"adapter_speed": 0.5}, 4 * P + 2 * 6 * 1e7)],
)  # fmt: skip
def test_estimate_counts_the_adapters(changes, operations):
    found, beside = estimate(adapters=10_000_000, epochs=1, **changes)
    assert found * 2 * P == pytest.approx(operations)
    without = estimate(epochs=1, **changes)[1]
    assert beside - without == pytest.approx(16e7), "weights, gradients and AdamW's state"


def test_estimate_of_a_high_rank_is_what_was_measured():
    # SmolLM2-135M, all linear layers: 305,280 · r weights. In int8 rank 256 took 236 s or more
    # where rank 16 took 72 (results/sweep-imdb).
    asked = {"model": SMOLLM2, "epochs": 1, "flops_per_second": 1e11, "token_budget": 1024}
    low, high = (estimate_run(1000, 1000, adapters=305_280 * r, **asked) for r in (16, 256))
    expected = (4 * P + 6 * 305_280 * 256) / (4 * P + 6 * 305_280 * 16)
    assert high.train_seconds / low.train_seconds == pytest.approx(expected)
    assert high.predict_seconds > 1.5 * low.predict_seconds
    assert "78.2 M in adapters" in high.basis
    low, high = (
        estimate_run(1, 0, adapters=305_280 * r, speed=5.0, adapter_speed=2.4, **asked)
        for r in (16, 256)
    )
    assert 236 / 72 / 2 < high.train_seconds / low.train_seconds < 2 * 236 / 72


def test_estimate_says_which_layers_it_counted():
    asked = {"model": SMOLLM2, "epochs": 1, "flops_per_second": 1e9, "token_budget": 9}
    plain = estimate_run(1, 1, **asked).basis
    found = estimate_run(1, 1, adapted=2, recompute=True, **asked).basis
    said = ", 2 of 30 layers adapted, layers run again in the backward pass;"
    assert plain == found.replace(said, ";") != found


def test_estimate_agrees_with_a_measured_training():
    # SmolLM2-135M, float32 eager, LoRA on all linear layers: 370 tokens/s where the product ran
    # at 285 GFLOP/s.
    found = estimate_run(370, 0, model=SMOLLM2, epochs=1, flops_per_second=285e9, token_budget=2560)
    assert 0.5 < found.train_seconds < 2


@pytest.mark.parametrize("shape", [(576, 1536), (4096, 14336)])
def test_measured_rate_is_plausible(shape):
    assert 1e8 < measure_matmul_rate(*shape, seconds=0.05) < 1e14


def test_model_size_leaves_out_embeddings_and_head():
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=40,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=3,
        vocab_size=100,
        tie_word_embeddings=False,
    )
    size = model_size(config)
    attention = 16 * 16 * 2 + 16 * 8 * 2
    assert size.linear_parameters == 3 * (attention + 3 * 16 * 40)
    assert size.other_parameters == 2 * 100 * 16 + 7 * 16
    assert (size.layers, size.hidden, size.intermediate) == (3, 16, 40)


def test_model_size_is_that_of_what_text_passes_through():
    from transformers import Gemma3Config, Gemma3TextConfig

    text = {
        **{"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 3, "head_dim": 4},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100},
        "pad_token_id": 0,
    }
    tower = {
        **{"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 5},
        **{"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
    }
    alone = model_size(Gemma3TextConfig(**text))
    found = model_size(Gemma3Config(text_config=text, vision_config=tower))
    assert found.linear_parameters == alone.linear_parameters
    assert found.other_parameters > alone.other_parameters
    assert (found.layers, found.hidden, found.intermediate) == (3, 16, 40)
