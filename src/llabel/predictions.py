"""Labels for a stream of rows: constant memory, resumable, CSV, JSONL or Parquet."""

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from llabel.confidence import ABSTAIN, Confidence, read_confidence
from llabel.data import read_texts
from llabel.errors import InputError
from llabel.events import Listener, Note, RowsDone, StageStarted, ignore
from llabel.folder import alone_with, refuse_data, refuse_own_file
from llabel.labels import by_target
from llabel.ladder import registry
from llabel.ladder.contract import Rung
from llabel.ladder.targets import each_target, target_folder
from llabel.metrics import NO_LABEL, UNKNOWN
from llabel.paths import at_home
from llabel.task import ClassIndices, Label, Probabilities, Split, TargetLabel, Task, Text

if TYPE_CHECKING:
    from llabel.ladder.llm import LLMRung


WINDOW = 512  # rows that are answered, and kept, together: a stream stays a stream


def answer_label(index: int, classes: tuple[Label, ...]) -> Label:
    """The label of a class index; `unknown` for an answer that is no label."""
    return NO_LABEL if index == UNKNOWN else classes[index]


def prediction_lines(
    task: Task,
    part: Literal["train", "validation", "test"],
    proba: Probabilities,
    answers: ClassIndices,
    written: Sequence[str] | None = None,
    withheld: npt.NDArray[np.bool_] | None = None,
) -> Iterator[dict[str, Any]]:
    """One JSON-ready line a row of a part.

    Args:
        task: whose row texts and labels are told.
        part: which rows.
        proba: (n, n_classes) probabilities.
        answers: (n,) class indices, -1 for `unknown`.
        written: (n,) what the model wrote, where it answered freely.
        withheld: (n,) rows whose `prediction` is `abstain`; their label stands in `most_probable`.
    """
    split: Split = getattr(task, part)
    for row, name in enumerate(split.ids):
        line = {
            "part": part,
            "id": name,
            "label": task.classes[split.y[row]],
            "prediction": answer_label(int(answers[row]), task.classes),
            "probabilities": _by_label(task.classes, proba[row]),
        }
        if written is not None:
            line["answer"] = written[row]
        if withheld is not None and withheld[row]:
            line |= {"prediction": ABSTAIN, "most_probable": line["prediction"]}
        yield line | {"text": dict(zip(task.fields, split.texts[row], strict=True))}


def predict(
    folder: Path,
    data: str,
    out: Path,
    *,
    part: str | None = None,
    decode: Literal["labels", "free"] = "labels",
    abstain_below: float | None = None,
    device: str | None = None,
    notify: Listener = ignore,
) -> int:
    """Label every row of `data` with the run at `folder`; write `out` when all are done.

    Rows done are kept in `OUT.partial` as they come; the same call after an interruption goes on
    there.

    Args:
        folder: a finished run, or what `LLMClassifier.save` wrote.
        data: file, folder, built-in name or Hub id; needs the run's text columns only.
        out: .csv, .jsonl or .parquet: id, label, and one `probability_LABEL` column a label; of
            several targets for each the columns `TARGET` and `TARGET_probability_LABEL`.
        part: which part of the data; all by default.
        decode: the most probable label, or whatever the model writes (`unknown` if no label).
        abstain_below: the label is `abstain` where none is at least so probable; by default as
            the run was told. Free answers are never withheld.
        device: where to run; the best there is by default.

    Returns:
        Rows written.

    Raises:
        InputError: no finished run, unusable data, or an `out` that cannot be written.
    """
    _check_out(out, data)
    refuse_own_file(folder, out, f"-o {out}")
    fields = registry.saved_fields(folder)
    confidences = confidences_of(folder, decode, abstain_below, notify)
    # A pass over all rows first: what is wrong with them is said before a model loads.
    notes: list[str] = []
    total = sum(1 for _ in read_texts(data, fields, part=part, notes=notes))
    for text in notes:
        notify(Note(text))
    busy = f"-o {out} is being written by another llabel process. Wait, or name another file."
    with alone_with(out, busy):
        partial = _Partial(out, _job(folder, data, part, decode, confidences))
        done = partial.done(notify)
        rung = registry.load(folder, device=device or "auto")
        if decode == "free":
            refuse_silent(rung)
        notify(StageStarted("predicting", total, done))
        if done:
            notify(Note(f"Going on after {done:,} rows that an earlier call did."))
        remaining = islice(read_texts(data, fields, part=part), done, None)
        with partial:
            for window in _batched(remaining, WINDOW):
                partial.append(_answered_all(rung, window, decode, confidences))
                notify(RowsDone(len(window)))
        others = decode == "free" or any(c.abstain_below is not None for c in confidences.values())
        partial.finish(rung.classes_, others=others)
    return total


