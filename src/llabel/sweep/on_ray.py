"""Cells on a Ray cluster: each worker is an actor that keeps rows and model, as a process would.

Rows travel through Ray's object store. The sweep's folder, and a model that is named by its path,
have to be where all nodes see them.
"""

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from llabel.data import LoadedTask
from llabel.errors import InputError
from llabel.events import Listener
from llabel.sweep.crew import WorkerDiedError
from llabel.sweep.outcome import Order

DEFAULT = "default"  # a cluster that Ray knows of, else one that is started here
_TICK = 0.2  # seconds between looks at what an actor said
_PATIENCE = 5  # seconds for a cluster to answer
_PARTS = 10_000  # of a CPU or GPU: Ray counts no finer


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that is ready to work.

    Attributes:
        out: folder of the sweep.
        rows: Ray's reference to the rows.
        jobs: workers at a time.
        resources: of each.
    """

    out: Path
    rows: Any
    jobs: int
    resources: dict[str, float]

    def hire(self) -> "RayWorker":
        """One worker more."""
        return RayWorker(self)


def require_ray() -> None:
    """Refuse to go to a cluster without Ray.

    Raises:
        InputError: it is not installed.
    """
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--ray needs Ray: pip install 'llabel[ray]'. Without it, --jobs N runs N cells at a "
            "time on this machine."
        ) from error


def refuse_unreachable(address: str) -> None:
    """Find out in seconds what Ray needs minutes for, before the sweep's folder is made.

    Raises:
        InputError: HOST:PORT is given, and nobody listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--ray {address}: nothing listens there ({error}). Start a cluster (ray start --head "
            "says its address), or give --ray without an address."
        ) from error


@contextmanager
def cluster(
    address: str, out: Path, loaded: Mapping[str, LoadedTask], jobs: int | None
) -> Iterator[Cluster]:
    """Connect for as long as the block lasts.

    Args:
        address: of the cluster, or `DEFAULT`.
        out: folder of the sweep.
        loaded: its rows, by `rows_key`.
        jobs: workers at a time; None is one a GPU, or one a node where there are none.

    Raises:
        InputError: there is no cluster at the address.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine unasked
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(
                address=None if address == DEFAULT else address,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"--ray {address}: there is no Ray cluster ({str(error).splitlines()[0]}). Start "
                "one (ray start --head), or give --ray without an address."
            ) from error
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield Cluster(out.resolve(), ray.put(dict(loaded)), *_share(nodes, jobs))
    finally:
        if ours:
            ray.shutdown()


def _share(nodes: list[dict[str, float]], jobs: int | None) -> tuple[int, dict[str, float]]:
    """How many workers there are, and what each gets: as much as lets all be at work at once.

    An actor that does not fit would wait for ever for one that stays until the sweep ends. So where
    cores are fewer than workers, these share them. Where there are GPUs, each has one, or a part
    of one.

    Args:
        nodes: resources of each.
        jobs: workers at a time; None is one a GPU, or one a node where there are none.
    """
    gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    places = gpus or [node for node in nodes if node.get("CPU", 0) > 0] or nodes
    jobs = jobs or sum(int(node["GPU"]) for node in gpus) or len(places)
    rooms, share = [jobs] * len(places), {}
    if gpus:
        a_gpu = ceil(jobs / sum(int(node["GPU"]) for node in gpus))
        rooms = [a_gpu * int(node["GPU"]) for node in gpus]
        share["num_gpus"] = _PARTS // a_gpu / _PARTS
    cpus = [int(node.get("CPU", 0) * _PARTS) for node in places]
    sizes = {_size(parts // count) for parts in cpus for count in range(1, jobs + 1)} - {0}

    def fit(size: int) -> bool:
        workers = (min(room, parts // size) for room, parts in zip(rooms, cpus, strict=True))
        return sum(workers) >= jobs

    share["num_cpus"] = max(filter(fit, sizes), default=0) / _PARTS
    return jobs, share


def _size(parts: int) -> int:
    """That many parts of CPUs, or the whole CPUs in them: Ray splits one alone."""
    return parts if parts < _PARTS else parts // _PARTS * _PARTS


class _Actor:
    """A `Runner` at the other end."""

    def __init__(self, out: str, loaded: Mapping[str, LoadedTask]) -> None:
        from llabel.sweep.rows import Rows
        from llabel.sweep.runner import Runner

        self.out = Path(out)
        self.runner = Runner(self.out, Rows(loaded))

    def carry_out(self, order: Order, queue: Any) -> str:
        """See `Runner.carry_out`; events go into the queue."""
        from llabel.quiet import quiet_libraries

        if not self.out.is_dir():
            raise FileNotFoundError(f"{self.out} is not there on this node")
        with quiet_libraries():
            return self.runner.carry_out(order, queue.put)


class RayWorker:
    """An actor (a `Worker`)."""

    def __init__(self, cluster: Cluster) -> None:
        import ray
        from ray.util.queue import Queue

        self.queue = Queue(actor_options={"num_cpus": 0})  # workers may have taken all there are
        remote: Any = ray.remote(_Actor)
        self.actor = remote.options(scheduling_strategy="SPREAD", **cluster.resources).remote(
            str(cluster.out), cluster.rows
        )

    def carry_out(self, order: Order, notify: Listener) -> str:
        """See `Worker`.

        Raises:
            InputError: the sweep's folder is not there on the actor's node; or what the actor
                could not do, in its own words.
        """
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        asked = self.actor.carry_out.remote(order, self.queue)
        try:
            while not ray.wait([asked], timeout=_TICK)[0]:
                self._pass_on(notify)
            result = str(ray.get(asked))
            self._pass_on(notify)
            return result
        except RayTaskError as error:
            if isinstance(error.cause, FileNotFoundError):
                raise InputError(
                    f"--out: {error.cause}. Name a folder that all nodes of the cluster share."
                ) from error
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from error
            raise
        except RayActorError as error:
            reason = str(error).strip().splitlines()[0]
            raise WorkerDiedError(f"its Ray worker died: {reason}") from error

    def _pass_on(self, notify: Listener) -> None:
        for event in self.queue.get_nowait_batch(self.queue.size()):
            notify(event)

    def stop(self) -> None:
        """See `Worker`."""
        import ray

        if ray.is_initialized():
            ray.kill(self.actor)
            self.queue.shutdown(force=True)
