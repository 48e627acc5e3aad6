"""How far tuning moved the weights, and what that did to the texts."""

import gc
import weakref

import numpy as np
import pytest
import torch

from llabel.engine.linear import Int8Linear
from llabel.engine.model import remove_lora
from llabel.engine.updates import in_all, updates
from llabel.ladder.base_models import KeptBaseModels
from llabel.ladder.llm import LLMRung
from llabel.ladder.perplexity import perplexity
from llabel.prompt import PromptEncoder
from tiny_rungs import TASK


def direct(rung: LLMRung, layer: int | None = None) -> tuple[float, float]:
    """Norms of the updates and of the frozen weights, from whole matrices."""
    update = frozen = 0.0
    for name, module in rung.model_.named_modules():
        if hasattr(module, "lora_A") and (layer is None or f"layers.{layer}." in name):
            update += float(module.get_delta_weight("default").double().square().sum())
            base = module.get_base_layer()
            whole = base.dequantised() if isinstance(base, Int8Linear) else base.weight
            frozen += float(whole.double().square().sum())
    return update**0.5, frozen**0.5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"r": 100, "use_rslora": True},
        {"engine": "plain", "target_modules": ("q_proj", "down_proj")},
        {"adapt_layers": 1},
        {"precision": "int8"},
    ],
    ids=str,
)
def test_norms_are_those_of_the_whole_matrices(llm_settings, changes) -> None:
    rung = LLMRung(llm_settings(epochs=1, **changes)).fit(TASK)
    found = updates(rung.model_)
    assert [u.layer for u in found] == ([1] if "adapt_layers" in changes else [0, 1])
    for update in [*found, in_all(found)]:
        layer = None if update.layer < 0 else update.layer
        norm, frozen = direct(rung, layer)
        assert update.norm == pytest.approx(norm, rel=1e-5) != 0
        assert update.frozen == pytest.approx(frozen, rel=1e-9)
        assert update.relative == update.norm / update.frozen


def test_fresh_adapters_move_nothing(llm_settings) -> None:
    rung = LLMRung(llm_settings()).untrained(TASK)
    assert [(u.layer, u.norm) for u in updates(rung.model_)] == [(0, 0), (1, 0)]


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_perplexity_is_that_of_transformers(llm_settings, engine: str) -> None:
    rung = LLMRung(llm_settings(epochs=1, engine=engine, token_budget=60)).fit(TASK)
    texts = TASK.validation.texts
    found = perplexity(rung.reader_, texts)
    losses, tokens = [], 0
    for prompt in rung.encoder_.encode(texts):
        ids = torch.tensor([prompt.input_ids])
        with torch.no_grad():
            mean = rung.model_(input_ids=ids, labels=ids).loss
        losses.append(float(mean) * (ids.shape[1] - 1))
        tokens += ids.shape[1] - 1
    assert found.tokens == tokens
    assert found.value == pytest.approx(np.exp(sum(losses) / tokens), rel=1e-5)


def trained(settings, models: KeptBaseModels | None = None) -> list[bytes]:
    rung = LLMRung(settings, models).fit(TASK)
    named = [p for p in rung.model_.parameters() if p.requires_grad]
    weights = [p.detach().numpy().tobytes() for p in named]
    return [*weights, rung.validation_proba_.tobytes()]


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_a_model_that_was_used_is_as_good_as_new(llm_settings, engine: str, precision: str) -> None:
    """Other adapters, other rows of them, a training that fell over: none leaves a trace."""
    few = {"engine": engine, "precision": precision, "epochs": 1}
    models = KeptBaseModels()
    trained(llm_settings(r=8, lora_dropout=0.1 if engine == "plain" else 0.0, **few), models)
    broken = LLMRung(llm_settings(**few), models, watch=_fall_over)
    with pytest.raises(MemoryError):
        broken.fit(TASK)
    model = models._model
    assert trained(llm_settings(r=2, **few), models) == trained(llm_settings(r=2, **few))
    assert models._model is model
    bare = remove_lora(model)
    assert not any("lora" in name for name, _ in bare.named_parameters())


def _fall_over(step: int, steps: int, loss) -> None:
    raise MemoryError


def test_prompts_are_tokenised_once(llm_settings) -> None:
    models, settings = KeptBaseModels(), llm_settings()
    first = models.prompting(settings, TASK.fields, TASK.classes)
    fresh = LLMRung(settings).prepare(TASK.fields, TASK.classes)
    texts = [*TASK.train.texts, *TASK.train.texts[:2]]
    assert first.encoder.encode(texts) == fresh.encoder_.encode(texts)
    assert models.prompting(llm_settings(r=9), TASK.fields, TASK.classes) is first
    assert first.encoder.encode(texts)[0] is first.encoder.encode(texts)[-2]
    other = models.prompting(llm_settings(template="alpaca"), TASK.fields, TASK.classes)
    assert other is not first


def test_only_the_prompts_of_the_last_two_questions_are_kept(llm_settings) -> None:
    models = KeptBaseModels()

    def ask(length: int) -> PromptEncoder:
        settings = llm_settings(max_seq_length=length)
        return models.prompting(settings, TASK.fields, TASK.classes).encoder

    first, second = weakref.ref(ask(50)), weakref.ref(ask(60))
    assert ask(50) is first()
    ask(70)
    gc.collect()
    assert first() is not None
    assert second() is None, "it was asked longest ago"
    assert ask(50) is first()


def test_a_training_that_is_watched_is_the_same_training(llm_settings) -> None:
    asked: list[tuple[int, float]] = []

    def look(step: int, steps: int, loss) -> None:
        if step % 2 == 0:
            asked.append((step, loss()))

    settings = llm_settings(engine="plain", lora_dropout=0.2, epochs=2)
    watched = LLMRung(settings, watch=look).fit(TASK)
    alone = LLMRung(settings).fit(TASK)
    assert np.array_equal(watched.validation_proba_, alone.validation_proba_)
    assert watched.record_.trials[0].epoch_losses == alone.record_.trials[0].epoch_losses
    assert [step for step, _ in asked] == [2, 4, 6, 8, 10]
    assert asked[-1][1] == watched.progress_.epoch_losses[-1], "at an epoch's end nothing is asked"
    assert len({loss for _, loss in asked}) == 5
