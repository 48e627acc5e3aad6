"""Worker: load a saved rung once and say how long it took, from the start of the process."""

import os
import time
from pathlib import Path

from protocol import Link, job


def since_start() -> float:
    """Seconds since this process was started, to a hundredth (Linux)."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
    return uptime - ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    link, asked = Link(), job()

    # What load imports as it goes along would be counted to it; these are its libraries.
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    from llabel.ladder.llm import LLMRung

    imported = since_start()
    started = time.perf_counter()
    rung = LLMRung.load(Path(asked["folder"]), **asked["changes"])
    seconds = time.perf_counter() - started
    link.say(ready=True, precision=rung.precision)
    link.wait()
    link.report(seconds, seconds_imports=imported, seconds_from_start=imported + seconds)
    link.wait()


if __name__ == "__main__":
    main()
