"""What a rung leaves on disk: `rung.json`, with its arrays and word lists in files beside it."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from llabel.errors import InputError
from llabel.paths import sha256_of
from llabel.task import Label
from llabel.tensor_files import writing

SCHEMA = 1
RECORD = "rung.json"
ARRAYS = "arrays.safetensors"
WORDS = "words.json"

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRung:
    """All that turns files back into a rung.

    Attributes:
        rung: its name on the ladder.
        fields, classes: text columns and labels, in their orders.
        settings: what else it needs to predict, JSON-ready.
        arrays: by name, kept bit for bit.
        words: long lists of strings (vocabularies) by name.
    """

    rung: str
    fields: tuple[str, ...]
    classes: tuple[Label, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)


def write_rung(folder: Path, saved: SavedRung) -> None:
    """Write `rung.json` and, where there are any, `arrays.safetensors` and `words.json`.

    Each file is written whole or not at all. `rung.json` comes last and tells the others' SHA-256,
    so that files of two different rungs are never taken together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, str] = {}
    if saved.arrays:
        files[ARRAYS] = _write(folder / ARRAYS, lambda path: _write_arrays(path, saved.arrays))
    if saved.words:
        words = {name: list(strings) for name, strings in saved.words.items()}
        files[WORDS] = _write(folder / WORDS, lambda path: _write_json(path, words))
    record = {
        "schema": SCHEMA,
        "rung": saved.rung,
        "settings": dict(saved.settings),
        "fields": saved.fields,
        "classes": saved.classes,
        "files": files,
    }
    write_record(folder, record)
    for name in {ARRAYS, WORDS} - set(files):
        (folder / name).unlink(missing_ok=True)  # of a rung that was here before


def write_record(folder: Path, values: Mapping[str, Any]) -> None:
    """Write `rung.json` into `folder`, whole or not at all."""
    _write(folder / RECORD, lambda path: _write_json(path, values, indent=2))


def read_json(path: Path) -> Any:
    """What `write_record` wrote; users' texts may hold half a surrogate pair."""
    return json.loads(_text(path))


def read_record(folder: Path, *allowed: str) -> dict[str, Any]:
    """`rung.json` of `folder`, with the rung's name in any case.

    Args:
        folder: where to look.
        allowed: names of rungs, one of which it must have; any, if none are given.

    Raises:
        InputError: there is none, it is of another rung or version, or it cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        raise InputError(
            f"{folder} holds no trained rung ({RECORD} is missing). Give the --out folder of a "
            "finished `llabel fit` (the same fit command finishes an interrupted run), or a "
            "folder that LLMClassifier.save wrote."
        )
    with damage_told(path):
        values: dict[str, Any] = read_json(path)
        found = values.setdefault("rung", "llm-lora")  # the only one when it was not yet written
        if allowed and found not in allowed:
            raise InputError(
                f"{folder} holds the rung {found}, not {' or '.join(allowed)}: name its folder."
            )
        if values["schema"] != SCHEMA:
            raise ValueError(f"schema {values['schema']!r} where {SCHEMA} is known")
        return values


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """While `path`, or what it says, is read: whatever it lacks ends in a sentence.

    Raises:
        InputError: it cannot be read.
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}): it is damaged, or of "
            "another version of llabel. Train the run again with --overwrite."
        ) from error


def replace_folder(target: Path, save: Callable[[Path], None]) -> None:
    """Let `save` make a folder, and put it in the place of `target`, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new, old = (target.with_name(f".{age}-{target.name}") for age in ("new", "old"))
    for left_over in (new, old):  # of a process that was killed here
        shutil.rmtree(left_over, ignore_errors=True)
    save(new)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def read_rung(folder: Path, rung: str) -> SavedRung:
    """What `write_rung` wrote.

    Args:
        folder: where to look.
        rung: the name it must have.

    Raises:
        InputError: there is nothing of the kind, it is of another rung, or it cannot be read.
    """
    record = read_record(folder, rung)
    with damage_told(folder / RECORD):
        files = record["files"]
        for name, digest in files.items():
            if sha256_of(folder / name) != digest:
                raise ValueError(f"{name} does not belong to it")
        return SavedRung(
            rung=rung,
            fields=tuple(record["fields"]),
            classes=tuple(record["classes"]),
            settings=record["settings"],
            arrays=_read_arrays(folder / ARRAYS) if ARRAYS in files else {},
            words=read_json(folder / WORDS) if WORDS in files else {},
        )


def _write(path: Path, write: Callable[[Path], None]) -> str:
    """Write under another name, rename, and return the SHA-256 (hex)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        digest = sha256_of(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return digest


def _write_json(path: Path, values: Any, indent: int | None = None) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=False) + "\n"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))  # users' texts may hold half a pair


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogatepass")


def _write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    from safetensors.numpy import save_file

    # safetensors writes the memory as it lies there.
    with writing(path):
        save_file({name: np.array(a, order="C", copy=True) for name, a in arrays.items()}, path)


def _read_arrays(path: Path) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(str(error)) from error
