"""Every class counts alike in the loss, whatever rung, engine and micro-batches."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llabel.engine.answer import AnswerHead
from llabel.engine.batching import collate
from llabel.engine.native.library import compiler
from llabel.ladder.class_weight import row_weights, weigh
from llabel.ladder.examples import target_example
from llabel.ladder.logistic import fit_logistic
from llabel.task import Split, Task
from test_packed import lora, model, packed, trie
from test_rungs import CLASSES, LEARNERS, Entry, Models, ids, models
from test_tails import JOINED
from test_training import ROWS, SETTINGS, Training, example
from two_targets import joint_task

__all__ = ["models"]  # a fixture
BALANCED = "balanced"
Y = np.array([row % 3 for row in range(ROWS)]) % 2  # class 1 is rare
TRAINED = [entry for entry in LEARNERS if entry.name != "lookup"]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=50))
def test_classes_weigh_alike_and_rows_1_on_average(y):
    weights = row_weights(np.array(y), BALANCED)
    counts = Counter(y)
    assert weights == pytest.approx([len(y) / (len(counts) * counts[label]) for label in y])
    assert weights.mean() == pytest.approx(1)
    sums = [weights[np.array(y) == label].sum() for label in counts]
    assert sums == pytest.approx([len(y) / len(counts)] * len(counts))
    assert (row_weights(np.array(y), None) == 1).all()


def test_without_weights_a_batch_has_none():
    rows = [example(row) for row in range(ROWS)]
    assert weigh(rows, Y, None) == rows
    assert collate(rows).weights is None
    weighted = weigh(rows, Y, BALANCED)
    assert [replace(row, weights=()) for row in weighted] == rows
    batch = collate(weighted)
    expected = [weighted[row].weights[0] for row in batch.rows.tolist()]
    assert batch.weights.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["answer", "sft", "all"])
@pytest.mark.parametrize("engine", ["plain", "packed"])
def test_a_row_of_weight_2_is_two_rows(engine, loss):
    if engine == "packed" and compiler() is None:
        pytest.skip("there is no C++ compiler")
    labels = trie(["5 6", "5 7", "8"])
    base = lora(model("Llama")).get_base_model()
    head = AnswerHead(base, labels) if engine == "plain" else packed(base, labels)
    rows = [example(row, loss) for row in range(4)]
    doubled = head.loss(collate([replace(rows[0], weights=(2.0,)), *rows[1:]]))
    expected = head.loss(collate([rows[0], *rows]))
    torch.testing.assert_close(doubled, expected)
    doubled.backward()


@pytest.mark.parametrize("loss", ["answer", "sft", "all"])
def test_a_weighted_step_does_not_depend_on_the_cut(loss):
    rows = weigh([example(row, loss) for row in range(ROWS)], Y, BALANCED)
    ends = []
    for budget in (1, 25, 10_000):  # rows alone, groups, all at once
        settings = replace(SETTINGS, epochs=1, schedule="constant", token_budget=budget)
        training = Training(replace(settings, warmup_ratio=0.0, batch_size=ROWS, max_grad_norm=1e9))
        training.run(rows)
        gradients = {n: p.grad for n, p in training.model.named_parameters() if p.requires_grad}
        ends.append((training.steps()[0].loss, gradients))
    (loss_0, gradients_0), *others = ends
    for loss_n, gradients_n in others:
        assert loss_n == pytest.approx(loss_0, abs=1e-6)
        for name, gradient in gradients_0.items():
            torch.testing.assert_close(gradients_n[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_loss_told_is_the_mean_of_weighted_losses():
    rows = weigh([example(row) for row in range(ROWS)], Y, BALANCED)
    training = Training(replace(SETTINGS, batch_size=ROWS, epochs=1))
    alone = [float(training.head.loss(collate([example(row)])).detach()) for row in range(ROWS)]
    training.run(rows)
    expected = np.mean([row.weights[0] * loss for row, loss in zip(rows, alone, strict=True)])
    assert training.steps()[0].loss == pytest.approx(expected, abs=1e-5)


def test_in_steps_of_one_row_a_rare_class_counts_as_much_too():
    rows = weigh([example(row) for row in range(ROWS)], Y, BALANCED)
    settings = replace(SETTINGS, batch_size=1, epochs=1, learning_rate=1e-12)
    training = Training(settings)
    alone = [float(training.head.loss(collate([row])).detach()) for row in rows]
    training.run(rows)
    assert sorted(step.loss for step in training.steps()) == pytest.approx(sorted(alone), abs=1e-5)


def test_weights_of_1_change_nothing():
    rows = [replace(example(row), weights=(1.0,)) for row in range(ROWS)]
    ends = []
    for examples in (rows, [example(row) for row in range(ROWS)]):
        training = Training()
        training.run(examples)
        ends.append(training.weights())
    for name, weight in ends[0].items():
        torch.testing.assert_close(weight, ends[1][name], rtol=1e-4, atol=1e-5)


def test_logistic_regression_without_features_says_even_odds():
    features, y = np.zeros((8, 0), dtype=np.float32), np.array([0] * 6 + [2] * 2)
    plain, _ = fit_logistic(features, y, 3, 1.0)
    even, _ = fit_logistic(features, y, 3, 1.0, class_weight=BALANCED)
    (one,), (other,) = (found.predict_proba(features[:1]) for found in (plain, even))
    assert one[0] / one[2] == pytest.approx(3)
    assert other[0] == pytest.approx(other[2])


def task_of_chance() -> Task:
    """Class 2 has one row in six, class 1 none, and no text tells which."""

    def split(name: str, rows: int) -> Split:
        y = np.array([2 if row % 6 == 0 else 0 for row in range(rows)], dtype=np.int64)
        texts = (("is this 1", "it is news"),) * rows
        return Split(tuple(f"{name}:{row}" for row in range(rows)), texts, y)

    parts = split("train", 24), split("validation", 12), split("test", 6)
    return Task("chance", ("question", "passage"), CLASSES, *parts, "0" * 64)


@pytest.mark.parametrize("entry", TRAINED, ids=ids)
def test_every_trained_rung_minds_it(entry: Entry, models: Models, tmp_path: Path):
    task, found = task_of_chance(), []
    for weight in (None, BALANCED):
        rung = entry.make(models, class_weight=weight).fit(task)
        assert rung.record_.settings["class_weight"] == weight
        found.append(rung.validation_proba_[:, 2].mean())
        rung.save(tmp_path / str(weight))
        again = entry.kind.load(tmp_path / str(weight), device="cpu")
        proba = again.predict_proba(task.validation.texts)
        np.testing.assert_allclose(proba, rung.validation_proba_, atol=1e-6)
    assert found[1] > found[0]


def test_a_refit_weighs_the_rows_that_it_learns_from(models: Models):
    entry = next(entry for entry in TRAINED if entry.name == "bag-of-words")
    task = task_of_chance()
    for refit in (False, True):
        rung = entry.make(models, class_weight=BALANCED, refit=refit).fit(task)
        proba = rung.predict_proba(task.test.texts)
        assert proba[:, 2].mean() == pytest.approx(proba[:, 0].mean(), abs=0.03)


@pytest.mark.parametrize("loss", ["answer", "sft", "all"])
def test_each_target_has_its_own_weight(loss):
    head = AnswerHead(lora(model("Llama")).get_base_model(), JOINED)
    row = target_example((11, 12, 13), (1, 4), JOINED, loss)
    one, two = row.tails
    ending = [(p >= two) - (p < one) for p in row.positions]  # -1 before both, then 0 and 1
    told = {-1: 2.0, 0: 3.0, 1: 1.0}
    assert replace(row, weights=(3.0, 1.0)).choice_weights() == [told[int(e)] for e in ending]

    def of(*wanted: int) -> float:
        chosen = [n for n, e in enumerate(ending) if e in wanted]
        parts = ("positions", "branchings", "targets")
        some = {name: tuple(getattr(row, name)[n] for n in chosen) for name in parts}
        return head.loss(collate([replace(row, **some)])).item() if chosen else 0.0

    found = head.loss(collate([replace(row, weights=(3.0, 1.0))])).item()
    assert found == pytest.approx(2 * of(-1) + 3 * of(0) + of(1), rel=1e-5)


def test_several_targets_are_balanced_each_for_itself():
    y = joint_task(train=10).train.y
    weights = row_weights(y, BALANCED)
    assert weights.shape == y.shape
    for column, own in zip(y.T, weights.T, strict=True):
        assert own.tolist() == row_weights(column, BALANCED).tolist()
    rows = weigh([target_example((11,), (1, 4), JOINED, "answer")] * 10, y, BALANCED)
    assert [row.weights for row in rows] == [tuple(own) for own in weights.tolist()]
