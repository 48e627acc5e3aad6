"""What was decided on validation, and goes with a rung wherever it predicts."""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llabel.confidence.temperature import scaled
from llabel.errors import InputError
from llabel.task import Probabilities

FILE = "confidence.json"


@dataclass(frozen=True, slots=True)
class Confidence:
    """How a rung's probabilities become answers.

    Attributes:
        temperature: see `llabel.confidence.Calibration`; 1 leaves probabilities as they are.
        abstain_below: top probabilities below it get no answer; None answers all.
        missed_target: the precision that `abstain_below` was to reach, and does not.
    """

    temperature: float = 1.0
    abstain_below: float | None = None
    missed_target: float | None = None

    def scaled(self, proba: Probabilities) -> Probabilities:
        """(n, n_classes) calibrated."""
        return scaled(proba, self.temperature)

    def withheld(self, proba: Probabilities) -> npt.NDArray[np.bool_]:
        """(n, n_classes) calibrated probabilities → (n,) which rows get no answer."""
        if self.abstain_below is None:
            return np.zeros(len(proba), dtype=np.bool_)
        unsure: npt.NDArray[np.bool_] = proba.max(axis=1, initial=0.0) < self.abstain_below
        return unsure


def write_confidence(folder: Path, confidence: Confidence) -> None:
    """Write `confidence.json`, whole or not at all; nothing where nothing was decided."""
    if confidence == Confidence():
        (folder / FILE).unlink(missing_ok=True)
        return
    new = folder / f".{FILE}.{os.getpid()}"
    new.write_text(json.dumps({"schema": 1} | asdict(confidence), indent=2) + "\n", "utf-8")
    new.replace(folder / FILE)


def read_confidence(folder: Path) -> Confidence:
    """What `write_confidence` wrote to `folder`.

    Raises:
        InputError: the file is damaged, or of a newer version.
    """
    path = folder / FILE
    if not path.is_file():
        return Confidence()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("schema") != 1:
            raise ValueError("another schema")
        found = Confidence(**values)
        below = found.abstain_below
        if not 0 < found.temperature < math.inf or (below is not None and not 0 <= below <= 1):
            raise ValueError("out of range")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}): it is damaged, or of "
            "another version of llabel. Train the run again with --overwrite."
        ) from error
    return found
