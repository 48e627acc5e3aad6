"""Losses and scores for a tracker (TensorBoard, MLflow, wandb, trackio), where one is asked for.

The trackers are driven through accelerate's interface, which is one for all of them.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from llabel.config import RunConfig
from llabel.errors import InputError
from llabel.events import EpochDone, Event, Listener, StageStarted, StepDone
from llabel.metrics import Scores

_SCORES = ("accuracy", "macro_f1", "log_loss", "ece")


class Tracking:
    """Passes events on, and tells the tracker what it wants to know.

    Args:
        tracker: accelerate's, started; None tells nobody.
        notify: told of all events.
    """

    def __init__(self, tracker: Any, notify: Listener) -> None:
        self.tracker, self.notify = tracker, notify
        self.step = self._before = 0  # steps so far, and those of earlier stages
        self._stage = ""

    def __call__(self, event: Event) -> None:
        """Log and pass on."""
        if isinstance(event, StageStarted) and event.steps:  # an earlier process told of them
            self._count(event.name, event.steps)
        if self.tracker is not None and isinstance(event, StepDone):
            self._count(event.stage, event.step)
            told = {"loss": event.loss, "learning_rate": event.learning_rate}
            self.tracker.log(told | {"epoch": event.epoch}, step=self.step)
        if self.tracker is not None and isinstance(event, EpochDone):
            self.tracker.log({"validation/log_loss": event.validation_loss}, step=self.step)
        self.notify(event)

    def _count(self, stage: str, steps: int) -> None:
        """So many steps of a stage are done."""
        if stage != self._stage:
            self._before, self._stage = self.step, stage
        self.step = self._before + steps

    def tell(self, scores: Scores, part: str) -> None:
        """The scores at the end."""
        if self.tracker is not None:
            told: Mapping[str, Any] = scores
            values = {f"{part}/final_{name}": told[name] for name in _SCORES}
            self.tracker.log(values, step=self.step)


@contextmanager
def tracked(config: RunConfig, folder: Path, name: str, notify: Listener) -> Iterator[Tracking]:
    """Track one training for as long as the block lasts, if `config` says so.

    Args:
        config: of the run; its settings are told, too.
        folder: where trackers that write files put them, in a folder of their own.
        name: of the run.
        notify: told of all events.

    Raises:
        InputError: the tracker is not installed.
    """
    if config.run.track is None:
        yield Tracking(None, notify)
        return
    refuse_missing_tracker(config)
    tracker = _started(config.run.track, folder, name)
    try:
        tracker.store_init_configuration(_plain(config.flat()))
        yield Tracking(tracker, notify)
    finally:
        tracker.finish()


def refuse_missing_tracker(config: RunConfig) -> None:
    """Refuse to begin a run whose tracker is not there.

    Raises:
        InputError: it is not installed.
    """
    track = config.run.track
    if track is not None and (find_spec(track) is None or find_spec("accelerate") is None):
        raise InputError(
            f"--track {track}: it is not installed. pip install 'llabel[{track}]', or leave "
            "--track out."
        )


def _started(kind: str, folder: Path, name: str) -> Any:
    place = folder.resolve() / kind
    place.mkdir(parents=True, exist_ok=True)
    from accelerate import PartialState

    PartialState()  # accelerate's log, which its trackers write to, asks which process this is
    # A sweep's workers begin at the same moment, and only one of them may make what all share.
    with FileLock(place / ".start.lock"):
        tracker = _made(kind, place, name)
        tracker.start()
    return tracker


def _made(kind: str, place: Path, name: str) -> Any:
    """The tracker, its files in `place`; named after the folder that this is in."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
    from accelerate import tracking

    project = place.parent.name
    match kind:
        case "tensorboard":
            return tracking.TensorBoardTracker(name, place)
        case "mlflow":
            import mlflow

            if os.environ.get("MLFLOW_TRACKING_URI"):
                return tracking.MLflowTracker(project, run_name=name)
            # A database, as MLflow is giving up plain files; artifacts would else go to ./mlruns.
            mlflow.set_tracking_uri(f"sqlite:///{(place / 'mlflow.db').as_posix()}")
            artifacts = (place / "artifacts").as_uri()
            return tracking.MLflowTracker(project, artifacts, run_name=name)
        case "wandb":
            return tracking.WandBTracker(project, name=name, dir=str(place), mode=_wandb_mode())
        case _:
            return tracking.TrackioTracker(project, name=name)


def _wandb_mode() -> str:
    """What the user set; else online for who is logged in, and on this machine for all others."""
    import wandb

    if mode := os.environ.get("WANDB_MODE"):
        return mode
    return "online" if wandb.api.api_key else "offline"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as trackers take them: no lists, nothing that is not set."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in values.items()
        if value is not None
    }
