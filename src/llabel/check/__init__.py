"""What is worth knowing about a labelled table before training on it."""

from llabel.check.check import check, overlaps
from llabel.check.estimate import RunEstimate, estimate_run, measure_matmul_rate, model_size
from llabel.check.report import CheckReport

__all__ = [
    "CheckReport",
    "RunEstimate",
    "check",
    "estimate_run",
    "measure_matmul_rate",
    "model_size",
    "overlaps",
]
