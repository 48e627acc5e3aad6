"""Pages to look at, made from records alone: no model, no tensors, no network."""

from llabel.report.compared import render_comparison

__all__ = ["render_comparison"]
