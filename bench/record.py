"""What a benchmark leaves behind: `results/<name>.json`, and the table of all of them."""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from driver import BENCH, Measured, ratio

_FLAGS = (
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm"),
)
_LIBRARIES = (
    *("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy"),
    *("llabel", "trl", "sysone", "llama-cpp-python"),
)


def machine() -> dict[str, Any]:
    """Processor, memory and system; what /proc does not tell is left out."""
    told: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "cores": len(os.sched_getaffinity(0)),
        "load_average_before": round(os.getloadavg()[0], 2),
    }
    info = _file("/proc/cpuinfo")
    for line in info.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            told.setdefault("cpu", value.strip())
        if key.strip() in {"flags", "Features"}:
            known = set(value.split())
            told.setdefault("flags", [flag for flag in _FLAGS if flag in known])
    for line in _file("/proc/meminfo").splitlines():
        if line.startswith("MemTotal"):
            told["memory_gib"] = round(int(line.split()[1]) / 2**20, 1)
    return told


def _file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def versions() -> dict[str, str]:
    """Of Python and of the libraries that are installed here."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str:
    """The git commit, with a mark if files have been changed since."""
    command = ["git", "-C", str(BENCH), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def surroundings() -> dict[str, Any]:
    """Taken before the measurement: when, where, with what."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": revision(),
        "machine": machine(),
        "versions": versions(),
        "commands": [" ".join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]])],
    }


def _public(value: Any) -> Any:
    """The same without the places where this machine keeps things."""
    if isinstance(value, Mapping):
        return {key: _public(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_public(each) for each in value]
    if isinstance(value, str):
        return value.replace(f"{BENCH.resolve()}/", "bench/").replace(f"{Path.home()}/", "~/")
    return value


def told(measured: Measured) -> dict[str, Any]:
    """A contender, JSON-ready."""
    rates = measured.rates() if all("rows" in lap for lap in measured.laps) else []
    peaks = [lap["peak_rss"] for lap in measured.laps if "peak_rss" in lap]
    facts = {key: value for key, value in measured.facts.items() if key != "ready"}
    return {
        "name": measured.contender.name,
        "what": measured.contender.what,
        "rows_per_second": statistics.median(rates) if rates else None,
        "peak_rss_mib": round(max(peaks) / 2**20) if peaks else None,
        "facts": _public(facts),
        "job": _public(measured.contender.job),
        "worker": measured.contender.script,
        "laps": measured.laps,
    }


def by_speed(ours: Measured, peer: Measured) -> dict[str, Any]:
    """How many times as many rows a second."""
    return ratio(ours.rates(), peer.rates())


def by_memory(ours: Measured, peer: Measured) -> dict[str, Any]:
    """How many times the peak memory."""
    ours_peaks, peaks = ([lap["peak_rss"] for lap in one.laps] for one in (ours, peer))
    return ratio(ours_peaks, peaks)


def compared(
    name: str, what: str, pairs: Sequence[tuple[Measured, Measured]], target: Mapping[str, float]
) -> dict[str, Any]:
    """A result of (ours, peer) pairs: the one that is hardest on us counts, the rest are told.

    A target `at_least` is one of speed, `at_most` one of memory.
    """
    speed = "at_least" in target
    compare, hardest = (by_speed, min) if speed else (by_memory, max)
    ours, peer = hardest(pairs, key=lambda pair: compare(*pair)["median"])
    return {
        "name": name,
        "what": what,
        "unit": "× rows/s" if speed else "× memory",
        "ours": told(ours),
        "peer": told(peer),
        "ratio": compare(ours, peer),
        "target": dict(target),
        "others": [
            {"ours": told(one), "peer": told(other), "ratio": compare(one, other)}
            for one, other in pairs
            if other is not peer
        ],
    }


def reached(result: Mapping[str, Any]) -> bool:
    """Whether the median is on the target's side."""
    median, target = result["ratio"]["median"], result["target"]
    above = median >= target.get("at_least", float("-inf"))
    return bool(above and median <= target.get("at_most", float("inf")))


def write(folder: Path, result: Mapping[str, Any], around: Mapping[str, Any]) -> Path:
    """Write `<folder>/<name>.json`."""
    path = folder / f"{result['name']}.json"
    write_json(path, {**result, "reached": reached(result), **around})
    return path


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".json.new")
    new.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    new.replace(path)


def table(folder: Path) -> str:
    """All results in `folder`, one line each, as a Markdown table."""
    lines = [
        "| name | ours | peer | ratio (min to max) | target | reached |",
        "|---|---|---|---|---|---|",
    ]
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "target" not in result:
            continue
        ((side, goal),) = result["target"].items()
        spread, peer = result["ratio"], result["peer"]
        cells = (
            result["name"],
            _speed(result["ours"], result),
            f"{peer['name']}: {_speed(peer, result)}" if peer else "–",
            f"{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f}) {result['unit']}",
            f"{'≥' if side == 'at_least' else '≤'} {goal:g}",
            "yes" if result["reached"] else "no",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _speed(side: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    if result["unit"] == "× memory":
        return f"{side['peak_rss_mib']} MiB"
    if "operations_per_second" in side:
        return f"{side['operations_per_second'] / 1e9:.0f} GOP/s"
    return f"{side['rows_per_second']:.2f} rows/s" if side["rows_per_second"] else "–"
