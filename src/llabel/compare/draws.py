"""Several draws of the rows, each compared on its own, put together as one comparison.

A draw is a random cut of the rows into training, validation and test. Every rung is trained anew
on each, so that the spread of the draws is that of trainings and of their rows. Together they are
one comparison whose trainings were asked different rows (see
`llabel.statistics.paired.compare_pair`); a row that several draws test is one unit of the
resampling.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llabel.assessment import BaselineRight, baselines_right, scored_baselines
from llabel.compare.answers import FinishedRung, Outcome, PartAnswers, read_answers
from llabel.comparison import Draw
from llabel.config import RunConfig
from llabel.data import LoadedTask, unseen_rows
from llabel.errors import InputError
from llabel.metrics import NOT_ASKED, Interval, wilson_interval
from llabel.record import Baseline
from llabel.settings import CompareSettings
from llabel.statistics.intervals import share_interval
from llabel.task import Split, Task

DRAWS = "draws"  # subfolder of DIR


@dataclass(frozen=True, slots=True, eq=False)
class DrawnRuns:
    """One draw, its runs ended.

    Attributes:
        config: its settings.
        folder: of its own comparison.
        loaded: its rows.
        outcomes: runs of the table, one a rung, from cheap to dear.
    """

    config: RunConfig
    folder: Path
    loaded: LoadedTask
    outcomes: Sequence[Outcome]


def planned_draws(
    config: RunConfig, asked: CompareSettings, out: Path
) -> Iterator[tuple[RunConfig, Path]]:
    """Settings and folder of each draw: its own split, and its own seed for what is trained.

    Raises:
        InputError: something is asked that draws cannot have.
    """
    for name, given in (("seeds", asked.seeds > 1), ("curve", asked.curve), ("reuse", asked.reuse)):
        if given:
            raise InputError(
                f"--draws and --{name} cannot be given together: each draw trains every rung once, "
                f"on rows of its own. Leave one of them out."
            )
    first = config.llm.seed if config.data.split_seed is None else config.data.split_seed
    for number in range(asked.draws):
        yield (
            replace(
                config,
                data=replace(config.data, split_seed=first + number),
                llm=replace(config.llm, seed=config.llm.seed + number),
            ),
            out / DRAWS / str(number + 1),
        )


def same_test_rows(asked: CompareSettings, loaded: Sequence[LoadedTask]) -> Iterator[str]:
    """What the user should know where no draw tests other rows, as the test part is given."""
    tasks = [one.task for one in loaded]
    if len({task.test.ids for task in tasks}) > 1:
        return
    others = (
        "only training and validation rows are drawn anew"
        if len({task.train.ids for task in tasks}) > 1
        else f"nor do they learn from others. Only the seeds differ, as with --seeds {asked.draws}"
    )
    yield (
        f"--draws {asked.draws}: all draws test the same {len(tasks[0].test):,} rows, as the test "
        f"part is given; {others}."
    )


def told(drawn: Sequence[DrawnRuns], out: Path) -> list[Draw]:
    """What the record says of each draw."""
    return [
        Draw(
            split_seed=one.config.data.split_seed or 0,
            seed=one.config.llm.seed,
            fingerprint=one.loaded.task.fingerprint,
            folder=one.folder.relative_to(out).as_posix(),
        )
        for one in drawn
    ]


def all_rows(drawn: Sequence[DrawnRuns]) -> Task:
    """The rows of all draws: validation and test one after the other, training of the first.

    Where there are no groups, a row is its own: the same row in two draws is one group. The classes
    are those of the whole table, and so the same in all draws.
    """
    tasks = [one.loaded.task for one in drawn]
    return replace(
        tasks[0],
        validation=_joined([task.validation for task in tasks]),
        test=_joined([task.test for task in tasks]),
    )


def all_unseen(drawn: Sequence[DrawnRuns]) -> npt.NDArray[np.bool_]:
    """(n,) test rows of all draws that share no long text with train or validation of theirs."""
    return np.concatenate([_unseen(one.loaded.task) for one in drawn])


def all_answers(drawn: Sequence[DrawnRuns]) -> dict[str, FinishedRung]:
    """The rungs that are done in every draw, by name."""
    done = {}
    for runs in zip(*(one.outcomes for one in drawn), strict=True):
        records = [run.record for run in runs if run.record]
        if len(records) < len(runs):
            continue
        each = [
            read_answers([run.planned.folder], one.loaded.task)
            for run, one in zip(runs, drawn, strict=True)
        ]
        answers = {part: _spread_out([one[part] for one in each]) for part in each[0]}
        name = runs[0].planned.rung
        done[name] = FinishedRung(name, list(runs), records, answers)
    return done


def mean_baselines(drawn: Sequence[DrawnRuns]) -> dict[str, Baseline]:
    """Majority class and look-up of each draw, their means; a look-up only where all have one."""
    right = [baselines_right(one.loaded.task, refit=one.config.llm.refit) for one in drawn]
    each = [
        scored_baselines(found, one.loaded.task, _unseen(one.loaded.task))
        for found, one in zip(right, drawn, strict=True)
    ]
    names = [name for name in each[0] if all(name in found for found in each)]
    rows = len({row for one in drawn for row in one.loaded.task.test.ids})  # drawn again: one row
    found = {name: _mean([found[name] for found in each], rows) for name in names}
    if all(one.loaded.task.test.groups for one in drawn):
        for name, interval in _intervals_over_groups(drawn, right, names):
            found[name]["accuracy_ci95"] = list(interval)
    return found


def _intervals_over_groups(
    drawn: Sequence[DrawnRuns], each: Sequence[Mapping[str, BaselineRight]], names: Sequence[str]
) -> Iterator[tuple[str, Interval]]:
    """Of the baselines' mean accuracy, each draw a training that was asked its own rows."""
    groups = _joined([one.loaded.task.test for one in drawn]).groups
    sizes = [len(one.loaded.task.test) for one in drawn]
    asked = np.repeat(np.eye(len(drawn), dtype=bool), sizes, axis=1)  # (draws, n)
    for name in names:
        right = np.concatenate([found[name][0] for found in each])
        yield name, share_interval(asked & right, groups, asked=asked)


