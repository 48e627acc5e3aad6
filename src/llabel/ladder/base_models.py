"""Where a rung gets its prompts and its frozen model from: anew each time, or kept between runs."""

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from llabel.engine.model import remove_lora
from llabel.events import Listener, ignore
from llabel.ladder.base_form import four_bit_of
from llabel.ladder.label_model import device_of, load_base, precision_of
from llabel.ladder.prompting import Prompting, prepare_prompting
from llabel.prompt import Prompt, PromptEncoder
from llabel.settings import LLMSettings
from llabel.task import Label, Text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROMPT = (
    *("model", "template", "instruction", "system", "label_words", "max_seq_length"),
    *("rope_scaling", "long"),
)
_KEPT = 2  # questions whose prompts are kept: the token ids of all rows take memory


class BaseModels:
    """Everything fresh."""

    def prompting(
        self,
        settings: LLMSettings,
        fields: Sequence[str],
        classes: Sequence[Label],
        notify: Listener = ignore,
    ) -> Prompting:
        """See `prepare_prompting`."""
        return prepare_prompting(settings, fields, classes, notify=notify)

    def frozen(self, prompting: Prompting, settings: LLMSettings) -> "PreTrainedModel":
        """The model without adapters (see `load_base`)."""
        return load_base(prompting, settings)


class KeptBaseModels(BaseModels):
    """The last model and the prompts of the last two questions: for trainings one after another.

    Whoever trains next must be done with what the last one trained: its adapters are taken off.
    """

    def __init__(self) -> None:
        self._prompting: dict[str, Prompting] = {}
        self._model: PreTrainedModel | None = None
        self._known: tuple[Any, ...] | None = None

    def prompting(
        self,
        settings: LLMSettings,
        fields: Sequence[str],
        classes: Sequence[Label],
        notify: Listener = ignore,
    ) -> Prompting:
        """The same for the same question; rows that were tokenised before are not again."""
        values = asdict(settings)
        key = json.dumps([*(values[name] for name in _PROMPT), list(fields), list(classes)])
        found = self._prompting.pop(key, None)
        if found is None:
            fresh = super().prompting(settings, fields, classes, notify)
            found = replace(fresh, encoder=_Remembering(fresh.encoder))
        while len(self._prompting) >= _KEPT:  # the one that was not asked for longest
            del self._prompting[next(iter(self._prompting))]
        self._prompting[key] = found
        return found

    def frozen(self, prompting: Prompting, settings: LLMSettings) -> "PreTrainedModel":
        """The last one where it is the same."""
        engine = (settings.engine, settings.compile, settings.gradient_checkpointing)
        rope = settings.rope_scaling
        form = four_bit_of(settings, prompting.folder, device_of(settings))
        device, precision = str(device_of(settings)), precision_of(settings)
        asked = (prompting.folder, device, precision, form, rope, *engine)
        if self._model is None or asked != self._known:
            if self._model is not None:  # two of them might not fit into memory
                self._model = None
                gc.collect()
            self._model, self._known = super().frozen(prompting, settings), asked
        return remove_lora(self._model)


class _Remembering(PromptEncoder):
    """Keeps the prompts of all rows that it saw."""

    def __init__(self, encoder: PromptEncoder) -> None:
        vars(self).update(vars(encoder))
        self._seen: dict[Text, Prompt] = {}

    def encode(self, texts: Sequence[Text]) -> list[Prompt]:
        """(n,) prompts."""
        new = [text for text in dict.fromkeys(texts) if text not in self._seen]
        self._seen.update(zip(new, super().encode(new), strict=True))
        return [self._seen[text] for text in texts]
