"""The choice among the cells, on the validation rows alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from llabel.comparison import ComparedScores
from llabel.metrics import score
from llabel.settings import RungName
from llabel.statistics.intervals import bootstrap_scores
from llabel.statistics.losses import compare_losses, row_losses
from llabel.statistics.paired import holm
from llabel.statistics.resampling import Floats, resampled
from llabel.sweep.cells import PlannedCell
from llabel.sweep_record import Chosen, ChosenMetrics, NotWorse
from llabel.task import Probabilities, Split

RULE = (
    "Chosen: the lowest log loss on the validation rows{seeds}. Not measurably worse: settings "
    "whose log loss does not differ from it at the 5 % level, by a paired bootstrap over {units}, "
    "Holm-corrected for all of them; intervals are each setting's own, not corrected. A setting of "
    "which a seed came to nothing is not compared, unless all are like that. Recommended: of these "
    "and the chosen one the cheapest, by the ladder's order of systems, then what training "
    "computed (tokens read × parameters of the model; rows, where a system or an old record has no "
    "tokens), then trained parameters; of equals the one with the lower loss. The same rows chose "
    "and compare, so the chosen one's lead looks a little larger than it is; the test part was not "
    "looked at."
)


@dataclass(frozen=True, slots=True, eq=False)
class DoneCell:
    """A cell that is done.

    Attributes:
        cell: what was planned.
        name: of its folder.
        proba: (n_validation, n_classes).
        work: what training computed: tokens, or rows, that it read × parameters.
        trained: parameters that training may change.
    """

    cell: PlannedCell
    name: str
    proba: Probabilities
    work: float
    trained: int


@dataclass(frozen=True, slots=True, eq=False)
class _Setting:
    """Cells that differ by their seed only; of the untouched model one stands for all.

    Attributes:
        cells: of its seeds, the one with the lowest loss first.
        losses: (n_seeds, n) of the rows.
    """

    cells: list[DoneCell]
    losses: Floats

    @property
    def loss(self) -> float:
        return float(self.losses.mean())

    @property
    def cost(self) -> tuple[float, ...]:
        rungs: tuple[str, ...] = get_args(RungName)
        rung = self.cells[0].cell.config.run.rung
        work, trained = np.mean([(c.work, c.trained) for c in self.cells], axis=0).tolist()
        return rungs.index(rung), work, trained, self.loss


def choose(
    done: Sequence[DoneCell], planned: Sequence[PlannedCell], validation: Split
) -> Chosen | None:
    """The best setting, those that are not measurably worse, and the cheapest of all these.

    A setting one of whose seeds came to nothing is out of it, unless all are like that.

    Args:
        done: cells with results.
        planned: all cells.
        validation: the rows that they answered.
    """
    if not done:
        return None
    settings = _settings(done, planned, validation)
    best = min(settings, key=lambda setting: setting.loss)
    groups = resampled(validation.groups)
    others = [setting for setting in settings if setting is not best]
    pairs = [compare_losses(other.losses, best.losses, groups=groups) for other in others]
    corrected = holm([pair.p_value for pair in pairs])
    close = [
        (other, pair, p)
        for other, pair, p in zip(others, pairs, corrected, strict=True)
        if p > 0.05
    ]
    cheapest = min([best, *(other for other, _, _ in close)], key=lambda setting: setting.cost)
    several = max(len(setting.cells) for setting in settings) > 1
    return Chosen(
        cell=best.cells[0].name,
        cells=[cell.name for cell in best.cells],
        metrics=ChosenMetrics(validation=_scores(best, validation)),
        recommended=cheapest.cells[0].name,
        not_worse=[
            NotWorse(
                cell=other.cells[0].name,
                cells=[cell.name for cell in other.cells],
                difference=pair.difference,
                ci95=list(pair.interval),
                p_value=p,
            )
            for other, pair, p in sorted(close, key=lambda item: item[1].difference)
        ],
        rule=RULE.format(
            seeds=", the mean over the seeds" if several else "",
            units="groups of rows" if groups is not None else "rows",
        ),
    )


def _settings(
    done: Sequence[DoneCell], planned: Sequence[PlannedCell], validation: Split
) -> list[_Setting]:
    asked: dict[str, int] = {}
    for cell in planned:
        asked[cell.setting] = asked.get(cell.setting, 0) + 1
    seeds: dict[str, list[DoneCell]] = {}
    for one in done:
        seeds.setdefault(one.cell.setting, []).append(one)
    whole = {key: cells for key, cells in seeds.items() if len(cells) == asked[key]} or seeds
    found = []
    for every in whole.values():
        cells = every[:1] if every[0].cell.control else every  # controls are one and the same
        losses = row_losses(validation.y, np.stack([cell.proba for cell in cells]))
        order = np.argsort(losses.mean(axis=1), kind="stable").tolist()
        found.append(_Setting([cells[at] for at in order], losses[order]))
    return found


def _scores(setting: _Setting, validation: Split) -> ComparedScores:
    y, proba = validation.y, np.stack([cell.proba for cell in setting.cells])
    each: list[Any] = [score(y, one) for one in proba]
    means = {
        name: float(np.mean([scores[name] for scores in each]))
        for name in ("accuracy", "macro_f1", "log_loss", "ece")
    }
    intervals = bootstrap_scores(
        y, proba, proba.argmax(axis=2), groups=resampled(validation.groups)
    )
    return ComparedScores(rows=len(y), **means, **intervals)  # type: ignore[typeddict-item]
