"""The calibrated LLM rungs: another rung's answers, divided by its prior.

The prior correction is a function of the probabilities alone, so the model need not read every
text twice. `llabel fit --rung llm-zero-shot-calibrated` comes to the same result the long way.
"""

from pathlib import Path
from typing import Any

import numpy as np

from llabel.assessment import data_record, score_test, write_predictions
from llabel.card import render_card
from llabel.compare.answers import read_answers
from llabel.compare.plan import PlannedRun
from llabel.data import LoadedTask
from llabel.errors import InputError
from llabel.events import Listener
from llabel.folder import claimed, finished_run, read_record, write_json, write_text
from llabel.ladder.calibration import prior_corrected
from llabel.ladder.rung_folder import RECORD, read_json, write_record
from llabel.predictions import prediction_lines
from llabel.record import Metrics, RunRecord
from llabel.statistics.intervals import score_with_groups

CALIBRATED = "-calibrated"


def raw_run(planned: PlannedRun, runs: list[PlannedRun]) -> PlannedRun | None:
    """The run of the same rung without the correction, if it is among `runs`.

    One whose answers were calibrated or withheld does not serve: what it wrote is no longer what
    the prior corrects.
    """
    asked = planned.config.run
    changes = (asked.calibrate, asked.abstain_below, asked.target_precision)
    plain = asked.decode == "labels" and changes == (None, None, None)
    if not planned.rung.endswith(CALIBRATED) or not plain:
        return None
    raw = planned.rung.removesuffix(CALIBRATED)
    rows = planned.config.data.train_rows
    return next(
        (
            other
            for other in runs
            if (other.rung, other.seed, other.config.data.train_rows) == (raw, planned.seed, rows)
        ),
        None,
    )


def derive_calibrated(
    raw: PlannedRun, planned: PlannedRun, loaded: LoadedTask, notify: Listener
) -> RunRecord:
    """Write the run folder of the calibrated rung from that of the raw one.

    Raises:
        InputError: the raw run did not finish.
    """
    task, out = loaded.task, planned.folder
    record = finished_run(raw.folder, raw.config, task.fingerprint)
    if record is None:
        raise InputError(f"it corrects the answers of {raw.label}, which has none.")
    prior = np.array(record["training"]["settings"]["prior"])
    with claimed(out, planned.config, task.fingerprint, overwrite=False, notify=notify) as finished:
        if finished is not None:
            return finished
        stored = read_answers([raw.folder], task, tested=not planned.config.run.untested)
        validation = prior_corrected(stored["validation"].proba[0], prior)
        validation_scores = score_with_groups(
            task.validation.y, validation, groups=task.validation.groups
        )
        assert validation_scores  # no part is ever empty
        metrics = Metrics(train=None, validation=validation_scores, test=None, test_unseen=None)
        lines = list(prediction_lines(task, "validation", validation, validation.argmax(axis=1)))
        derived = record | {
            "rung": planned.rung,
            "config": planned.config.flat(),
            "data": data_record(planned.config, loaded, record["data"]["truncated"]),
            "metrics": metrics,
            "command": planned.command,
        }
        if not planned.config.run.untested:
            test = prior_corrected(stored["test"].proba[0], prior)
            lines += prediction_lines(task, "test", test, test.argmax(axis=1))
            refit = planned.config.llm.refit
            tested = score_test(task, metrics, test, test.argmax(axis=1), refit=refit)
            derived |= {"baselines": tested.baselines, "report": tested.report}
        rewrite_rung(raw.folder, out, rung=planned.rung)  # the same, told to correct its answers
        write_predictions(out, lines, with_texts=not planned.config.run.no_texts)
        write_text(out / "README.md", render_card(derived))
        write_json(out / "run.json", derived)
    return read_record(out)


def rewrite_rung(source: Path, out: Path, **changes: Any) -> None:
    """Write the `rung.json` of `source` into `out` with some values changed."""
    write_record(out, read_json(source / RECORD) | changes)
