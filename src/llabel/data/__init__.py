"""Read → check → split → fingerprint: from what the user names to a locked `Task`."""

from llabel.data.load import LoadedTask, load_labelled, load_task, read_texts
from llabel.data.rows import fingerprint, long_fields, take, unseen_rows

__all__ = [
    "LoadedTask",
    "fingerprint",
    "load_labelled",
    "load_task",
    "long_fields",
    "read_texts",
    "take",
    "unseen_rows",
]
