"""Files and folders as users name them."""

from pathlib import Path


def at_home(name: str | Path) -> Path:
    """The path with ``~`` and ``~user`` written out; as it stands where there is no such user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)
