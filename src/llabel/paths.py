"""Files and folders: as users name them, what stands in them."""

import hashlib
from pathlib import Path


def at_home(name: str | Path) -> Path:
    """The path with ``~`` and ``~user`` written out; as it stands where there is no such user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def visible_names(folder: Path) -> set[str]:
    """What lies in a folder, without hidden files such as locks; nothing where it is none."""
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return {name for name in names if not name.startswith(".")}
