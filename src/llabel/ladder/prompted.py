"""The LLM rungs without training: zero-shot and few-shot prompts, raw or prior-corrected."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from llabel.assets import resolve_model, weights_digest
from llabel.data import take
from llabel.engine.checkpoint import CheckpointFolder
from llabel.engine.four_bit import parameter_count, weight_bytes
from llabel.errors import InputError
from llabel.events import Listener, Note, StageStarted, ignore
from llabel.ladder.base_form import check_base, form_in_use, four_bit_of
from llabel.ladder.calibration import prior_corrected
from llabel.ladder.contract import FitRecord
from llabel.ladder.few_shot import Shot, choose_rows, fit_shots, shot_tokens
from llabel.ladder.label_model import (
    LabelModel,
    device_of,
    engine_for,
    load_base,
    precision_of,
    to_predict,
)
from llabel.ladder.llm_folder import RungRecord, read_rung, refuse_other_weights, save_rung
from llabel.ladder.prompting import Prompting, build_prompting, lasting_name, prepare_prompting
from llabel.settings import LLMSettings
from llabel.task import Label, Probabilities, Split, Task, Text

PRIOR_ROWS = 256  # the mean of so many probabilities is known to about ± 0.03 at worst
_NAMES = {
    (False, False): "llm-zero-shot",
    (False, True): "llm-zero-shot-calibrated",
    (True, False): "llm-few-shot",
    (True, True): "llm-few-shot-calibrated",
}
# What decides the result; the rest of LLMSettings is about training.
_READ = (
    *("model", "template", "instruction", "system", "label_words", "max_seq_length", "seed"),
    *("double_quant", "compute_dtype", "rope_scaling", "long"),
)


class PromptedRung:
    """A causal language model as it is, asked with a prompt.

    Nothing is trained. `fit` chooses the examples of a few-shot prompt by the seed (see
    `choose_rows`), and reads the prior: the mean of the label probabilities over up to
    `PRIOR_ROWS` training prompts, whose labels are not looked at. Both rungs of a pair do so,
    hence `prior_corrected(raw, prior_)` of the raw rung's probabilities is exactly what the
    calibrated rung says.

    After `fit` or `load`: `classes_`, `fields_`, `prior_` (n_classes,), `shots_`; after `fit`
    `record_`, `validation_proba_` and `truncated_`.

    Args:
        settings: of the language model; those about training are not read, nor is `compile`.
        few_shot: show `settings.shots` examples from training.
        calibrated: divide by the prior.
    """

    def __init__(self, settings: LLMSettings, *, few_shot: bool, calibrated: bool) -> None:
        # Asked to compile, the packed engine would stand back for layers that nobody compiles.
        self.settings = replace(settings, compile=False)
        self.few_shot, self.calibrated = few_shot, calibrated
        self.name = _NAMES[few_shot, calibrated]

    @property
    def precision(self) -> str:
        """The precision in use, `auto` resolved for the device."""
        return precision_of(self.settings)

    @property
    def device(self) -> torch.device:
        """Where it runs; `auto` is the CPU for int8, which is made for it."""
        return device_of(self.settings)

    def prepare(
        self, fields: Sequence[str], classes: Sequence[Label], notify: Listener = ignore
    ) -> Self:
        """Everything but the weights (see `prepare_prompting`); the model is fetched if need be.

        Raises:
            InputError: the model, template, label words or lengths do not fit together.
        """
        self.fields_, self.classes_ = tuple(fields), tuple(classes)
        self._ask(
            prepare_prompting(
                self.settings, self.fields_, self.classes_, few_shot=self.few_shot, notify=notify
            )
        )
        check_base(self.settings, self.folder_, self.device, self.precision, notify)
        return self

    def _ask(self, prompting: Prompting) -> None:
        self.prompting_ = prompting
        self.folder_, self.tokenizer_ = prompting.folder, prompting.tokenizer
        self.base_folder_ = prompting.folder
        self.template_, self.trie_ = prompting.template, prompting.trie
        self.encoder_, self.max_length_ = prompting.encoder, prompting.encoder.max_length

    def fit(
        self, task: Task, *, checkpoints: CheckpointFolder | None = None, notify: Listener = ignore
    ) -> Self:
        """Choose examples, load the model, read the prior and the validation rows.

        Args:
            task: its test part is not looked at.
            checkpoints: not used; there is nothing that takes long to do again.
            notify: told of progress.

        Raises:
            InputError: no example fits into the context, or as `prepare`.
        """
        if (task.fields, task.classes) != (vars(self).get("fields_"), vars(self).get("classes_")):
            self.prepare(task.fields, task.classes, notify)
        shown: list[int] = []
        self.shots_: tuple[Shot, ...] = ()
        cut_shots = 0
        if self.few_shot:
            shown, cut_shots = self._choose_shots(task, notify)
        self._load_model()
        self.read_with_.tell(notify)
        unlabelled = _sample(task.train, shown, self.settings.seed)
        notify(StageStarted("reading the prior", len(unlabelled)))
        raw = self.reader_.predict_proba(unlabelled.texts, notify)
        self.prior_: Probabilities = raw.mean(axis=0)
        notify(StageStarted("scoring validation rows", len(task.validation)))
        self.validation_proba_ = self.predict_proba(task.validation.texts, notify)
        self.truncated_ = {
            "train": cut_shots + self._cut(unlabelled),
            "validation": self._cut(task.validation),
        }
        if cut := sum(self.truncated_.values()):
            notify(
                Note(
                    f"{cut} prompts were longer than there is room for: their longest fields "
                    f"were cut (--long {self.settings.long})."
                )
            )
        self.record_ = FitRecord(
            settings=self._settings(),
            parameters=parameter_count(self.reader_.model),
            weight_bytes=weight_bytes(self.reader_.model),
            truncated=self.truncated_,
        )
        return self

    def _choose_shots(self, task: Task, notify: Listener) -> tuple[list[int], int]:
        prompting, asked = self.prompting_, self.settings.shots
        rows = choose_rows(task.train, len(task.classes), asked, self.settings.seed)
        room = prompting.context - prompting.max_total
        shots, cut = fit_shots(task.train, rows, prompting, room)
        self.shots_ = tuple(shots)
        if len(shots) < asked:
            why = "rows of different texts and groups" if len(rows) < asked else "room in context"
            notify(Note(f"{len(shots)} of {asked} examples are shown: there is no more {why}."))
        return rows[: len(shots)], cut

    def _settings(self) -> dict[str, Any]:
        """What decides the result, JSON-ready."""
        settings = {name: getattr(self.settings, name) for name in _READ}
        settings |= {
            "precision": self.precision,
            "base": form_in_use(four_bit_of(self.settings, self.folder_, self.device_)),
            "engine": self.engine_,
            "prior": self.prior_.tolist(),
        }
        if self.few_shot:
            settings |= {"shots": len(self.shots_), "examples": [shot.id for shot in self.shots_]}
        return settings

    def _cut(self, split: Split) -> int:
        if self.settings.long == "chunks":  # all pieces are read
            return 0
        return sum(prompt.truncated for prompt in self.encoder_.encode(split.texts))

    def _load_model(self) -> None:
        for last in ("read_with_", "reader_"):  # two models might not fit into memory
            vars(self).pop(last, None)
        self.device_ = self.device
        model = load_base(self.prompting_, self.settings)
        self.read_with_ = engine_for(model, self.trie_, self.settings)
        self.reader_ = LabelModel(
            model,
            self.read_with_.head,
            self.prompting_,
            self.settings.token_budget,
            shots=shot_tokens(self.shots_, self.prompting_) if self.few_shot else (),
        )

    @property
    def engine_(self) -> str:
        """`packed` or `plain`."""
        return self.read_with_.name

    def predict_proba(self, texts: Sequence[Text], notify: Listener = ignore) -> Probabilities:
        """(n,) texts → (n, n_classes) probabilities in the order of `classes_`."""
        return self._corrected(self.reader_.predict_proba(texts, notify))

    def stream_proba(
        self, texts: Sequence[Text], notify: Listener = ignore
    ) -> Iterator[Probabilities]:
        """The same in windows of at most `PREDICT_WINDOW` rows, in order."""
        return map(self._corrected, self.reader_.stream_proba(texts, notify))

    def _corrected(self, proba: Probabilities) -> Probabilities:
        return prior_corrected(proba, self.prior_) if self.calibrated else proba

    def generate(
        self, texts: Sequence[Text], notify: Listener = ignore
    ) -> tuple[npt.NDArray[np.int64], list[str]]:
        """Let the model write its answer freely; the prior has no part in it."""
        return self.reader_.generate(texts, notify)

    def prompt_text(self, text: Text) -> str:
        """What the model reads of one row, examples included, as text."""
        (prompt,) = self.encoder_.encode([text])
        before = shot_tokens(self.shots_, self.prompting_) if self.few_shot else ()
        return str(
            self.tokenizer_.decode([*before, *prompt.input_ids], clean_up_tokenization_spaces=False)
        )

    def save(self, folder: Path, *, with_texts: bool = True) -> None:
        """Write `rung.json`; there is nothing else.

        Args:
            folder: made if need be.
            with_texts: a few-shot rung cannot predict without its examples' texts. Without them,
                what is written is a record of it that `load` refuses.
        """
        record = RungRecord(
            rung=self.name,
            settings=replace(self.settings, model=lasting_name(self.settings, self.folder_)),
            fields=self.fields_,
            classes=self.classes_,
            words=self.trie_.words,
            template=self.template_,
            prior=tuple(self.prior_.tolist()),
            shots=self.shots_ if with_texts or not self.few_shot else None,
            weights=weights_digest(self.folder_),
        )
        save_rung(folder, record)

    @classmethod
    def load(cls, folder: Path, **changes: Any) -> Self:
        """What `save` wrote, ready to predict; `changes` are settings to override.

        Raises:
            InputError: the folder holds no finished rung of this kind, or one whose examples were
                not kept, or the model's weights are others by now.
        """
        record = read_rung(folder, *_NAMES.values())
        if record.shots is None or record.prior is None:
            raise InputError(
                f"{folder} holds a few-shot rung without the texts of its examples (--no-texts), "
                "so it cannot predict. Fit it again without --no-texts."
            )
        few_shot, calibrated = next(key for key, name in _NAMES.items() if name == record.rung)
        settings = to_predict(record.settings, changes)
        rung = cls(settings, few_shot=few_shot, calibrated=calibrated)
        rung.fields_, rung.classes_ = record.fields, record.classes
        model = resolve_model(settings.model)
        if "model" not in changes:
            refuse_other_weights(record, model, folder)
        rung._ask(
            build_prompting(
                settings,
                model,
                record.fields,
                record.template,
                record.words,
                record.classes,
                few_shot=few_shot,
            )
        )
        rung.prior_, rung.shots_ = np.array(record.prior), record.shots
        rung._load_model()
        return rung


def _sample(split: Split, but: Sequence[int], seed: int) -> Split:
    """Up to `PRIOR_ROWS` rows whatever their labels, those shown as examples left out if it can."""
    rows = np.setdiff1d(np.arange(len(split)), np.array(but, dtype=np.int64))
    rows = rows if len(rows) else np.arange(len(split))
    chosen = np.random.default_rng(seed).permutation(rows)[:PRIOR_ROWS]
    return take(split, np.sort(chosen))
