"""C++ sources → a shared library, compiled once a machine."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path

SOURCES = ("stages.cpp", "attention.cpp", "integers.cpp")
HEADERS = ("simd.h",)
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
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    return None


@functools.cache
def load_library(folder: Path) -> ctypes.CDLL:
    """The compiled kernels; a few seconds the first time on a machine.

    PyTorch's OpenMP threads serve them too: both ask the loader for the same libgomp.

    Args:
        folder: where compiled libraries are kept.

    Raises:
        CannotCompile: no compiler, or it failed.
    """
    command = compiler()
    if command is None:
        raise CannotCompile("there is no C++ compiler (g++ or clang++)")
    here = files("llabel.engine.native")
    texts = [here.joinpath(name).read_bytes() for name in (*HEADERS, *SOURCES)]
    target = folder / f"kernels-{_fingerprint(command, texts)}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            for name, text in zip((*HEADERS, *SOURCES), texts, strict=True):
                Path(scratch, name).write_bytes(text)
            made = Path(scratch, "kernels.so")
            _compile([command, *FLAGS, "-o", str(made), *(str(Path(scratch, n)) for n in SOURCES)])
            made.replace(target)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise CannotCompile(f"the compiled kernels cannot be loaded: {error}") from error


def _compile(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    except subprocess.CalledProcessError as error:
        raise CannotCompile(f"{command[0]} failed: {error.stderr.strip()[:500]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotCompile(f"{command[0]} failed: {error}") from error


def _fingerprint(command: str, texts: list[bytes]) -> str:
    """Of sources, flags, compiler and processor: a home may be shared by different machines."""
    version = subprocess.run([command, "--version"], capture_output=True, check=False).stdout
    parts = (*texts, " ".join(FLAGS).encode(), version, _processor().encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    kept = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(kept)}))
