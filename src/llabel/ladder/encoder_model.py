"""A folder → a pre-trained encoder, checked, with a classification head; and back to a folder."""

import hashlib
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llabel.assets import BUILT_IN, is_hub_id
from llabel.engine.batching import Batch, Example, collate
from llabel.errors import InputError
from llabel.events import Listener, Note, ignore
from llabel.ladder.rung_folder import replace_folder
from llabel.paths import at_home
from llabel.quiet import quiet_libraries
from llabel.tensor_files import writing

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

FOLDER = "encoder"
DROPOUT = 0.1
TOLERANCE = 1e-3  # of the pooled states of a row, read alone and among longer ones
LONGEST = 512  # tokens, where the encoder's publisher names no length
# Their first positions are for padding, and are not for tokens.
_POSITIONS_AFTER_PADDING = {
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert"),
    *("longformer", "mpnet", "data2vec-text", "xmod", "luke", "ibert"),
}
_GIVE = (
    "--encoder wants an encoder such as BERT, RoBERTa, MiniLM or ModernBERT: minilm-l6, a local "
    "folder, or a Hugging Face Hub id."
)


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
        logits: Tensor = self.head(self.dropout(self.pooled(batch)))
        return logits

    def pooled(self, batch: Batch) -> Tensor:
        """Batch of (rows, seq) → (rows, hidden): mean of the states over each row's tokens."""
        lengths = batch.lengths.unsqueeze(1)  # (rows, 1)
        place = torch.arange(batch.input_ids.shape[1], device=lengths.device)  # (seq,)
        inside = place < lengths  # (rows, seq)
        inputs = {"input_ids": batch.input_ids.masked_fill(~inside, self.pad)}
        if not inside.all():  # attention is faster without a mask
            inputs["attention_mask"] = inside.long()
        if self.types:
            inputs["token_type_ids"] = ((place >= batch.positions.unsqueeze(1)) & inside).long()
        states = self.encoder(**inputs).last_hidden_state  # (rows, seq, hidden)
        mean: Tensor = states.masked_fill(~inside.unsqueeze(2), 0.0).sum(dim=1) / lengths
        return mean


def load_config(folder: Path, name: str) -> "PretrainedConfig":
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


def max_length(
    asked: int | None,
    name: str,
    folder: Path,
    config: "PretrainedConfig",
    tokenizer: "PreTrainedTokenizerBase",
    notify: Listener = ignore,
) -> int:
    """Tokens of a row: what was asked for, else what its publisher used, within its context.

    More than that may be meant for the LLM beside it in a comparison: it is cut, and told.
    """
    context = int(getattr(config, "max_position_embeddings", None) or LONGEST)
    if config.model_type in _POSITIONS_AFTER_PADDING:
        context -= int(config.pad_token_id or 0) + 1
    context = min(context, int(tokenizer.model_max_length))
    if asked is not None:
        if asked > context:
            notify(
                Note(f"The encoder {name} reads {context} tokens, not {asked}: rows are cut so.")
            )
        return min(asked, context)
    published = folder / "sentence_bert_config.json"
    usual = LONGEST
    if published.is_file():
        usual = int(json.loads(published.read_bytes()).get("max_seq_length") or LONGEST)
    return min(context, usual)


def load_encoder(folder: Path) -> "PreTrainedModel":
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
    if hasattr(model, "pooler"):  # it would be trained, saved, and never used
        model.pooler = nn.Identity()  # SqueezeBERT calls it in any case
    encoder: PreTrainedModel = model
    return encoder


@torch.no_grad()
def check_padding(network: EncoderNetwork, name: str, rows: Sequence[Example]) -> None:
    """Compare what an encoder says of rows together, padded, and of each alone.

    Args:
        network: on the CPU, its encoder in evaluation mode, as `load_encoder` gives it.
        name: of the encoder.
        rows: of different lengths.

    Raises:
        InputError: they differ by more than 1e-3, or it cannot read them.
    """
    kind = network.encoder.config.model_type
    try:
        together = network.pooled(collate(rows))  # (rows, hidden)
        alone = torch.cat([network.pooled(collate([row])) for row in rows])
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
        problem = " ".join(str(error).splitlines()[:1]) or type(error).__name__
        raise InputError(
            f"--encoder {name}: a model of the kind {kind} cannot be used as an encoder here "
            f"({problem}). {_GIVE}"
        ) from error
    if not (together - alone).abs().max() <= TOLERANCE * alone.abs().max().clamp(min=1):
        raise InputError(
            f"--encoder {name}: a model of the kind {kind} says something else of a text when "
            f"longer ones are read beside it, since it minds their padding. {_GIVE}"
        )


def save_encoder(folder: Path, encoder: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Write `encoder/`, whole or not at all."""

    def save(new: Path) -> None:
        with quiet_libraries():
            with writing(new):
                encoder.save_pretrained(str(new))
            tokenizer.save_pretrained(str(new))

    replace_folder(folder / FOLDER, save)


def digest_of(encoder: Path) -> str:
    """SHA-256 of the weights, hexadecimal; of shards, of all of them."""
    found = hashlib.sha256()
    for path in sorted(encoder.glob("*.safetensors")):
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def lasting_name(name: str) -> str:
    """The encoder's name, from whatever folder it is asked for later."""
    if name in BUILT_IN or is_hub_id(name):
        return name
    return str(at_home(name).resolve())
