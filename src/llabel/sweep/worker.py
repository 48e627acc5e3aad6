"""`python -m llabel.sweep.worker`: cells in a process of its own, one after the other.

Orders come as lines of JSON on standard input, what cells say leaves as lines on standard output,
as in `llabel.worker`; the last line of each order tells how it went. A process that outlives its
cells keeps rows and model; one that is killed takes one cell along, not the sweep.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from llabel.errors import InputError
from llabel.events import Event, Listener
from llabel.sweep.outcome import Order
from llabel.worker import ENDED, encode


def main() -> None:
    """Do what standard input asks for, until it ends."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print must not come between the events

    def say(line: str) -> None:
        try:
            print(line, file=lines)
        except BrokenPipeError:  # nobody listens any more: the sweep was killed
            os._exit(1)

    def notify(event: Event) -> None:
        say(encode(event))

    try:
        _work(Path(sys.argv[1]), say, notify)
    except KeyboardInterrupt:
        os._exit(130)


def _work(out: Path, say: Callable[[str], None], notify: Listener) -> None:
    from llabel.quiet import quiet_libraries
    from llabel.sweep.rows import Rows
    from llabel.sweep.runner import Runner

    runner = Runner(out, Rows())
    with quiet_libraries():
        for line in sys.stdin:
            try:
                found = {"result": runner.carry_out(Order(**json.loads(line)), notify)}
            except InputError as error:
                found = {"refused": str(error)}
            say(json.dumps({"event": ENDED} | found))


def encoded(order: Order) -> str:
    """An order as a line."""
    return json.dumps(asdict(order)) + "\n"


if __name__ == "__main__":
    main()
