import errno
import math
import time

import pytest
import torch

from llabel.engine import checkpoint
from llabel.engine.checkpoint import CheckpointFolder, Snapshot
from small_disk import full_disk


def snapshot(value: float = 1.0) -> Snapshot:
    tensors = {
        "a": torch.full((2, 3), value),
        "turned": torch.arange(6).reshape(2, 3).t(),  # not contiguous
        "rng": torch.get_rng_state(),
        "step": torch.tensor(value),
    }
    return Snapshot(tensors, {"step": int(value), "best_loss": math.inf, "losses": [0.1, 1 / 3]})


def test_what_was_saved_is_read_again_exactly(tmp_path):
    folder, saved = CheckpointFolder(tmp_path / "not" / "yet" / "there"), snapshot()
    assert folder.newest() is None
    folder.save(1, saved)
    read = folder.newest()
    assert read.state == saved.state
    assert read.tensors.keys() == saved.tensors.keys()
    assert all(torch.equal(read.tensors[name], saved.tensors[name]) for name in saved.tensors)
    assert all(read.tensors[n].dtype == saved.tensors[n].dtype for n in saved.tensors)


def test_only_the_newest_is_kept(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for step in (9, 10, 100_000_000, 100_000_001):
        folder.save(step, snapshot(step))
        assert folder.newest().state["step"] == step
        assert len(list(tmp_path.iterdir())) == 1


def test_a_process_killed_while_saving_leaves_the_last_one(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    folder.save(1, snapshot(1))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.json, "dumps", lambda *_: 1 / 0)  # tensors are written by then
        with pytest.raises(ZeroDivisionError):
            folder.save(2, snapshot(2))
    assert len(list(tmp_path.iterdir())) == 2
    assert folder.newest().state["step"] == 1
    folder.save(3, snapshot(3))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_two_complete_ones_mean_that_the_newer_counts(tmp_path):
    for step in (1, 2):
        CheckpointFolder(tmp_path / str(step)).save(step, snapshot(step))
        (tmp_path / str(step) / f"step-{step:08d}").rename(tmp_path / f"step-{step:08d}")
    assert CheckpointFolder(tmp_path).newest().state["step"] == 2


def test_a_full_disk_is_an_error_of_the_files(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(1, snapshot(1))
    with full_disk(1000), pytest.raises(OSError, match="too large") as raised:
        folder.save(2, Snapshot({"a": torch.zeros(1000)}, {"step": 2}))
    assert raised.value.errno == errno.EFBIG
    assert "partial" in raised.value.filename
    assert folder.newest().state["step"] == 1


def test_due_by_steps_and_by_time(tmp_path, monkeypatch):
    clock = [time.monotonic()]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    by_steps = CheckpointFolder(tmp_path / "steps", every_steps=3, every_seconds=1e9)
    assert [step for step in range(1, 10) if by_steps.due(step)] == [3, 6, 9]
    by_time = CheckpointFolder(tmp_path / "time", every_seconds=60)
    assert not by_time.due(1)
    clock[0] += 61
    assert by_time.due(2)
    by_time.save(2, snapshot())
    assert not by_time.due(3)


def test_a_folder_beside_is_saved_as_often(tmp_path):
    folder = CheckpointFolder(tmp_path / "training", every_steps=7, every_seconds=5.0)
    beside = folder.beside("refit")
    assert (beside.folder, beside.every_steps, beside.every_seconds) == (tmp_path / "refit", 7, 5.0)
