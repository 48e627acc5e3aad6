from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from llabel.engine.batching import collate
from llabel.ladder import transformer
from llabel.ladder.contract import FitSettings
from llabel.ladder.neural import example
from llabel.ladder.transformer import TransformerNetwork, TransformerRung
from llabel.ladder.words import FIRST_WORD
from llabel.task import Split, Task


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = replace(transformer.RECIPE, batch_size=4, learning_rate=2e-3, patience=15)
    monkeypatch.setattr(transformer, "RECIPE", quick)


def task_of(*rows: tuple[str, int]) -> Task:
    texts, y = tuple((text,) for text, _ in rows), np.array([label for _, label in rows])
    part = Split(tuple(f"train:{n}" for n in range(len(rows))), texts, y)
    return Task("order", ("text",), ("no", "yes"), part, part, part, "0" * 64)


def fit(task: Task, **changes: Any) -> TransformerRung:
    return TransformerRung(FitSettings(trials=1, device="cpu", **changes)).fit(task)


ORDER = [("good bad", 1), ("bad good", 0), ("great awful", 1), ("awful great", 0)]


def test_the_order_of_words_can_be_learnt():
    rung = fit(task_of(*ORDER * 6))
    proba = rung.predict_proba([(text,) for text, _ in ORDER])
    assert proba.argmax(axis=1).tolist() == [y for _, y in ORDER]
    assert rung.record_.settings["words"] == 4


def test_padding_and_neighbours_do_not_matter():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = TransformerNetwork(FIRST_WORD, 16, 3).eval()
    rows = [example(list(range(1, n))) for n in (3, 17, 2, 9)]
    with torch.inference_mode():
        together = net(collate(rows))
        alone = torch.cat([net(collate([row])) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_no_row_is_longer_than_the_positions():
    rung = fit(task_of(*ORDER), max_seq_length=3)
    assert rung.record_.settings["max_seq_length"] == 3
    assert rung.predict_proba([("good " * 50,)]).shape == (1, 2)
    cut = fit(task_of(("good bad awful great", 1), ("bad", 0)), max_seq_length=3).record_.truncated
    assert cut == {"train": 1, "validation": 1}
