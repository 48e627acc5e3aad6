"""Read → check → split → fingerprint: from what the user names to a locked `Task`."""

from llabel.data.labelled import load_labelled
from llabel.data.load import LoadedTask, load_task, read_texts
from llabel.data.rows import fingerprint, long_fields, take, unseen_rows
from llabel.data.targets import joint_task, load_targets, strata

__all__ = [
    "LoadedTask",
    "fingerprint",
    "joint_task",
    "load_labelled",
    "load_targets",
    "load_task",
    "long_fields",
    "read_texts",
    "strata",
    "take",
    "unseen_rows",
]
