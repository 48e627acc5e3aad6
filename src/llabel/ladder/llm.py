"""The LLM rung: prompt → one answer, LoRA fine-tuning, label probabilities."""

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch

from llabel.assets import BUILT_IN, is_hub_id, resolve_model
from llabel.engine.answer import AnswerHead
from llabel.engine.batching import FULL_VOCABULARY, Example, collate, micro_batches
from llabel.engine.checkpoint import CheckpointFolder
from llabel.engine.generation import write_answers
from llabel.engine.model import (
    LoraSettings,
    add_lora,
    compile_layers,
    load_adapter,
    load_model,
    load_tokenizer,
    pick_device,
)
from llabel.engine.training import Progress, Trainer, TrainingSettings
from llabel.errors import InputError
from llabel.events import Fetching, Listener, Note, RowsDone, StageStarted, ignore
from llabel.labels import AnswerTokeniser, LabelTrie, compile_labels, label_words
from llabel.ladder.llm_folder import ADAPTER, RungRecord, read_rung, save_rung
from llabel.metrics import UNKNOWN, log_loss
from llabel.prompt import PromptEncoder, Template, answer_tail, load_template
from llabel.settings import LLMSettings
from llabel.task import Probabilities, Split, Task, Text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Rows are sorted by length within such windows when predicting, so that a stream stays a stream.
PREDICT_WINDOW = 512


