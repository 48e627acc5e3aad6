"""What several settings may be, and what marks them."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

RungName: TypeAlias = Literal[
    "majority",
    "lookup",
    "bag-of-words",
    "word-embeddings",
    "rnn",
    "transformer",
    "encoder",
    "llm-zero-shot",
    "llm-zero-shot-calibrated",
    "llm-few-shot",
    "llm-few-shot-calibrated",
    "llm-lora",
    "llm-qlora",
]
"""The systems of the ladder, from cheap to dear."""


ClassWeight: TypeAlias = Literal["balanced"]
"""What a class counts in the loss, where not each row counts alike."""


RopeKind: TypeAlias = Literal["linear", "dynamic", "yarn", "llama3"]
"""How rotary positions may be stretched over longer texts."""


Long: TypeAlias = Literal["head", "tail", "middle", "chunks"]
"""What is kept of a text that does not fit."""


TrackerName: TypeAlias = Literal["tensorboard", "mlflow", "wandb", "trackio"]
"""Who may keep the course of trainings, too."""


@dataclass(frozen=True, slots=True)
class Help:
    """What `--help` says of a setting."""

    text: str


@dataclass(frozen=True, slots=True)
class Duration:
    """Marks a number of seconds that may be written as 90s, 10m or 1h."""


@dataclass(frozen=True, slots=True)
class Names:
    """Marks a text that may be several names, written as A,B or as a list."""
