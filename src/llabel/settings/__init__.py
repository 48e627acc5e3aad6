"""Every setting, once: its name, type, range, default and help.

The command line makes its options from these classes, `--config run.yaml` is checked against
them, `run.json` records them and `LLMClassifier` takes the same names.
"""

from llabel.settings.data import DataSettings
from llabel.settings.kinds import (
    ClassWeight,
    Duration,
    Help,
    Long,
    Names,
    RopeKind,
    RungName,
    TrackerName,
)
from llabel.settings.llm import LLMSettings, steps_per_epoch
from llabel.settings.many import CompareSettings, SweepSettings
from llabel.settings.rope import RopeScaling, parse_rope
from llabel.settings.run import RunSettings, SimplerSettings

__all__ = [
    "ClassWeight",
    "CompareSettings",
    "DataSettings",
    "Duration",
    "Help",
    "LLMSettings",
    "Long",
    "Names",
    "RopeKind",
    "RopeScaling",
    "RunSettings",
    "RungName",
    "SimplerSettings",
    "SweepSettings",
    "TrackerName",
    "parse_rope",
    "steps_per_epoch",
]
