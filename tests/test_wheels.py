import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from llabel.assets import asset_status, cache_folder, fetch
from llabel.assets.catalogue import Asset
from llabel.assets.wheels import Member, Wheel
from llabel.errors import InputError

FILES = {"tiny_asset/data/a.txt": b"alpha\n", "tiny_asset/data/sub/b.txt": b"beta\n"}
FILES |= {"tiny_asset/one.txt": b"one\n", "tiny_asset/__init__.py": b"raise SystemExit\n"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_wheel(folder: Path) -> Wheel:
    info = "tiny_asset-1.0.dist-info"
    described = FILES | {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = folder / "tiny_asset-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in described.items():
            archive.writestr(zipfile.ZipInfo(name), content)
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "".join(f"{n},,\n" for n in described))
    content = path.read_bytes()
    return Wheel("tiny-asset", "1.0", sha256(content), len(content))


def members() -> tuple[Member, ...]:
    a, b = (sha256(FILES[f"tiny_asset/data/{name}"]) for name in ("a.txt", "sub/b.txt"))
    folder = sha256(f"a.txt\0{a}\nsub/b.txt\0{b}\n".encode())
    one = sha256(FILES["tiny_asset/one.txt"])
    return (Member("tiny_asset/data/", folder), Member("tiny_asset/one.txt", one))


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that stands for the package index, and an empty cache; nothing else is asked."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("LLABEL_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def tiny(index) -> Asset:
    return Asset("tiny", "data", "for tests", make_wheel(index), members(), "CC0-1.0", "https://x")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "asset.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def left_in_cache() -> list[str]:
    return [path.name for path in cache_folder().glob("*/*") if path.name != ".lock"]


# --- fetching ------------------------------------------------------------------------------------


def test_members_come_out_of_the_wheel_and_nothing_else(tiny):
    seen = []
    folder = fetch(tiny, lambda what, share: seen.append((what, share)))
    assert contents(folder) == {"a.txt": b"alpha\n", "sub/b.txt": b"beta\n", "one.txt": b"one\n"}
    assert json.loads((folder / "asset.json").read_text())["licence"] == "CC0-1.0"
    assert seen[-1] == ("preparing tiny", 1.0)
    assert all(0 <= share <= 1 for _, share in seen)
    assert "tiny_asset" not in sys.modules


def test_what_is_cached_needs_no_index(tiny, index):
    assert not asset_status(tiny).cached
    folder = fetch(tiny)
    shutil.rmtree(index)
    assert fetch(tiny) == folder
    status = asset_status(tiny)
    assert status.path == folder
    assert status.disk_bytes == sum(path.stat().st_size for path in folder.rglob("*.*"))


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_text("cut")], ids=["lost", "cut"]
)
def test_a_damaged_folder_is_fetched_again(tiny, damage):
    folder = fetch(tiny)
    damage(folder / "a.txt")
    assert not asset_status(tiny).cached
    assert contents(fetch(tiny))["a.txt"] == b"alpha\n"
    assert left_in_cache() == [folder.name]


def test_a_changed_recipe_has_its_own_folder(tiny):
    assert fetch(tiny) != fetch(replace(tiny, revision=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: replace(a, wheel=replace(a.wheel, sha256="0" * 64)),
            r"tiny-asset 1\.0: the package index serves a wheel with SHA-256 [0-9a-f]{64} where "
            r"0{64} was expected; nothing of it was kept",
        ),
        (
            lambda a: replace(a, members=(Member("tiny_asset/one.txt", "1" * 64),)),
            r"tiny_asset/one\.txt has SHA-256 [0-9a-f]{64} where 1{64} was expected",
        ),
        (
            lambda a: replace(a, members=(Member("tiny_asset/data/", "1" * 64),)),
            r"tiny_asset/data/ has SHA-256 [0-9a-f]{64} where 1{64} was expected",
        ),
        (
            lambda a: replace(a, members=(Member("tiny_asset/two.txt", "1" * 64),)),
            r"there is no tiny_asset/two\.txt in this wheel",
        ),
        (
            lambda a: replace(a, outputs={"one.txt": "2" * 64}),
            r"tiny: one\.txt was built with SHA-256 [0-9a-f]{64} where 2{64} was expected",
        ),
        (
            lambda a: replace(a, wheel=replace(a.wheel, version="9.9")),
            r"cannot download tiny-asset 9\.9: your package index does not offer it, or .*"
            r"PIP_INDEX_URL.*pip's last words: ERROR: No matching distribution found",
        ),
    ],
    ids=["wheel", "member", "folder", "no member", "output", "no version"],
)
def test_what_differs_is_refused_and_nothing_is_left(tiny, change, message):
    with pytest.raises(InputError, match=message):
        fetch(change(tiny))
    assert left_in_cache() == []


