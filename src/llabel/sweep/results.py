"""From the cells' folders to `sweep.json`."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llabel.assessment import data_record
from llabel.compare.diagnosis import loss_points
from llabel.compare.plan import command_line
from llabel.config import RunConfig, short
from llabel.data import LoadedTask
from llabel.metrics import log_loss
from llabel.record import device_name, environment
from llabel.rung_settings import ADAPTED
from llabel.statistics.effects import analyse
from llabel.sweep.arrays import read_proba
from llabel.sweep.axes import Axes
from llabel.sweep.cells import PlannedCell
from llabel.sweep.choose import DoneCell
from llabel.sweep.folder import CELLS, LOG, VALIDATION, SweepFolder, read_cell
from llabel.sweep_record import (
    SCHEMA,
    Cell,
    CellCost,
    CellMetrics,
    Chosen,
    Search,
    SweepRecord,
    Test,
)
from llabel.task import Task

_STAGE = "training"


def done_cells(folder: SweepFolder, cells: Sequence[PlannedCell]) -> list[DoneCell]:
    """Those with results, and what they answered."""
    ended, costs = [], []
    for cell, place in zip(cells, folder.placed(cells), strict=True):
        values = read_cell(place)
        if values is not None and values["status"] == "done":
            ended.append((cell, place))
            costs.append(values["cost"])
    works = works_of([cell.config.run.rung for cell, _ in ended], costs)
    return [
        DoneCell(
            cell, place.name, read_proba(place / VALIDATION), work, cost["trainable_parameters"]
        )
        for (cell, place), work, cost in zip(ended, works, costs, strict=True)
    ]


def works_of(rungs: Sequence[str], costs: Sequence[CellCost]) -> list[float]:
    """What each training computed: what it read × the parameters of the system.

    Only cells of the same rung can be compared: these read tokens, if all of them are known to have
    done so, else rows.
    """
    in_rows = {
        rung
        for rung, cost in zip(rungs, costs, strict=True)
        if cost["steps"] and not cost.get("tokens")
    }
    return [
        float((_rows(cost) if rung in in_rows else cost.get("tokens", 0)) * cost["parameters"])
        for rung, cost in zip(rungs, costs, strict=True)
    ]


def _rows(cost: CellCost) -> float:
    """Rows that a training read; cells of old tell only how fast."""
    return cost.get("rows", round(cost["train_seconds"] * (cost["train_rows_per_second"] or 0.0)))


def assemble(
    axes: Axes,
    search: Search | None,
    loaded: LoadedTask,
    cells: Sequence[PlannedCell],
    folder: SweepFolder,
    chosen: Chosen | None,
    test: Test | None,
    command: str,
) -> SweepRecord:
    """The record of a sweep whose cells have ended.

    Args:
        axes: what varied and what did not.
        search: how cells were found, if by a search.
        loaded: the rows.
        cells: in the order of the table.
        folder: of the sweep.
        chosen: among the cells.
        test: of the chosen one.
        command: what the user typed.
    """
    placed = list(zip(cells, folder.placed(cells), strict=True))
    rows = [cell_row(cell, place, folder.out) for cell, place in placed]
    task = loaded.task
    varied = {*axes.lists, *axes.ranges, "untested"}
    return SweepRecord(
        schema=SCHEMA,
        title=f"{task.name}: {' × '.join(axes.names)}",
        command=command,
        environment=environment("cpu", "float32") | _machines(placed),
        config={name: value for name, value in _agreed(cells).items() if name not in varied},
        data=data_record(cells[0].config, loaded, _truncated(folder, chosen)),
        axes={short(name): list(values) for name, values in axes.lists.items()},
        search=search,
        cells=rows,
        chosen=chosen,
        effects=_effects(cells, rows),
        test=test,
        prior_log_loss=_prior_log_loss(task),
    )


def _agreed(cells: Sequence[PlannedCell]) -> dict[str, Any]:
    """Settings that are alike on all rungs that read them: llm-qlora has a base of its own."""
    flats = {cell.config.run.rung: cell.config.flat() for cell in cells}.values()
    values: dict[str, Any] = {}
    for flat in flats:
        values = flat | values
    return {
        name: value
        for name, value in values.items()
        if all(flat.get(name, value) == value for flat in flats)
    }


def _truncated(folder: SweepFolder, chosen: Chosen | None) -> dict[str, int]:
    """Of the chosen cell; nothing where it was not counted: of a control, or by an older llabel."""
    found = read_cell(folder.out / CELLS / chosen["cell"]) if chosen else None
    return (found or {}).get("truncated") or {}


def _effects(cells: Sequence[PlannedCell], rows: Sequence[Cell]) -> dict[str, Any]:
    scores = [row["metrics"]["validation"] for row in rows]
    return asdict(
        analyse(
            [cell.settings for cell in cells],
            [found and found["log_loss"] for found in scores],
            scaling_lr=[row["scaling_lr"] for row in rows],
            control=[row["control"] for row in rows],
        )
    )


def _prior_log_loss(task: Task) -> float:
    """Of answering every validation row with the training rows' class shares."""
    y = task.validation.y
    shares = np.bincount(task.train.y, minlength=len(task.classes)) / len(task.train)
    return log_loss(y, np.tile(shares, (len(y), 1)))


