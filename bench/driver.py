"""Runs contenders beside each other, lap by lap in turns, and compares their speed.

Each contender is a process of its own that loads, warms up and then waits; only one works at a
time. A repeat is one lap of each: A B A B, or A B C A B C. Ratios are taken within a repeat, so a
machine that slows down for a minute slows down all of them.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BENCH = Path(__file__).parent
LOGS = BENCH / ".cache" / "logs"

Lap = dict[str, Any]


class BenchError(RuntimeError):
    """A contender could not be measured; the message says why and where its log is."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One program to measure.

    Attributes:
        name: unique among those measured together.
        script: the worker, below `bench/`.
        job: what it is asked to do, JSON-ready.
        what: for people.
    """

    name: str
    script: str
    job: Mapping[str, Any] = field(default_factory=dict)
    what: str = ""


@dataclass(slots=True)
class Measured:
    """What a contender did.

    Attributes:
        contender: which.
        command: that started it.
        facts: that it told of itself when ready.
        laps: of each repeat: seconds, rows, tokens, peak_rss (bytes) and more.
    """

    contender: Contender
    command: list[str]
    facts: dict[str, Any]
    laps: list[Lap] = field(default_factory=list)

    def rates(self, unit: str = "rows") -> list[float]:
        """`unit` a second, of each lap."""
        return [lap[unit] / lap["seconds"] for lap in self.laps]


class Worker:
    """A running contender."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"{contender.name}.log"
        self.command = [
            sys.executable, str(BENCH / contender.script), json.dumps(dict(contender.job)),
        ]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": str(BENCH), "TOKENIZERS_PARALLELISM": "false"}
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
            )

    def answer(self) -> dict[str, Any]:
        """The worker's next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            tail = "\n".join(self.log.read_text(encoding="utf-8").splitlines()[-15:])
            raise BenchError(
                f"{self.contender.name} ended with exit code {self.process.wait()}; the end of "
                f"{self.log}:\n{tail}"
            )
        told: dict[str, Any] = json.loads(line)
        return told

    def lap(self) -> Lap:
        assert self.process.stdin is not None
        self.process.stdin.write("lap\n")
        self.process.stdin.flush()
        return self.answer()

    def cpu_seconds(self) -> float:
        """Processor time that it has used so far; 0 where there is no /proc."""
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8")
        except OSError:
            return 0.0
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # the next wait finds no line
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


@contextmanager
def started(contender: Contender, say: Callable[[str], None]) -> Iterator[tuple[Worker, Measured]]:
    """Start a worker and wait until it is warm."""
    say(f"{contender.name}: starting and warming up")
    begun = time.perf_counter()
    worker = Worker(contender)
    try:
        facts = worker.answer()
        say(f"{contender.name}: ready after {time.perf_counter() - begun:.0f} s")
        yield worker, Measured(contender, worker.command[1:], facts)
    finally:
        worker.stop()


def measure(
    contenders: Sequence[Contender], repeats: int, say: Callable[[str], None] = print
) -> list[Measured]:
    """Interleave the contenders' laps.

    Args:
        contenders: started one after the other, in this order.
        repeats: laps of each.
        say: told of progress.

    Returns:
        What each did. A lap's `idle_cpu_seconds` is the processor time that the waiting ones used
        meanwhile: about none, or they would have disturbed.

    Raises:
        BenchError: a worker ended before its time.
    """
    with ExitStack() as stack:
        running = [stack.enter_context(started(contender, say)) for contender in contenders]
        for repeat in range(repeats):
            for worker, measured in running:
                others = [other for other, _ in running if other is not worker]
                before = sum(other.cpu_seconds() for other in others)
                lap = worker.lap()
                lap["idle_cpu_seconds"] = round(sum(o.cpu_seconds() for o in others) - before, 2)
                measured.laps.append(lap)
                say(
                    f"  repeat {repeat + 1} of {repeats}  {worker.contender.name}: "
                    f"{lap['seconds']:.2f} s"
                    + (f", {lap['rows'] / lap['seconds']:.2f} rows/s" if "rows" in lap else "")
                )
        return [measured for _, measured in running]


def measure_pairs(
    ours: Contender, peers: Sequence[Contender], repeats: int, say: Callable[[str], None] = print
) -> list[tuple[Measured, Measured]]:
    """Measure `ours` beside each peer alone: big ones would not fit into memory together.

    The first peer is the one that is hardest on us, and gets all repeats; the others, its slower
    variants, get one, which shows that they are slower.
    """
    pairs = []
    for number, peer in enumerate(peers):
        one, other = measure([ours, peer], 1 if number else repeats, say)
        pairs.append((one, other))
    return pairs


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and greatest of some values, and all of them."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "each": list(values),
    }


def ratio(ours: Sequence[float], peer: Sequence[float]) -> dict[str, Any]:
    """Spread of the ratios ours / peer, each within its repeat."""
    return spread([a / b for a, b in zip(ours, peer, strict=True)])
