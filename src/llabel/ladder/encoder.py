"""The encoder rung: a pre-trained encoder with a classification head, all of it fine-tuned."""

import hashlib
import inspect
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from llabel.assets import BUILT_IN, is_hub_id, resolve_encoder
from llabel.engine.batching import Batch, Example
from llabel.engine.checkpoint import CheckpointFolder
from llabel.engine.model import load_tokenizer, pick_device
from llabel.errors import InputError
from llabel.events import Fetching, Listener, ignore
from llabel.ladder.contract import FitRecord, FitSettings
from llabel.ladder.neural import Recipe, Rows, count, example, fit_network, predict_texts
from llabel.ladder.rung_folder import SavedRung, read_rung, write_rung
from llabel.quiet import quiet_libraries
from llabel.task import Label, Probabilities, Split, Task, Text

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ENCODER = "encoder"
RECIPE = Recipe(learning_rate=1e-4, epochs=4, patience=1, batch_size=16)
DROPOUT = 0.1
LONGEST = 512  # tokens, where the encoder's publisher names no length
# No text that fits has more characters a token than this on average; what lies beyond is cut
# before the tokeniser sees it, whose time and memory grow with the text.
_CHARACTERS = 32
_WINDOW = 1000  # rows tokenised at once
# Their first positions are for padding, and are not for tokens.
_POSITIONS_AFTER_PADDING = {
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert"),
    *("longformer", "mpnet", "data2vec-text", "xmod", "luke", "ibert"),
}


