"""In which order cells are done: a grid from the first to the last, a search as it proposes."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llabel.events import CellDone, CellStarted, Listener
from llabel.folder import InUseError, alone_with, write_json
from llabel.sweep.axes import Axes
from llabel.sweep.cells import PlannedCell, searched
from llabel.sweep.folder import CELL, CELLS, SweepFolder, is_finished, read_cell
from llabel.sweep.outcome import Order, outcome
from llabel.sweep.runner import BUSY
from llabel.sweep.study import combination, open_study, propose, sampler_of, trial_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_WAIT = 0.5  # seconds between looks at a cell that another process is at
MakeOrder = Callable[[PlannedCell, int | None], Order]


class GridPlan:
    """Every cell, once.

    Args:
        folder: of the sweep.
        cells: that are to be done.
        order: a cell and, of a search, its trial → what a worker is told.
        rows: that a cell trains on in all.
        notify: told of cells that begin and end.
    """

    def __init__(
        self,
        folder: SweepFolder,
        cells: Sequence[PlannedCell],
        order: MakeOrder,
        rows: Callable[[PlannedCell], int],
        notify: Listener,
    ) -> None:
        self.folder, self.order, self.rows, self.notify = folder, order, rows, notify
        self.lock = threading.Lock()
        self.cells = list(cells)
        self.busy: list[Order] = []

    def next(self) -> Order | None:
        """The first that is left; those that other processes were at come last."""
        with self.lock:
            begun = self.begin()
            if begun is not None:
                return begun
            if not self.busy:
                return None
            order = self.busy.pop(0)
        time.sleep(_WAIT)
        return order

    def begin(self) -> Order | None:
        """One that nobody began, if there is one."""
        return self.begun(self.cells.pop(0), None) if self.cells else None

    def begun(self, cell: PlannedCell, trial: int | None) -> Order:
        """Tell that a cell begins."""
        order = self.order(cell, trial)
        self.notify(CellStarted(order.name, self.rows(cell)))
        return order

    def ended(self, order: Order, result: str, died: str) -> None:
        """Put it off where another process is at it; else tell how it went."""
        if result == BUSY:
            with self.lock:
                self.busy.append(order)
            return
        place = self.folder.out / CELLS / order.name
        if died:
            try:
                with alone_with(place, BUSY):
                    if not is_finished(place):  # it may have died when all was done
                        place.mkdir(exist_ok=True)
                        write_json(place / CELL, outcome(order, "failed", died, again=True))
            except InUseError:  # another process has taken it up
                with self.lock:
                    self.busy.append(order)
                return
        self.close(order, read_cell(place) or outcome(order, "failed"))

    def close(self, order: Order, found: Mapping[str, Any]) -> None:
        """Tell how it went."""
        scores = found["validation"] or {}
        self.notify(
            CellDone(
                cell=order.name,
                status=found["status"],
                reason=found["reason"],
                log_loss=scores.get("log_loss"),
                accuracy=scores.get("accuracy"),
            )
        )


class SearchPlan(GridPlan):
    """What an Optuna study proposes; other processes may ask it, too.

    Args:
        folder, order, rows, notify: as of `GridPlan`.
        axes: what varies.
        sampler: `tpe` or `random`.
        trials: how many in all.
        seed: of the sampler.
    """

    def __init__(
        self,
        folder: SweepFolder,
        axes: Axes,
        order: MakeOrder,
        rows: Callable[[PlannedCell], int],
        notify: Listener,
        *,
        sampler: str,
        trials: int,
        seed: int,
    ) -> None:
        super().__init__(folder, [], order, rows, notify)
        self.axes, self.sampler, self.trials, self.seed = axes, sampler, trials, seed
        self.taken: set[int] = set()
        self.left = self._unfinished()  # by a process that was stopped, or is at work

    def begin(self) -> Order | None:
        """A trial that was begun and not settled, else a new one, else one that another began."""
        with self.folder.lock("ask"):
            study = open_study(self.folder.out)
            trials = study.get_trials(deepcopy=False)
            if not self.left and len(trials) >= self.trials:
                self.left = self._unfinished()
                if not self.left:
                    return None
            if self.left and trials[self.left[0]].state.is_finished():
                # The study was told of it, and cannot be told again; its cell is to be had anew.
                number = self.left.pop(0)
                self.taken.add(number)
                return self.begun(self._cell(trials[number].params), None)
            trial = trial_of(study, self.left.pop(0)) if self.left else study.ask()
            number = trial.number
            self.taken.add(number)
            propose(trial, self.axes, lambda a: sampler_of(self.sampler, self.seed, number, a))
            return self.begun(self._cell(trial.params), number)

    def close(self, order: Order, found: Mapping[str, Any]) -> None:
        """Tell the study, too; a training that diverged is one that did badly.

        One that is to be tried again stays begun: what the study was told, it keeps.
        """
        from optuna.trial import TrialState

        if order.trial is not None and not found["again"]:
            with self.folder.lock("ask"):
                study = open_study(self.folder.out)
                if not study.get_trials(deepcopy=False)[order.trial].state.is_finished():
                    if found["status"] == "done":
                        study.tell(order.trial, found["validation"]["log_loss"])
                    else:
                        study.tell(order.trial, state=TrialState.PRUNED)
        super().close(order, found)

    def _unfinished(self) -> list[int]:
        """Trials that nobody settled, nor this process had already."""
        settled = self.settled()
        numbers = (trial.number for trial in self._all())
        return [number for number in numbers if number not in settled | self.taken]

    def settled(self) -> set[int]:
        """Numbers of the trials of which nothing is left to do."""
        ended = [trial for trial in self._all() if trial.state.is_finished()]
        places = self.folder.placed([self._cell(trial.params) for trial in ended])
        return {t.number for t, place in zip(ended, places, strict=True) if is_finished(place)}

    def tried(self) -> list[PlannedCell]:
        """The cells of all trials that have ended, in their order; some are to be tried again."""
        return [
            self._cell(trial.params)
            for trial in self._all()
            if trial.state.is_finished() or trial.number in self.taken
        ]

    def _all(self) -> "list[FrozenTrial]":
        return open_study(self.folder.out).get_trials(deepcopy=False)

    def _cell(self, params: Mapping[str, Any]) -> PlannedCell:
        return searched(self.axes, combination(params, self.axes))
