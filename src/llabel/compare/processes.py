"""One run in another process: its events here, its failure a sentence."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from llabel.config import RunConfig
from llabel.events import Event, Listener
from llabel.worker import ENDED, decode

_PATIENCE = 15.0  # seconds that an interrupted process is given to leave


class RunFailedError(Exception):
    """A run came to no result; its message says why."""


def fit_apart(
    config: RunConfig, out: Path, *, command: str, overwrite: bool, notify: Listener
) -> None:
    """Do what `run.fit` does, in a process of its own.

    What the process prints is kept beside the folder, as `OUT.log`, if it failed.

    Raises:
        RunFailedError: it came to no result.
        KeyboardInterrupt: the user stopped it; the process is gone.
    """
    job = {"config": config.flat(), "out": str(out), "command": command, "overwrite": overwrite}
    out.parent.mkdir(parents=True, exist_ok=True)
    log = out.with_name(f"{out.name}.log")
    try:
        last, code = _carry_out(job, log, notify)
    except BaseException:
        log.unlink(missing_ok=True)
        raise
    if last.get("event") != ENDED:
        reason = last.get("reason") or how_it_died(code)
        if last.get("expected"):
            log.unlink()
            raise RunFailedError(reason)
        raise RunFailedError(f"{reason} ({log} has the details)")
    log.unlink()


def _carry_out(job: dict[str, Any], log: Path, notify: Listener) -> tuple[dict[str, Any], int]:
    """The last line's values and the exit code of a process that does the job."""
    with log.open("wb") as printed:
        process = subprocess.Popen(
            # -P: else a user's random.py in this folder would stand for the standard library's.
            [sys.executable, "-P", "-m", "llabel.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            encoding="utf-8",
        )
        try:
            return _listen(process, job, notify), process.returncode
        except BaseException:
            end(process)
            raise


def _listen(
    process: "subprocess.Popen[str]", job: dict[str, Any], notify: Listener
) -> dict[str, Any]:
    """Pass the events on; returns the last line's values, {} where there is none."""
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(json.dumps(job))
        process.stdin.close()
    except BrokenPipeError:  # it died before it read its job
        process.wait()
        return {}
    last: dict[str, Any] = {}
    for line in process.stdout:
        said: Event | dict[str, Any] = decode(line)
        if isinstance(said, dict):
            last = said
        else:
            notify(said)
    process.wait()
    return last


def end(process: "subprocess.Popen[str]") -> None:
    """A run that nobody waits for any longer must not go on beside the next one."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def how_it_died(code: int) -> str:
    """What an exit code says to people."""
    if code == -signal.SIGKILL:
        return (
            "its process was killed, probably for want of memory: try a smaller --token-budget or "
            "--max-seq-length, or a smaller model"
        )
    return f"its process ended with signal {-code}" if code < 0 else f"its process ended ({code})"