class EncoderRung:
    """A pre-trained encoder, fine-tuned end to end.

    A row of several fields is read as a sentence pair: the first field, and the others joined by
    newlines. The head sees the mean of the last layer's states.

    After `fit` or `load`: `fields_`, `classes_`, `network_`; after `fit` also `record_` and
    `validation_proba_`.
    """

    name = "encoder"

    def __init__(self, settings: FitSettings) -> None:
        self.settings = settings

    def prepare(
        self, fields: Sequence[str], classes: Sequence[Label], notify: Listener = ignore
    ) -> Self:
        """Fetch the encoder and check it; its weights are not read yet.

        Raises:
            InputError: there is no such encoder, it is of another kind, or the length asked for
                does not suit it.
        """
        self.fields_, self.classes_ = tuple(fields), tuple(classes)
        self.device_ = pick_device(self.settings.device)
        name = self.settings.encoder
        self.folder_ = resolve_encoder(
            name, progress=lambda what, share: notify(Fetching(what, share))
        )
        config = _config(self.folder_, name)
        tokenizer = load_tokenizer(self.folder_)
        length = _max_length(self.settings.max_seq_length, name, self.folder_, config, tokenizer)
        self.tokeniser_ = PairTokeniser(tokenizer, length, pair=len(self.fields_) > 1)
        return self

    def fit(
        self, task: Task, *, checkpoints: CheckpointFolder | None = None, notify: Listener = ignore
    ) -> Self:
        """Fine-tune on `task.train`; learning rate and epoch are chosen on `task.validation`.

        Args:
            task: its test part is not looked at.
            checkpoints: where to keep snapshots; the same call with the same folder goes on there.
            notify: told of progress.
        """
        self.prepare(task.fields, task.classes, notify)
        train, validation = self._rows(task.train), self._rows(task.validation)
        fitted = fit_network(
            self._untrained,
            train,
            validation,
            recipe=RECIPE,
            settings=self.settings,
            device=self.device_,
            checkpoints=checkpoints,
            notify=notify,
        )
        self.network_ = fitted.network
        self.validation_proba_ = fitted.validation_proba
        trainable, parameters = count(fitted.network)
        self.record_ = FitRecord(
            settings={
                **asdict(replace(self.settings, encoder=_lasting_name(self.settings.encoder))),
                **RECIPE.record(),
                **fitted.trials[fitted.chosen].settings,
                "max_seq_length": self.tokeniser_.max_length,
                "pooling": "mean",
                "dropout": DROPOUT,
            },
            trials=fitted.trials,
            chosen=fitted.chosen,
            refit=fitted.refit,
            trainable_parameters=trainable,
            parameters=parameters,
            truncated={"train": train.truncated, "validation": validation.truncated},
        )
        return self

    def _untrained(self) -> "EncoderNetwork":
        return EncoderNetwork(_load_encoder(self.folder_), len(self.classes_))

    def _rows(self, split: Split) -> Rows:
        examples, truncated = self.tokeniser_.encode(split.texts, split.y.tolist())
        return Rows(examples, split.y, truncated)

    def predict_proba(self, texts: Sequence[Text], notify: Listener = ignore) -> Probabilities:
        """(n,) texts → (n, n_classes) probabilities in the order of `classes_`."""
        return predict_texts(
            self.network_,
            lambda window: self.tokeniser_.encode(window)[0],
            texts,
            n_classes=len(self.classes_),
            token_budget=RECIPE.predict_budget(self.device_),
            device=self.device_,
            notify=notify,
        )

    def save(self, folder: Path) -> None:
        """Write `encoder/` (transformers' format, with its tokenizer), the head, `rung.json`."""
        network = self.network_
        assert isinstance(network, EncoderNetwork)
        _save_encoder(folder, network.encoder, self.tokeniser_.tokenizer)
        saved = SavedRung(
            rung=self.name,
            fields=self.fields_,
            classes=self.classes_,
            settings={
                "encoder": _lasting_name(self.settings.encoder),
                "max_seq_length": self.tokeniser_.max_length,
                "sha256": _digest(folder / ENCODER),
            },
            arrays={
                "head.weight": network.head.weight.detach().cpu().numpy(),
                "head.bias": network.head.bias.detach().cpu().numpy(),
            },
        )
        write_rung(folder, saved)

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto") -> Self:
        """What `save` wrote, ready to predict, bit for bit.

        Raises:
            InputError: the folder holds no finished rung.
        """
        saved = read_rung(folder, cls.name)
        encoder = folder / ENCODER
        if _digest(encoder) != saved.settings["sha256"]:
            raise InputError(
                f"{encoder / 'model.safetensors'} is missing, damaged, or of another training than "
                f"{folder / 'rung.json'}. Train the rung again."
            )
        length = int(saved.settings["max_seq_length"])
        rung = cls(
            FitSettings(encoder=saved.settings["encoder"], max_seq_length=length, device=device)
        )
        rung.fields_, rung.classes_ = saved.fields, saved.classes
        rung.device_ = pick_device(device)
        rung.tokeniser_ = PairTokeniser(load_tokenizer(encoder), length, pair=len(saved.fields) > 1)
        network = EncoderNetwork(_load_encoder(encoder), len(saved.classes))
        head = {n: torch.from_numpy(saved.arrays[f"head.{n}"]) for n in ("weight", "bias")}
        network.head.load_state_dict(head)
        rung.network_ = network.to(rung.device_).eval()
        return rung


