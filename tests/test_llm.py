import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from llabel.engine.batching import collate
from llabel.engine.checkpoint import CheckpointFolder
from llabel.errors import InputError
from llabel.events import EpochDone, Event, Note, RowsDone, StageStarted, StepDone
from llabel.ladder.llm import LLMRung
from llabel.settings import LLMSettings
from llabel.task import Task
from tiny_tasks import make_task

TASK = make_task()
# Tasks to learn by heart: validation on the training rows keeps the epoch that knows them best.
BOOL = make_task(train=8)
BOOL = replace(BOOL, validation=BOOL.train)
DEEP = make_task(("style", "style & beauty", "sports", "sports news"), train=8)
DEEP = replace(DEEP, validation=DEEP.train)


@pytest.fixture
def settings(tiny_llama):
    """Make settings for a short training on the tiny model."""

    def make(**changes: Any) -> LLMSettings:
        defaults = LLMSettings(
            model=str(tiny_llama),
            r=4,
            lora_alpha=8,
            learning_rate=1e-2,
            epochs=2,
            batch_size=4,
            token_budget=200,
            device="cpu",
        )
        return replace(defaults, **changes)

    return make


def untrained(settings: LLMSettings, task: Task = TASK) -> LLMRung:
    """With fresh adapters, which change nothing yet."""
    rung = LLMRung(settings).prepare(task.fields, task.classes)
    rung._load_model()
    return rung


def steps(events: list[Event]) -> list[StepDone]:
    return [event for event in events if isinstance(event, StepDone)]


# Learning


@pytest.mark.parametrize("loss", ["answer", "sft", "all"])
@pytest.mark.parametrize("task", [BOOL, DEEP], ids=["bool", "deep"])
def test_eight_rows_are_learnt_by_heart(settings, loss, task):
    rung = LLMRung(settings(loss=loss, epochs=30, patience=None)).fit(task)
    proba = rung.predict_proba(task.train.texts)
    assert proba.shape == (8, len(task.classes))
    assert (proba.argmax(1) == task.train.y).all()
    assert proba[np.arange(8), task.train.y].min() > 0.8


def test_probabilities_are_in_the_order_of_the_classes(settings):
    task = make_task((-1, 2, 10), train=9)
    task = replace(task, validation=task.train)
    rung = LLMRung(settings(epochs=30, patience=None)).fit(task)
    assert rung.classes_ == (-1, 2, 10)
    assert rung.trie_.words == ("-1", "2", "10")
    assert (rung.predict_proba(task.train.texts).argmax(1) == task.train.y).all()


