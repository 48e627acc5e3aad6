"""A finished run's adapter put into its base model, and what that changed."""

import gc
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

import numpy as np

from llabel import run
from llabel.assets import is_hub_id
from llabel.config import RunConfig
from llabel.data import read_texts
from llabel.data.sources import open_source
from llabel.errors import InputError
from llabel.events import Listener, StageStarted, ignore
from llabel.folder import alone_with, read_record, write_text
from llabel.ladder import registry
from llabel.ladder.llm_folder import ADAPTER_FILE
from llabel.rung_settings import ADAPTED
from llabel.task import Label, Probabilities, TargetLabel, Text

if TYPE_CHECKING:
    from llabel.ladder.llm import LLMRung

Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class MergeCheck:
    """What the merged model answers otherwise than the run.

    Attributes:
        rows: that both answered.
        flips: rows whose most probable label, of any target, is another.
        mean_move, max_move: over the rows, the largest change of a label's probability.
    """

    rows: int
    flips: int
    mean_move: float
    max_move: float

    def within(self, max_flips: float) -> bool:
        """Whether at most this share of the answers changed."""
        return self.flips <= max_flips * self.rows


def merge(
    folder: Path,
    out: Path,
    *,
    dtype: Dtype = "float32",
    data: str | None = None,
    rows: int = 500,
    max_flips: float = 0.01,
    device: str | None = None,
    notify: Listener = ignore,
) -> MergeCheck:
    """Write the model of a tuned run as a plain Hugging Face model, and ask both the same rows.

    `out` appears whole, and only if the answers are within `max_flips` (see `MergeCheck.within`).

    Args:
        folder: a finished run of llm-lora or llm-qlora, or what `LLMClassifier.save` wrote.
        out: a new or empty folder.
        dtype: of the weights that are written; float32 loses nothing.
        data: whose rows are asked; the run's validation rows by default, never its test rows.
        rows: how many of them at most; drawn with a fixed seed.
        max_flips: largest share of answers that may change, in [0, 1].
        device: where the rows are answered; the best there is by default.
        notify: told of progress.

    Raises:
        InputError: there is no adapter, the rows are not at hand, or `out` is taken.
    """
    _refuse_others(folder)
    _refuse_taken(out)
    texts = _sample(_texts(folder, data), rows)
    with alone_with(out, f"-o {out} is being written by another llabel process."):
        return _merge(folder, out.resolve(), dtype, texts, max_flips, device, notify)


def _merge(
    folder: Path,
    out: Path,
    dtype: Dtype,
    texts: Sequence[Text],
    max_flips: float,
    device: str | None,
    notify: Listener,
) -> MergeCheck:
    import torch

    from llabel.ladder.merged import read_merged, write_merged

    # As the merged model will be asked: what int8 rounds off is no matter of the merge.
    rung = cast("LLMRung", registry.load(folder, device=device or "auto", precision="auto"))
    notify(StageStarted("asking the run", len(texts)))
    before = rung.predict_proba(texts, notify)
    rung.unload()
    with _temporary(out) as place:
        write_merged(rung, folder, place, getattr(torch, dtype))
        gc.collect()
        notify(StageStarted("asking the merged model", len(texts)))
        after = read_merged(rung, place).predict_proba(texts, notify)
        found = _compared(before, after, rung.trie_.spans)
        write_text(place / "README.md", _card(rung, folder, dtype, found))
        if found.within(max_flips):
            if out.exists():
                out.rmdir()
            place.rename(out)
    return found


@contextmanager
def _temporary(out: Path) -> Iterator[Path]:
    """A folder beside `out` that is gone afterwards, unless it was renamed."""
    place = out.with_name(f".new-{out.name}")
    shutil.rmtree(place, ignore_errors=True)  # of a process that was killed here
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _compared(
    before: Probabilities, after: Probabilities, spans: Sequence[tuple[int, int]]
) -> MergeCheck:
    """Of (n, n_classes) probabilities; `spans` are each target's first class and that after it."""
    moves = np.abs(before - after).max(axis=1)
    other = [
        before[:, first:stop].argmax(axis=1) != after[:, first:stop].argmax(axis=1)
        for first, stop in spans
    ]
    flips = int(np.any(other, axis=0).sum())
    return MergeCheck(len(before), flips, float(moves.mean()), float(moves.max()))


