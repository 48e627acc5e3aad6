"""DATA as users name it (a file, a folder of parts, a built-in or Hub name) → parts of rows."""

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llabel.data.cells import Row, check_cell, did_you_mean, listed, require_columns, row_name
from llabel.data.tables import (
    FORMATS,
    column_names,
    faults_told,
    scan_rows,
    separator,
    table_suffix,
)
from llabel.errors import InputError
from llabel.paths import at_home

HUB_BATCH = 256  # rows held in memory at once
PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
ROLES = ("train", "validation", "test")
_SHARD = re.compile(r"(?P<part>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the data, not yet read.

    Attributes:
        name: ``train``, ``validation``, ``test``, or as its publisher or the table is called.
        origin: where the rows come from, for messages.
        typed: whether values have types (JSON, Parquet, Hub) or all are strings (CSV, TSV).
        rows: columns (None: all), and which of them a JSON row may lack → a fresh iterator over
            the rows.
        columns: columns that are sought → names of those there are; no row is parsed for them
            where a header tells (see `column_names`).
        separator: columns → what separates the cells where the file's name says otherwise.
        files: that it is read from; none of the Hub.
    """

    name: str
    origin: str
    typed: bool
    rows: Callable[[Sequence[str] | None, Collection[str]], Iterator[Row]] = field(repr=False)
    columns: Callable[[Sequence[str]], list[str]] = field(repr=False)
    separator: Callable[[Sequence[str]], str | None] = field(repr=False, default=lambda _: None)
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """The data by part, in the order train, validation, test, others.

    Attributes:
        name: what the user called it, short: ``reviews`` for ``texts/reviews.csv``.
        parts: by name; a single table without parts is the one entry ``train``.
    """

    name: str
    parts: Mapping[str, Part]


@dataclass(frozen=True, slots=True)
class _Shard:
    """One of the files that a part is spread over."""

    path: Path
    number: int
    count: int


def part_name(name: str) -> str:
    """``dev`` → ``validation`` and the like; a name that says nothing stays as it is."""
    return PART_NAMES.get(name.strip().lower(), name)


def open_source(data: str) -> Source:
    """Find what DATA names. No row is read yet (a Hub data set is downloaded).

    Args:
        data: a built-in name, a table file, a folder with a table for each part (or one table), or
            a Hub id ``org/name``, with ``:config`` behind it where the data set has several.

    Raises:
        InputError: there is no such data, or a folder's files are no parts.
    """
    from llabel.assets import is_hub_id, resolve_dataset

    if is_hub_id(data.partition(":")[0]):
        return _hub_source(data)
    named = at_home(data)
    with faults_told(named):
        if table_suffix(named) and not named.exists():
            scan_rows(named)  # says that there is no such file, and which one is close
    path = resolve_dataset(data)
    name = named.resolve().name
    if path.is_dir():
        return _folder_source(name, path)
    name = path.name[: path.name.lower().rfind(table_suffix(path) or "\0")] or path.name
    return Source(name, {"train": file_part(path, name)})


def file_part(path: str | Path, name: str) -> Part:
    """Make a part of one table file.

    Raises:
        InputError: there is no such file, or its name's ending says no table.
    """
    return _shards_part([at_home(path)], name)


def with_files(source: Source, validation: str | None, test: str | None) -> Source:
    """The data with files of their own for some parts.

    Raises:
        InputError: such a file cannot be read, or is another part's, too.
    """
    files = {"validation": validation, "test": test}
    given = {role: file_part(path, role) for role, path in files.items() if path is not None}
    if not given:
        return source
    train = {"train": replace(source.parts["train"], name="train")}
    parts = {**source.parts, **train, **given}
    for role in given:
        _refuse_same_file(role, str(files[role]), parts)
    return Source(source.name, parts)


def _refuse_same_file(role: str, file: str, parts: Mapping[str, Part]) -> None:
    own = {path.resolve() for path in parts[role].files}
    same = next(
        (
            name
            for name in ROLES
            if name != role
            and name in parts
            and own & {path.resolve() for path in parts[name].files}
        ),
        None,
    )
    if same is not None:
        raise InputError(
            f"--{role} {file}: this file is the {same} part, too, and what is measured on rows "
            f"that were learned from or chosen on says nothing of new ones. Name another file, or "
            f"leave --{role} out: a part of the training rows is held out then (--{role}-size)."
        )


def _shards_part(paths: list[Path], name: str) -> Part:
    for path in paths:
        scan_rows(path)  # a wrong name is told now, not when the rows are read
        _refuse_unwritable_name(path)
    typed = table_suffix(paths[0]) not in (".csv", ".tsv")
    return Part(
        name,
        str(paths[0]) if len(paths) == 1 else f"{paths[0].parent}/{name}-*",
        typed,
        lambda columns, optional: itertools.chain.from_iterable(
            scan_rows(path, columns, optional) for path in paths
        ),
        lambda sought: column_names(paths[0], sought),
        lambda columns: separator(paths[0], columns),
        tuple(paths),
    )


def _refuse_unwritable_name(path: Path) -> None:
    """Rows are called after their file, in files that are UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{str(path)!a}: the name of this file is not UTF-8, and rows are called after "
            "their file. Rename it."
        ) from error


