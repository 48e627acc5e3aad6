"""What the runs of one rung answered, read back from their folders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llabel.compare.plan import PlannedRun
from llabel.errors import InputError
from llabel.folder import read_json_lines
from llabel.metrics import NOT_ASKED, UNKNOWN
from llabel.record import RunRecord
from llabel.task import Split, Task


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: its record, or why there is none."""

    planned: PlannedRun
    record: RunRecord | None
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class PartAnswers:
    """A rung's answers on one part.

    Attributes:
        proba: (n_seeds, n, n_classes) probabilities.
        answers: (n_seeds, n) class indices, -1 for `unknown`, -2 for a row that the training was
            not asked: of several draws of the rows, each has its own.
    """

    proba: npt.NDArray[np.float64]
    answers: npt.NDArray[np.int64]

    def rows(self, chosen: npt.NDArray[np.bool_]) -> "PartAnswers":
        """The same of some rows."""
        return PartAnswers(self.proba[:, chosen], self.answers[:, chosen])

    @property
    def asked(self) -> npt.NDArray[np.bool_]:
        """(n_seeds, n) which rows each training was asked."""
        return self.answers != NOT_ASKED

    def once(self) -> "PartAnswers":
        """One answer a row: of the first training that was asked it."""
        first, rows = self.asked.argmax(axis=0), np.arange(self.answers.shape[1])
        return PartAnswers(self.proba[first, rows][None], self.answers[first, rows][None])


@dataclass(frozen=True, slots=True, eq=False)
class FinishedRung:
    """A rung that has results: the runs of its seeds, and what they answered.

    Attributes:
        name: of the rung.
        outcomes, records: of its seeds that came to a result.
        answers: by part.
    """

    name: str
    outcomes: list[Outcome]
    records: list[RunRecord]
    answers: dict[str, PartAnswers]


def read_answers(
    folders: Sequence[Path], task: Task, *, tested: bool = True
) -> dict[str, PartAnswers]:
    """Validation and, where `tested`, test answers of the runs in `folders`, one a seed.

    Raises:
        InputError: `predictions.jsonl` is damaged or of other rows.
    """
    splits = {"validation": task.validation} | ({"test": task.test} if tested else {})
    runs = [_read(folder / "predictions.jsonl", splits, task) for folder in folders]
    return {
        part: PartAnswers(
            np.stack([run[part][0] for run in runs]), np.stack([run[part][1] for run in runs])
        )
        for part in splits
    }


_Part = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]


def _read(path: Path, splits: dict[str, Split], task: Task) -> dict[str, _Part]:
    try:
        lines = list(read_json_lines(path))
        return {
            part: _part([line for line in lines if line["part"] == part], split, task)
            for part, split in splits.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be used ({type(error).__name__}: {error}). Remove {path.parent} and "
            "give the same command again."
        ) from error


def _part(lines: list[dict[str, Any]], split: Split, task: Task) -> _Part:
    if [line["id"] for line in lines] != list(split.ids):
        raise ValueError("its rows are not those of the data")
    labels = list(map(str, task.classes))
    index = {label: number for number, label in enumerate(labels)}
    proba = [[line["probabilities"][label] for label in labels] for line in lines]
    # A rung that abstains is judged on all rows, as the others are.
    said = [str(line.get("most_probable", line["prediction"])) for line in lines]
    answers = [index.get(label, UNKNOWN) for label in said]
    return np.array(proba).reshape(-1, len(labels)), np.array(answers, dtype=np.int64)
