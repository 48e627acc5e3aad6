"""How sure a rung may say it is, and when it had better say nothing.

Both are decided on validation probabilities alone and apply to any rung.
"""

from llabel.confidence.abstention import (
    ABSTAIN,
    Abstention,
    Answered,
    CoveragePoint,
    answered,
    coverage_curve,
    smallest_threshold,
)
from llabel.confidence.decided import Confidence, read_confidence, write_confidence
from llabel.confidence.deciding import (
    Judged,
    abstention_of,
    answered_rows,
    calibration_of,
    decide,
    refuse_label,
)
from llabel.confidence.temperature import Calibration, fit_temperature, scaled

__all__ = [
    "ABSTAIN",
    "Abstention",
    "Answered",
    "Calibration",
    "Confidence",
    "CoveragePoint",
    "Judged",
    "abstention_of",
    "answered",
    "answered_rows",
    "calibration_of",
    "coverage_curve",
    "decide",
    "fit_temperature",
    "read_confidence",
    "refuse_label",
    "scaled",
    "smallest_threshold",
    "write_confidence",
]
