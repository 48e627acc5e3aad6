"""Each of several targets of one rung as a rung of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from llabel.events import Listener, RowsDone, ignore
from llabel.ladder.contract import FitRecord
from llabel.metrics import log_loss
from llabel.task import ClassIndices, Label, Probabilities, TargetLabel, Text

if TYPE_CHECKING:
    from llabel.ladder.llm import LLMRung


def mean_log_loss(y: ClassIndices, proba: Probabilities) -> float:
    """`log_loss`; of several targets, y (n, n_targets), the mean of theirs."""
    columns = y.reshape(len(y), -1).T
    return float(np.mean([log_loss(column, proba) for column in columns]))


class TargetRung:
    """One target of a fitted rung that answers several, as a rung of its own.

    It predicts as `contract.Rung` does; all else is that of the rung for all, `whole`.

    The texts are read for all targets at once: what was read lately is kept and given to the
    others.

    Args:
        rung: fitted or loaded, with `TargetLabel`s for classes.
        target: which of its targets.
        kept: what the rung said of texts, shared among its targets.
    """

    def __init__(self, rung: "LLMRung", target: str, kept: dict[Text, Any]) -> None:
        self.whole, self._kept = rung, kept
        classes = cast("tuple[TargetLabel, ...]", rung.classes_)
        self._columns = [n for n, label in enumerate(classes) if label.target == target]
        self._number = list(dict.fromkeys(label.target for label in classes)).index(target)
        self.name, self.fields_ = rung.name, rung.fields_
        self.classes_: tuple[Label, ...] = tuple(classes[n].label for n in self._columns)

    def __getattr__(self, name: str) -> Any:
        """Model, device and the like: what all targets have in common."""
        return getattr(self.whole, name)

    @property
    def record_(self) -> FitRecord:
        """What fitting did, for all targets together."""
        return self.whole.record_

    @property
    def validation_proba_(self) -> Probabilities:
        """(n_validation, n_classes) of this target."""
        return self.whole.validation_proba_[:, self._columns]

    def predict_proba(self, texts: Sequence[Text], notify: Listener = ignore) -> Probabilities:
        """(n,) texts → (n, n_classes) probabilities of this target; rows sum to 1."""
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        if new:
            self._kept.update(zip(new, self.whole.predict_proba(new, notify), strict=True))
        notify(RowsDone(len(texts) - len(new)))
        if not texts:
            return np.empty((0, len(self.classes_)))
        return np.stack([self._kept[text] for text in texts])[:, self._columns]

    def generate(
        self, texts: Sequence[Text], notify: Listener = ignore
    ) -> tuple[npt.NDArray[np.int64], list[str]]:
        """Let the model write its answer freely (see `LabelModel.generate`)."""
        return self.whole.generate(texts, notify, target=self._number)


def each_target(rung: "LLMRung") -> dict[str, TargetRung]:
    """The targets of a rung, in their order; {} where it has one only."""
    names = dict.fromkeys(c.target for c in rung.classes_ if isinstance(c, TargetLabel))
    kept: dict[Text, Any] = {}
    return {name: TargetRung(rung, name, kept) for name in names}


def target_folder(out: Path, target: str) -> Path:
    """Where a run of several targets keeps what belongs to one of them."""
    name = quote(target, safe=" ")
    return out / "targets" / (f"%2E{name[1:]}" if name.startswith(".") else name)