def cell_row(cell: PlannedCell, place: Path, out: Path) -> Cell:
    """One cell's row of the record."""
    found: dict[str, Any] = read_cell(place) or {"status": "failed", "reason": "it was not run"}
    scaling = cell.scaling
    done = found["status"] == "done"
    return Cell(
        name=place.name,
        folder=place.relative_to(out).as_posix(),
        settings=cell.settings,
        rung=cell.config.run.rung,
        scaling=scaling,
        scaling_lr=None if scaling is None else scaling * cell.config.llm.learning_rate,
        status=found["status"],
        control=cell.control,
        reason=found["reason"],
        metrics=CellMetrics(validation=found.get("validation")),
        epoch_losses=found["epoch_losses"] if done else _epoch_losses(place / LOG),
        curve=loss_points(place / LOG, [_STAGE]),
        weights=found.get("weights"),
        perplexity=found.get("perplexity"),
        cost=found.get("cost"),
        command="" if cell.control else command_line(cell.config, _beside(out, place.name)),
    )


def _beside(out: Path, cell: str) -> Path:
    """Where a cell is trained alone: beside the sweep's folder, also where `out` has no name."""
    if out.name in {"", ".."}:  # "." and ".."
        return out / ".." / f"{out.resolve().name}-{cell}"
    return out.with_name(f"{out.name}-{cell}")


def _epoch_losses(log: Path) -> list[float]:
    """Of a training that was not ended: as far as it came."""
    if not log.is_file():
        return []
    by_epoch: dict[int, float] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:  # its process was killed while it wrote this line
            continue
        if "validation_loss" in values:
            by_epoch[values["epoch"]] = values["validation_loss"]
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _machines(placed: Sequence[tuple[PlannedCell, Path]]) -> dict[str, str]:
    """Devices and precisions of the cells that are done, each once; as here where none is."""
    done = [
        found.get("machine") or _machine_here(cell.config)  # cells of old do not tell
        for cell, place in placed
        if (found := read_cell(place)) and found["status"] == "done"
    ]
    used = done or [_machine_here(placed[0][0].config)]
    return {
        name: ", ".join(dict.fromkeys(one[name] for one in used))
        for name in ("device", "precision")
    }


def _machine_here(config: RunConfig) -> dict[str, str]:
    """What a cell would run on in this process."""
    if config.run.rung not in ADAPTED:
        return {"device": "cpu", "precision": "float32"}
    from llabel.ladder.label_model import device_of, precision_of

    device = device_name(str(device_of(config.llm)))
    return {"device": device, "precision": precision_of(config.llm)}
