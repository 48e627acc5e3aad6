"""Which runs a comparison is made of."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from llabel.config import RunConfig, defaults, option
from llabel.names import joined
from llabel.rung_settings import SEEDED
from llabel.settings import CompareSettings, RungName

RUNGS, CURVE = "rungs", "curve"  # subfolders of DIR


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One rung with one seed and one training size.

    Attributes:
        rung: its name.
        seed: which of its seeds.
        config: everything it is told.
        folder: its run folder.
        label: what people are told it is.
    """

    rung: RungName
    seed: int
    config: RunConfig
    folder: Path
    label: str

    @property
    def command(self) -> str:
        """The command line that makes this run alone."""
        return command_line(self.config, self.folder)


def ladder_runs(config: RunConfig, asked: CompareSettings, out: Path) -> Iterator[PlannedRun]:
    """The runs of the table, from cheap to dear, a rung's seeds together.

    The split is the first seed's (or `split_seed`'s) for all of them.
    """
    first = config.llm.seed
    for rung in in_order(asked.rungs):
        for seed in range(first, first + (asked.seeds if rung in SEEDED else 1)):
            suffix = f"-seed-{seed}" if seed != first else ""
            label = f"{rung}, seed {seed}" if asked.seeds > 1 and rung in SEEDED else rung
            told = _told(config, rung, seed)
            yield PlannedRun(rung, seed, told, out / RUNGS / f"{rung}{suffix}", label)


def curve_runs(config: RunConfig, asked: CompareSettings, out: Path) -> Iterator[PlannedRun]:
    """The runs of the learning curve: first seed, fewer training rows, test part unread."""
    seed = config.llm.seed
    for rows in sorted(set(asked.curve)):
        for rung in in_order(asked.rungs):
            told = _told(config, rung, seed)
            told = replace(
                told,
                data=replace(told.data, train_rows=rows),
                run=replace(told.run, untested=True),
            )
            label = f"{rung} on {rows:,} rows"
            yield PlannedRun(rung, seed, told, out / CURVE / f"{rows}" / rung, label)


def in_order(rungs: tuple[RungName, ...]) -> list[RungName]:
    """The rungs in the ladder's order, from cheap to dear, each once."""
    return [name for name in get_args(RungName) if name in rungs]


def _told(config: RunConfig, rung: RungName, seed: int) -> RunConfig:
    split_seed = config.llm.seed if config.data.split_seed is None else config.data.split_seed
    decode = config.run.decode if rung.startswith("llm-") else "labels"  # the others cannot write
    return replace(
        config,
        run=replace(config.run, rung=rung, decode=decode),
        data=replace(config.data, split_seed=split_seed),
        llm=replace(config.llm, seed=seed),
    )


def command_line(config: RunConfig, out: Path) -> str:
    """`llabel fit` with every setting that is not a default, such that a shell takes it."""
    usual = defaults()
    words = ["llabel", "fit", config.source]
    for name, value in config.flat().items():
        if name != "data" and value != usual[name]:
            words += _words(name, value)
    return shlex.join([*words, "--out", out.as_posix()])


def _words(name: str, value: Any) -> list[str]:
    flag = option(name)
    if value is True:
        return [flag]
    if value is False:
        return [f"--no-{flag[2:]}"]
    if isinstance(value, dict):
        return [word for label, answer in value.items() for word in (flag, f"{label}={answer}")]
    if isinstance(value, tuple | list):
        return [flag, joined(map(str, value))]
    return [flag, _number(value) if isinstance(value, float) else str(value)]


def _number(value: float) -> str:
    """The shortest text that is this very number: 0.0001, 32."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
