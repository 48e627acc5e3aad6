"""Worker: how fast this machine multiplies matrices, in int8 and in float32.

A lap runs `torch._int_mm`, our own integer product and float32 `torch.mm` in each of several
shapes, three times or more, and tells for each the median operations a second (2·m·n·k a product).
The shapes are those of SmolLM2-135M's layers at 2,048 tokens, both ways round, and squares. The
fastest is the peak; PyTorch's integer product is left out where it is a plain loop.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from llabel.assets import cache_folder
from llabel.engine.linear import int_mm_is_fast
from llabel.engine.native.kernels import Kernels
from llabel.engine.native.library import CannotCompile
from protocol import Link, job, serve

SHAPES = (  # m, n, k
    (2048, 1536, 576),
    (2048, 576, 1536),
    (2048, 576, 576),
    (4096, 1536, 576),
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (4096, 4096, 4096),
)


def operations_per_second(product: Callable[[], object], operations: int, seconds: float) -> float:
    """Median over the calls that fit into so many seconds, three at the least."""
    took: list[float] = []
    product()
    while len(took) < 3 or sum(took) < seconds:
        started = time.perf_counter()
        product()
        took.append(time.perf_counter() - started)
    return operations / statistics.median(took)


def own_kernels() -> Kernels | None:
    """With an integer product, if they can be had."""
    try:
        kernels = Kernels(cache_folder() / "kernels")
    except CannotCompile:
        return None
    return kernels if kernels.multiplies_integers else None


def main() -> None:
    link, asked = Link(), job()
    seconds, kernels = float(asked["seconds"]), own_kernels()

    def lap() -> dict:
        told: dict = {"int8": {}, "float32": {}}
        for m, n, k in SHAPES:
            name, work = f"{m}x{n}x{k}", 2 * m * n * k
            a, b = torch.randint(-127, 128, (m, k)), torch.randint(-127, 128, (n, k))
            int8 = a.to(torch.int8), b.to(torch.int8)
            ways = {
                f"{name} (n, k)": int8[1].t(),  # weights as nn.Linear keeps them: forward
                f"{name} (k, n)": int8[1].t().contiguous(),  # toward the input
            }
            for way, weight in ways.items() if int_mm_is_fast() else ():
                product = partial(torch._int_mm, int8[0], weight)
                told["int8"][way] = operations_per_second(product, work, seconds)
            if kernels:
                product = partial(kernels.int_product, int8[0], kernels.pack(int8[1].t()), n)
                told["int8"][f"{name} (own)"] = operations_per_second(product, work, seconds)
            product = partial(torch.mm, a.float(), b.float().t())
            told["float32"][name] = operations_per_second(product, work, seconds)
        return told | {f"best_{kind}": max(told[kind].values()) for kind in ("int8", "float32")}

    lap()
    serve(link, lap, warm_laps=1, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
