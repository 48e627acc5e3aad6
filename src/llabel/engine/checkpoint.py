"""Snapshots of a training in one folder: safetensors and JSON, whole or not there at all."""

import json
import os
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llabel.tensor_files import writing

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is needed to go on: tensors by name, and plain values."""

    tensors: dict[str, "Tensor"]
    state: dict[str, Any]


@dataclass(slots=True)
class CheckpointFolder:
    """Keeps the newest snapshot of a training.

    A snapshot is written under a temporary name and renamed, the older one goes afterwards: a
    process killed at any moment leaves a complete one.

    Args:
        folder: made when first needed.
        every_steps: save after so many steps; None saves by time only.
        every_seconds: save after so much time.
    """

    folder: Path
    every_steps: int | None = None
    every_seconds: float = 120.0
    _saved_at: float = field(default_factory=time.monotonic, init=False)

    def beside(self, name: str) -> "CheckpointFolder":
        """Another folder next to this one, saved as often."""
        return replace(self, folder=self.folder.with_name(name))

    def due(self, step: int) -> bool:
        """Whether a snapshot should be taken after `step`."""
        by_step = self.every_steps is not None and step % self.every_steps == 0
        return by_step or time.monotonic() - self._saved_at >= self.every_seconds

    def save(self, step: int, snapshot: Snapshot) -> None:
        """Keep `snapshot` and drop the older ones."""
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"step-{step:08d}"
        partial = self.folder / f"partial-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        tensors = {name: tensor.contiguous() for name, tensor in snapshot.tensors.items()}
        with writing(partial):
            save_file(tensors, partial / "tensors.safetensors")
        (partial / "state.json").write_text(json.dumps(snapshot.state), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        for other in self.folder.iterdir():
            if other != target:
                shutil.rmtree(other, ignore_errors=True)
        self._saved_at = time.monotonic()

    def newest(self) -> Snapshot | None:
        """The latest complete snapshot, if any."""
        from safetensors.torch import load_file

        complete = sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []
        if not complete:
            return None
        state = json.loads((complete[-1] / "state.json").read_text(encoding="utf-8"))
        return Snapshot(load_file(complete[-1] / "tensors.safetensors"), state)