def _refuse_others(folder: Path) -> None:
    name = registry.saved_name(folder)
    if name not in ADAPTED:
        raise InputError(
            f"{folder} holds the rung {name}, which has no adapter to merge. Give a run of "
            f"{' or '.join(ADAPTED)}."
        )
    if not (folder / ADAPTER_FILE).is_file():
        raise InputError(
            f"{folder} has no {ADAPTER_FILE}: it was removed, or never written. Train the run "
            "again with --overwrite."
        )


def _refuse_taken(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"-o {out} is there already. Name a new or empty folder.")
    if out.resolve() == Path.cwd():  # it appears by a rename, which would take this one away
        raise InputError(f"-o {out} is the folder that you are in. Name a new one below it.")


def _texts(folder: Path, data: str | None) -> list[Text]:
    """The rows that both models are asked.

    Raises:
        InputError: they are not at hand.
    """
    if data is not None:
        return _texts_of(data, registry.saved_fields(folder))
    if not (folder / "run.json").is_file():
        raise InputError(
            f"{folder} does not say on which rows it was validated (run.json is missing). Give "
            "texts to compare answers on: --data FILE."
        )
    record = read_record(folder)
    try:
        task = run.load(RunConfig.from_flat(record["config"])).task
    except InputError as error:
        raise InputError(
            "The run's validation rows cannot be read again. Call this where `llabel fit` was "
            f"called, or give other texts: --data FILE. {error}"
        ) from error
    if task.fingerprint != record["data"]["fingerprint"]:
        raise InputError(
            f"The rows of {record['data']['source']} are not those of the run any more, so its "
            "validation rows are not known. Give texts to compare answers on: --data FILE."
        )
    return list(task.validation.texts)


def _texts_of(data: str, fields: Sequence[str]) -> list[Text]:
    """The validation part, else all parts that are no test part; a lone file is taken whole."""
    parts = list(open_source(data).parts)
    if "validation" in parts:
        parts = ["validation"]
    elif len(parts) > 1:
        parts = [part for part in parts if part != "test"]
    found = [text for part in parts for _, text in read_texts(data, fields, part=part)]
    if not found:
        raise InputError(f"--data {data} has no rows.")
    return found


def _sample(texts: list[Text], rows: int) -> list[Text]:
    chosen = np.random.default_rng(0).permutation(len(texts))[:rows]
    return [texts[row] for row in sorted(chosen.tolist())]


def _named(label: Label) -> str:
    return f"{label.target}, {label.label}" if isinstance(label, TargetLabel) else str(label)


def _card(rung: "LLMRung", folder: Path, dtype: Dtype, check: MergeCheck) -> str:
    """What the written folder is, how it must be asked, and what the merge changed."""
    asked = rung.template_.render(tuple(f"{{{name}}}" for name in rung.fields_), rung.fields_)
    words = "\n".join(
        f"- {_named(label)}: `{word}`"
        for label, word in zip(rung.classes_, rung.trie_.words, strict=True)
    )
    if tails := rung.template_.tails:
        asked += "\n\nand then, for each target,\n\n" + "\n".join(tails)
    name = rung.settings.model
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n"
        "tags: [text-classification, llabel]\n---\n\n"
        f"# {name if is_hub_id(name) else Path(name).name}, tuned by {rung.name}\n\n"
        f"The adapter of the run {folder.resolve().name} is merged into the weights ({dtype}). "
        "The model answers one of its labels to this prompt:\n\n"
        f"```text\n{asked}\n```\n\n{words}\n\n"
        f"Of {check.rows:,} rows that the run and this model were both asked, {check.flips:,} got "
        f"another answer; the probabilities of a row moved by {check.mean_move:.2g} in the mean, "
        f"at most by {check.max_move:.2g}.\n\n"
        "```bash\nllabel fit DATA --rung llm-zero-shot --model THIS_FOLDER --template "
        f"{rung.settings.template} …\n```\n"
    )