def _mean(found: Sequence[Baseline], rows: int) -> Baseline:
    accuracy = float(np.mean([one["accuracy"] for one in found]))
    unseen = [one["accuracy_unseen"] for one in found if one["accuracy_unseen"] is not None]
    return Baseline(
        accuracy=accuracy,
        accuracy_ci95=list(wilson_interval(round(accuracy * rows), rows)),
        accuracy_unseen=float(np.mean(unseen)) if unseen else None,
        column=found[0]["column"],
    )


def _unseen(task: Task) -> npt.NDArray[np.bool_]:
    return unseen_rows([task.train, task.validation], task.test, task.fields)


def _joined(splits: Sequence[Split]) -> Split:
    return Split(
        ids=tuple(row for split in splits for row in split.ids),
        texts=tuple(text for split in splits for text in split.texts),
        y=np.concatenate([split.y for split in splits]),
        groups=tuple(group for split in splits for group in split.groups or split.ids),
    )


def _spread_out(parts: Sequence[PartAnswers]) -> PartAnswers:
    """Answers of each draw's training on its own rows, as answers of all on all of them."""
    rows = [part.answers.shape[1] for part in parts]
    n_classes = parts[0].proba.shape[2]
    proba = np.full((len(parts), sum(rows), n_classes), 1 / n_classes)
    answers = np.full((len(parts), sum(rows)), NOT_ASKED, dtype=np.int64)
    for draw, (part, end) in enumerate(zip(parts, np.cumsum(rows).tolist(), strict=True)):
        own = slice(end - rows[draw], end)
        proba[draw, own], answers[draw, own] = part.proba[0], part.answers[0]
    return PartAnswers(proba, answers)