def confidence_of(
    folder: Path,
    decode: str,
    abstain_below: float | None,
    notify: Listener,
    rung: Path | None = None,
) -> Confidence:
    """What the run at `folder` decided on validation, with another threshold if there is one.

    Where the folder holds this alone, the rung lies in `rung`.

    Raises:
        InputError: the threshold is out of range, or a class is called `abstain`.
    """
    confidence = read_confidence(folder)
    if abstain_below is not None:
        if not 0 < abstain_below < 1:
            raise InputError(f"--abstain-below {abstain_below:g}: above 0 and below 1 is needed.")
        if decode == "free":
            raise InputError(
                "--abstain-below and --decode free exclude each other: what the model writes has "
                "no probability to hold against the threshold. Leave one of them out."
            )
        if ABSTAIN in registry.saved_classes(rung or folder):
            raise InputError(
                f"--abstain-below: one of the labels is {ABSTAIN!r}, which is what rows without "
                "an answer are given."
            )
        return Confidence(confidence.temperature, abstain_below)
    if confidence.abstain_below is not None and decode == "free":
        notify(Note("Free answers have no probability: none is withheld."))
        return Confidence(confidence.temperature)
    if (missed := confidence.missed_target) is not None:
        notify(Note(f"On validation no threshold showed the precision {missed:g} of the run."))
    return confidence


def confidences_of(
    folder: Path, decode: str, abstain_below: float | None, notify: Listener
) -> dict[str, Confidence]:
    """`confidence_of` for each target of the run at `folder`; of one without a name, by ""."""
    targets = by_target(registry.saved_classes(folder))
    if not targets:
        return {"": confidence_of(folder, decode, abstain_below, notify)}
    if abstain_below is not None and (named := [n for n, own in targets.items() if ABSTAIN in own]):
        raise InputError(
            f"--abstain-below: one of the labels of {named[0]} is {ABSTAIN!r}, which is what rows "
            "without an answer are given."
        )
    return {
        name: confidence_of(target_folder(folder, name), decode, abstain_below, notify, folder)
        for name in targets
    }


def _answered_all(
    rung: Rung,
    window: Sequence[tuple[str, Text]],
    decode: str,
    confidences: Mapping[str, Confidence],
) -> Iterator[dict[str, Any]]:
    """`_answered`; of several targets one `answers` a row, by target."""
    if "" in confidences:
        yield from _answered(rung, window, decode, confidences[""])
        return
    targets = each_target(cast("LLMRung", rung))
    each = [
        _answered(cast(Rung, target), window, decode, confidences[name])
        for name, target in targets.items()
    ]
    for lines in zip(*each, strict=True):
        answers = {
            name: {key: value for key, value in line.items() if key != "id"}
            for name, line in zip(targets, lines, strict=True)
        }
        yield {"id": lines[0]["id"], "answers": answers}


def _answered(
    rung: Rung, window: Sequence[tuple[str, Text]], decode: str, confidence: Confidence
) -> Iterator[dict[str, Any]]:
    texts = [text for _, text in window]
    proba = confidence.scaled(rung.predict_proba(texts))
    if decode == "labels":
        answers = proba.argmax(axis=1)
    else:
        answers, _ = cast("LLMRung", rung).generate(texts)
    withheld = confidence.withheld(proba).tolist()
    for (name, _), answer, unsure, p in zip(window, answers.tolist(), withheld, proba, strict=True):
        yield {
            "id": name,
            "label": ABSTAIN if unsure else answer_label(answer, rung.classes_),
            "probabilities": _by_label(rung.classes_, p),
        }


def _check_out(out: Path, data: str) -> None:
    """The answers must not take the place of the questions."""
    if out.suffix.lower() not in _WRITERS:
        raise InputError(f"-o {out}: write to a file ending in {', '.join(_WRITERS)}.")
    if not out.parent.is_dir():
        raise InputError(f"-o {out}: the folder {out.parent} does not exist.")
    if out.is_dir():
        raise InputError(f"-o {out} is a folder. Name a file.")
    refuse_data(out, f"-o {out}", data)


def _by_label(classes: tuple[Label, ...], proba: Iterable[float]) -> dict[str, float]:
    return {str(label): float(p) for label, p in zip(classes, proba, strict=True)}


