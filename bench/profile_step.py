"""profile-step: where the time of a training step goes, in the plain engine and in the packed one.

    python bench/profile_step.py [--set precision=int8] [--steps 4]

SmolLM2-135M, rows of BoolQ at most 256 tokens long, LoRA r 16, batches of 16. The plain engine is
watched by torch.profiler (self time), the packed one by a clock around each kernel. Writes
bench/results/profile-step.json. A minute.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from driver import BENCH
from record import surroundings, write_json
from work import BATCH_SIZE, TRAINING, ours_with, write_rows

PLAIN = {  # kinds of PyTorch's operators, by what their names contain; the first that fits counts
    "integer products": ("_int_mm",),
    "float products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::matmul"),
    "attention": ("flash_attention", "scaled_dot_product"),
    "optimiser": ("_foreach", "_fused_adam", "Optimizer", "linalg_vector_norm"),
}


@contextmanager
def clocked(owner: Any, names: list[str], spent: dict[str, float]) -> Iterator[None]:
    """Add up the time within these functions of `owner`."""
    originals = {name: getattr(owner, name) for name in names}

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            found = function(*args, **kwargs)
            spent[name] += time.perf_counter() - start
            return found

        return call

    for name, function in originals.items():
        setattr(owner, name, watched(name, function))
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(owner, name, function)


def trainer_of(engine: str, settings: dict[str, Any], rows: list[dict]) -> Callable[[], float]:
    """One training step a call; returns its seconds."""
    from llabel.engine.batching import collate, micro_batches
    from llabel.ladder.llm import LLMRung
    from llabel.settings import LLMSettings
    from workers.train_ours import BOOLQ, split_of

    rung = LLMRung(LLMSettings(**(settings | {"engine": engine})))
    rung.prepare(tuple(rows[0]["fields"]), BOOLQ)
    rung._load_model()
    examples, _ = rung.examples(split_of(rows, "train"))
    weights = [p for p in rung.model_.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4)
    at = 0

    def step() -> float:
        nonlocal at
        batch = [examples[(at + i) % len(examples)] for i in range(BATCH_SIZE)]
        at += BATCH_SIZE
        start = time.perf_counter()
        for group in micro_batches([len(e.input_ids) for e in batch], rung.settings.token_budget):
            (rung.head_.loss(collate([batch[row] for row in group])) / BATCH_SIZE).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    rung.model_.train()
    step.rung = rung  # type: ignore[attr-defined]
    return step


def plain(step: Callable[[], float], steps: int) -> dict[str, float]:
    """Kind → seconds a step."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            step()
    spent: dict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        fits = (kind for kind, names in PLAIN.items() if any(name in event.key for name in names))
        spent[next(fits, "everything else")] += event.self_cpu_time_total / 1e6 / steps
    return dict(spent)


def packed(step: Any, steps: int) -> dict[str, float]:
    """Kernel → seconds a step."""
    from llabel.engine.native.kernels import Kernels

    spent: dict[str, float] = defaultdict(float)
    names = [n for n, f in vars(Kernels).items() if callable(f) and not n.startswith("_")]
    with clocked(Kernels, names, spent), clocked(torch, ["_int_mm"], spent):
        whole = sum(step() for _ in range(steps))
    spent["everything else"] = whole - sum(spent.values())
    return {name: seconds / steps for name, seconds in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--steps", type=int, default=4)
    asked = parser.parse_args()
    around = surroundings()
    settings = TRAINING | ours_with(parser, asked.set)
    _, rows = write_rows("train", "train", BATCH_SIZE * asked.steps)
    result: dict[str, Any] = {"name": "profile-step", "settings": settings, **around}
    for engine, watch in (("plain", plain), ("auto", packed)):
        step = trainer_of(engine, settings, rows)
        warm = [step() for _ in range(asked.steps)]
        spent = watch(step, asked.steps)
        name = step.rung.engine_
        tokens = sum(row["tokens"] for row in rows) / asked.steps
        result[name] = {
            "tokens_per_step": tokens,
            "seconds_per_step_unwatched": min(warm),
            "seconds_per_step": dict(sorted(spent.items(), key=lambda item: -item[1])),
        }
        print(f"\n{name}: {tokens:.0f} tokens a step, {min(warm):.2f} s unwatched")
        for kind, seconds in result[name]["seconds_per_step"].items():
            print(f"  {kind:24} {seconds:6.3f} s  {seconds / sum(spent.values()):5.1%}")
    write_json(BENCH / "results" / "profile-step.json", result)


if __name__ == "__main__":
    main()
