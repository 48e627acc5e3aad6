"""Who does the cells: workers, each with a thread that hands it one order after the other."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol, Self

from llabel.compare.processes import end, how_it_died
from llabel.errors import InputError
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


def one_at_a_time(notify: Listener) -> Listener:
    """A listener that several threads may tell."""
    lock = threading.Lock()

    def tell(event: Event) -> None:
        with lock:
            notify(event)

    return tell


class Crew:
    """Some workers, hired when there is work, and stopped when the `with` block is left.

    Args:
        hire: makes a worker.
        jobs: how many of them work at a time.
    """

    def __init__(self, hire: Callable[[], Worker], jobs: int) -> None:
        self.jobs, self._hire, self._lock = jobs, hire, threading.Lock()
        self._hired: list[Worker] = []
        self._idle: list[Worker] = []
        self.stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self.stopped = True
        for worker in self._hired:
            worker.stop()

    def carry_out(self, plan: Plan, notify: Listener) -> None:
        """Have all of a plan done.

        Args:
            plan: what to do.
            notify: told what the cells say, by several threads (see `one_at_a_time`).
        """
        with ThreadPoolExecutor(self.jobs) as pool:
            threads = [pool.submit(self._work, plan, notify) for _ in range(self.jobs)]
            try:
                done, _ = wait(threads, return_when=FIRST_EXCEPTION)
                for thread in done:
                    thread.result()
            except BaseException:
                self.__exit__()  # else the pool would wait for the others
                raise

    def do(self, order: Order, notify: Listener) -> str:
        """One order alone (see `Runner.carry_out`); `order.name` is what speaks.

        Raises:
            WorkerDiedError: it came to no end.
        """
        worker = self._taken()
        result = worker.carry_out(order, lambda event: notify(CellSays(order.name, event)))
        self._idle.append(worker)
        return result

    def _work(self, plan: Plan, notify: Listener) -> None:
        while not self.stopped and (order := plan.next()) is not None:
            result = died = ""
            try:
                result = self.do(order, notify)
            except WorkerDiedError as error:
                if self.stopped:
                    return
                died = str(error)
            plan.ended(order, result, died)

    def _taken(self) -> Worker:
        with self._lock:
            if self.stopped:
                raise WorkerDiedError("the sweep was stopped")
            if self._idle:
                return self._idle.pop()
            worker = self._hire()
            self._hired.append(worker)
            return worker


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
                # -P: else a user's random.py in this folder would stand for the standard library's.
                [sys.executable, "-P", "-m", "llabel.sweep.worker", str(out)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                encoding="utf-8",
                env={**os.environ, **more},
            )

    def carry_out(self, order: Order, notify: Listener) -> str:
        """See `Worker`.

        Raises:
            InputError: what the process could not do, in its own words.
        """
        ended: dict[str, Any] = {}
        for said in self._answers(order):
            if isinstance(said, dict):
                ended = said
                break
            try:
                notify(said)
            except BaseException:  # nobody reads any longer what it says
                end(self.process)
                raise
        if "refused" in ended:
            raise InputError(ended["refused"])
        if ended:
            return str(ended["result"])
        code = self.process.wait()
        if code in {130, -signal.SIGINT}:
            raise KeyboardInterrupt
        raise WorkerDiedError(f"{how_it_died(code)} ({self.log} may have the details)")

    def _answers(self, order: Order) -> Iterator[Event | dict[str, Any]]:
        """What the process says of an order, as far as it comes."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(encoded(order))
            self.process.stdin.flush()
            yield from map(decode, self.process.stdout)
        except (OSError, ValueError):  # it died before, or in the midst of a line
            return

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
    return max(1, (_threads_allowed() or cores or 1) // jobs)


def _threads_allowed() -> int | None:
    """The first number of OMP_NUM_THREADS, a list for nested loops; None where it says none."""
    first = os.environ.get(_THREADS, "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else None