def _batched(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` rows (itertools.batched comes with Python 3.12)."""
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch


def refuse_silent(rung: Rung) -> None:
    """Refuse to let a rung write where that would say nothing.

    Raises:
        InputError: it is no LLM, it reads long texts in several prompts, or a class has the name
            that stands for answers that are no label.
    """
    if not hasattr(rung, "generate"):
        raise InputError(
            f"--decode free: {rung.name} writes no text, it only has label probabilities. "
            "Leave it out."
        )
    if cast("LLMRung", rung).settings.long == "chunks":
        raise InputError(
            "--decode free and --long chunks exclude each other: an answer is written to one "
            "prompt, and chunks are several. Leave one of them out."
        )
    labels = [c.label if isinstance(c, TargetLabel) else c for c in rung.classes_]
    if NO_LABEL in labels:
        raise InputError(
            f"--decode free: one of the labels is {NO_LABEL!r}, which is what answers that are no "
            "label are called. Rename it with --map-labels."
        )


def _job(
    folder: Path, data: str, part: str | None, decode: str, confidences: Mapping[str, Confidence]
) -> str:
    """What must be the same for rows of an earlier call to count."""
    digest = hashlib.sha256((folder / "rung.json").read_bytes())
    for weights in sorted(folder.rglob("*.safetensors")):
        digest.update(weights.read_bytes())
    path = at_home(data)
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
    states = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    digest.update(json.dumps([data, part, decode, states]).encode())
    for name, confidence in confidences.items():
        if confidence != Confidence():
            digest.update(name.encode() + json.dumps(asdict(confidence)).encode())
    return digest.hexdigest()


class _Partial:
    """Rows done so far, as JSON lines under a header that names the job."""

    def __init__(self, out: Path, job: str) -> None:
        self.out, self.job = out, job
        self.path = out.with_name(out.name + ".partial")

    def done(self, notify: Listener) -> int:
        """Count the rows of this very job; drop a last line that was cut off, or another job's."""
        if not self.path.is_file():
            return 0
        good, rows = 0, 0
        with self.path.open("rb") as file:
            header = file.readline()
            if header != self._header():
                kept = self.path.with_name(f"{self.path.name}.old")
                self.path.replace(kept)
                notify(Note(
                    f"{self.path} was of other data, another model or other options (--split, "
                    f"--decode, --abstain-below): starting anew. It is kept as {kept}."
                ))  # fmt: skip
                return 0
            good = len(header)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                good, rows = good + len(line), rows + 1
        os.truncate(self.path, good)
        return rows

    def __enter__(self) -> "_Partial":
        new = not self.path.is_file()
        self._file = self.path.open("ab")
        if new:
            self._file.write(self._header())
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, lines: Iterable[dict[str, Any]]) -> None:
        """Add rows and see them on disk."""
        self._file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self, classes: tuple[Label, ...], *, others: bool) -> None:
        """Turn the lines into the file that was asked for; `others`: not only classes in it."""
        temporary = self.out.with_name(f".{os.getpid()}.{self.out.name}")
        try:
            self._write(temporary, classes, others=others)
            temporary.replace(self.out)
        finally:
            temporary.unlink(missing_ok=True)
        self.path.unlink()

    def _write(self, path: Path, classes: tuple[Label, ...], *, others: bool) -> None:
        targets = by_target(classes)
        columns = {name: _probabilities(own, name) for name, own in targets.items()} or {
            "label": _probabilities(classes)
        }
        others = others or any(map(_is_huge, classes))
        _WRITERS[self.out.suffix.lower()](path, self._rows(), columns, others)

    def _header(self) -> bytes:
        return json.dumps({"llabel predictions": self.job}).encode() + b"\n"

    def _rows(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            next(file)
            for text in file:
                line = json.loads(text)
                if "answers" not in line:
                    proba = {f"probability_{c}": p for c, p in line.pop("probabilities").items()}
                    yield line | proba
                    continue
                row = {"id": line["id"]}
                for name, own in line["answers"].items():
                    row[name] = own["label"]
                    row |= {f"{name}_probability_{c}": p for c, p in own["probabilities"].items()}
                yield row


def _is_huge(label: Label) -> bool:
    """Whether it is a number beyond 64 bits, which no column of a Parquet file holds."""
    number = label.label if isinstance(label, TargetLabel) else label
    return isinstance(number, int) and not -(2**63) <= number < 2**63


def _probabilities(classes: Iterable[Label], target: str | None = None) -> list[str]:
    """The columns of the probabilities."""
    return [f"{f'{target}_' if target else ''}probability_{label}" for label in classes]


def _write_csv(
    path: Path, rows: Iterator[dict[str, Any]], columns: Mapping[str, list[str]], others: bool
) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        names = [name for label, proba in columns.items() for name in (label, *proba)]
        writer = csv.DictWriter(file, ["id", *names])
        writer.writeheader()
        writer.writerows(rows)


def _write_jsonl(
    path: Path, rows: Iterator[dict[str, Any]], columns: Mapping[str, list[str]], others: bool
) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_parquet(
    path: Path, rows: Iterator[dict[str, Any]], columns: Mapping[str, list[str]], others: bool
) -> None:
    """A column has one type: beside `abstain`, `unknown` or huge numbers, labels are texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if others:
        rows = (row | {label: str(row[label]) for label in columns} for row in rows)
    first = list(islice(rows, 1))
    kinds = [("id", pa.string())]
    for label, probabilities in columns.items():
        kinds.append(
            (label, pa.array([row[label] for row in first]).type if first else pa.string())
        )
        kinds += [(name, pa.float64()) for name in probabilities]
    schema = pa.schema(kinds)
    with pq.ParquetWriter(path, schema) as writer:
        for batch in _batched(chain(first, rows), 10_000):
            writer.write_table(pa.Table.from_pylist(batch, schema))


_WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
