"""C++ sources → a shared library, compiled once a machine."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

SOURCES = ("stages.cpp", "attention.cpp", "integers.cpp")
HEADERS = ("simd.h", "integers.h")
# Neither reassociation nor contraction to fused multiply-adds: rounding by adding a large number,
# and results that don't depend on a row's neighbours, rest on operations as they are written.
FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
)


class CannotCompile(Exception):
    """There is no compiler here, or it refused; the plain engine does the same work."""


def compiler() -> str | None:
    """The C++ compiler to use: `CXX`, g++ or clang++; None where there is none."""
    return next(iter(_compilers()), None)


def _compilers() -> list[str]:
    names = (os.environ.get("CXX"), "g++", "clang++")
    return [found for name in names if name and (found := shutil.which(name))]


@functools.cache
def load_library(folder: Path) -> ctypes.CDLL:
    """The compiled kernels; a few seconds the first time on a machine.

    PyTorch's OpenMP threads serve them too: both ask the loader for the same libgomp.

    Args:
        folder: where compiled libraries are kept.

    Raises:
        CannotCompile: no compiler, or it failed.
    """
    here = files("llabel.engine.native")
    sources = {name: here.joinpath(name).read_bytes() for name in (*HEADERS, *SOURCES)}
    target = folder / f"kernels-{_fingerprint(sources)}.so"
    if target.exists():
        with suppress(CannotCompile):  # damaged, or made where the C library is another
            return _opened(target)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            made = _compiled(sources, Path(scratch))
            # A folder that cannot be written, or mounted noexec: compiled for this process.
            with suppress(OSError, CannotCompile):
                _keep(made, target)
                return _opened(target)
            return _opened(made)
    except OSError as error:
        raise CannotCompile(f"the kernels have nowhere to be compiled: {error}") from error


def _opened(library: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise CannotCompile(f"the compiled kernels cannot be loaded: {error}") from error


def _keep(made: Path, target: Path) -> None:
    """Copy a library to where other processes, perhaps at this moment, look for it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        Path(shutil.copy(made, scratch)).replace(target)


def _compiled(sources: Mapping[str, bytes], folder: Path) -> Path:
    for name, text in sources.items():
        (folder / name).write_bytes(text)
    made, why = folder / "kernels.so", "there is no C++ compiler: install g++ or clang++"
    for command in _compilers():
        parts = [command, *FLAGS, "-o", str(made), *(str(folder / name) for name in SOURCES)]
        try:
            subprocess.run(parts, check=True, capture_output=True, text=True, timeout=300)
        except subprocess.CalledProcessError as error:
            why = f"{command} failed: {error.stderr.strip()[:500]}"
        except (OSError, subprocess.TimeoutExpired) as error:
            why = f"{command} failed: {error}"
        else:
            return made
    raise CannotCompile(why)


def _fingerprint(sources: Mapping[str, bytes]) -> str:
    """Of sources, flags and processor: a home may be shared by different machines."""
    parts = (*sources.values(), " ".join(FLAGS).encode(), _processor().encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    kept = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(kept)}))
