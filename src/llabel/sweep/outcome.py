"""`cell.json`: what a cell is, how it ended, and what it found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llabel.config import RunConfig
from llabel.engine.updates import in_all, updates
from llabel.events import Listener, StageStarted
from llabel.ladder.contract import FitRecord, Rung
from llabel.ladder.llm import LLMRung
from llabel.ladder.perplexity import perplexity
from llabel.record import device_name, peak_rss_mb
from llabel.sweep.cells import from_identity
from llabel.sweep.untouched import Untouched
from llabel.sweep_record import CellCost, LayerUpdate, Perplexity, Status, WeightUpdate
from llabel.task import Text

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is told to do.

    Attributes:
        name: of the cell's folder.
        values: what decides it (see `cells.identity`).
        fingerprint: of its rows.
        free: settings that decide nothing of it: checkpoints, tracker, texts.
        trial: its number in the study; None where nothing searches.
        test: whether to read the test part with it; else it is trained.
        restore: whether what it learned is only to be there again, where it was removed.
    """

    name: str
    values: dict[str, Any]
    fingerprint: str
    free: dict[str, Any] = field(default_factory=dict)
    trial: int | None = None
    test: bool = False
    restore: bool = False

    @property
    def config(self) -> RunConfig:
        """The cell's settings."""
        return from_identity({**self.values, **self.free})


def outcome(
    order: Order, status: Status | None, reason: str = "", *, again: bool = False
) -> dict[str, Any]:
    """What `cell.json` says, results left open.

    Args:
        order: which cell.
        status: None while it goes on.
        reason: why it is not done.
        again: whether the next call may try it again: the reason may have passed.
    """
    return {
        "schema": SCHEMA,
        "config": order.values,
        "fingerprint": order.fingerprint,
        "status": status,
        "reason": reason,
        "again": again,
        "validation": None,
        "epoch_losses": [],
        "weights": None,
        "perplexity": None,
        "cost": None,
        "truncated": None,
        "machine": None,
    }


def of_machine(rung: Rung) -> dict[str, Any]:
    """Where a cell ran, and in which precision: another machine may write the sweep up."""
    device = getattr(rung, "device_", None) or getattr(rung, "device", "cpu")
    precision = getattr(rung, "precision", "float32")
    return {"machine": {"device": device_name(str(device)), "precision": precision}}


def of_control(before: Untouched) -> dict[str, Any]:
    """The results of the model that nothing was done to."""
    same = Perplexity(before=before.perplexity, after=before.perplexity, tokens=before.tokens)
    cost = CellCost(
        train_seconds=0.0,
        train_rows_per_second=None,
        steps=0,
        epochs=0,
        rows=0,
        tokens=0,
        trainable_parameters=0,
        parameters=before.parameters,
        peak_rss_mb=None,
    )
    weights = WeightUpdate(update_norm=0.0, relative_update_norm=0.0, layers=before.layers)
    return {"perplexity": same, "weights": weights, "cost": cost}


def moved(
    rung: LLMRung, before: Untouched, texts: Sequence[Text], notify: Listener
) -> Mapping[str, Any]:
    """How far a tuned model is from the one it was."""
    notify(StageStarted("reading prompts", len(texts)))
    after = perplexity(rung.reader_, texts, notify)
    layers = updates(rung.model_)
    whole = in_all(layers)
    return {
        "perplexity": Perplexity(
            before=before.perplexity, after=after.value, tokens=after.tokens
        ),
        "weights": WeightUpdate(
            update_norm=whole.norm,
            relative_update_norm=whole.relative,
            layers=[LayerUpdate(layer=u.layer, norm=u.norm, relative=u.relative) for u in layers],
        ),
    }  # fmt: skip


def of_training(record: FitRecord) -> dict[str, Any]:
    """What a training took, how its validation loss went, and how many texts it saw cut."""
    chosen = None if record.chosen is None else record.trials[record.chosen]
    steps = chosen.steps if chosen else 0
    cost = CellCost(
        train_seconds=chosen.seconds if chosen else 0.0,
        train_rows_per_second=chosen.rows / chosen.seconds if chosen and steps else None,
        steps=steps,
        epochs=len(chosen.epoch_losses) if chosen and steps else 0,
        rows=chosen.rows if chosen else 0,
        tokens=chosen.tokens if chosen else 0,
        trainable_parameters=record.trainable_parameters,
        parameters=record.parameters,
        peak_rss_mb=peak_rss_mb(),
    )
    return {
        "epoch_losses": list(chosen.epoch_losses) if chosen else [],
        "cost": cost,
        "truncated": record.truncated,
    }
