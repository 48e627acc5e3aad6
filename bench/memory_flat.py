"""memory-flat: whether memory grows over a long training on rows of varying length.

    python bench/memory_flat.py [--minutes 60] [--set NAME=VALUE]

Trains SmolLM2-135M on all of BoolQ, cut at 512 tokens, so that lengths vary widely, and writes once
a minute to bench/results/memory-flat.json: resident memory, its greatest value, and its slope over
the second half (MiB an hour, least squares). Not part of the table.
"""

import argparse
import statistics
import time
from pathlib import Path

from driver import BENCH
from record import surroundings, write_json
from work import TRAINING, ours_with, write_rows

MAX_LENGTH = 512


def resident() -> float:
    """MiB that this process has in memory now (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def slope(minutes: list[float], mib: list[float]) -> float | None:
    """MiB an hour over the second half; None where there are too few points."""
    half = len(minutes) // 2
    if len(minutes) - half < 3:
        return None
    return 60 * statistics.linear_regression(minutes[half:], mib[half:]).slope


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=1, help="minutes between two values (1)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "memory-flat.json")
    asked = parser.parse_args()

    from llabel.events import Event, StepDone
    from llabel.ladder.llm import LLMRung
    from llabel.settings import LLMSettings
    from workers.train_ours import task_of

    around = surroundings()
    long = {"max_seq_length": MAX_LENGTH, "epochs": 100, "patience": None}
    settings = TRAINING | long | ours_with(parser, asked.set)
    _, rows = write_rows("memory", "train", 10_000, max_seq_length=MAX_LENGTH)
    started = time.perf_counter()
    minutes: list[float] = []
    mib: list[float] = []
    steps = 0

    def record() -> None:
        minutes.append(round((time.perf_counter() - started) / 60, 3))
        mib.append(round(resident(), 1))
        result = {
            "name": "memory-flat",
            "what": "resident memory of a long training on rows of varying length, MiB",
            "minutes": minutes,
            "rss_mib": mib,
            "max_mib": max(mib),
            "slope_mib_per_hour": slope(minutes, mib),
            "steps": steps,
            "settings": settings,
        }
        write_json(asked.out, result | around)

    def notify(event: Event) -> None:
        nonlocal steps
        if not isinstance(event, StepDone):
            return
        steps = event.step
        now = (time.perf_counter() - started) / 60
        if not minutes or now - minutes[-1] >= asked.every:
            record()
            print(f"{minutes[-1]:6.1f} min  {mib[-1]:8.1f} MiB  step {steps}", flush=True)
        if now >= asked.minutes:
            record()
            raise SystemExit(0)

    LLMRung(LLMSettings(**settings)).fit(task_of(rows, rows[:16]), notify=notify)


if __name__ == "__main__":
    main()
