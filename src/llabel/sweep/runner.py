"""Cells in one process, one after the other: what they share is read and loaded once."""

import shutil
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from llabel import run
from llabel.config import RunConfig
from llabel.data import LoadedTask, take, unseen_rows
from llabel.engine.checkpoint import CheckpointFolder
from llabel.errors import DivergedError, InputError
from llabel.events import Listener, StageStarted
from llabel.folder import InUseError, TrainingLog, alone_with, write_json, write_text
from llabel.ladder import registry
from llabel.ladder.base_models import KeptBaseModels
from llabel.ladder.contract import Rung
from llabel.ladder.llm import LLMRung
from llabel.metrics import score
from llabel.rung_settings import ADAPTED
from llabel.statistics.intervals import score_with_groups
from llabel.sweep.arrays import write_proba
from llabel.sweep.cells import is_control
from llabel.sweep.folder import (
    CELL,
    CELLS,
    LOG,
    RUNG,
    TEST,
    VALIDATION,
    SweepFolder,
    is_finished,
    read_test,
)
from llabel.sweep.outcome import Order, moved, of_control, of_machine, of_training, outcome
from llabel.sweep.pruning import Halving, PrunedError
from llabel.sweep.untouched import Untouched, read_untouched, some_texts
from llabel.sweep_record import TestMetrics
from llabel.task import Task
from llabel.tracking import tracked

BUSY, ENDED = "busy", "ended"
_CHECKPOINTS = "checkpoints"


