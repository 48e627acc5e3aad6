"""Which weights and word vectors lie in a folder or file that users may change: their digests."""

import hashlib
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from llabel.assets.catalogue import BUILT_IN
from llabel.paths import at_home, sha256_of

_NUMBERS = 64  # at least so many of each tensor, or all; rows are read whole


def weights_digest(folder: Path) -> str:
    """SHA-256 over each tensor's name, type, shape and beginning, in the order of the names.

    Training changes the tensors that it changes throughout, so the beginning of each tells weights
    apart without reading gigabytes. How they are cut into files does not count.

    Args:
        folder: holds `*.safetensors`.

    Returns:
        64 hexadecimal digits.
    """
    import torch
    from safetensors import safe_open

    digest = hashlib.sha256()
    places: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            places |= dict.fromkeys(file.keys(), path)
    opened: dict[Path, Any] = {p: safe_open(p, framework="pt") for p in set(places.values())}
    for name, path in sorted(places.items()):
        part = opened[path].get_slice(name)
        shape = part.get_shape()
        rows = max(1, _NUMBERS // max(1, math.prod(shape[1:])))
        start = part[:rows] if shape else opened[path].get_tensor(name)
        digest.update(f"{name} {part.get_dtype()} {shape}\n".encode())
        digest.update(start.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def own_weights_digest(name: str) -> str | None:
    """`weights_digest` of a model whose files may change: of a folder, or of the Hub.

    Of the Hub it is what lies in its local cache, which the last download brought up to date. None
    for what is built in, whose version is fixed, and where no weights can be read.
    """
    from safetensors import SafetensorError

    if name in BUILT_IN:
        return None
    folder = at_home(name)
    if not folder.exists() and (cached := _hub_snapshot(name)) is not None:
        folder = cached
    if not folder.is_dir() or not any(folder.glob("*.safetensors")):
        return None
    try:
        return weights_digest(folder)
    except (OSError, SafetensorError):
        return None


def _hub_snapshot(name: str) -> Path | None:
    """The folder of a Hub model's last download; None where there is none. The Hub is not asked."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no Hub id
        return None
    return Path(found).parent if isinstance(found, str) else None


def own_vectors_digest(name: str) -> str | None:
    """SHA-256 over word vectors that are named by their file or folder, which may change.

    None for built-in ones, and where no vectors can be read.
    """
    path = at_home(name)
    if name in BUILT_IN or not path.exists():
        return None
    files = sorted([*path.glob("*_emb.npy"), *path.glob("*_index.parquet")]) or [path]
    try:
        states = [(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        found = [_file_digest(*state) for state in states]
    except OSError:
        return None
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


@lru_cache  # a comparison asks for each of its runs
def _file_digest(file: Path, size: int, mtime_ns: int) -> str:
    return sha256_of(file)