class EncoderNetwork(nn.Module):
    """Mean of the last layer's states over a row's tokens → dropout → linear head.

    Args:
        encoder: a transformers model with `last_hidden_state`.
        n_classes: logits of a row.
    """

    def __init__(self, encoder: "PreTrainedModel", n_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(encoder.config.hidden_size, n_classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.pad = int(encoder.config.pad_token_id or 0)
        self.types = "token_type_ids" in inspect.signature(encoder.forward).parameters and (
            getattr(encoder.config, "type_vocab_size", 0) >= 2
        )

    def forward(self, batch: Batch) -> Tensor:
        """Batch of (rows, seq) → (rows, n_classes) logits."""
        lengths = batch.lengths.unsqueeze(1)  # (rows, 1)
        place = torch.arange(batch.input_ids.shape[1], device=lengths.device)  # (seq,)
        inside = place < lengths  # (rows, seq)
        inputs = {"input_ids": batch.input_ids.masked_fill(~inside, self.pad)}
        if not inside.all():  # attention is faster without a mask
            inputs["attention_mask"] = inside.long()
        if self.types:
            inputs["token_type_ids"] = ((place >= batch.positions.unsqueeze(1)) & inside).long()
        states = self.encoder(**inputs).last_hidden_state  # (rows, seq, hidden)
        mean = states.masked_fill(~inside.unsqueeze(2), 0.0).sum(dim=1) / lengths
        logits: Tensor = self.head(self.dropout(mean))
        return logits


class PairTokeniser:
    """Texts → ids as the encoder was pre-trained on them: one text, or a pair, with its marks.

    The marks come from the tokenizer. What looks like one in a text stays text.

    Args:
        tokenizer: the encoder's.
        max_length: most tokens of a row, its marks included; the longer text of a pair is cut.
        pair: whether rows have a second text.

    Raises:
        InputError: `max_length` leaves no room for a token of each text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_length: int, pair: bool) -> None:
        self.tokenizer, self.max_length, self.pair = tokenizer, max_length, pair
        first, second = self._tokens(["a", "b"])
        whole = tokenizer("a", "b") if pair else tokenizer("a")
        ids = list(whole["input_ids"])
        start = _find(first, ids, 0)
        self.before, rest = ids[:start], ids[start + len(first) :]
        end = _find(second, rest, 0) if pair else len(rest)
        self.between, self.after = rest[:end], rest[end + len(second) :] if pair else []
        types = list(whole.get("token_type_ids", [0] * len(ids)))[start + len(first) :]
        self.first_type = sum(kind == 0 for kind in types[:end])  # of the marks in between
        marks = len(self.before) + len(self.between) + len(self.after)
        self.room = max_length - marks
        if self.room < 1 + pair:
            raise InputError(
                f"--max-seq-length {max_length} leaves no room for text beside the {marks} marks "
                f"that this encoder needs: give at least {marks + 1 + pair}."
            )

    def encode(
        self, texts: Sequence[Text], labels: Sequence[int] | None = None
    ) -> tuple[list[Example], int]:
        """(n,) rows of fields, and perhaps their classes → examples, and how many were cut."""
        examples: list[Example] = []
        truncated = 0
        longest = self.max_length * _CHARACTERS
        for start in range(0, len(texts), _WINDOW):
            window = texts[start : start + _WINDOW]
            firsts = [fields[0] for fields in window]
            seconds = ["\n".join(fields[1:]) for fields in window] if self.pair else []
            first_ids = self._tokens([text[:longest] for text in firsts])
            second_ids = self._tokens([text[:longest] for text in seconds]) or [[]] * len(window)
            for row, (one, two) in enumerate(zip(first_ids, second_ids, strict=True)):
                keep_one, keep_two = _share(len(one), len(two), self.room)
                label = labels[start + row] if labels is not None else 0
                examples.append(self._example(one[:keep_one], two[:keep_two], label))
                truncated += (
                    keep_one + keep_two < len(one) + len(two)
                    or len(firsts[row]) > longest
                    or (self.pair and len(seconds[row]) > longest)
                )
        return examples, truncated

    def _example(self, one: list[int], two: list[int], label: int) -> Example:
        ids = [*self.before, *one, *self.between, *two, *self.after]
        second = len(self.before) + len(one) + self.first_type
        return example(ids or [self.tokenizer.pad_token_id or 0], label, position=second)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        plain = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        ids: list[list[int]] = plain["input_ids"]
        return ids


def _find(part: list[int], whole: list[int], start: int) -> int:
    for at in range(start, len(whole) - len(part) + 1):
        if whole[at : at + len(part)] == part:
            return at
    raise InputError("This encoder's tokenizer changes texts when it adds its marks: not usable.")


def _share(one: int, two: int, room: int) -> tuple[int, int]:
    """How many tokens of each text to keep: all, or the longer one is cut first."""
    if one + two <= room:
        return one, two
    half = room // 2
    if one <= two:
        one = min(one, half)
        return one, room - one
    two = min(two, half)
    return room - two, two


def _config(folder: Path, name: str) -> "PretrainedConfig":
    """The encoder's configuration.

    Raises:
        InputError: it is a model of another kind, or unknown to transformers.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"--encoder {name}: transformers does not know this kind of model "
            f"({str(error).splitlines()[0]}). {_GIVE}"
        ) from error
    kind, made_as = config.model_type, " ".join(config.architectures or ())
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"--encoder {name} is an encoder-decoder model ({kind}). {_GIVE}")
    if (
        "ForCausalLM" in made_as
        or "LMHeadModel" in made_as
        or getattr(config, "is_decoder", False)
        or (causal and not masked)
    ):
        raise InputError(
            f"--encoder {name} is a causal language model ({kind}): give it as --model for the "
            f"LLM. {_GIVE}"
        )
    return config


