"""`LLMClassifier`: the LLM rung with scikit-learn's manners."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from llabel.confidence import Confidence, read_confidence, write_confidence
from llabel.config import checked
from llabel.data import fingerprint, joint_task, strata, take
from llabel.data.cells import cell_text
from llabel.data.splitting import hold_out
from llabel.ladder.llm import LLMRung
from llabel.ladder.targets import TargetRung, each_target, target_folder
from llabel.quiet import quiet_libraries
from llabel.settings import LLMSettings
from llabel.task import ClassIndices, Label, Probabilities, Split, Task, Text

_NO_FRAME = ("text",)  # the fields of texts that have no column's name


class LLMClassifier(ClassifierMixin, BaseEstimator):
    """A text classifier made from a causal language model by LoRA fine-tuning.

    Texts are a sequence of strings, or a data frame whose columns are the text fields; its missing
    cells are empty texts. Labels are strings, bools or whole numbers; those that differ by case
    are different labels. Parameters are those of `llabel fit` (see `llabel fit --help` and
    `llabel.settings.LLMSettings` for ranges); `random_state` is `--seed`.

    Args:
        model: built-in name, local folder or Hub id of a causal LM.
        template: `qa`, `alpaca`, `plain`, `chat` (the model's own), or a file with holes.
        instruction: what the template `alpaca` or `chat` asks for.
        system: what the system says first, with the template `chat`.
        label_words: what to answer for a label, by the label as text.
        max_seq_length: most tokens of prompt and answer; None is the model's context.
        long: what is kept of a text that is too long: `head`, `tail` or `middle` (both ends), or
            `chunks` (all of it, piece by piece).
        rope_scaling: kind and factor of a longer context, as `yarn:4`.
        r, lora_alpha, lora_dropout, target_modules, use_rslora: LoRA.
        init_lora: `default`, or `loftq` to start from what a 4-bit base rounded off.
        loss: `answer`, `sft` or `all`.
        class_weight: `balanced` lets every class count alike in the training loss.
        learning_rate, schedule, warmup_ratio, epochs, patience, batch_size, weight_decay,
            adam_beta2, max_grad_norm: training.
        warmup_steps, max_steps: steps in place of `warmup_ratio` and `epochs`.
        optim: `adamw`, `adamw_8bit` or `paged_adamw_8bit`.
        validation_size: share of the rows that chooses the epoch, in (0, 1).
        token_budget: most tokens of a micro-batch.
        trials: learning rates tried on validation: `learning_rate` × 1, 1/3, 3, 1/9 …
        budget: seconds of training for all trials together; None is without limit.
        refit: train anew on all rows with the chosen number of epochs.
        precision: `auto`, `float32`, `bfloat16` or `int8`.
        base: `auto`, or `nf4` or `nf4-stored` for QLoRA.
        double_quant: round the scales of 4-bit numbers, too.
        compute_dtype: what they are unpacked to: `auto`, `float32` or `bfloat16`; `float16` only
            where that is done once (`nf4` on the CPU).
        engine: `auto`, or `plain` for the layers of transformers.
        compile: fuse those with torch.compile.
        gradient_checkpointing: compute layers again in the backward pass, for less memory.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        random_state: validation rows, row order, adapter initialisation, dropout: a whole number,
            or, as scikit-learn has it, None or a `RandomState`, which gives one at each `fit`.

    Attributes:
        classes_: (n_classes,) labels, sorted; the order of `predict_proba`'s columns. Of several
            targets a list, as scikit-learn has it for several outputs.
        rung_: the fitted `LLMRung`.
        confidences_: by target ("" where there is one) the temperature and the threshold of a run
            that was loaded (`--calibrate`, `--abstain-below`): probabilities are calibrated, but
            `predict` always names a label.
        feature_names_in_: the text columns, where a data frame was given.
    """

    def __init__(
        self,
        model: str = "smollm2-135m",
        *,
        template: str = "qa",
        instruction: str | None = None,
        system: str | None = None,
        label_words: dict[str, str] | None = None,
        max_seq_length: int | None = None,
        long: Literal["head", "tail", "middle", "chunks"] = "head",
        rope_scaling: str | None = None,
        r: int = 16,
        lora_alpha: float = 32,
        lora_dropout: float = 0.0,
        target_modules: tuple[str, ...] = ("all-linear",),
        use_rslora: bool = False,
        init_lora: Literal["default", "loftq"] = "default",
        adapt_layers: int | None = None,
        loss: Literal["answer", "sft", "all"] = "answer",
        class_weight: Literal["balanced"] | None = None,
        learning_rate: float = 5e-4,
        schedule: Literal["cosine", "linear", "constant"] = "cosine",
        warmup_ratio: float = 0.05,
        warmup_steps: int | None = None,
        epochs: int = 3,
        max_steps: int | None = None,
        patience: int | None = 1,
        batch_size: int = 16,
        optim: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw",
        weight_decay: float = 0.0,
        adam_beta2: float = 0.99,
        max_grad_norm: float = 1.0,
        validation_size: float = 0.1,
        token_budget: int = 1024,
        trials: int = 1,
        budget: float | None = None,
        refit: bool = False,
        precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto",
        base: Literal["auto", "nf4", "nf4-stored"] = "auto",
        double_quant: bool = True,
        compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        engine: Literal["auto", "plain"] = "auto",
        compile: bool = False,
        gradient_checkpointing: bool = False,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.model = model
        self.template = template
        self.instruction = instruction
        self.system = system
        self.label_words = label_words
        self.max_seq_length = max_seq_length
        self.long = long
        self.rope_scaling = rope_scaling
        self.r = r
        self.lora_alpha = lora_alpha
        self.lora_dropout = lora_dropout
        self.target_modules = target_modules
        self.use_rslora = use_rslora
        self.init_lora = init_lora
        self.adapt_layers = adapt_layers
        self.loss = loss
        self.class_weight = class_weight
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.warmup_ratio = warmup_ratio
        self.warmup_steps = warmup_steps
        self.max_steps = max_steps
        self.optim = optim
        self.epochs = epochs
        self.patience = patience
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.adam_beta2 = adam_beta2
        self.max_grad_norm = max_grad_norm
        self.validation_size = validation_size
        self.token_budget = token_budget
        self.trials = trials
        self.budget = budget
        self.refit = refit
        self.precision = precision
        self.base = base
        self.double_quant = double_quant
        self.compute_dtype = compute_dtype
        self.engine = engine
        self.compile = compile
        self.gradient_checkpointing = gradient_checkpointing
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fine-tune on texts X (n,) or (n, n_fields) and labels y (n,), or (n, n_targets).

        One model learns all targets. Their names, which the prompt asks for, are the columns of a
        data frame, else target_1, target_2 …. A y (n, 1) is taken as (n,).

        Raises:
            InputError: settings, texts or labels cannot be used (it is a ValueError).
            ValueError: X or y has another form than that, no rows, or not as many as the other.
        """
        settings = self._settings()
        fields, texts = _texts(X)
        if len(getattr(y, "shape", ())) == 2 and y.shape[1] == 1:
            y = np.asarray(y, dtype=object)[:, 0]
        targets = _target_columns(y)
        columns = {name: _indices(column) for name, column in (targets or {"": y}).items()}
        rows = {len(indices) for _, indices in columns.values()}
        if rows != {len(texts)}:
            raise ValueError(f"X has {len(texts)} rows, y has {max(rows)}.")
        if not texts:
            raise ValueError("X has no rows. At least two of each class are needed.")
        for name, (classes, _) in columns.items():
            if len(classes) == 1:
                where = f"y, column {name!r}," if name else "y"
                raise ValueError(
                    f"{where} holds one class only, {classes[0]!r}. At least two are needed."
                )
        tasks = self._tasks(fields, texts, columns, settings.seed)
        with quiet_libraries():
            rung = LLMRung(settings).fit(joint_task(tasks) if targets else tasks[""])
        confidences = dict.fromkeys(columns, Confidence())
        return self._fitted(rung, confidences, named=hasattr(X, "columns"))

    def _tasks(
        self,
        fields: tuple[str, ...],
        texts: tuple[Text, ...],
        columns: Mapping[str, tuple[tuple[Label, ...], ClassIndices]],
        seed: int,
    ) -> dict[str, Task]:
        """A task for each column of labels, on the same rows."""
        parts = ("train", "validation")
        (classes, stratum), *others = columns.values()
        if others:
            each = [indices for _, indices in columns.values()]
            stratum = strata(np.stack(each, axis=1), least=len(parts))
            classes = tuple(range(int(stratum.max()) + 1))
        kept, held = hold_out(
            stratum, self.validation_size, classes=classes, seed=seed, parts=parts
        )
        ids = tuple(f"X:{row}" for row in range(1, len(texts) + 1))
        empty = Split((), (), np.empty(0, dtype=np.int64))
        tasks = {}
        for name, (own, indices) in columns.items():
            whole = Split(ids, texts, indices)
            splits = {"train": take(whole, kept), "validation": take(whole, held)}
            print_of = fingerprint(fields, own, splits)
            tasks[name] = Task("X", fields, own, **splits, test=empty, fingerprint=print_of)
        return tasks

    def predict_proba(self, X: Any) -> Probabilities | list[Probabilities]:
        """(n, n_classes) probabilities in the order of `classes_`; of several targets a list.

        Raises:
            NotFittedError: before `fit` or `load`.
        """
        check_is_fitted(self, "rung_")
        texts = _texts(X, self.rung_.fields_)[1]
        targets: Mapping[str, LLMRung | TargetRung] = each_target(self.rung_) or {"": self.rung_}
        found = [
            self.confidences_[name].scaled(target.predict_proba(texts))
            for name, target in targets.items()
        ]
        return found if "" not in targets else found[0]

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """(n,) the most probable labels; of several targets (n, n_targets)."""
        proba = self.predict_proba(X)
        if not isinstance(proba, list):
            labels: npt.NDArray[Any] = self.classes_[proba.argmax(axis=1)]
            return labels
        each = [
            classes[own.argmax(axis=1)].astype(object)
            for classes, own in zip(self.classes_, proba, strict=True)
        ]
        return np.stack(each, axis=1)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of rows whose label is right; of several targets, whose labels all are.

        As `sklearn.multioutput.MultiOutputClassifier` counts them.
        """
        if len(getattr(y, "shape", ())) != 2:
            return float(super().score(X, y, sample_weight))
        right = (self.predict(X).reshape(len(y), -1) == np.asarray(y, dtype=object)).all(axis=1)
        return float(np.average(right, weights=sample_weight))

    def save(self, folder: str | Path) -> None:
        """Write `adapter/` (PEFT's format) and `rung.json`, which `llabel predict` reads too.

        Raises:
            ValueError: `folder` holds a run of `llabel fit`, whose record tells of its own model.
        """
        check_is_fitted(self, "rung_")
        if any((Path(folder) / name).exists() for name in ("run.json", "started.json")):
            raise ValueError(f"{folder} holds a run of llabel fit. Name another folder.")
        for name, confidence in self.confidences_.items():
            place = target_folder(Path(folder), name) if name else Path(folder)
            if not name or confidence != Confidence() or place.is_dir():
                place.mkdir(parents=True, exist_ok=True)
                write_confidence(place, confidence)
        self.rung_.save(Path(folder))

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto") -> Self:
        """What `save`, or `llabel fit`, wrote to `folder`.

        Its parameters are what it was fitted with, but for `compile` and `validation_size`, whose
        defaults stand again: nothing is trained here; `device` is the one given, and `precision`
        may be another where that device has not the old one.
        """
        with quiet_libraries():
            rung = LLMRung.load(Path(folder), device=device)
        confidences = {
            name: read_confidence(target_folder(Path(folder), name) if name else Path(folder))
            for name in (each_target(rung) or [""])
        }
        names = set(cls._get_param_names())
        settings = {n: getattr(rung.settings, n) for n in rung.settings.__slots__ if n in names}
        classifier = cls(**settings, random_state=rung.settings.seed)
        return classifier._fitted(rung, confidences, named=rung.fields_ != _NO_FRAME)

    def _fitted(self, rung: LLMRung, confidences: dict[str, Confidence], *, named: bool) -> Self:
        self.rung_, self.confidences_ = rung, confidences
        self.classes_: Any = _class_array(rung.classes_)
        if targets := each_target(rung):
            self.classes_ = [_class_array(target.classes_) for target in targets.values()]
        if named:
            self.feature_names_in_ = np.array(rung.fields_, dtype=object)
        elif hasattr(self, "feature_names_in_"):  # of an earlier fit
            del self.feature_names_in_
        return self

    def _settings(self) -> LLMSettings:
        given = self.get_params(deep=False)
        seed = given.pop("random_state")
        if seed is None or isinstance(seed, np.random.RandomState):
            seed = int(check_random_state(seed).randint(2**31 - 1))
        settings = checked({**given, "seed": seed})
        del settings["validation_size"]
        return LLMSettings(**settings)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.target_tags.multi_output = True
        return tags


def _texts(X: Any, fields: Sequence[str] | None = None) -> tuple[tuple[str, ...], tuple[Text, ...]]:
    """Fields and rows of a data frame (columns by name) or of a sequence of strings."""
    if isinstance(X, str | Mapping):
        raise ValueError("X must be a sequence of texts or a data frame, not one text.")
    if hasattr(X, "columns"):
        return _frame_texts(X, fields)
    if fields is not None and len(fields) != 1:
        raise ValueError(f"X must be a data frame with the columns {list(fields)}.")
    rows = list(X)
    wrong = next((i for i, value in enumerate(rows) if not isinstance(value, str)), None)
    if wrong is not None:
        raise ValueError(f"X[{wrong}] is {type(rows[wrong]).__name__}, not str.")
    return tuple(fields or _NO_FRAME), tuple((value,) for value in rows)


def _frame_texts(X: Any, fields: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[Text, ...]]:
    columns = {str(column): column for column in X.columns}  # names may be numbers
    if not columns or len(columns) != len(X.columns):
        raise ValueError(
            f"X needs one text column at least, and no name twice; it has {list(X.columns)}."
        )
    names = tuple(columns if fields is None else fields)
    missing = [name for name in names if name not in columns]
    if missing:
        raise ValueError(f"X lacks the column {missing[0]!r}; it has {list(X.columns)}.")
    cells = [list(map(_cell_text, X[columns[name]])) for name in names]
    return names, tuple(zip(*cells, strict=True))


def _cell_text(value: Any) -> str:
    """As `llabel fit` reads the same cell from a file; what no file may hold is written out."""
    if _missing(value):
        return ""
    text = cell_text(bool(value) if isinstance(value, np.bool_) else value)
    return str(value) if text is None else text


def _target_columns(y: Any) -> dict[str, Any]:
    """The columns of y (n, n_targets) by name; {} where it has one target."""
    if len(getattr(y, "shape", (0,))) != 2 or y.shape[1] < 2:
        return {}
    if not hasattr(y, "columns"):
        return {f"target_{number}": column for number, column in enumerate(y.T, 1)}
    named = {str(column): y[column] for column in y.columns}
    if len(named) < y.shape[1]:
        raise ValueError(f"y has two columns of one name: {list(y.columns)}.")
    if "id" in named:
        raise ValueError("y has a column 'id', which is what predictions call the row. Rename it.")
    return named


def _class_array(classes: Sequence[Label]) -> npt.NDArray[Any]:
    """Labels as NumPy has them; as objects where its own texts would lose NULs at their end."""
    cut = any(isinstance(label, str) and label.endswith("\0") for label in classes)
    return np.array(classes, dtype=object if cut else None)


def _indices(y: Any) -> tuple[tuple[Label, ...], ClassIndices]:
    """The classes of a column of labels, sorted, and (n,) class indices."""
    labels = _labels(y)
    # As objects: NumPy's own texts lose NULs at their end, its integers end at 64 bits.
    found, indices = np.unique(np.array(labels, dtype=object), return_inverse=True)
    return tuple(found.tolist()), indices.astype(np.int64)


def _labels(y: Any) -> list[Label]:
    """(n,) labels, all str, all bool or all int."""
    shape = getattr(y, "shape", (0,))
    if isinstance(y, str | Mapping) or len(shape) != 1:
        told = type(y).__name__ if len(shape) == 1 else f"an array of shape {tuple(shape)}"
        raise ValueError(f"y must be a sequence of labels, one a row, not {told}.")
    labels: list[Label] = []
    for row, cell in enumerate(y):
        label = cell.item() if isinstance(cell, np.generic) else cell
        if _missing(label):
            raise ValueError(f"y[{row}] is missing ({label}). Give the label, or drop the row.")
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        if not isinstance(label, str | bool | int):
            raise ValueError(
                f"y[{row}] is {label!r} ({type(label).__name__}). "
                "Labels are strings, bools or whole numbers."
            )
        if labels and type(label) is not type(labels[0]):
            raise ValueError(f"y mixes types: y[0] is {labels[0]!r}, y[{row}] is {label!r}.")
        labels.append(label)
    return labels


def _missing(value: Any) -> bool:
    """None, NaN, NaT, and pandas' NA, which answers no comparison with true or false."""
    if isinstance(value, str) or value is None:
        return value is None
    try:
        return bool(value != value)  # noqa: PLR0124  (NaN alone differs from itself)
    except (TypeError, ValueError):
        return type(value).__name__ == "NAType"
