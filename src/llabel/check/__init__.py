"""What is worth knowing about a labelled table before training on it."""

from llabel.check.check import check
from llabel.check.estimate import RunEstimate, estimate_run, measure_matmul_rate, model_size
from llabel.check.lookup import best_lookup_column, look_up, overlaps
from llabel.check.report import CheckReport

__all__ = [
    "CheckReport",
    "RunEstimate",
    "best_lookup_column",
    "check",
    "estimate_run",
    "look_up",
    "measure_matmul_rate",
    "model_size",
    "overlaps",
]
