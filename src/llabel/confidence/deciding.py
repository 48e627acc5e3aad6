"""Temperature and threshold from validation, and what is recorded of both."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llabel.confidence.abstention import (
    ABSTAIN,
    Abstention,
    Answered,
    answered,
    coverage_curve,
    smallest_threshold,
)
from llabel.confidence.decided import Confidence
from llabel.confidence.temperature import BeforeAfter, Calibration, Sureness, fit_temperature
from llabel.errors import InputError
from llabel.metrics import expected_calibration_error, log_loss
from llabel.settings import RunSettings
from llabel.task import ClassIndices, Label, Probabilities


class Judged(NamedTuple):
    """Rows of a part.

    Attributes:
        y: (n,) true class indices.
        proba: (n, n_classes) the rung's own probabilities.
        groups: (n,) the group of each row, or None.
    """

    y: ClassIndices
    proba: Probabilities
    groups: Sequence[str] | None = None


def refuse_label(settings: RunSettings, classes: tuple[Label, ...]) -> None:
    """Refuse a class that nobody could tell from a row without an answer.

    Raises:
        InputError: there is one, and rows may be left without an answer.
    """
    asked = settings.abstain_below is not None or settings.target_precision is not None
    if asked and ABSTAIN in classes:
        raise InputError(
            f"--{'abstain-below' if settings.abstain_below else 'target-precision'}: one of the "
            f"labels is {ABSTAIN!r}, which is what rows without an answer are given. Rename it "
            "with --map-labels."
        )


def decide(settings: RunSettings, validation: Judged) -> Confidence:
    """What the settings ask for, chosen on validation rows (at least one)."""
    y, raw, groups = validation
    temperature = fit_temperature(y, raw) if settings.calibrate else 1.0
    target = settings.target_precision
    if target is None:
        return Confidence(temperature, settings.abstain_below)
    proba = Confidence(temperature).scaled(raw)
    right = np.asarray(proba.argmax(axis=1) == y)
    threshold, attained = smallest_threshold(right, proba.max(axis=1), target, groups)
    return Confidence(temperature, threshold, missed_target=None if attained else target)


def calibration_of(
    settings: RunSettings, confidence: Confidence, validation: Judged, test: Judged | None
) -> Calibration | None:
    """What `--calibrate` did, for `run.json`."""
    if settings.calibrate is None:
        return None
    return Calibration(
        method=settings.calibrate,
        temperature=confidence.temperature,
        chosen_on="validation",
        validation=_before_after(confidence, validation),
        test=None if test is None else _before_after(confidence, test),
    )


def abstention_of(
    settings: RunSettings, confidence: Confidence, validation: Judged, test: Judged | None
) -> Abstention | None:
    """What leaving rows without an answer does, for `run.json`."""
    threshold, target = confidence.abstain_below, settings.target_precision
    if threshold is None:
        return None
    shown = validation if test is None else test
    proba = confidence.scaled(shown.proba)
    return Abstention(
        rule="abstain_below" if target is None else "target_precision",
        threshold=threshold,
        target_precision=target,
        attained=None if target is None else confidence.missed_target is None,
        validation=answered_rows(confidence, validation),
        test=None if test is None else answered_rows(confidence, test),
        curve=coverage_curve(proba.argmax(axis=1) == shown.y, proba.max(axis=1)),
    )


def answered_rows(confidence: Confidence, part: Judged) -> Answered:
    """How many rows get an answer, and how good these are; `abstain_below` must be set."""
    assert confidence.abstain_below is not None
    proba = confidence.scaled(part.proba)
    right = np.asarray(proba.argmax(axis=1) == part.y)
    return answered(right, proba.max(axis=1), confidence.abstain_below, part.groups)


def _before_after(confidence: Confidence, part: Judged) -> BeforeAfter:
    before, after = (
        Sureness(log_loss=log_loss(part.y, p), ece=expected_calibration_error(part.y, p))
        for p in (part.proba, confidence.scaled(part.proba))
    )
    return BeforeAfter(before=before, after=after)