class Runner:
    """Trains cells into a sweep's folder.

    Args:
        out: the sweep's folder.
        load: reads the rows of a run; the same rows again for the same settings.
    """

    def __init__(self, out: Path, load: Callable[[RunConfig], LoadedTask]) -> None:
        self.folder, self.load = SweepFolder(out), load
        self.models = KeptBaseModels()

    def carry_out(self, order: Order, notify: Listener) -> str:
        """Do it; `busy` where another process is at it.

        However a cell ends, `cell.json` tells.

        Raises:
            InputError: the chosen cell cannot be tested, or one not be trained again.
        """
        place = self.folder.out / CELLS / order.name
        try:
            with alone_with(place, BUSY):
                if order.test:
                    self._test(order, place, notify)
                elif order.restore:
                    self._restore(order, place, notify)
                elif not is_finished(place):
                    self._end(order, place, notify)
            return ENDED
        except InUseError:
            return BUSY

    def _end(self, order: Order, place: Path, notify: Listener) -> None:
        """Come to a result of whatever kind, and write it down."""
        place.mkdir(exist_ok=True)
        write_json(place / CELL, outcome(order, None, again=True))
        try:
            found = self._results(order, place, notify)
        except PrunedError as error:
            found = outcome(order, "pruned", str(error))
        except (DivergedError, FloatingPointError) as error:
            found = outcome(order, "failed", str(error))
        except InputError as error:
            found = outcome(order, "failed", str(error), again=True)
        except Exception as error:
            write_text(place / "error.txt", traceback.format_exc())
            reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
            found = outcome(order, "failed", reason, again=True)
        write_json(place / CELL, found)
        if not found["again"]:
            shutil.rmtree(place / _CHECKPOINTS, ignore_errors=True)

    def _results(self, order: Order, place: Path, notify: Listener) -> dict[str, Any]:
        config, task = order.config, self._task(order)
        values, held = outcome(order, "done"), task.validation
        before: Untouched | None = None
        if config.run.rung in ADAPTED:
            asked = self._prepared(order, notify)  # before the model is read, too
            before = read_untouched(self.folder, config, task, self.models, notify)
        if before and is_control(config):
            write_proba(place / VALIDATION, before.proba)
            scores = score_with_groups(held.y, before.proba, groups=held.groups)
            values |= of_control(before) | of_machine(asked)
            return values | {"validation": scores}
        rung = self._fitted(order, place, notify)
        write_proba(place / VALIDATION, rung.validation_proba_)
        scores = score_with_groups(held.y, rung.validation_proba_, groups=held.groups)
        values |= of_training(rung.record_) | of_machine(rung) | {"validation": scores}
        if before:
            values |= moved(cast(LLMRung, rung), before, some_texts(task.validation), notify)
        run.save(rung, place / RUNG, with_texts=not config.run.no_texts)
        return values

    def _fitted(self, order: Order, place: Path, notify: Listener) -> Rung:
        """The cell's rung, trained; from its checkpoints where there are some."""
        config, task = order.config, self._task(order)
        checkpoints = CheckpointFolder(
            place / _CHECKPOINTS / "training",
            every_steps=config.run.checkpoint_steps,
            every_seconds=60 * config.run.checkpoint_minutes,
        )
        with (
            tracked(config, self.folder.out, order.name, notify) as tracking,
            TrainingLog(place / LOG, tracking) as log,
        ):
            rung = self._prepared(order, log)
            rung.fit(task, checkpoints=checkpoints, notify=log)
            scores = score(task.validation.y, rung.validation_proba_)
            assert scores
            tracking.tell(scores, "validation")
        return rung

    def _prepared(self, order: Order, notify: Listener) -> Rung:
        """The cell's rung before it is trained; its model is here now, whatever the Hub has."""
        task = self._task(order)
        rung = self._rung(order).prepare(task.fields, task.classes, notify)
        self.folder.refuse_other_weights(order.config)
        return rung

    def _rung(self, order: Order) -> Rung:
        if order.config.run.rung not in ADAPTED:
            return registry.make(order.config)
        watch = None if order.trial is None else Halving(self.folder.out, order.trial)
        return registry.make(order.config, models=self.models, watch=watch)

    def _task(self, order: Order) -> Task:
        task = self.load(order.config).task
        self.folder.refuse_changed(order.config.flat().get("template", ""))
        if task.fingerprint != order.fingerprint:
            raise InputError("the rows of the data have changed since the sweep began")
        return task

    def _restore(self, order: Order, place: Path, notify: Listener) -> None:
        """Train it again where what it learned was removed, as another one was chosen then."""
        if not self.folder.is_kept(order.name):
            again = self._fitted(replace(order, trial=None), place, notify)
            run.save(again, place / RUNG, with_texts=not order.config.run.no_texts)
            shutil.rmtree(place / _CHECKPOINTS, ignore_errors=True)

    def _kept(self, order: Order, place: Path, notify: Listener) -> Rung:
        """The cell's rung, to predict with.

        A few-shot rung is made again: its folder may lack the examples (`no_texts`), and to choose
        them takes no training.
        """
        config, task = order.config, self._task(order)
        if "few-shot" not in config.run.rung:
            return registry.load(place / RUNG, device=config.llm.device)
        return self._prepared(order, notify).fit(task, notify=notify)

    def _test(self, order: Order, place: Path, notify: Listener) -> None:
        """Read the test part, once, and write `test.json`."""
        then = read_test(self.folder.out)
        if then and then["cell"] == order.name:
            return
        config, task = order.config, self._task(order)
        if is_control(config):
            rung = cast(Rung, LLMRung(config.llm, self.models).untrained(task, notify))
        else:
            self._restore(order, place, notify)
            rung = self._kept(order, place, notify)
        notify(StageStarted("scoring test rows", len(task.test)))
        proba = rung.predict_proba(task.test.texts, notify)
        unseen = unseen_rows([task.train, task.validation], task.test, task.fields)
        new = take(task.test, np.flatnonzero(unseen))
        scores = score_with_groups(task.test.y, proba, groups=task.test.groups)
        assert scores
        of_new = score_with_groups(new.y, proba[unseen], groups=new.groups)
        metrics = TestMetrics(test=scores, test_unseen=of_new)
        before = [*then["earlier"], then["cell"]] if then else []
        earlier = [name for name in before if name != order.name]
        found = {"cell": order.name, "metrics": metrics, "earlier": earlier}
        write_json(self.folder.out / TEST, found)
