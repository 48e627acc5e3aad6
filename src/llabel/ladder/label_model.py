"""A causal language model that is read for its labels: what all LLM rungs do the same way."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from llabel.assets import cache_folder
from llabel.engine.answer import AnswerHead
from llabel.engine.batching import Example, collate, micro_batches, shared_tokens
from llabel.engine.generation import write_answers
from llabel.engine.model import load_model, pick_device
from llabel.engine.packed_reader import packed_reader
from llabel.engine.plain import PlainReader
from llabel.engine.prefix import Prefix, pays
from llabel.events import Listener, Note, RowsDone, ignore
from llabel.labels import LabelTrie
from llabel.ladder.base_form import form_in_use, four_bit_of
from llabel.ladder.prompting import Prompting
from llabel.metrics import UNKNOWN
from llabel.settings import LLMSettings, parse_rope
from llabel.task import Probabilities, Text

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# Rows are sorted by length within such windows when predicting, so that a stream stays a stream.
PREDICT_WINDOW = 512
# Rows packed behind a prefix see each other's places, if only to mask them. On the CPU, where the
# products are the bottleneck, more in one pass costs more than it spares; on a GPU the mask of so
# many tokens takes 32 MiB, and four times that of twice as many.
_PACKED = {"cpu": 384, "cuda": 4096}


@dataclass(slots=True)
class LabelModel:
    """Reads the probabilities of labels, or whole answers, off a model.

    Args:
        model: in evaluation mode when it is read; adapters may be around it.
        head: reads the same model.
        prompting: how rows become prompts.
        token_budget: most padded tokens of a training micro-batch; reading keeps far less in
            memory, and takes four times as many.
        shots: tokens that stand before every row; the model's weights may not change then.
        reuse: read what many prompts begin with once.
    """

    model: "PeftModel | PreTrainedModel"
    head: AnswerHead
    prompting: Prompting
    token_budget: int
    shots: tuple[int, ...] = ()
    reuse: bool = True
    _kept: Prefix | None = field(default=None, init=False)

    def stream_proba(
        self, texts: Sequence[Text], notify: Listener = ignore
    ) -> Iterator[Probabilities]:
        """(n,) texts → (≤ `PREDICT_WINDOW`, n_classes) probabilities at a time, in order.

        Those of a text that is read in pieces are the mean over them.
        """
        prefix, encoder = self._prefix_of_shots(), self.prompting.encoder
        for start in range(0, len(texts), PREDICT_WINDOW):
            pieces = [encoder.pieces(text) for text in texts[start : start + PREDICT_WINDOW]]
            counts = np.array(list(map(len, pieces)))
            firsts = np.cumsum(counts) - counts
            prompts = self._prompts([piece for row in pieces for piece in row])
            prefix = self._prefix(prompts, prefix)
            out = np.empty((len(prompts), len(self.prompting.trie.words)))
            done, riding = len(prefix) if prefix else 0, self.head.reader.tree_tokens
            rests = [prompt[done:] for prompt in prompts]
            lengths = [len(rest) + riding for rest in rests]
            for rows in micro_batches(lengths, self._budget(prefix)):
                batch = collate([Example(rests[row]) for row in rows])
                log_probs = self.head.log_probs(batch.to(self.head.device), prefix)
                out[rows] = log_probs.double().exp().cpu().numpy()
                notify(RowsDone(int(np.isin(rows, firsts).sum())))
            out = np.add.reduceat(out, firsts) / counts[:, None]
            for first, stop in self.prompting.trie.spans:
                out[:, first:stop] /= out[:, first:stop].sum(axis=1, keepdims=True)
            yield out

    def predict_proba(self, texts: Sequence[Text], notify: Listener = ignore) -> Probabilities:
        """(n,) texts → (n, n_classes) probabilities in class order; rows sum to 1."""
        parts = list(self.stream_proba(texts, notify))
        return np.concatenate(parts) if parts else np.empty((0, len(self.prompting.trie.words)))

    def generate(
        self, texts: Sequence[Text], notify: Listener = ignore, *, target: int | None = None
    ) -> tuple[npt.NDArray[np.int64], list[str]]:
        """Let the model write its answer freely, greedily.

        Args:
            texts: (n,) rows.
            notify: told of progress.
            target: which of several is asked for.

        Returns:
            (n,) class indices, counted in the target's classes, -1 where the answer is no label
            (`unknown`), and the answers, which are over at the end token or with their line. One
            that goes on for longer than any label ends in `…`, and is none, whatever it begins
            with.
        """
        trie, answers = self.prompting.trie, [""] * len(texts)
        words: tuple[str, ...] = trie.words
        tail: tuple[int, ...] = ()
        if target is not None:
            asked = trie.targets[target]
            words, tail = words[asked.first : asked.stop], asked.tail
        groups = write_answers(
            self.model,
            [(*prompt, *tail) for prompt in self._prompts(texts)],
            max_new_tokens=trie.longest - len(tail),
            end_token=trie.end_token,
            token_budget=self._budget(None),
        )
        for group in groups:
            for row, tokens in group.items():
                answers[row] = self._written(tokens)
            notify(RowsDone(len(group)))
        index = {word: number for number, word in enumerate(words)}
        return np.array([index.get(answer, UNKNOWN) for answer in answers], dtype=np.int64), answers

    def _written(self, tokens: Sequence[int]) -> str:
        """The answer among these tokens: up to the end token, or else the first line."""
        trie = self.prompting.trie
        ended = trie.end_token in tokens
        stop = list(tokens).index(trie.end_token) if ended else len(tokens)
        decoded = self.prompting.tokenizer.decode(
            list(tokens[:stop]), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        text = str(decoded).strip()
        if ended and text in trie.words:  # which may have several lines
            return text
        first, line_break, _ = str(decoded).lstrip().partition("\n")
        return first.strip() if ended or line_break else f"{first}…"

    def _prompts(self, texts: Sequence[Text]) -> list[tuple[int, ...]]:
        prompts = self.prompting.encoder.encode(texts)
        return [(*self.shots, *prompt.input_ids) for prompt in prompts]

    def _budget(self, prefix: Prefix | None) -> int:
        """Tokens of a micro-batch without gradients."""
        budget, reader = 4 * self.token_budget, self.head.reader
        if prefix is None or not isinstance(reader, PlainReader):
            return budget
        packed = min(budget, _PACKED[reader.device.type])
        return int(min(packed, reader.room_behind(len(prefix))))

    def _read(self, tokens: Sequence[int]) -> Prefix | None:
        """These tokens once, unless a sliding window leaves little room for rows behind them."""
        reader = self.head.reader
        if isinstance(reader, PlainReader):
            few = _PACKED[reader.device.type] / 4
            if reader.room_behind(len(tokens)) < few:
                return None
        return self.head.read_prefix(tokens)

    def _prefix_of_shots(self) -> Prefix | None:
        """Read once for all calls."""
        if self._kept is None and self.shots and self.reuse:
            self._kept = self._read(self.shots)
        return self._kept

    def _prefix(self, prompts: Sequence[tuple[int, ...]], last: Prefix | None) -> Prefix | None:
        """What these prompts begin with, if that spares anything; the last one where it fits."""
        if not self.reuse or self.shots:
            return last
        shared = shared_tokens(prompts)
        if last is not None and shared[: len(last)] == last.tokens:
            return last
        return self._read(shared) if pays(len(shared), len(prompts)) else None


def load_base(prompting: Prompting, settings: LLMSettings) -> "PreTrainedModel":
    """The model that is asked, frozen (see `load_model`)."""
    device, precision = device_of(settings), precision_of(settings)
    sample = prompting.sample_tokens() if precision == "int8" else ()
    four_bit = four_bit_of(settings, prompting.folder, device)
    rope = parse_rope(settings.rope_scaling)
    return load_model(prompting.folder, device, precision, sample, four_bit, rope)


class Engine(NamedTuple):
    """What a model's answers are read with.

    Attributes:
        head: of the answers.
        name: `packed` or `plain`.
        why_plain: what keeps the model out of the packed engine, where nobody asked for the plain
            one and the model is on a CPU.
    """

    head: AnswerHead
    name: str
    why_plain: str | None = None

    def tell(self, notify: Listener) -> None:
        """Say why it takes so long."""
        if self.why_plain is not None:
            notify(
                Note(
                    "The plain engine runs, several times slower than the packed one: "
                    f"{self.why_plain}."
                )
            )


def engine_for(base: "PreTrainedModel", trie: LabelTrie, settings: LLMSettings) -> Engine:
    """The engine for a model.

    Args:
        base: the language model, adapters injected.
        trie: what may be answered.
        settings: `engine`, and `compile`, which asks for the layers of transformers.
    """
    if settings.engine != "auto" or settings.compile or base.device.type != "cpu":
        return Engine(AnswerHead(base, trie), "plain")
    reader = packed_reader(base, trie, cache_folder() / "kernels")
    if isinstance(reader, str):
        return Engine(AnswerHead(base, trie), "plain", reader)
    return Engine(AnswerHead(base, trie, reader), "packed")


def settings_in_use(settings: LLMSettings, folder: Path) -> dict[str, Any]:
    """All settings, JSON-ready; what was left to us is what it came to for the model there."""
    device = device_of(settings)
    return asdict(settings) | {
        "device": str(device),
        "precision": precision_of(settings),
        "base": form_in_use(four_bit_of(settings, folder, device)),
    }


def device_of(settings: LLMSettings) -> torch.device:
    """Where it runs; `auto` is the CPU for int8, which is made for it."""
    int8 = settings.precision == "int8" and settings.device == "auto"
    return pick_device("cpu" if int8 else settings.device)


def precision_of(settings: LLMSettings) -> str:
    """The precision in use, `auto` resolved for the device."""
    if settings.precision != "auto":
        return settings.precision
    device = device_of(settings)
    if device.type != "cuda":
        return "float32"
    with torch.cuda.device(device):  # older ones only imitate it, slower than float32
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if native else "float32"


def to_predict(saved: LLMSettings, changes: dict[str, Any]) -> LLMSettings:
    """Settings to load a saved rung with.

    `compile` is left out unless asked for; where int8 cannot run, on a GPU, the precision is
    `auto`.
    """
    settings = replace(saved, **({"compile": False} | changes))
    if settings.precision == "int8" and device_of(settings).type != "cpu":
        return replace(settings, precision="auto")
    return settings
