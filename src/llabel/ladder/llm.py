"""The fine-tuned LLM rung: prompt → one answer, LoRA, label probabilities."""

import gc
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch

from llabel.assets import resolve_model, weights_digest
from llabel.engine.answer import AnswerHead
from llabel.engine.batching import Example
from llabel.engine.checkpoint import CheckpointFolder
from llabel.engine.four_bit import parameter_count, weight_bytes
from llabel.engine.loftq import start_from_rounding
from llabel.engine.model import add_lora, check_adapters, compile_layers, load_adapter, pick_device
from llabel.engine.optimisers import refuse_missing
from llabel.engine.packed_reader import PackedReader
from llabel.engine.training import Progress, Watch, seeded
from llabel.events import Listener, Note, ignore
from llabel.ladder.base_form import check_base, check_start, check_training
from llabel.ladder.base_models import BaseModels
from llabel.ladder.class_weight import weigh
from llabel.ladder.contract import FitRecord, Trial
from llabel.ladder.examples import example_of
from llabel.ladder.label_model import (
    LabelModel,
    device_of,
    engine_for,
    load_base,
    precision_of,
    settings_in_use,
    to_predict,
)
from llabel.ladder.llm_folder import (
    ADAPTER,
    RungRecord,
    read_rung,
    refuse_other_adapter,
    refuse_other_weights,
    save_rung,
)
from llabel.ladder.lora import keeps_lower_states, lora_settings
from llabel.ladder.prompting import Prompting, build_prompting, lasting_name
from llabel.ladder.tuning import Tuning
from llabel.rung_settings import ADAPTED
from llabel.settings import LLMSettings, steps_per_epoch
from llabel.task import Label, Probabilities, Split, Task, Text
from llabel.tensor_files import writing

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


_READERS = ("read_with_", "reader_")  # made anew from the model by `LLMRung._ready`


