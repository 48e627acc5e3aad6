"""One language model that answers several targets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llabel.errors import InputError
from llabel.ladder.llm import LLMRung
from llabel.ladder.targets import each_target, mean_log_loss
from llabel.metrics import log_loss
from two_targets import CLASSES, joint_task

TASK = joint_task()
HEART = joint_task(train=6)
HEART = replace(HEART, validation=HEART.train)
SPANS = {"weather": slice(0, 2), "place": slice(2, 5)}


@pytest.mark.parametrize("loss", ["answer", "sft", "all"])
def test_rows_of_two_targets_are_learnt_by_heart(llm_settings, loss):
    epochs = 100 if loss == "all" else 30  # a higher learning rate would leave much to rounding
    rung = LLMRung(llm_settings(loss=loss, patience=None, epochs=epochs)).fit(HEART)
    proba = rung.predict_proba(HEART.train.texts)
    assert proba.shape == (6, 5)
    for column, span in enumerate(SPANS.values()):
        np.testing.assert_allclose(proba[:, span].sum(1), 1, atol=1e-12)
        right = HEART.train.y[:, column]
        assert (proba[:, span].argmax(1) + span.start == right).all()
        assert proba[np.arange(6), right].min() > 0.7


@pytest.mark.parametrize("loss", ["answer", "sft"])
def test_a_step_reads_each_text_once_on_both_engines_alike(llm_settings, loss):
    """The adapters and the tokens are the same, to rounding, however a row is read."""
    found = []
    for engine in ("auto", "plain"):
        rung = LLMRung(llm_settings(loss=loss, engine=engine, epochs=1)).fit(TASK)
        found.append((rung.progress_, rung.predict_proba(TASK.test.texts)))
        assert rung.engine_ == ("packed" if engine == "auto" else "plain")
    lengths = rung.encoder_.lengths(TASK.train.texts)
    endings = rung.examples(TASK.train)[0]
    assert found[0][0].tokens == found[1][0].tokens == sum(len(e.input_ids) for e in endings)
    assert found[0][0].tokens < 2 * sum(lengths)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=2e-4)


def test_a_rows_probabilities_do_not_depend_on_the_rows_beside_it(llm_settings):
    rung = LLMRung(llm_settings()).fit(TASK)
    together = rung.predict_proba(TASK.train.texts)
    alone = np.concatenate([rung.predict_proba([text]) for text in TASK.train.texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_each_target_is_read_as_by_a_prompt_of_its_own(llm_settings):
    """Independent: transformers alone, asked for one target, says the same."""
    import torch

    rung = LLMRung(llm_settings(engine="plain")).fit(TASK)
    assert rung.template_.tails == (" Weather:", " Place:")
    proba = rung.predict_proba(TASK.test.texts)
    for row, text in enumerate(TASK.test.texts):
        prompt = rung.template_.render(text, rung.fields_)
        choices = []
        for branching in rung.trie_.branchings:  # a prefix begins with the tail
            ids = [*rung.tokenizer_(prompt)["input_ids"], *branching.prefix]
            with torch.no_grad():
                logits = rung.model_(input_ids=torch.tensor([ids])).logits[0, -1]
            choices.append(logits[list(branching.children)].softmax(0))
        expected = [
            float(np.prod([choices[number][child] for number, child in path]))
            for path in rung.trie_.steps
        ]
        np.testing.assert_allclose(proba[row], expected, atol=1e-5)
    tails = [rung.tokenizer_.decode(target.tail) for target in rung.trie_.targets]
    assert tails == [" Weather:", " Place:"]


def test_what_was_saved_answers_the_same(llm_settings, tmp_path: Path):
    rung = LLMRung(llm_settings()).fit(TASK)
    rung.save(tmp_path)
    again = LLMRung.load(tmp_path)
    assert again.classes_ == CLASSES
    assert again.template_ == rung.template_
    assert np.array_equal(again.predict_proba(TASK.test.texts), rung.predict_proba(TASK.test.texts))


def test_a_target_is_a_rung_of_its_own_and_texts_are_read_once(llm_settings):
    rung = LLMRung(llm_settings()).fit(TASK)
    whole = rung.predict_proba(TASK.test.texts)
    read = []
    rung.predict_proba = lambda texts, notify=None: (
        read.append(len(texts)) or np.stack([whole[TASK.test.texts.index(text)] for text in texts])
    )
    targets = each_target(rung)
    assert list(targets) == ["weather", "place"]
    assert targets["place"].classes_ == ("hill", "sea", "town")
    for name, target in targets.items():
        assert np.array_equal(target.predict_proba(TASK.test.texts), whole[:, SPANS[name]])
        assert target.validation_proba_.shape == (6, len(target.classes_))
        assert target.name == "llm-lora"
        assert target.whole is rung
        assert target.engine_ == rung.engine_
    assert read == [5]
    assert targets["place"].predict_proba(()).shape == (0, 3)


def test_free_answers_are_asked_for_target_by_target(llm_settings):
    rung = LLMRung(llm_settings(loss="sft", epochs=30, patience=None)).fit(HEART)
    for column, target in enumerate(each_target(rung).values()):
        answers, written = target.generate(HEART.train.texts)
        right = HEART.train.y[:, column] - (0, 2)[column]
        assert (answers == right).mean() > 0.8
        assert written[0] == target.classes_[right[0]]


def test_the_loss_of_several_targets_is_the_mean_of_theirs(llm_settings):
    rung = LLMRung(llm_settings()).fit(TASK)
    proba, y = rung.validation_proba_, TASK.validation.y
    own = [log_loss(y[:, 0], proba[:, :2]), log_loss(y[:, 1] - 2, proba[:, 2:])]
    assert mean_log_loss(y, proba) == pytest.approx(np.mean(own))
    assert rung.record_.trials[0].validation_loss == pytest.approx(np.mean(own))


def test_weighted_classes_count_alike_within_each_target(llm_settings):
    LLMRung(llm_settings(class_weight="balanced", epochs=1)).fit(TASK)


def test_label_words_name_their_target(llm_settings):
    words = {"place.sea": "the coast", "weather.sun": "warm"}
    rung = LLMRung(llm_settings(label_words=words)).prepare(TASK.fields, CLASSES)
    assert rung.trie_.words == ("ice", "warm", "hill", "the coast", "town")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"sea": "coast"}, r"--label-words 'sea': with several targets .* as 'place.sea=...'"),
        ({"place.lake": "pond"}, r"Target place: --label-words names 'lake', which is no label"),
        ({"place.sea": "hill"}, r"Target place: The labels 'hill' and 'sea' have the same words"),
    ],
)
def test_label_words_of_no_target_are_refused(llm_settings, words, message):
    with pytest.raises(InputError, match=message):
        LLMRung(llm_settings(label_words=words)).prepare(TASK.fields, CLASSES)
