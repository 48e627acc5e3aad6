"""The search's memory: an Optuna study in a journal file, shared by all processes in a sweep."""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from llabel.errors import InputError
from llabel.sweep.axes import Axes, rounded
from llabel.sweep.folder import STUDY

if TYPE_CHECKING:
    from optuna import Study, Trial

LOOKS, WHOLE = (1, 3), 9  # a training is judged at 1/9 and 1/3 of its steps
KEEP = "third"
PRUNER = (
    "successive halving: a training goes on at 1/9 and at 1/3 of its steps only if its validation "
    "log loss is among the best third of those that came so far"
)
_NAME = "sweep"


def require_optuna() -> None:
    """Refuse to search without Optuna.

    Raises:
        InputError: it is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--search needs Optuna: pip install 'llabel[search]'. Without it, list the values to "
            "try, as --r 1,16,128."
        ) from error


class _Lock:
    """Of the operating system: free again when its process is killed, as Optuna's own is not."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path)

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def open_study(folder: Path, sampler: Any = None) -> "Study":
    """The study in a sweep's folder; made where there is none."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lock: Any = _Lock(folder / f".{STUDY}.lock")
    _cut_torn_line(folder / STUDY, lock)
    backend = JournalFileBackend(str(folder / STUDY), lock_obj=lock)
    return optuna.create_study(
        study_name=_NAME,
        storage=JournalStorage(backend),
        sampler=sampler,
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
        direction="minimize",
        load_if_exists=True,
    )


def _cut_torn_line(journal: Path, lock: _Lock) -> None:
    """Drop what a killed process, or a full disk, left of a line.

    The next line would be glued to it, and Optuna could not read the journal any more.
    """
    if not journal.is_file():
        return
    lock.acquire()
    try:
        with journal.open("r+b") as file:
            written = file.seek(0, os.SEEK_END)
            file.seek(max(0, written - 1))
            if file.read(1) not in {b"", b"\n"}:
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
    finally:
        lock.release()


def trial_of(study: "Study", number: int) -> "Trial":
    """A trial that was begun, by its number."""
    from optuna import Trial

    frozen = study.get_trials(deepcopy=False)[number]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Trial(study, frozen._trial_id)


def sampler_of(kind: str, *numbers: int) -> Any:
    """`tpe` or `random`, with random numbers that depend on `numbers` alone.

    With seed, trial and axis, a search that was stopped goes on as it would have, and no two
    processes draw alike.
    """
    from optuna.samplers import RandomSampler, TPESampler

    (seed,) = np.random.SeedSequence(numbers).generate_state(1).tolist()
    if kind == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, multivariate=False, constant_liar=True)


def propose(trial: "Trial", axes: Axes, sampler: Callable[[int], Any]) -> None:
    """Give the trial a value on every axis; asked again it has the same.

    Args:
        trial: begun.
        axes: of the sweep.
        sampler: number of an axis → who draws its value.
    """
    for number, name in enumerate((*axes.lists, *axes.ranges)):
        trial.study.sampler = sampler(number)
        if name in axes.lists:
            # Optuna wants plain choices, which places in the list are.
            trial.suggest_categorical(name, list(range(len(axes.lists[name]))))
            continue
        low, high, log = (axes.ranges[name][key] for key in ("low", "high", "log"))
        if axes.ranges[name]["whole"]:
            trial.suggest_int(name, int(low), int(high), log=bool(log))
        else:
            trial.suggest_float(name, low, high, log=bool(log))


def combination(params: Mapping[str, Any], axes: Axes) -> dict[str, Any]:
    """The values that a trial's parameters stand for."""
    found = {name: values[params[name]] for name, values in axes.lists.items()}
    return found | {
        name: rounded(params[name], whole=limits["whole"]) for name, limits in axes.ranges.items()
    }
