import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from llabel.engine.batching import collate
from llabel.engine.checkpoint import CheckpointFolder
from llabel.engine.model import load_model
from llabel.engine.native.library import compiler
from llabel.engine.packed import PackedDecoder
from llabel.errors import InputError
from llabel.events import EpochDone, Event, Note, RowsDone, StageStarted, StepDone
from llabel.ladder.llm import LLMRung
from llabel.settings import LLMSettings
from tiny_rungs import BOOL, DEEP, TASK, own_proba, untrained
from tiny_tasks import make_task

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")


def steps(events: list[Event]) -> list[StepDone]:
    return [event for event in events if isinstance(event, StepDone)]


# Learning


@pytest.mark.parametrize("loss", ["answer", "sft", "all"])
@pytest.mark.parametrize("task", [BOOL, DEEP], ids=["bool", "deep"])
def test_eight_rows_are_learnt_by_heart(llm_settings, loss, task):
    rung = LLMRung(llm_settings(loss=loss, epochs=30, patience=None)).fit(task)
    proba = rung.predict_proba(task.train.texts)
    assert proba.shape == (8, len(task.classes))
    assert (proba.argmax(1) == task.train.y).all()
    assert proba[np.arange(8), task.train.y].min() > 0.8


def test_probabilities_are_in_the_order_of_the_classes(llm_settings):
    task = make_task((-1, 2, 10), train=9)
    task = replace(task, validation=task.train)
    rung = LLMRung(llm_settings(epochs=30, patience=None)).fit(task)
    assert rung.classes_ == (-1, 2, 10)
    assert rung.trie_.words == ("-1", "2", "10")
    assert (rung.predict_proba(task.train.texts).argmax(1) == task.train.y).all()