_GIVE = (
    "--encoder wants an encoder such as BERT, RoBERTa, DeBERTa or ModernBERT: minilm-l6, a local "
    "folder, or a Hugging Face Hub id."
)


def _max_length(
    asked: int | None,
    name: str,
    folder: Path,
    config: "PretrainedConfig",
    tokenizer: "PreTrainedTokenizerBase",
) -> int:
    """Tokens of a row: what was asked for, else what its publisher used, within its context."""
    context = int(getattr(config, "max_position_embeddings", None) or LONGEST)
    if config.model_type in _POSITIONS_AFTER_PADDING:
        context -= int(config.pad_token_id or 0) + 1
    context = min(context, int(tokenizer.model_max_length))
    if asked is not None:
        if asked > context:
            raise InputError(
                f"--max-seq-length {asked} is more than the encoder {name} reads: {context} tokens."
            )
        return asked
    published = folder / "sentence_bert_config.json"
    usual = LONGEST
    if published.is_file():
        usual = int(json.loads(published.read_bytes()).get("max_seq_length") or LONGEST)
    return min(context, usual)


def _load_encoder(folder: Path) -> "PreTrainedModel":
    """The encoder at `folder` in float32, without what it has on top of its states.

    Attention weights are not dropped: PyTorch's fast attention on the CPU cannot, and training
    took a fifth longer. Other dropout stays.

    Raises:
        InputError: weights are missing, or it takes no tokens.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for dropout in ("attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(config, dropout):
            setattr(config, dropout, 0.0)
    try:
        with quiet_libraries():
            model, report = AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{folder} holds no encoder with safetensors weights that transformers can load: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if missing := sorted(n for n in report["missing_keys"] if not n.startswith("pooler.")):
        raise InputError(
            f"{folder} lacks weights of its encoder ({', '.join(missing[:3])} …): it would begin "
            "at random there."
        )
    if "input_ids" not in inspect.signature(model.forward).parameters:
        raise InputError(f"{folder} holds a {type(model).__name__}, which reads no text. {_GIVE}")
    if hasattr(model, "pooler"):
        model.pooler = None  # else it would be trained, saved, and never used
    encoder: PreTrainedModel = model
    return encoder


def _save_encoder(folder: Path, encoder: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Write `encoder/`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    new, old, target = folder / f".new-{ENCODER}", folder / f".old-{ENCODER}", folder / ENCODER
    for left_over in (new, old):  # of a process that was killed here
        shutil.rmtree(left_over, ignore_errors=True)
    with quiet_libraries():
        encoder.save_pretrained(str(new))
        tokenizer.save_pretrained(str(new))
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _digest(encoder: Path) -> str:
    """SHA-256 of the weights, hexadecimal; of shards, of all of them."""
    found = hashlib.sha256()
    for path in sorted(encoder.glob("*.safetensors")):
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def _lasting_name(name: str) -> str:
    """The encoder's name, from whatever folder it is asked for later."""
    if name in BUILT_IN or is_hub_id(name):
        return name
    return str(Path(name).expanduser().resolve())