def _folder_source(name: str, folder: Path) -> Source:
    with faults_told(folder):
        files = _table_files(folder) or _table_files(folder / "data")
    if not files:
        raise InputError(
            f"{folder}: there is no table in this folder. Put train, validation and test files in "
            f"it (such as train.csv) that end in {', '.join(FORMATS)}, or one of these and .gz."
        )
    shards: dict[str, list[_Shard]] = {}
    for path in files:
        stem = path.name[: path.name.lower().rindex(table_suffix(path) or "")]
        shard = _SHARD.fullmatch(stem)
        part = part_name(shard["part"] if shard else stem)
        number, count = (int(shard["number"]), int(shard["count"])) if shard else (0, 1)
        shards.setdefault(part, []).append(_Shard(path, number, count))
    if len(shards) == 1:
        (part, only) = next(iter(shards.items()))
        prefix = part if part == "train" else name
        return Source(name, {"train": _shards_part(_complete(part, only), prefix)})
    if "train" not in shards:
        raise InputError(
            f"{folder}: none of its tables ({listed(path.name for path in files)}) is the train "
            "part. Call the files train, validation (or valid, val, dev) and test, or name one "
            "file."
        )
    order = sorted(shards, key=lambda part: (*_rank(part), part))
    return Source(name, {part: _shards_part(_complete(part, shards[part]), part) for part in order})


def _table_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and table_suffix(path) and not path.name.startswith(".")
    )


def _complete(part: str, shards: list[_Shard]) -> list[Path]:
    paths = [shard.path for shard in shards]
    counts = {shard.count for shard in shards}
    if counts == {1} and len(paths) > 1:
        raise InputError(
            f"{paths[0].parent}: several files could be the {part} part: "
            f"{listed(path.name for path in paths)}. Keep one, or name one file."
        )
    numbers = {shard.number for shard in shards}
    if len(numbers) < len(paths) or len(counts) > 1 or len(set(map(table_suffix, paths))) > 1:
        raise InputError(
            f"{paths[0].parent}: the files of the {part} part are not of one set: "
            f"{listed(path.name for path in paths)}. Keep those of one format and count, each "
            "number once."
        )
    if counts != {len(paths)}:
        raise InputError(
            f"{paths[0].parent}: {len(paths)} of {max(counts)} files of the {part} part are there "
            f"({listed(path.name for path in paths)}). Download the missing ones."
        )
    return paths


def _rank(part: str) -> tuple[int]:
    return (ROLES.index(part) if part in ROLES else len(ROLES),)


def _hub_source(data: str) -> Source:
    """Load a data set from the Hugging Face Hub; code that comes with one is never run."""
    import datasets

    name, _, config = data.partition(":")
    try:
        loaded = datasets.load_dataset(name, config or None)
    except Exception as error:  # the library raises what its own libraries raise
        reason = str(error).strip() or type(error).__name__
        raise InputError(
            f"{data}: the Hugging Face Hub data set cannot be loaded: {reason}\nCheck the name "
            "(org/name, or org/name:config) and the network; HF_TOKEN opens private sets, and "
            "HF_HUB_OFFLINE=1 keeps to what was downloaded before."
        ) from error
    parts: dict[str, Any] = {}
    known: dict[str, str] = {}
    for own, rows in loaded.items():
        part = part_name(own)
        if part in parts:
            raise InputError(
                f"{data}: both {known[part]} and {own} could be its {part} part. Save the parts "
                "that you mean as files (train.parquet …) and name their folder."
            )
        parts[part], known[part] = rows, own
    if "train" not in parts:
        if len(parts) > 1:
            raise InputError(f"{data}: none of its parts ({listed(loaded)}) is called train.")
        parts = {"train": next(iter(parts.values()))}
    order = sorted(parts, key=_rank)
    return Source(name, {part: _hub_part(data, part, parts[part]) for part in order})


def _hub_part(data: str, part: str, dataset: Any) -> Part:
    origin = f"{data} ({part})"
    return Part(
        part,
        origin,
        True,
        lambda columns, _: _hub_rows(origin, dataset, columns),
        lambda _: list(dataset.column_names),
    )


def _hub_rows(origin: str, dataset: Any, columns: Sequence[str] | None) -> Iterator[Row]:
    called = require_columns(columns, dataset.column_names, origin)
    wanted = list(called.values())
    number = 0
    for batch in dataset.select_columns(wanted).iter(HUB_BATCH):
        cells = [_named(batch[name], dataset.features[name]) for name in wanted]
        for values in zip(*cells, strict=True):
            number += 1
            for name, value in zip(wanted, values, strict=True):
                check_cell(value, origin, row_name(number, None), name)
            yield Row(origin, number, None, dict(zip(called, values, strict=True)))
    if not number:
        raise InputError(f"{origin}: there is no row. At least one is needed.")


def _named(values: list[Any], feature: Any) -> list[Any]:
    """Class numbers as the names their publisher gave; -1, which means withheld, as None."""
    names = getattr(feature, "names", None)
    if names is None:
        return values
    return [None if value is None or value < 0 else names[value] for value in values]


def require_part(source: Source, name: str, option: str) -> str:
    """The part that an option names.

    Raises:
        InputError: with the parts there are.
    """
    part = part_name(name)
    if part not in source.parts:
        raise InputError(
            f"{option} {name}: {source.name} has no such part. Its parts are "
            f"{listed(source.parts)}.{did_you_mean(part, source.parts)}"
        )
    return part
