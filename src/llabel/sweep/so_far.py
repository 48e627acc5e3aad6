"""What there is of a sweep before its last cell has ended: written now and then."""

import threading
import time
from collections.abc import Callable

from llabel.events import Listener, Note
from llabel.sweep.crew import Plan
from llabel.sweep.outcome import Order
from llabel.sweep.runner import BUSY

_SECONDS = 60.0  # a large page takes some of them


class WrittenSoFar:
    """A plan that has its results written down while it is carried out.

    Args:
        plan: what is to be done.
        write: writes them; not called by two threads at once.
        notify: told where it fails: the cells go on, and the end writes all anyway.
    """

    def __init__(self, plan: Plan, write: Callable[[], None], notify: Listener) -> None:
        self.plan, self.write, self.notify = plan, write, notify
        self._lock, self._next = threading.Lock(), time.monotonic()

    def next(self) -> Order | None:
        """See `Plan`."""
        return self.plan.next()

    def ended(self, order: Order, result: str, died: str) -> None:
        """See `Plan`."""
        self.plan.ended(order, result, died)
        if result != BUSY and self._lock.acquire(blocking=False):
            try:
                if time.monotonic() >= self._next:
                    self.now()
                    self._next = time.monotonic() + _SECONDS
            finally:
                self._lock.release()

    def now(self) -> None:
        """Write, whenever it was last done."""
        try:
            self.write()
        except Exception as error:
            self.notify(Note(f"The page so far could not be written: {error}"))
