"""Finished runs that a comparison takes over: copied, marked, and checked to be of the same rows.

A copy may have other settings than the comparison's own runs; that is what it is for. Its mark
says where it came from, so that it stays only as long as `--reuse` asks for it.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from llabel.compare.derived import rewrite_rung
from llabel.compare.plan import PlannedRun
from llabel.data import LoadedTask
from llabel.errors import InputError
from llabel.folder import read_json_lines, read_record, write_json, write_json_lines
from llabel.paths import at_home
from llabel.record import RunRecord
from llabel.task import Task

_MARK = "reused.json"


def is_reused(folder: Path) -> bool:
    """Whether a run folder of the comparison was made elsewhere."""
    return (folder / _MARK).is_file()


def adopt(
    sources: Sequence[str],
    runs: Sequence[PlannedRun],
    loaded: LoadedTask,
    *,
    no_texts: bool,
    overwrite: bool,
) -> None:
    """Copy finished runs into the comparison; one that was copied before stays as it is.

    A run that stands in the very place where its copy would go is marked, and stays, too.

    Args:
        sources: their folders.
        runs: of the table.
        loaded: its rows.
        no_texts: leave the texts behind.
        overwrite: throw away what stands where a copy is to go, and copies not asked for any more.

    Raises:
        InputError: a run is of other rows, untested or not among `runs`; something else stands in
            its place; or a copy is there that `sources` does not name.
    """
    asked = [at_home(source) for source in sources]
    places: dict[Path, Path] = {}
    for source in asked:
        folder = _place(source, read_record(source), runs, loaded)
        if other := places.get(folder):
            raise InputError(
                f"--reuse {other} and {source} would both be the same row, {folder.name}. Give "
                "--seeds as large as there are runs of a rung, or leave one of them out."
            )
        places[folder] = source
    dropped = [
        planned.folder
        for planned in runs
        if is_reused(planned.folder) and not any(_stands(one, planned.folder) for one in asked)
    ]
    if dropped and not overwrite:
        raise InputError(
            f"{dropped[0]} was taken from {_source(dropped[0])} by --reuse, which this command "
            "does not ask for. Ask for it again, or throw the copy away with --overwrite."
        )
    for folder, source in places.items():
        if not _stands(source, folder) and folder.exists() and not overwrite:
            raise InputError(
                f"--reuse {source}: {folder} is there already. Throw it away with --overwrite, or "
                "leave --reuse out."
            )
    for folder, source in places.items():
        if not _stands(source, folder):
            _copy(source, folder, loaded.task, no_texts=no_texts)
        elif not is_reused(folder):
            _adapt(folder, source, loaded.task, no_texts=no_texts)
        else:
            _name_rows(folder, source, loaded.task)
    for folder in dropped:  # at last: where a copy failed, all is as it was
        if folder not in places:
            shutil.rmtree(folder)


def _stands(source: Path, folder: Path) -> bool:
    """Whether a run is in place: `folder` itself, or copied there before."""
    if source.resolve() == folder.resolve():
        return True
    return is_reused(folder) and _source(folder) == source.as_posix()


def _source(folder: Path) -> str:
    return str(json.loads((folder / _MARK).read_text(encoding="utf-8"))["from"])


def _place(source: Path, record: RunRecord, runs: Sequence[PlannedRun], loaded: LoadedTask) -> Path:
    """Where the copy goes: in place of the rung's run with the same seed, else of its first."""
    same = [planned for planned in runs if planned.rung == record["rung"]]
    if not same:
        raise InputError(
            f"--reuse {source} is a run of {record['rung']}, which is not among --rungs."
        )
    if record["data"]["fingerprint"] != loaded.task.fingerprint:
        raise InputError(
            f"--reuse {source} was trained or tested on other rows than these (fingerprint "
            f"{record['data']['fingerprint'][:12]}…, here {loaded.task.fingerprint[:12]}…). Give "
            "the same DATA, columns, --group, split options and seed."
        )
    if record["metrics"]["test"] is None:
        raise InputError(
            f"--reuse {source} was not tested (--untested), so it has no row in the table. Fit it "
            "again without --untested."
        )
    return next((p.folder for p in same if p.seed == record["seed"]), same[0].folder)


def _copy(source: Path, folder: Path, task: Task, *, no_texts: bool) -> None:
    """Whatever stands in `folder` goes only when the copy is whole."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns("checkpoints", ".*"))
    _adapt(partial, source, task, no_texts=no_texts)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def _adapt(folder: Path, source: Path, task: Task, *, no_texts: bool) -> None:
    """Make a run one of the comparison: its rows' names, its texts, its mark."""
    _name_rows(folder, source, task)
    if no_texts:
        _remove_texts(folder)
    write_json(folder / _MARK, {"from": source.as_posix()})


def _name_rows(folder: Path, source: Path, task: Task) -> None:
    """Give the answers the ids that the rows have here.

    By the fingerprint they are the same rows in the same order, but a file of another name gives
    them other ids.

    Raises:
        InputError: the answers are not of these rows; said before anything is trained.
    """
    path = folder / "predictions.jsonl"
    try:
        lines = list(read_json_lines(path))
        named = {part: iter(getattr(task, part).ids) for part in ("validation", "test")}
        renamed = [line | {"id": next(named[line["part"]])} for line in lines]
        if any(next(left, None) is not None for left in named.values()):
            raise ValueError("answers are missing")
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise InputError(
            f"--reuse {source}: its predictions.jsonl cannot be used ({type(error).__name__}: "
            f"{error}). Fit that run again, or leave it out."
        ) from error
    if renamed != lines:
        write_json_lines(path, renamed)


def _remove_texts(folder: Path) -> None:
    path = folder / "predictions.jsonl"
    lines = read_json_lines(path)
    write_json_lines(path, [{k: v for k, v in line.items() if k != "text"} for line in lines])
    if "few-shot" in read_record(folder)["rung"]:
        rewrite_rung(folder, folder, shots=None)