class LLMRung:
    """A causal language model that answers with a label.

    After `fit` or `load`: `classes_`, `fields_`, `settings_`, and after `fit` `progress_` (what
    the training did) and `truncated_` (rows of train and validation that were cut to fit).
    """

    name = "llm-lora"

    def __init__(self, settings: LLMSettings) -> None:
        self.settings = settings

    def prepare(
        self, fields: Sequence[str], classes: Sequence[Any], notify: Listener = ignore
    ) -> Self:
        """Everything but the weights: tokenizer, template, label trie. Cheap, and checks much.

        The model is fetched if need be.

        Raises:
            InputError: the model, template, label words or lengths do not fit together.
        """
        self.fields_, self.classes_ = tuple(fields), tuple(classes)
        self.folder_ = resolve_model(
            self.settings.model, progress=lambda what, share: notify(Fetching(what, share))
        )
        self.tokenizer_ = load_tokenizer(self.folder_)
        words = label_words(self.classes_, self.settings.label_words)
        self._set_template(
            load_template(self.settings.template, self.fields_, words, self.settings.instruction),
            words,
        )
        return self

    def _set_template(self, template: Template, words: Sequence[str]) -> None:
        tokenizer = self.tokenizer_
        self.template_ = template

        def encode(text: str) -> list[int]:
            plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
            return list(plain["input_ids"])

        answers = AnswerTokeniser(encode, answer_tail(template, tokenizer), template.joint)
        self.trie_: LabelTrie = compile_labels(words, answers, tokenizer.eos_token_id)
        self.max_length_ = self._max_length() - self.trie_.longest
        self.encoder_ = PromptEncoder(tokenizer, template, self.fields_, self.max_length_)

    def _max_length(self) -> int:
        """Tokens of prompt and answer together: what was asked for, within the model's context."""
        config = json.loads((self.folder_ / "config.json").read_text(encoding="utf-8"))
        context = int(
            config.get("max_position_embeddings")
            or config.get("n_positions")
            or config.get("text_config", {}).get("max_position_embeddings")
            or 2048
        )
        asked = self.settings.max_seq_length
        if asked is not None and asked > context:
            raise InputError(
                f"--max-seq-length {asked} is more than the context of {self.settings.model}: "
                f"{context} tokens."
            )
        return asked or context

    def fit(
        self, task: Task, *, checkpoints: CheckpointFolder | None = None, notify: Listener = ignore
    ) -> Self:
        """Fine-tune on `task.train`, choose the epoch on `task.validation`.

        Args:
            task: its test part is not looked at.
            checkpoints: where to keep snapshots; the same call with the same folder goes on there.
            notify: told of progress.
        """
        if (task.fields, task.classes) != (vars(self).get("fields_"), vars(self).get("classes_")):
            self.prepare(task.fields, task.classes, notify)
        train, cut_train = self.examples(task.train)
        validation, cut_validation = self.examples(task.validation)
        self.truncated_ = {"train": cut_train, "validation": cut_validation}
        if cut := cut_train + cut_validation:
            notify(
                Note(
                    f"{cut} of {len(train) + len(validation)} rows are longer than "
                    f"{self.max_length_} tokens: the end of their longest field was cut."
                )
            )
        self.choice_: Progress | None = None
        self._load_model()
        self.progress_ = self._train(train, self.settings, task.validation, checkpoints, notify)
        notify(StageStarted("scoring validation rows", len(task.validation)))
        self.validation_proba_ = self.predict_proba(task.validation.texts, notify)
        if self.settings.refit:
            self.choice_ = self.progress_
            chosen = replace(self.settings, epochs=self.choice_.best_epoch, patience=None)
            both = train + validation
            again = checkpoints and checkpoints.beside("refit")
            self._load_model()
            self.progress_ = self._train(both, chosen, None, again, notify)
        return self

    def _load_model(self) -> None:
        """Fresh weights and fresh adapters, the same for the same seed."""
        for last in ("model_", "head_"):  # let go of one model before the next takes memory
            vars(self).pop(last, None)
        gc.collect()
        self.device_ = self.device
        base = load_model(self.folder_, self.device_, self.precision)
        with _seeded(self.settings.seed, self.device_):
            self.model_ = add_lora(base, _lora_settings(self.settings))
        self._ready()

    def _ready(self) -> None:
        base = cast("PreTrainedModel", self.model_.get_base_model())
        self.head_ = AnswerHead(base, self.trie_)
        if self.settings.compile:
            compile_layers(base)

    @property
    def precision(self) -> str:
        """The precision in use, `auto` resolved for the device."""
        if self.settings.precision != "auto":
            return self.settings.precision
        cuda = self.device.type == "cuda"
        return "bfloat16" if cuda and torch.cuda.is_bf16_supported() else "float32"

    @property
    def device(self) -> torch.device:
        """Where it runs; `auto` is the CPU for int8, which is made for it."""
        int8 = self.settings.precision == "int8" and self.settings.device == "auto"
        return pick_device("cpu" if int8 else self.settings.device)

    def _train(
        self,
        examples: list[Example],
        settings: LLMSettings,
        validation: Split | None,
        checkpoints: CheckpointFolder | None,
        notify: Listener,
    ) -> Progress:
        def validation_loss() -> float:
            assert validation is not None
            notify(StageStarted("validating", len(validation)))
            proba = self.predict_proba(validation.texts, notify)
            return log_loss(validation.y, proba)

        trainer = Trainer(
            module=self.model_,
            loss=self.head_.loss,
            settings=_training_settings(settings),
            validate=None if validation is None else validation_loss,
            checkpoints=checkpoints,
            notify=notify,
            stage="training" if validation is not None else "refitting on train + validation",
            device=self.device_,
        )
        with _seeded(settings.seed, self.device_):
            return trainer.run(examples)

    def examples(self, split: Split) -> tuple[list[Example], int]:
        """Rows with what the loss reads of them, and how many had to be cut to fit."""
        prompts = self.encoder_.encode(split.texts)
        examples = [
            self.example(prompt.input_ids, label)
            for prompt, label in zip(prompts, split.y.tolist(), strict=True)
        ]
        return examples, sum(prompt.truncated for prompt in prompts)

    def example(self, prompt: Sequence[int], label: int) -> Example:
        """One row for the loss: which positions are read, and what should stand there."""
        answer, last = self.trie_.tokens[label], len(prompt) - 1
        if self.settings.loss == "answer":
            steps = self.trie_.steps[label]
            depths = [len(self.trie_.branchings[number].prefix) for number, _ in steps]
            return Example(
                input_ids=(*prompt, *answer[: max(depths)]),
                positions=tuple(last + depth for depth in depths),
                branchings=tuple(number for number, _ in steps),
                targets=tuple(child for _, child in steps),
            )
        tokens = (*prompt, *answer, self.trie_.end_token)
        start = last if self.settings.loss == "sft" else 0
        positions = tuple(range(start, len(tokens) - 1))
        return Example(
            input_ids=tokens[:-1],
            positions=positions,
            branchings=(FULL_VOCABULARY,) * len(positions),
            targets=tokens[start + 1 :],
        )

    def predict_proba(self, texts: Sequence[Text], notify: Listener = ignore) -> Probabilities:
        """(n,) texts → (n, n_classes) probabilities in the order of `classes_`."""
        parts = list(self.stream_proba(texts, notify))
        return np.concatenate(parts) if parts else np.empty((0, len(self.classes_)))

    def stream_proba(
        self, texts: Sequence[Text], notify: Listener = ignore
    ) -> Iterator[Probabilities]:
        """The same in windows of at most `PREDICT_WINDOW` rows, in order."""
        for start in range(0, len(texts), PREDICT_WINDOW):
            window = texts[start : start + PREDICT_WINDOW]
            prompts = self.encoder_.encode(window)
            out = np.empty((len(window), len(self.classes_)))
            lengths = [len(prompt.input_ids) for prompt in prompts]
            for rows in micro_batches(lengths, self._predict_budget):
                batch = collate([Example(prompts[row].input_ids) for row in rows])
                log_probs = self.head_.log_probs(batch.to(self.device_))
                out[rows] = log_probs.double().exp().cpu().numpy()
                notify(RowsDone(len(rows)))
            yield out / out.sum(axis=1, keepdims=True)

    def generate(
        self, texts: Sequence[Text], notify: Listener = ignore
    ) -> tuple[npt.NDArray[np.int64], list[str]]:
        """Let the model write its answer freely, greedily.

        Returns:
            (n,) class indices, -1 where the answer is no label (`unknown`), and the answers.
        """
        answers: list[str] = [""] * len(texts)
        groups = write_answers(
            self.model_,
            [prompt.input_ids for prompt in self.encoder_.encode(texts)],
            max_new_tokens=self.trie_.longest,
            end_token=self.trie_.end_token,
            token_budget=self._predict_budget,
        )
        for group in groups:
            for row, tokens in group.items():
                answer = self.tokenizer_.decode(
                    tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
                answers[row] = str(answer).strip()
            notify(RowsDone(len(group)))
        index = {word: number for number, word in enumerate(self.trie_.words)}
        return np.array([index.get(answer, UNKNOWN) for answer in answers], dtype=np.int64), answers

    @property
    def _predict_budget(self) -> int:
        """Tokens of a micro-batch without gradients, which keeps far less in memory."""
        return 4 * self.settings.token_budget

    @property
    def trainable_parameters_(self) -> int:
        """Weights that training may change."""
        return sum(p.numel() for p in self.model_.parameters() if p.requires_grad)

    def save(self, folder: Path) -> None:
        """Write `adapter/` (PEFT's format) and `rung.json`, each whole or not at all."""
        name = self._lasting_name()
        for config in self.model_.peft_config.values():
            config.base_model_name_or_path = name

        def save_adapter(target: Path) -> None:
            # Told that no embeddings are adapted, PEFT does not ask the Hub about the base model.
            self.model_.save_pretrained(str(target), save_embedding_layers=False)

        record = RungRecord(
            settings=replace(self.settings, model=name),
            fields=self.fields_,
            classes=self.classes_,
            words=self.trie_.words,
            template=self.template_,
        )
        save_rung(folder, record, save_adapter)

    def _lasting_name(self) -> str:
        """The base model's name, from whatever folder it is asked for later."""
        name = self.settings.model
        return name if name in BUILT_IN or is_hub_id(name) else str(self.folder_.resolve())

    @classmethod
    def load(cls, folder: Path, **changes: Any) -> Self:
        """What `save` wrote, ready to predict; `changes` are settings to override.

        `compile` is left out unless asked for; where int8 cannot run, on a GPU, the precision is
        `auto`.

        Raises:
            InputError: the folder holds no finished rung.
        """
        record = read_rung(folder)
        settings = replace(record.settings, **({"compile": False} | changes))
        rung = cls(settings)
        if settings.precision == "int8" and rung.device.type != "cpu":
            rung.settings = replace(settings, precision="auto")
        rung.fields_, rung.classes_ = record.fields, record.classes
        rung.folder_ = resolve_model(settings.model)
        rung.tokenizer_ = load_tokenizer(rung.folder_)
        rung._set_template(record.template, record.words)
        rung.device_ = rung.device
        base = load_model(rung.folder_, rung.device_, rung.precision)
        rung.model_ = load_adapter(base, folder / ADAPTER)
        rung._ready()
        return rung


def _lora_settings(settings: LLMSettings) -> LoraSettings:
    modules = settings.target_modules
    return LoraSettings(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear" if modules == ("all-linear",) else modules,
        use_rslora=settings.use_rslora,
    )


def _training_settings(settings: LLMSettings) -> TrainingSettings:
    return TrainingSettings(
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        warmup_ratio=settings.warmup_ratio,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        token_budget=settings.token_budget,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        patience=settings.patience,
        seed=settings.seed,
    )


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch within a block, and leave the caller's random state as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