def test_without_a_connection_the_text_says_so(tiny, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(InputError, match="no connection to the package index") as caught:
        fetch(tiny)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_without_pip_the_text_says_how_to_get_it(tiny, tmp_path, monkeypatch):
    venv.create(tmp_path / "venv", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv/bin/python"))
    with pytest.raises(InputError, match=r"has no pip; run `.*venv/bin/python -m ensurepip`"):
        fetch(tiny)
    assert left_in_cache() == []


def test_a_cache_that_cannot_be_written_is_named(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLABEL_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot write tiny into the cache .*file.*LLABEL_CACHE"):
        fetch(tiny)


def test_a_file_of_the_users_folder_does_not_stand_in_for_pip(tiny, tmp_path, monkeypatch):
    (tmp_path / "pip.py").write_text("raise SystemExit('not me')")
    monkeypatch.chdir(tmp_path)
    assert fetch(tiny).is_dir()


# --- several processes, and interruption ---------------------------------------------------------

SCRIPT = """
import os, sys, time
from pathlib import Path
from llabel.assets import fetch
from llabel.assets.catalogue import Asset
from llabel.errors import InputError
from llabel.assets.wheels import Member, Wheel

def build(members, out):
    with open(sys.argv[1], "a") as log:
        log.write(f"{{os.getpid()}}\\n")
    (out / "half").write_text("made")
    time.sleep({seconds})
    (out / "whole").write_text("made")

asset = Asset("tiny", "data", "", {wheel!r}, {members!r}, "", "", build=build)
print(fetch(asset))
"""


def start(asset: Asset, log: Path, seconds: float) -> subprocess.Popen[str]:
    script = SCRIPT.format(wheel=asset.wheel, members=asset.members, seconds=seconds)
    command = [sys.executable, "-c", script, str(log)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def test_two_processes_at_once_fetch_once(tiny, tmp_path):
    log = tmp_path / "log"
    processes = [start(tiny, log, seconds=0.5) for _ in range(2)]
    answers = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert (Path(answers[0][0].strip()) / "whole").is_file()
    assert len(log.read_text().splitlines()) == 1
    assert len(left_in_cache()) == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_fetch_leaves_nothing_half_made(tiny, tmp_path, how):
    log = tmp_path / "log"
    process = start(tiny, log, seconds=60)
    wait_for(log)
    process.send_signal(how)
    _, error = process.communicate(timeout=30)
    assert process.returncode != 0
    assert not asset_status(tiny).cached
    if how == signal.SIGINT:
        assert "KeyboardInterrupt" in error
        assert left_in_cache() == []
    folder = fetch(tiny)  # what was left is not in the way of the next, and is swept out by it
    assert contents(folder).keys() == {"a.txt", "sub/b.txt", "one.txt"}
    assert left_in_cache() == [folder.name]


def test_ctrl_c_during_the_download_ends_pip_too(tiny, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as index:
        index.settimeout(60)
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{index.getsockname()[1]}/simple")
        process = start(tiny, tmp_path / "log", seconds=0)
        connection, _ = index.accept()  # pip asks, and will never be answered
        with connection:
            children = child_processes(process.pid)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
    assert children
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert left_in_cache() == []


def child_processes(parent: int) -> list[str]:
    children = Path(f"/proc/{parent}/task/{parent}/children")
    if not children.exists():
        pytest.skip("needs /proc/PID/task/PID/children")
    return children.read_text().split()
