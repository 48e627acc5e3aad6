"""The model before any tuning: read once for all cells that start from it, or are nothing else."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from llabel.config import RunConfig
from llabel.engine.four_bit import parameter_count
from llabel.engine.updates import updates
from llabel.events import Listener, StageStarted
from llabel.folder import write_json
from llabel.ladder.base_models import BaseModels
from llabel.ladder.llm import LLMRung
from llabel.ladder.perplexity import perplexity
from llabel.rung_settings import READS
from llabel.sweep.arrays import read_proba, write_proba
from llabel.sweep.folder import UNTOUCHED, SweepFolder
from llabel.sweep_record import PERPLEXITY_ROWS, LayerUpdate
from llabel.task import Probabilities, Split, Task, Text
from llabel.template import template_digest


@dataclass(frozen=True, slots=True, eq=False)
class Untouched:
    """What the model says before it is tuned.

    Attributes:
        proba: (n_validation, n_classes).
        perplexity, tokens: on the prompts of `some_texts`.
        layers: that tuning would change, with updates of 0.
        parameters: of the model.
    """

    proba: Probabilities
    perplexity: float
    tokens: int
    layers: list[LayerUpdate]
    parameters: int


def some_texts(validation: Split) -> list[Text]:
    """The rows whose prompts' perplexity is told: up to `PERPLEXITY_ROWS`, the same each time."""
    order = np.random.default_rng(0).permutation(len(validation))[:PERPLEXITY_ROWS]
    return [validation.texts[row] for row in sorted(order.tolist())]


def read_untouched(
    folder: SweepFolder, config: RunConfig, task: Task, models: BaseModels, notify: Listener
) -> Untouched:
    """What a sweep's folder knows of a cell's model; found out where nobody did so before."""
    place = folder.out / UNTOUCHED
    place.mkdir(exist_ok=True)
    name = _name(config, task)
    facts, proba = place / f"{name}.json", place / f"{name}.safetensors"
    with folder.lock(f"untouched-{name}"):
        if not facts.is_file():
            found = _ask(config, task, models, notify)
            write_proba(proba, found.proba)
            write_json(facts, {n: getattr(found, n) for n in found.__slots__ if n != "proba"})
        return Untouched(read_proba(proba), **json.loads(facts.read_text(encoding="utf-8")))


def _name(config: RunConfig, task: Task) -> str:
    """Of what decides it: model, prompt, numbers; not the adapters, nor the seed."""
    flat = config.flat()
    values = {name: flat[name] for name in sorted(READS["llm-zero-shot"] - {"seed"})}
    digest = template_digest(flat["template"])
    file = [digest] if digest else []
    text = json.dumps([values, task.fields, list(task.classes), *file])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _ask(config: RunConfig, task: Task, models: BaseModels, notify: Listener) -> Untouched:
    rung = LLMRung(config.llm, models).untrained(task, notify)
    notify(StageStarted("scoring validation rows, untouched model", len(task.validation)))
    proba = rung.predict_proba(task.validation.texts, notify)
    texts = some_texts(task.validation)
    notify(StageStarted("reading prompts, untouched model", len(texts)))
    known = perplexity(rung.reader_, texts, notify)
    layers = [LayerUpdate(layer=u.layer, norm=0.0, relative=0.0) for u in updates(rung.model_)]
    parameters = parameter_count(rung.model_) - rung.trainable_parameters_
    return Untouched(proba, known.value, known.tokens, layers, parameters)