def test_the_same_seed_gives_the_same_result(settings):
    one, same, other = (
        LLMRung(settings(seed=seed, lora_dropout=0.1)).fit(TASK).predict_proba(TASK.test.texts)
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.allclose(one, other, atol=1e-4)


def test_training_leaves_the_callers_random_state_alone(settings):
    before = torch.get_rng_state()
    LLMRung(settings()).fit(TASK)
    assert torch.equal(before, torch.get_rng_state())


def test_an_adapter_of_scale_zero_is_the_untouched_model(settings):
    trained = LLMRung(settings(lora_alpha=0)).fit(TASK).predict_proba(TASK.test.texts)
    assert np.array_equal(trained, untrained(settings()).predict_proba(TASK.test.texts))


def test_a_refit_trains_on_all_rows_for_the_chosen_epochs(settings):
    task = make_task(train=8, validation=6, misleading=True)
    events: list[Event] = []
    rung = LLMRung(settings(epochs=4, patience=None, refit=True)).fit(task, notify=events.append)
    best = rung.choice_.best_epoch
    assert best < 4  # the validation labels are wrong: learning makes it worse
    stages = [event for event in events if isinstance(event, StageStarted)]
    assert [(stage.name, stage.total) for stage in stages] == [
        ("training", 4 * 8),
        ("refitting on train + validation", best * (8 + 6)),
    ]
    assert sum(isinstance(event, EpochDone) for event in events) == 4  # none in the refit
    assert [step.steps for step in steps(events)] == [8] * 8 + [best * 4] * (best * 4)
    assert rung.progress_.rows == best * 14


@pytest.mark.parametrize("stop", [("training", 3), ("refitting on train + validation", 2)])
def test_a_fit_goes_on_where_it_was_killed(settings, tmp_path, stop):
    chosen = settings(refit=True, lora_dropout=0.1, epochs=2, patience=None)
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
def test_the_loss_is_that_of_the_models_own_logits(settings, loss, template):
    rung = untrained(settings(loss=loss, template=template), DEEP)
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


def test_a_batch_is_as_its_rows_alone(settings):
    rung = untrained(settings(), DEEP)
    together = rung.predict_proba(DEEP.train.texts)
    alone = np.concatenate([rung.predict_proba([text]) for text in DEEP.train.texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(together.sum(1), 1, atol=1e-12)
    assert together.dtype == np.float64


def test_streams_come_in_windows_and_count_their_rows(settings, monkeypatch):
    monkeypatch.setattr("llabel.ladder.llm.PREDICT_WINDOW", 3)
    rung, events = untrained(settings()), []
    parts = list(rung.stream_proba(TASK.train.texts[:7], events.append))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert sum(event.rows for event in events if isinstance(event, RowsDone)) == 7
    assert rung.predict_proba([]).shape == (0, 2)


def test_a_free_answer_that_is_no_label_is_unknown(settings):
    found, answers = untrained(settings()).generate(TASK.test.texts)
    assert found.tolist() == [-1] * 4
    assert not set(answers) & {"true", "false"}


@pytest.mark.parametrize("task", [BOOL, DEEP], ids=["bool", "deep"])
def test_free_answers_after_training_are_labels(settings, task):
    rung = LLMRung(settings(loss="sft", epochs=30, patience=None)).fit(task)
    rung.model_.get_base_model().generation_config.repetition_penalty = 50.0  # some models' own
    found, answers = rung.generate(task.train.texts)
    assert (found == task.train.y).all()
    assert [rung.trie_.words[label] for label in task.train.y] == answers
    alone = [rung.generate([text])[1][0] for text in task.train.texts]
    assert alone == answers  # padding on the left changes nothing


# Adapters


@pytest.fixture
def trained(settings, tmp_path):
    rung = LLMRung(settings(template="alpaca")).fit(TASK)
    rung.save(tmp_path / "run")
    return rung


@torch.no_grad()
def own_proba(model: Any, rung: LLMRung, texts: Any) -> np.ndarray:
    """(n, 2) probabilities by transformers alone: softmax over what tells the two labels apart."""
    rows = []
    for text in texts:
        prompt = rung.template_.render(text, rung.fields_)
        scores = []
        for word in rung.trie_.words:
            ids = rung.tokenizer_(prompt + rung.template_.joint + word)["input_ids"]
            scores.append(float(model(input_ids=torch.tensor([ids])).logits[0, -2, ids[-1]]))
        rows.append(torch.tensor(scores).softmax(0).numpy())
    return np.stack(rows)


def test_peft_alone_gives_the_same_probabilities(settings, tiny_llama, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    rung = LLMRung(settings()).fit(TASK)  # " true" and " false" are single tokens
    assert all(len(tokens) == 1 for tokens in rung.trie_.tokens)
    rung.save(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    expected = rung.predict_proba(TASK.test.texts)
    np.testing.assert_allclose(own_proba(adapted, rung, TASK.test.texts), expected, atol=1e-5)
    zero_shot = untrained(settings()).predict_proba(TASK.test.texts)
    assert np.abs(zero_shot - expected).max() > 0.05  # training did change something


def test_a_merged_model_gives_the_same_probabilities(settings):
    rung = LLMRung(settings()).fit(TASK)
    expected = rung.predict_proba(TASK.test.texts)
    merged = rung.model_.merge_and_unload()
    np.testing.assert_allclose(own_proba(merged, rung, TASK.test.texts), expected, atol=1e-4)


@pytest.mark.parametrize(
    "classes", [(False, True), (1, 2, 30), ("style", "style & beauty", "naïve 😀")]
)
def test_what_is_loaded_is_what_was_saved(settings, tmp_path, classes):
    task = make_task(classes, train=6)
    rung = LLMRung(settings(template="alpaca", label_words={str(classes[0]): "Nope"})).fit(task)
    rung.save(tmp_path)
    loaded = LLMRung.load(tmp_path)
    expected = rung.predict_proba(TASK.test.texts)
    assert np.array_equal(loaded.predict_proba(TASK.test.texts), expected)
    assert loaded.classes_ == classes
    assert [type(label) for label in loaded.classes_] == [type(label) for label in classes]
    assert (loaded.settings, loaded.trie_, loaded.template_) == (
        rung.settings,
        rung.trie_,
        rung.template_,
    )


def test_a_saved_rung_does_not_need_its_template_file(settings, tmp_path):
    path = tmp_path / "template.txt"
    path.write_text("{question}? {passage} One of {labels}:")
    rung = LLMRung(settings(template=str(path))).fit(TASK)
    rung.save(tmp_path / "run")
    path.unlink()
    loaded = LLMRung.load(tmp_path / "run")
    expected = rung.predict_proba(TASK.test.texts)
    assert np.array_equal(loaded.predict_proba(TASK.test.texts), expected)


def test_saving_again_replaces_and_leaves_nothing_behind(trained, tmp_path):
    trained.save(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"adapter", "rung.json"}
    files = {path.name for path in (tmp_path / "run" / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    record = json.loads((tmp_path / "run" / "rung.json").read_text())
    assert record["classes"] == [False, True]


def test_settings_may_be_changed_on_loading(trained, tmp_path):
    loaded = LLMRung.load(tmp_path / "run", precision="bfloat16", token_budget=64)
    assert loaded.model_.get_base_model().dtype == torch.bfloat16
    expected = trained.predict_proba(TASK.test.texts)
    np.testing.assert_allclose(loaded.predict_proba(TASK.test.texts), expected, atol=0.1)


@pytest.mark.parametrize(
    ("lose", "message"),
    [
        ("rung.json", r"holds no trained rung \(rung.json is missing\).*finished `llabel fit`"),
        ("adapter/adapter_model.safetensors", r"holds no adapter_model\.safetensors"),
    ],
)
def test_folders_that_hold_no_rung(trained, tmp_path, lose, message):
    (tmp_path / "run" / lose).unlink()
    with pytest.raises(InputError, match=message):
        LLMRung.load(tmp_path / "run")


# Precision


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.1), ("int8", 0.1)])
def test_other_precisions_come_close_to_float32(settings, precision, tolerance):
    expected = LLMRung(settings()).fit(TASK)
    rung = LLMRung(settings(precision=precision)).fit(TASK)
    proba = rung.predict_proba(TASK.test.texts)
    assert np.isfinite(proba).all()
    np.testing.assert_allclose(proba, expected.predict_proba(TASK.test.texts), atol=tolerance)
    trained = [p for p in rung.model_.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert rung.trainable_parameters_ == sum(p.numel() for p in trained)


def test_int8_gradients_point_where_those_of_float32_do(settings):
    gradients = []
    for precision in ("float32", "int8"):
        rung = untrained(settings(precision=precision), DEEP)
        with torch.no_grad():  # B is zero at first, and A would get no gradient
            for name, parameter in rung.model_.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.01)
        rung.head_.loss(collate(rung.examples(DEEP.train)[0])).backward()
        parts = [p.grad.flatten() for p in rung.model_.parameters() if p.requires_grad]
        gradients.append(torch.cat(parts))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
    assert float(gradients[1].norm() / gradients[0].norm()) == pytest.approx(1, abs=0.05)


# Prompts that fit


def test_rows_that_are_cut_are_counted_and_told(settings):
    long = replace(TASK.train, texts=(("why", "because " * 200), *TASK.train.texts[1:]))
    events: list[Event] = []
    chosen = settings(max_seq_length=60, epochs=1)
    rung = LLMRung(chosen).fit(replace(TASK, train=long), notify=events.append)
    assert rung.truncated_ == {"train": 1, "validation": 0}
    [note] = [event for event in events if isinstance(event, Note)]
    assert note.text.startswith("1 of 26 rows are longer than 58 tokens")
    examples, _ = rung.examples(long)
    assert max(len(example.input_ids) for example in examples) == 58  # " true" and its end make 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_seq_length": 10}, r"The template alone takes \d+ tokens, but only 8 are allowed"),
        (
            {"max_seq_length": 513},
            "--max-seq-length 513 is more than the context of .*: 512 tokens",
        ),
        ({"template": "plane"}, "--template 'plane' is neither .* Did you mean 'plain'"),
        ({"label_words": {"True": "false"}}, "False and True have the same words 'false'"),
        ({"label_words": {"yes": "false"}}, "names 'yes', which is no label. Labels: False, True"),
        ({"model": "nowhere"}, "cannot find a model named 'nowhere'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_without_weights(settings, changes, message):
    with pytest.raises(InputError, match=message):
        LLMRung(settings(**changes)).prepare(TASK.fields, TASK.classes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ("q_proj", "c_attn")}, "no linear layer 'c_attn'.*all-linear.*q_proj"),
        ({"target_modules": ("lm_head",)}, "no linear layer 'lm_head' to adapt"),
        ({"target_modules": ("embed_tokens",)}, "no linear layer 'embed_tokens'"),
        ({"precision": "int4"}, "--precision 'int4': use one of float32, bfloat16, int8"),
        ({"device": "tpu"}, "--device 'tpu' is unknown. Use auto, cpu, cuda"),
        ({"device": "meta"}, "--device 'meta' is unknown. Use auto, cpu, cuda"),
        ({"device": "cuda:99"}, "--device 'cuda:99': this PyTorch sees \\d+ CUDA devices"),
    ],
)
def test_settings_that_do_not_fit_the_model(settings, changes, message):
    with pytest.raises(InputError, match=message):
        LLMRung(settings(**changes)).fit(TASK)


def test_target_modules_are_those_named(settings):
    rung = untrained(settings(target_modules=("q_proj", "mlp.up_proj")))
    trained = [name for name, p in rung.model_.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 2  # two layers, two modules, A and B
    assert all("q_proj" in name or "up_proj" in name for name in trained)


def test_a_model_that_begins_every_text(settings, tiny_llama_bos):
    rung = LLMRung(settings(model=str(tiny_llama_bos), epochs=30, patience=None)).fit(DEEP)
    assert (rung.predict_proba(DEEP.train.texts).argmax(1) == DEEP.train.y).all()


def test_damaged_weights_are_told(settings, tiny_llama, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match="holds no causal language model with safetensors"):
        LLMRung(settings(model=str(folder))).fit(TASK)


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
def test_eight_rows_are_learnt_by_heart_on_cuda(settings, loss, precision, tmp_path):
    chosen = settings(
        loss=loss, epochs=30, patience=None, schedule="constant", device="cuda", precision=precision
    )
    rung = LLMRung(chosen).fit(DEEP)
    proba = rung.predict_proba(DEEP.train.texts)
    assert (proba.argmax(1) == DEEP.train.y).all()
    rung.save(tmp_path)
    on_cpu = LLMRung.load(tmp_path, device="cpu", precision="float32")
    np.testing.assert_allclose(on_cpu.predict_proba(DEEP.train.texts), proba, atol=0.1)
