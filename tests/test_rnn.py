from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llabel.engine.batching import collate
from llabel.errors import InputError
from llabel.ladder import rnn
from llabel.ladder.contract import FitSettings
from llabel.ladder.neural import example
from llabel.ladder.rnn import LSTMNetwork, RNNRung
from llabel.ladder.words import FIRST_WORD, PAD
from llabel.task import Split, Task

TONES = {"good": (1, 0, 1), "great": (1, 0.2, 1), "bad": (-1, 0, 1), "awful": (-1, 0.2, 1)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLABEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        rnn, "RECIPE", replace(rnn.RECIPE, batch_size=4, patience=15, learning_rate=5e-3)
    )


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    path = tmp_path / "vectors.txt"
    lines = [" ".join([word, *map(str, numbers)]) for word, numbers in TONES.items()]
    path.write_text("\n".join([*lines, "film 0 1 1"]) + "\n", encoding="utf-8")
    return path


def task_of(*rows: tuple[str, int]) -> Task:
    texts, y = tuple((text,) for text, _ in rows), np.array([label for _, label in rows])
    part = Split(tuple(f"train:{n}" for n in range(len(rows))), texts, y)
    return Task("tones", ("text",), ("no", "yes"), part, part, part, "0" * 64)


def fit(task: Task, vectors: Path, **changes: Any) -> RNNRung:
    settings = FitSettings(embeddings=str(vectors), trials=1, device="cpu", **changes)
    return RNNRung(settings).fit(task)


def test_words_that_training_lacked_count_by_their_vectors_even_after_loading(vectors, tmp_path):
    rung = fit(task_of(*[("film good", 1), ("bad film", 0), ("good", 1), ("bad", 0)] * 3), vectors)
    rung.save(tmp_path / "rung")
    for each in (rung, RNNRung.load(tmp_path / "rung", device="cpu")):
        proba = each.predict_proba([("awful",), ("great",), ("film awful",)])
        assert proba.argmax(axis=1).tolist() == [0, 1, 0]


def test_the_order_of_words_can_be_learnt(vectors):
    rows = [("good bad", 1), ("bad good", 0), ("great awful", 1), ("awful great", 0)]
    proba = fit(task_of(*rows * 6), vectors).predict_proba([(text,) for text, _ in rows])
    assert proba.argmax(axis=1).tolist() == [y for _, y in rows]


def network(own: int = FIRST_WORD + 2) -> LSTMNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        frozen = torch.cat([torch.zeros(own, 3), torch.randn(4, 3)])
        frozen[own - 1] = torch.tensor([1.0, 2.0, 3.0])  # an own word that has a vector
        return LSTMNetwork(frozen, own, 2).eval()


def test_both_directions_stop_where_a_row_ends():
    net, long, short = network(), [5, 9, 518, 6, 7], [7, 519]
    together = net(collate([example(long), example(short)]))
    alone = torch.cat([net(collate([example(ids)])) for ids in (long, short)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    turned = net(collate([example(long[::-1])]))
    assert not torch.allclose(turned, alone[:1], atol=1e-3)
    net.backwards.load_state_dict(net.forwards.state_dict())
    # Alike LSTMs see a palindrome alike: the second really begins at the row's last word.
    batch = collate([example([5, 9, 5]), example(long)])
    states = []
    net.head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0][0]))
    net(batch)
    first, second = states[0].reshape(2, 2, -1).unbind(1)
    torch.testing.assert_close(first, second)


def test_pre_trained_vectors_are_not_trained_and_learnt_ones_begin_beside_them():
    net = network()
    assert "frozen" not in dict(net.named_parameters())
    assert "frozen" not in net.state_dict()
    learnt = net.learnt.weight.detach()
    assert not learnt[PAD].any()
    assert not learnt[-1].any()  # its pre-trained vector is where it begins
    assert learnt[1:-1].any(dim=1).all()


def test_what_the_record_counts(vectors):
    rung = fit(task_of(("good film", 1), ("bad film", 0)), vectors)
    record = rung.record_
    assert record.parameters - record.trainable_parameters == 5 * 3  # the vectors
    assert record.settings["words"] == 1  # only film occurs twice


def test_other_vectors_at_load_are_refused(vectors, tmp_path):
    fit(task_of(("good", 1), ("bad", 0)), vectors).save(tmp_path / "rung")
    vectors.write_text("good 1 2 3\n", encoding="utf-8")
    with pytest.raises(InputError, match="are not those it was trained with"):
        RNNRung.load(tmp_path / "rung")
