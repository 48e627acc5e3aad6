"""How long a run will take here and how much memory: rough arithmetic over a measured rate."""

from dataclasses import dataclass
from typing import Any

EFFICIENCY = 0.5  # of the matrix-product rate: float32 eager LoRA training, two AVX-512 cores
ADAPTER_BYTES = 16  # a weight in float32, its gradient, and the two means that AdamW keeps of it
RUNTIME_MB = 600  # Python with torch and transformers imported, before any weight is loaded
MEASURED_FLOPS = 2e9  # of one timed product: large enough to fill the cores, small enough to wait


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What of a causal language model decides its cost.

    Attributes:
        linear_parameters: weights of the linear layers that text passes through, without the
            output head.
        other_parameters: embeddings, output head (once, where tied), norms, a vision tower.
        layers: number of decoder layers.
        hidden: width between layers.
        intermediate: width inside the feed-forward blocks.
    """

    linear_parameters: int
    other_parameters: int
    layers: int
    hidden: int
    intermediate: int


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """What a run should cost on this machine, within a factor of two.

    Attributes:
        train_seconds: all epochs together.
        predict_seconds: all that is predicted on the way and at the end.
        peak_memory_mb: resident memory in MiB.
        basis: how it was estimated, for people.
    """

    train_seconds: float
    predict_seconds: float
    peak_memory_mb: float
    basis: str


def estimate_run(
    total_train_tokens: int,
    total_predict_tokens: int,
    *,
    model: ModelSize,
    epochs: float,
    flops_per_second: float,
    token_budget: int,
    efficiency: float = EFFICIENCY,
    speed: float = 1.0,
    adapters: int = 0,
    adapter_speed: float | None = None,
    bytes_per_weight: float = 4.0,
    adapted: int | None = None,
    recompute: bool = False,
    lower_limit: int = 0,
    how: str = "float32",
) -> RunEstimate:
    """Estimate LoRA training and prediction from the work in the linear layers and the adapters.

    A forward pass costs 2 · P floating-point operations a token for P linear parameters (Kaplan et
    al. 2020, section 2.1); frozen layers need the same again for the gradient toward the input and
    nothing for their weights. The A weights of the adapters, r · (in + out) a layer, need both, so
    6 · A. Attention scores, the label logits and the optimizer are left out: a few per cent for
    rows of some hundred tokens. So, at the same speed,

        train_seconds   = epochs · train tokens · (4 · P + 6 · A) / (rate · efficiency · speed)
        predict_seconds = predict tokens · (2 · P + 2 · A) / (rate · efficiency · speed)

    With adapters in the last layers alone, the layers below are run forward only, and not again for
    tokens whose states at the lowest adapter are kept. With checkpointing the adapted layers are
    run forward once more (6 in place of 4: measured 1.5 to 1.6 times as long in either engine).

    Memory is the weights (linear ones at `bytes_per_weight`, the others in float32; those of the
    adapters with gradients and AdamW's state), what a
    Llama-like layer keeps for the backward pass, (7 · hidden + 4 · intermediate) float32 numbers a
    token (counted with PyTorch's saved-tensor hooks over three shapes, within 2 %), and the
    runtime. Layers below the lowest adapter keep nothing; with checkpointing an adapted layer keeps
    its input, and one at a time the rest. States of lower layers are float32, too. Take all of it
    as right within a factor of two.

    Args:
        total_train_tokens: prompt tokens of one epoch, after truncation.
        total_predict_tokens: prompt tokens to predict, after truncation.
        model: the base model.
        epochs: passes over the training rows.
        flops_per_second: matrix-product rate, see `measure_matmul_rate`.
        token_budget: most tokens in a micro-batch.
        efficiency: share of that rate that eager steps in the measured precision reach.
        speed: how many times as fast as those the run's steps are.
        adapters: weights of all adapters, which are trained.
        adapter_speed: how many times as fast their products are, which int8 makes no faster than
            float32; None is as `speed`.
        bytes_per_weight: of the frozen linear layers: 4 float32, 2 bfloat16, 1 int8, 0.5 4-bit.
        adapted: how many of the last layers have adapters; None is all.
        recompute: whether these are run again in the backward pass (gradient checkpointing).
        lower_limit: most bytes of the lower layers' states that are kept between passes.
        how: what makes that speed, for people: precision, and whether compiled.
    """
    seconds = 2 / (flops_per_second * efficiency)  # a weight and token that pass each other
    frozen = seconds * model.linear_parameters / speed  # a token, forward or back
    added = seconds * adapters / (adapter_speed or speed)
    weights = model.linear_parameters * bytes_per_weight + model.other_parameters * 4
    upper = model.layers if adapted is None else adapted
    share = upper / model.layers
    state = 4 * model.hidden  # bytes a token between two layers
    lower_kept = 0.0  # tokens
    if upper < model.layers:
        lower_kept = min(total_train_tokens * min(1, epochs), lower_limit / state)
    read = total_train_tokens * epochs
    # A kept token is read by the lower layers in the first pass alone.
    read_below = read - lower_kept * max(0, epochs - 1)
    passes = 3 if recompute else 2
    through = share * passes * read + (1 - share) * read_below
    layer = 4 * (7 * model.hidden + 4 * model.intermediate)  # bytes a token
    kept = token_budget * (upper * state + layer if recompute else upper * layer)
    beside = weights + kept + lower_kept * state + adapters * ADAPTER_BYTES
    times = "" if speed == 1 else f" at {speed:.1f} × that"
    only = "" if upper == model.layers else f", {upper} of {model.layers} layers adapted"
    again = ", layers run again in the backward pass" if recompute else ""
    return RunEstimate(
        train_seconds=frozen * through + added * (passes + 1) * read,
        predict_seconds=(frozen + added) * total_predict_tokens,
        peak_memory_mb=RUNTIME_MB + beside / 2**20,
        basis=(
            f"{model.linear_parameters / 1e6:.0f} M weights in linear layers, "
            f"{adapters / 1e6:.1f} M in adapters, "
            f"epochs: {epochs:g}, {flops_per_second / 1e9:.0f} GFLOP/s measured here, of which a "
            f"step reaches {efficiency:.0%}, {how}{times}, {token_budget} tokens at a time"
            f"{only}{again}; right within a factor of two"
        ),
    )


def measure_matmul_rate(
    hidden: int = 576,
    intermediate: int = 1536,
    *,
    seconds: float = 0.4,
    device: str = "cpu",
    dtype: str = "float32",
) -> float:
    """Time the matrix product a model spends its time in, in about a second.

    Args:
        hidden: the model's width.
        intermediate: the width inside its feed-forward blocks.
        seconds: how long to repeat the product; at least three times.
        device: where to measure, such as "cpu" or "cuda".
        dtype: of both factors, float32 or bfloat16.

    Returns:
        Floating-point operations a second: 2 · rows · hidden · intermediate over the median time.
    """
    from statistics import median
    from time import perf_counter

    import torch

    rows = min(2048, max(64, int(MEASURED_FLOPS / (2 * hidden * intermediate))))
    generator = torch.Generator().manual_seed(0)
    kind = getattr(torch, dtype)
    x = torch.randn(rows, hidden, generator=generator).to(device, kind)  # (rows, hidden)
    weight = torch.randn(hidden, intermediate, generator=generator).to(device, kind)
    out = x @ weight  # the first product also starts the threads
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = perf_counter()
        torch.mm(x, weight, out=out)
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append(perf_counter() - start)
    return 2 * rows * hidden * intermediate / median(times)


def model_size(config: Any) -> ModelSize:
    """Count a model's weights from its transformers configuration, without allocating them.

    Args:
        config: a causal language model's ``PretrainedConfig``.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head, config = model.get_output_embeddings(), config.get_text_config()
    linear = sum(
        module.weight.numel()
        for module in model.get_decoder().modules()  # no text passes through a vision tower
        if module is not head and type(module).__name__ in {"Linear", "Conv1D"}
    )
    hidden = config.hidden_size
    return ModelSize(
        linear_parameters=linear,
        other_parameters=model.num_parameters() - linear,
        layers=config.num_hidden_layers,
        hidden=hidden,
        intermediate=getattr(config, "intermediate_size", None) or 4 * hidden,
    )
