"""Probabilities on disk: safetensors, whole or not there at all."""

import os
from pathlib import Path

from llabel.task import Probabilities
from llabel.tensor_files import writing

_NAME = "proba"


def write_proba(path: Path, proba: Probabilities) -> None:
    """Write (n, n_classes) probabilities, bit for bit."""
    import numpy as np
    from safetensors.numpy import save_file

    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        save_file({_NAME: np.ascontiguousarray(proba)}, partial)
    partial.replace(path)


def read_proba(path: Path) -> Probabilities:
    """What `write_proba` wrote."""
    from safetensors.numpy import load_file

    found: Probabilities = load_file(path)[_NAME]
    return found
