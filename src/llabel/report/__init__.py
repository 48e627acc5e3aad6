"""Pages to look at, made from records alone: no model, no tensors, no network."""

from llabel.report.compared import render_comparison
from llabel.report.sweep import render_sweep

__all__ = ["render_comparison", "render_sweep"]
