"""The worker's end of a benchmark: say "ready", then do one lap for each line "lap".

Standard library only, so that importing it costs a peer neither time nor memory. What libraries
print goes to stderr; the driver alone reads stdout, one JSON object a line.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

Job = dict[str, Any]


def job() -> Job:
    """What the driver asks this worker to do (first argument, JSON)."""
    asked: Job = json.loads(sys.argv[1])
    return asked


def read_rows(path: str) -> list[dict[str, Any]]:
    """The rows that all contenders read, in the order in which they are used."""
    with Path(path).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def peak_rss() -> int:
    """Most bytes that this process ever had in memory.

    Linux's VmHWM starts anew with each program; ru_maxrss would keep that of the process which
    started this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        factor = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def used(since: "resource.struct_rusage") -> dict[str, Any]:
    """What this process used since then: processor time, and pages that came back from disk."""
    now = resource.getrusage(resource.RUSAGE_SELF)
    seconds = now.ru_utime + now.ru_stime - since.ru_utime - since.ru_stime
    return {
        "cpu_seconds": round(seconds, 2),
        "system_seconds": round(now.ru_stime - since.ru_stime, 2),
        "major_faults": now.ru_majflt - since.ru_majflt,
    }


class Link:
    """Talks to the driver."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # a library's print must not be taken for an answer

    def say(self, **values: Any) -> None:
        self._out.write(json.dumps(values) + "\n")
        self._out.flush()

    def wait(self) -> None:
        """Sleep until the next lap is asked for; end the process when there will be none."""
        if sys.stdin.readline().strip() != "lap":
            self.leave()
        self._before = resource.getrusage(resource.RUSAGE_SELF)

    def report(self, seconds: float, **values: Any) -> None:
        """The lap is done."""
        self.say(seconds=seconds, **values, peak_rss=peak_rss(), **used(self._before))

    def leave(self) -> NoReturn:
        """At once: a trainer in the midst of its work has nothing left to say."""
        self._out.close()
        sys.stderr.flush()
        os._exit(0)


class StepGate:
    """Stops a trainer at step boundaries: after the warm-up, and after each lap.

    The trainer calls `step_done` after each optimiser step, for example from a callback. The clock
    runs from the moment a lap is asked for to the end of its last step, so whatever the trainer
    does between steps (loading data, logging) counts.

    Args:
        link: to the driver.
        tokens: of each row, in the order in which they are trained on.
        asked: `warm` and `steps` (optimiser steps before the first lap, and of each lap) and
            `batch_size`.
    """

    def __init__(self, link: Link, tokens: Sequence[int], asked: Mapping[str, Any]) -> None:
        self.link, self.tokens = link, tokens
        self.warm, self.steps = int(asked["warm"]), int(asked["steps"])
        self.batch_size = int(asked["batch_size"])
        self.facts: dict[str, Any] = {}
        self.done, self.started = 0, 0.0

    def step_done(self) -> None:
        self.done += 1
        past = self.done - self.warm
        if past < 0 or past % self.steps:
            return
        if past == 0:
            self.link.say(ready=True, warm_steps=self.warm, **self.facts)
        else:
            seconds = time.perf_counter() - self.started
            last = self.done * self.batch_size
            tokens = self.tokens[last - self.steps * self.batch_size : last]
            self.link.report(seconds, rows=len(tokens), tokens=sum(tokens))
        self.link.wait()
        self.started = time.perf_counter()


def serve(link: Link, lap: Callable[[], dict[str, Any]], **facts: Any) -> NoReturn:
    """Answer each "lap" by calling `lap`, which returns `rows`, `tokens` and other facts."""
    link.say(ready=True, **facts)
    while True:
        link.wait()
        started = time.perf_counter()
        told = lap()
        link.report(time.perf_counter() - started, **told)
