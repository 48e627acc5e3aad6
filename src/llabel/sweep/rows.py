"""The rows of a sweep: read once for all cells with the same."""

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from llabel import run
from llabel.config import RunConfig, option
from llabel.data import LoadedTask
from llabel.errors import InputError
from llabel.sweep.cells import PlannedCell


class Rows:
    """Reads the rows of a run, those that were read before not again.

    Args:
        known: rows that are there already, by `rows_key`.
    """

    def __init__(self, known: Mapping[str, LoadedTask] = MappingProxyType({})) -> None:
        self._known = dict(known)

    def __call__(self, config: RunConfig) -> LoadedTask:
        """The rows and splits of a run (see `run.load`)."""
        key = rows_key(config)
        if key not in self._known:
            self._known[key] = run.load(config)
        return self._known[key]


def rows_key(config: RunConfig) -> str:
    """The same text for cells with the same rows: what may vary of them."""
    return json.dumps([config.data.text, config.data.train_rows])


def load_all(rows: Rows, cells: Iterable[PlannedCell]) -> dict[str, LoadedTask]:
    """The rows of all cells, by `rows_key`.

    Raises:
        InputError: they cannot be read, or cells would be judged on different rows.
    """
    found = {rows_key(cell.config): rows(cell.config) for cell in cells}
    first, *others = (loaded.task for loaded in found.values())
    for other in others:
        for a, b in ((first.validation, other.validation), (first.test, other.test)):
            if a.ids != b.ids or (a.y != b.y).any():
                raise InputError(
                    f"{option('text')}, {option('train_rows')}: with these values cells would be "
                    "judged on different rows. Give validation and test rows of their own "
                    "(--validation, --test or --split-column), or one value."
                )
    return found
