"""Which weights lie in a model's folder: a digest that is cheap for models of any size."""

import hashlib
import math
from pathlib import Path
from typing import Any

from llabel.assets.catalogue import BUILT_IN

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
    """`weights_digest` of a model that is named by its folder, whose files may change.

    None for what has a fixed version (built in, or of the Hub), and where no weights can be read.
    """
    from safetensors import SafetensorError

    folder = Path(name).expanduser()
    if name in BUILT_IN or not folder.is_dir() or not any(folder.glob("*.safetensors")):
        return None
    try:
        return weights_digest(folder)
    except (OSError, SafetensorError):
        return None
