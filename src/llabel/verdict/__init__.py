"""Which rung to use, and why."""

from llabel.verdict.candidates import Candidate
from llabel.verdict.decide import Verdict, decide

__all__ = ["Candidate", "Verdict", "decide"]
