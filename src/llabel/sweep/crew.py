"""Who does the cells: workers, each with a thread that hands it one order after the other."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

from llabel.compare.processes import end, how_it_died
from llabel.events import CellSays, Event, Listener
from llabel.sweep.outcome import Order
from llabel.sweep.worker import encoded
from llabel.worker import decode

_THREADS = "OMP_NUM_THREADS"
LOG = ".workers.log"  # what libraries printed


class WorkerDiedError(Exception):
    """A worker is gone; the message says why."""


class Worker(Protocol):
    """Carries out orders, one at a time."""

    def carry_out(self, order: Order, notify: Listener) -> str:
        """See `Runner.carry_out`.

        Raises:
            WorkerDiedError: it came to no end.
        """
        ...

    def stop(self) -> None:
        """End it, whatever it is doing; it can be begun again where it was last saved."""
        ...


class Plan(Protocol):
    """What is to be done, for several threads at once."""

    def next(self) -> Order | None:
        """The next order; waits where one may come yet. None: there is none left."""
        ...

    def ended(self, order: Order, result: str, died: str) -> None:
        """How an order ended: a result of `Runner.carry_out`, or why its worker died."""
        ...


def carry_out(plan: Plan, hire: Callable[[], Worker], jobs: int, notify: Listener) -> None:
    """Have all of a plan done.

    Args:
        plan: what to do.
        hire: makes a worker.
        jobs: how many of them work at a time.
        notify: told what the cells say, by several threads (see `one_at_a_time`).
    """
    workers = _Workers(hire)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            threads = [pool.submit(_work, plan, workers, notify) for _ in range(jobs)]
            done, _ = wait(threads, return_when=FIRST_EXCEPTION)
            for thread in done:
                thread.result()
        finally:
            workers.stop()


def one_at_a_time(notify: Listener) -> Listener:
    """A listener that several threads may tell."""
    lock = threading.Lock()

    def tell(event: Event) -> None:
        with lock:
            notify(event)

    return tell


class _Workers:
    """Those that are at work; none is hired once they are stopped."""

    def __init__(self, make: Callable[[], Worker]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._at_work: list[Worker] = []
        self.stopped = False

    def hire(self) -> Worker | None:
        with self._lock:
            if self.stopped:
                return None
            worker = self._make()
            self._at_work.append(worker)
            return worker

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
        for worker in self._at_work:
            worker.stop()


def _work(plan: Plan, workers: _Workers, notify: Listener) -> None:
    """One thread: a worker, and another one when it dies."""
    worker: Worker | None = None
    while not workers.stopped and (order := plan.next()) is not None:
        worker = worker or workers.hire()
        if worker is None:
            return
        cell = order.name

        def tell(event: Event, cell: str = cell) -> None:
            notify(CellSays(cell, event))

        result = died = ""
        try:
            result = worker.carry_out(order, tell)
        except WorkerDiedError as error:
            if workers.stopped:
                return
            died, worker = str(error), None
        plan.ended(order, result, died)


class ProcessWorker:
    """A process of this machine.

    Args:
        out: folder of the sweep.
        threads: that it may compute with; None leaves it to PyTorch.
    """

    def __init__(self, out: Path, threads: int | None) -> None:
        more = {} if threads is None else {_THREADS: str(threads)}
        self.log = out / LOG
        with self.log.open("ab") as printed:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "llabel.sweep.worker", str(out)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                encoding="utf-8",
                env={**os.environ, **more},
            )

    def carry_out(self, order: Order, notify: Listener) -> str:
        """See `Worker`."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(encoded(order))
            self.process.stdin.flush()
            for line in self.process.stdout:
                said = decode(line)
                if isinstance(said, dict):
                    return str(said["result"])
                notify(said)
        except (OSError, ValueError):  # it died before, or in the midst of a line
            pass
        code = self.process.wait()
        if code in {130, -signal.SIGINT}:
            raise KeyboardInterrupt
        raise WorkerDiedError(f"{how_it_died(code)} ({self.log} may have the details)")

    def stop(self) -> None:
        """See `Worker`."""
        end(self.process)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


def threads_each(jobs: int) -> int | None:
    """Threads of each of so many processes, so that together they have one a core."""
    if jobs == 1:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, int(os.environ.get(_THREADS) or cores or 1) // jobs)
