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
from llabel.record import RunRecord

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
    asked = [Path(source) for source in sources]
    for planned in runs:
        if is_reused(planned.folder) and _source(planned.folder) not in map(Path.as_posix, asked):
            _make_way(
                planned.folder,
                f"{planned.folder} was taken from {_source(planned.folder)} by --reuse, which "
                "this command does not ask for. Ask for it again, or throw the copy away with "
                "--overwrite.",
                overwrite=overwrite,
            )
    places: dict[Path, Path] = {}
    for source in asked:
        folder = _place(source, read_record(source), runs, loaded)
        if other := places.get(folder):
            raise InputError(
                f"--reuse {other} and {source} would both be the same row, {folder.name}. Give "
                "--seeds as large as there are runs of a rung, or leave one of them out."
            )
        places[folder] = source
    for folder, source in places.items():
        if is_reused(folder) and _source(folder) == source.as_posix():
            continue
        if folder.exists():
            _make_way(
                folder,
                f"--reuse {source}: {folder} is there already. Throw it away with --overwrite, or "
                "leave --reuse out.",
                overwrite=overwrite,
            )
        _copy(source, folder, no_texts=no_texts)


def _source(folder: Path) -> str:
    return str(json.loads((folder / _MARK).read_text(encoding="utf-8"))["from"])


def _make_way(folder: Path, otherwise: str, *, overwrite: bool) -> None:
    if not overwrite:
        raise InputError(otherwise)
    shutil.rmtree(folder)


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


def _copy(source: Path, folder: Path, *, no_texts: bool) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns("checkpoints", ".*"))
    if no_texts:
        _remove_texts(partial)
    write_json(partial / _MARK, {"from": source.as_posix()})
    partial.rename(folder)


def _remove_texts(folder: Path) -> None:
    path = folder / "predictions.jsonl"
    lines = read_json_lines(path)
    write_json_lines(path, [{k: v for k, v in line.items() if k != "text"} for line in lines])
    if "few-shot" in read_record(folder)["rung"]:
        rewrite_rung(folder, folder, shots=None)