def test_the_same_seed_gives_the_same_result(llm_settings):
    one, same, other = (
        LLMRung(llm_settings(seed=seed, lora_dropout=0.1)).fit(TASK).predict_proba(TASK.test.texts)
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.allclose(one, other, atol=1e-4)


def test_training_leaves_the_callers_random_state_alone(llm_settings):
    before = torch.get_rng_state()
    LLMRung(llm_settings()).fit(TASK)
    assert torch.equal(before, torch.get_rng_state())


def test_an_adapter_of_scale_zero_is_the_untouched_model(llm_settings):
    trained = LLMRung(llm_settings(lora_alpha=0)).fit(TASK).predict_proba(TASK.test.texts)
    assert np.array_equal(trained, untrained(llm_settings()).predict_proba(TASK.test.texts))


def test_a_refit_trains_on_all_rows_for_the_chosen_epochs(llm_settings):
    task = make_task(train=8, validation=6, misleading=True)
    events: list[Event] = []
    rung = LLMRung(llm_settings(epochs=4, patience=None, refit=True)).fit(
        task, notify=events.append
    )
    best = rung.choice_.best_epoch
    assert best < 4  # the validation labels are wrong: learning makes it worse
    stages = [event for event in events if isinstance(event, StageStarted)]
    assert [(stage.name, stage.total) for stage in stages] == [
        ("training", 4 * 8),
        *[("validating", 6)] * 4,
        ("refitting on train + validation", best * (8 + 6)),
    ]
    assert sum(isinstance(event, EpochDone) for event in events) == 4  # none in the refit
    assert [step.steps for step in steps(events)] == [8] * 8 + [best * 4] * (best * 4)
    assert rung.progress_.rows == best * 14


@pytest.mark.parametrize("lora_dropout", [0.0, 0.5])
def test_the_answers_of_the_best_epoch_are_kept(llm_settings, lora_dropout):
    """The last epoch is not the best: what was read then is what the rung says now."""
    task = make_task(train=8, validation=6, misleading=True)
    chosen = llm_settings(epochs=4, patience=None, lora_dropout=lora_dropout)
    rung = LLMRung(chosen).fit(task)
    assert rung.progress_.best_epoch < 4
    assert np.array_equal(rung.validation_proba_, rung.predict_proba(task.validation.texts))


def test_one_fit_loads_the_base_model_once(llm_settings, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "llabel.ladder.label_model.load_model",
        lambda *args: loaded.append(args) or load_model(*args),
    )
    LLMRung(llm_settings(trials=2, refit=True, epochs=1)).fit(TASK)
    assert len(loaded) == 1


@pytest.mark.parametrize("stop", [("training", 3), ("refitting on train + validation", 2)])
def test_a_fit_goes_on_where_it_was_killed(llm_settings, tmp_path, stop):
    chosen = llm_settings(refit=True, lora_dropout=0.1, epochs=2, patience=None)
    stage = [""]

    def killed(event: Event) -> None:
        if isinstance(event, StageStarted):
            stage[0] = event.name
        if isinstance(event, StepDone) and (stage[0], event.step) == stop:
            raise KeyboardInterrupt

    checkpoints = CheckpointFolder(tmp_path / "training", every_steps=2)
    with pytest.raises(KeyboardInterrupt):
        LLMRung(chosen).fit(TASK, checkpoints=checkpoints, notify=killed)
    again = LLMRung(chosen).fit(TASK, checkpoints=checkpoints)
    undisturbed = LLMRung(chosen).fit(TASK)
    adapters = []
    for number, rung in enumerate((again, undisturbed)):
        rung.save(tmp_path / str(number))
        weights = tmp_path / str(number) / "adapter" / "adapter_model.safetensors"
        adapters.append(weights.read_bytes())
    assert adapters[0] == adapters[1]
    assert np.array_equal(again.validation_proba_, undisturbed.validation_proba_)


# What the loss sees


@pytest.mark.parametrize("loss", ["answer", "sft", "all"])
@pytest.mark.parametrize("template", ["qa", "alpaca"])
@torch.no_grad()
def test_the_loss_is_that_of_the_models_own_logits(llm_settings, loss, template):
    rung = untrained(llm_settings(loss=loss, template=template), DEEP)
    end, expected = rung.tokenizer_.eos_token_id, 0.0
    examples, cut = rung.examples(DEEP.train)
    assert cut == 0
    if loss == "answer":
        proba = rung.predict_proba(DEEP.train.texts)
        expected = -np.log(proba[np.arange(8), DEEP.train.y]).sum()
    else:
        for text, label in zip(DEEP.train.texts, DEEP.train.y, strict=True):
            prompt = rung.template_.render(text, DEEP.fields)
            answer = prompt + rung.template_.joint + DEEP.classes[label]
            ids = [*rung.tokenizer_(answer)["input_ids"], end]
            first = len(rung.tokenizer_(prompt)["input_ids"]) if loss == "sft" else 1
            scores = rung.model_(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            expected -= sum(float(scores[at - 1, ids[at]]) for at in range(first, len(ids)))
    assert float(rung.head_.loss(collate(examples))) == pytest.approx(expected, rel=1e-5)


# Prediction


def test_a_batch_is_as_its_rows_alone(llm_settings):
    rung = untrained(llm_settings(), DEEP)
    together = rung.predict_proba(DEEP.train.texts)
    alone = np.concatenate([rung.predict_proba([text]) for text in DEEP.train.texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(together.sum(1), 1, atol=1e-12)
    assert together.dtype == np.float64


def test_streams_come_in_windows_and_count_their_rows(llm_settings, monkeypatch):
    monkeypatch.setattr("llabel.ladder.label_model.PREDICT_WINDOW", 3)
    rung, events = untrained(llm_settings()), []
    parts = list(rung.stream_proba(TASK.train.texts[:7], events.append))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert sum(event.rows for event in events if isinstance(event, RowsDone)) == 7
    assert rung.predict_proba([]).shape == (0, 2)


def test_a_free_answer_that_is_no_label_is_unknown(llm_settings):
    found, answers = untrained(llm_settings()).generate(TASK.test.texts)
    assert found.tolist() == [-1] * 4
    assert not set(answers) & {"true", "false"}


@pytest.mark.parametrize("task", [BOOL, DEEP], ids=["bool", "deep"])
def test_free_answers_after_training_are_labels(llm_settings, task):
    rung = LLMRung(llm_settings(loss="sft", epochs=30, patience=None)).fit(task)
    rung.model_.get_base_model().generation_config.repetition_penalty = 50.0  # some models' own
    found, answers = rung.generate(task.train.texts)
    assert (found == task.train.y).all()
    assert [rung.trie_.words[label] for label in task.train.y] == answers
    alone = [rung.generate([text])[1][0] for text in task.train.texts]
    assert alone == answers  # padding on the left changes nothing


@pytest.mark.parametrize(
    ("written", "ended", "answer", "label"),
    [
        ("true", True, "true", 1),
        ("true\nBecause", False, "true", 1),
        ("\ntrue\n", True, "true", 1),
        ("true", False, "true…", -1),
        ("true because", True, "true because", -1),
        ("Yes\ntrue", True, "Yes", -1),
        ("", True, "", -1),
    ],
)
def test_a_free_answer_is_over_at_the_end_token_or_with_its_line(
    llm_settings, monkeypatch, written, ended, answer, label
):
    rung = untrained(llm_settings())
    tokens = rung.tokenizer_(written, add_special_tokens=False)["input_ids"]
    tokens += [rung.trie_.end_token] * ended
    monkeypatch.setattr(
        "llabel.ladder.label_model.write_answers",
        lambda model, prompts, **_: [dict.fromkeys(range(len(prompts)), tokens)],
    )
    found, answers = rung.generate(TASK.test.texts)
    assert answers == [answer] * 4
    assert found.tolist() == [label] * 4


# Precision


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.1), ("int8", 0.1)])
def test_other_precisions_come_close_to_float32(llm_settings, precision, tolerance):
    expected = LLMRung(llm_settings()).fit(TASK)
    rung = LLMRung(llm_settings(precision=precision)).fit(TASK)
    proba = rung.predict_proba(TASK.test.texts)
    assert np.isfinite(proba).all()
    np.testing.assert_allclose(proba, expected.predict_proba(TASK.test.texts), atol=tolerance)
    trained = [p for p in rung.model_.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert rung.trainable_parameters_ == sum(p.numel() for p in trained)


def test_int8_gradients_point_where_those_of_float32_do(llm_settings):
    gradients = []
    for precision in ("float32", "int8"):
        rung = untrained(llm_settings(precision=precision), DEEP)
        with torch.no_grad():  # B is zero at first, and A would get no gradient
            for name, parameter in rung.model_.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.01)
        rung.head_.loss(collate(rung.examples(DEEP.train)[0])).backward()
        parts = [p.grad.flatten() for p in rung.model_.parameters() if p.requires_grad]
        gradients.append(torch.cat(parts))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
    assert float(gradients[1].norm() / gradients[0].norm()) == pytest.approx(1, abs=0.05)


# The real model


@torch.no_grad()
def test_smollm2_reads_true_and_false_as_single_tokens(smollm2):
    rung = untrained(LLMSettings(model="smollm2-135m", device="cpu", precision="float32"))
    assert [rung.tokenizer_.decode(t) for t in rung.trie_.tokens] == [" false", " true"]
    assert all(len(tokens) == 1 for tokens in rung.trie_.tokens)
    sun = ("is the sun a star", "The Sun is the star at the centre of the Solar System.")
    texts = (sun, *TASK.test.texts)
    together = rung.predict_proba(texts)
    alone = np.concatenate([rung.predict_proba([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    plain = rung.model_.get_base_model()
    np.testing.assert_allclose(own_proba(plain, rung, texts[:1]), together[:1], atol=1e-5)
    assert together.min() > 0.01  # neither label is out of the question


# CUDA


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("loss", ["answer", "sft", "all"])
def test_eight_rows_are_learnt_by_heart_on_cuda(llm_settings, loss, precision, tmp_path):
    chosen = llm_settings(
        loss=loss, epochs=30, patience=None, schedule="constant", device="cuda", precision=precision
    )
    rung = LLMRung(chosen).fit(DEEP)
    proba = rung.predict_proba(DEEP.train.texts)
    assert (proba.argmax(1) == DEEP.train.y).all()
    rung.save(tmp_path)
    on_cpu = LLMRung.load(tmp_path, device="cpu", precision="float32")
    np.testing.assert_allclose(on_cpu.predict_proba(DEEP.train.texts), proba, atol=0.1)


def test_adapters_in_the_last_layers_only(llm_settings, tmp_path):
    rung = LLMRung(llm_settings(adapt_layers=1, epochs=2)).fit(BOOL)
    trained = [name for name, p in rung.model_.named_parameters() if p.requires_grad]
    assert len(trained) == 14  # A and B of seven linear layers
    assert all(".layers.1." in name for name in trained)
    rung.save(tmp_path / "run")
    loaded = LLMRung.load(tmp_path / "run")
    texts = BOOL.test.texts
    np.testing.assert_allclose(loaded.predict_proba(texts), rung.predict_proba(texts), atol=1e-6)


def tokens_read_below(monkeypatch) -> list[int]:
    """Tokens of each pass through the layers below the adapters that keeps their states."""
    read: list[int] = []
    lower = PackedDecoder.lower
    monkeypatch.setattr(
        PackedDecoder,
        "lower",
        lambda self, tokens: read.append(len(tokens.ids)) or lower(self, tokens),
    )
    return read


@needs_compiler
@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({"epochs": 3}, 1),
        ({"epochs": 1}, None),
        ({"epochs": 1, "max_steps": 5}, 1),  # two and a half passes over 8 rows
        ({"epochs": 3, "max_steps": 1}, None),
        ({"epochs": 3, "max_steps": 1, "trials": 2}, 0.5),  # both read the same rows
        ({"epochs": 1, "refit": True}, 1),  # validation rows are those of training
    ],
)
def test_lower_layers_are_kept_where_rows_are_read_again(
    llm_settings, monkeypatch, changes, passes
):
    read = tokens_read_below(monkeypatch)
    rung = LLMRung(llm_settings(adapt_layers=1, batch_size=4, patience=None, **changes)).fit(BOOL)
    assert rung.engine_ == "packed"
    examples, _ = rung.examples(BOOL.train)
    tokens = sum(len(example.input_ids) for example in examples)
    if passes is None:
        assert not read
    else:
        assert sum(read) == pytest.approx(passes * tokens, rel=0.2 if passes < 1 else 0)


@needs_compiler
def test_lower_layers_that_do_not_fit_are_told_once(llm_settings, monkeypatch):
    chosen = llm_settings(adapt_layers=1, epochs=3, trials=2)
    expected = LLMRung(chosen).fit(BOOL).predict_proba(BOOL.test.texts)
    read, told = tokens_read_below(monkeypatch), []
    monkeypatch.setattr("llabel.engine.packed_reader.LIMIT", 6000)
    rung = LLMRung(chosen).fit(BOOL, notify=told.append)
    [note] = [event for event in told if isinstance(event, Note)]
    assert note.text.startswith("What the layers below the adapters give is kept up to")
    examples, _ = rung.examples(BOOL.train)
    tokens = sum(len(example.input_ids) for example in examples)
    assert tokens < sum(read) < 6 * tokens
    np.testing.assert_allclose(rung.predict_proba(BOOL.test.texts), expected, atol=1e-6)


def test_more_layers_than_the_model_has(llm_settings):
    with pytest.raises(InputError, match="--adapt-layers 3: the model has 2 layers"):
        LLMRung(llm_settings(adapt_layers=3)).fit(BOOL)


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_unloading_gives_the_model_back(llm_settings, engine):
    rung = untrained(llm_settings(engine=engine))
    model = weakref.ref(rung.model_.get_base_model())
    rung.unload()
    assert model() is None