class LLMRung:
    """A causal language model that answers with a label, fine-tuned with LoRA.

    After `fit` or `load`: `classes_`, `fields_`, and after `fit` `record_`, `validation_proba_`,
    `progress_` (of the training that is kept: the refit, if there was one), `choice_` (the training
    that chose the epochs of a refit) and `truncated_` (rows of train and validation that were cut
    to fit).

    Args:
        settings: of the model, its prompt and its training.
        models: where the frozen model comes from.
        watch: sees every training while it goes on (see `llabel.engine.training.Watch`).
    """

    name = "llm-lora"

    def __init__(
        self, settings: LLMSettings, models: BaseModels | None = None, watch: Watch | None = None
    ) -> None:
        self.settings, self.models, self.watch = settings, models or BaseModels(), watch

    def prepare(
        self, fields: Sequence[str], classes: Sequence[Label], notify: Listener = ignore
    ) -> Self:
        """Everything but the weights: tokenizer, template, label trie. Cheap, and checks much.

        The model is fetched if need be.

        Raises:
            InputError: the model, template, label words or lengths do not fit together.
        """
        self.fields_, self.classes_ = tuple(fields), tuple(classes)
        self._ask(self.models.prompting(self.settings, self.fields_, self.classes_, notify))
        refuse_missing(self.settings.optim)
        check_adapters(self.folder_, lora_settings(self.settings))
        check_start(self.settings, self.folder_)
        check_training(self.settings, self.folder_, self.device)
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
        """Fine-tune on `task.train`, choose learning rate and epoch on `task.validation`.

        The learning rates are `settings.learning_rate` and its neighbours, `settings.trials` in
        all, each from the same initial adapter. The base model is loaded once.

        Args:
            task: its test part is not looked at.
            checkpoints: where to keep snapshots of the first trial; those of the others lie in
                `trial-N` beside it, those of the refit in `refit`. The same call with the same
                folder goes on there.
            notify: told of progress.

        Raises:
            DivergedError: every trial diverged.
            InputError: as `prepare`.
        """
        if (task.fields, task.classes) != (vars(self).get("fields_"), vars(self).get("classes_")):
            self.prepare(task.fields, task.classes, notify)
        train, validation = self._read_examples(task, notify)
        self.choice_: Progress | None = None
        self.progress_ = Progress()
        self._load_model()
        self.read_with_.tell(notify)
        if self.settings.init_lora == "loftq":
            start_from_rounding(self.model_, self.folder_, self.settings.double_quant)
        self._keep_lower(keeps_lower_states(self.settings, len(train)), notify)
        tuning = Tuning(
            self.model_, self.head_, self.predict_proba, self.settings, self.device_,
            checkpoints, self.watch, notify,
        )  # fmt: skip
        weighted = weigh(train, task.train.y, self.settings.class_weight)
        trials, chosen, self.validation_proba_ = tuning.search(weighted, task.validation)
        self.progress_ = tuning.progress
        rate = trials[chosen].settings["learning_rate"]
        refit: Trial | None = None
        if self.settings.refit:
            self.choice_ = self.progress_
            both = np.concatenate([task.train.y, task.validation.y])
            rows = weigh(train + validation, both, self.settings.class_weight)
            # Of more rows, as many passes.
            passes = self.choice_.best_step / steps_per_epoch(len(train), self.settings.batch_size)
            refit = tuning.refit(rows, rate, passes)
            self.progress_ = tuning.progress
        self._keep_lower(False)
        self.record_ = FitRecord(
            settings=settings_in_use(self.settings, self.folder_)
            | {"learning_rate": rate, "engine": self.engine_},
            trials=trials,
            chosen=chosen,
            refit=refit,
            trainable_parameters=self.trainable_parameters_,
            parameters=parameter_count(self.model_),
            weight_bytes=weight_bytes(self.model_),
            computing_parameters=parameter_count(self.model_)
            - self.model_.get_input_embeddings().weight.numel(),
            truncated=self.truncated_,
        )
        return self

    def untrained(self, task: Task, notify: Listener = ignore) -> Self:
        """Instead of `fit`: the model as it is, with adapters that change nothing."""
        if (task.fields, task.classes) != (vars(self).get("fields_"), vars(self).get("classes_")):
            self.prepare(task.fields, task.classes, notify)
        self._load_model()
        self.model_.eval()
        return self

    def _keep_lower(self, wanted: bool, notify: Listener = ignore) -> None:
        if isinstance(self.head_.reader, PackedReader):
            self.head_.reader.keep_lower(wanted, notify)

    def _read_examples(self, task: Task, notify: Listener) -> tuple[list[Example], list[Example]]:
        """Those of train and validation; it is said how many had to be cut."""
        train, cut_train = self.examples(task.train)
        validation, cut_validation = self.examples(task.validation)
        chunks = self.settings.long == "chunks"
        # Where validation is only predicted, it is so in all its pieces.
        whole = chunks and not self.settings.refit
        self.truncated_ = {"train": cut_train, "validation": 0 if whole else cut_validation}
        if cut := sum(self.truncated_.values()):
            seen = len(train) + (0 if whole else len(validation))
            lost = "training reads their first piece" if chunks else "their longest fields were cut"
            notify(
                Note(
                    f"{cut} of {seen} rows are longer than {self.max_length_} tokens: {lost} "
                    f"(--long {self.settings.long})."
                )
            )
        return train, validation

    def _load_model(self) -> None:
        """Fresh weights and fresh adapters, the same for the same seed."""
        if "model_" in vars(self):
            self.unload()
        self.device_ = self.device
        base = self.models.frozen(self.prompting_, self.settings)
        with seeded(self.settings.seed, self.device_):
            self._ready(add_lora(base, lora_settings(self.settings)))
        if self.settings.gradient_checkpointing:
            self.head_.reader.checkpoint_layers()

    def unload(self) -> None:
        """Give the model's memory back: two of them might not fit."""
        for last in ("model_", *_READERS):
            vars(self).pop(last, None)
        gc.collect()

    def _ready(self, model: "PeftModel") -> None:
        base = cast("PreTrainedModel", model.get_base_model())
        self.model_ = model
        self.read_with_ = engine_for(base, self.trie_, self.settings)
        compiled = self.settings.compile
        if compiled:
            compile_layers(base)
        self.reader_ = LabelModel(
            model, self.head_, self.prompting_, self.settings.token_budget, reuse=not compiled
        )

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: without what reads the model, which keeps addresses in memory."""
        state = {name: value for name, value in vars(self).items() if name not in _READERS}
        if "model_" in state:
            # The packed engine's layers share their weights' memory, which pickle would write out
            # once for each of them.
            written = io.BytesIO()
            torch.save(state["model_"], written)
            state["model_"] = written.getvalue()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The model is read by the engine that this machine has."""
        vars(self).update(state)
        if "model_" in state:  # what is inside a pickle need not be distrusted more than that
            device, here = self.device_, torch.cuda.device_count()
            if device.type == "cuda" and (device.index or 0) >= here:
                self.device_ = pick_device()
            written = io.BytesIO(state["model_"])
            self._ready(torch.load(written, map_location=self.device_, weights_only=False))

    @property
    def head_(self) -> AnswerHead:
        """Log-probabilities of answers, and their loss."""
        return self.read_with_.head

    @property
    def engine_(self) -> str:
        """`packed` or `plain`."""
        return self.read_with_.name

    @property
    def precision(self) -> str:
        """The precision in use, `auto` resolved for the device."""
        return precision_of(self.settings)

    @property
    def device(self) -> torch.device:
        """Where it runs; `auto` is the CPU for int8, which is made for it."""
        return device_of(self.settings)

    def examples(self, split: Split) -> tuple[list[Example], int]:
        """Rows with what the loss reads of them, and how many had to be cut to fit."""
        prompts = self.encoder_.encode(split.texts)
        examples = [
            example_of(prompt.input_ids, label, self.trie_, self.settings.loss)
            for prompt, label in zip(prompts, split.y.tolist(), strict=True)
        ]
        return examples, sum(prompt.truncated for prompt in prompts)

    def predict_proba(self, texts: Sequence[Text], notify: Listener = ignore) -> Probabilities:
        """(n,) texts → (n, n_classes) probabilities in the order of `classes_`.

        Those of each target sum to 1, whatever the others say.
        """
        return self.reader_.predict_proba(texts, notify)

    def stream_proba(
        self, texts: Sequence[Text], notify: Listener = ignore
    ) -> Iterator[Probabilities]:
        """The same in windows of at most `PREDICT_WINDOW` rows, in order."""
        return self.reader_.stream_proba(texts, notify)

    def generate(
        self, texts: Sequence[Text], notify: Listener = ignore, *, target: int | None = None
    ) -> tuple[npt.NDArray[np.int64], list[str]]:
        """Let the model write its answer freely (see `LabelModel.generate`)."""
        return self.reader_.generate(texts, notify, target=target)

    @property
    def trainable_parameters_(self) -> int:
        """Weights that training may change."""
        return sum(p.numel() for p in self.model_.parameters() if p.requires_grad)

    def save(self, folder: Path) -> None:
        """Write `adapter/` (PEFT's format) and `rung.json`, each whole or not at all."""
        name = lasting_name(self.settings, self.folder_)
        for config in self.model_.peft_config.values():
            config.base_model_name_or_path = name

        def save_adapter(target: Path) -> None:
            # Told that no embeddings are adapted, PEFT does not ask the Hub about the base model.
            with writing(target):
                self.model_.save_pretrained(str(target), save_embedding_layers=False)

        record = RungRecord(
            rung=self.name,
            settings=replace(self.settings, model=name),
            fields=self.fields_,
            classes=self.classes_,
            words=self.trie_.words,
            template=self.template_,
            weights=weights_digest(self.folder_),
        )
        save_rung(folder, record, save_adapter)

    @classmethod
    def load(cls, folder: Path, **changes: Any) -> Self:
        """What `save` wrote, ready to predict; `changes` are settings to override.

        `compile` is left out unless asked for; where int8 cannot run, on a GPU, the precision is
        `auto`.

        Raises:
            InputError: the folder holds no finished rung of this kind, its adapter is damaged or
                of another training, or the base model's weights are others by now.
        """
        record = read_rung(folder, *ADAPTED)
        refuse_other_adapter(record, folder)
        rung = cls(to_predict(record.settings, changes))
        rung.fields_, rung.classes_ = record.fields, record.classes
        model = resolve_model(rung.settings.model)
        if "model" not in changes:
            refuse_other_weights(record, model, folder)
        rung._ask(
            build_prompting(
                rung.settings, model, record.fields, record.template, record.words, record.classes
            )
        )
        rung.device_ = rung.device
        base = load_base(rung.prompting_, rung.settings)
        rung._ready(load_adapter(base, folder / ADAPTER))
        return rung
