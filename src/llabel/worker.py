"""`python -m llabel.worker`: one run in a process of its own, for comparisons.

Its job comes as JSON on standard input, its events leave as JSON lines on standard output. A
process for each rung has memory of its own to measure, and can be killed without taking the others
along.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from llabel import events
from llabel.errors import InputError
from llabel.events import Event

ENDED, FAILED = "Ended", "Failed"  # the last line: how it went


def encode(event: Event) -> str:
    """One event as one line of JSON."""
    return json.dumps({"event": type(event).__name__} | asdict(event))


def decode(line: str) -> Event | dict[str, Any]:
    """The event of a line; of a last line its values.

    Raises:
        ValueError: it is neither.
    """
    values: dict[str, Any] = json.loads(line)
    name = values.get("event")
    if name in (ENDED, FAILED):
        return values
    kind = getattr(events, str(name), None)
    if kind is None:
        raise ValueError(f"no event: {line!r}")
    event: Event = kind(**{key: value for key, value in values.items() if key != "event"})
    return event


def main() -> None:
    """Do the run that standard input asks for."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print must not come between the events
    asked = sys.stdin.read()
    if not asked:
        os._exit(1)  # the comparison was stopped before it said what to do
    job = json.loads(asked)
    try:
        _run(job, lines)
        last: dict[str, Any] = {"event": ENDED}
    except BrokenPipeError:  # nobody listens any more: the comparison was killed
        os._exit(1)
    except (InputError, FloatingPointError) as error:
        last = {"event": FAILED, "reason": str(error), "expected": True}
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException as error:
        last = {"event": FAILED, "reason": _told(error), "expected": False}
        print(json.dumps(last), file=lines)
        raise
    print(json.dumps(last), file=lines)


def _run(job: dict[str, Any], lines: TextIO) -> None:
    from llabel import run
    from llabel.config import RunConfig
    from llabel.quiet import quiet_libraries

    def notify(event: Event) -> None:
        print(encode(event), file=lines)

    config = RunConfig.from_flat(job["config"])
    with quiet_libraries():
        run.fit(
            config,
            Path(job["out"]),
            command=job["command"],
            overwrite=job["overwrite"],
            notify=notify,
        )


def _told(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


if __name__ == "__main__":
    main()
