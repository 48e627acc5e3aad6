from dataclasses import replace
from pathlib import Path

import pytest

from llabel.dry_run import prepare, run_cost
from llabel.run import load
from runs import config, write_weather


@pytest.mark.parametrize("refit", [False, True])
def test_the_cost_counts_all_that_a_run_predicts(
    tmp_path: Path, tiny_llama: Path, refit: bool
) -> None:
    made = config(write_weather(tmp_path / "weather.jsonl", 60), tiny_llama, epochs=3, refit=refit)
    task = load(made).task
    rung = prepare(made, task)
    validation = sum(rung.encoder_.lengths(task.validation.texts))
    trainings = 3 * (2 if refit else 1)
    found = run_cost(rung, task)(1000, 500)
    seconds_per_token = found.train_seconds / (2 * 1000 * trainings)  # forward and backward
    predicted = found.predict_seconds / seconds_per_token
    assert predicted == pytest.approx(500 + 3 * validation + 1000)


def test_of_many_training_rows_a_sample_is_predicted(tmp_path: Path, tiny_llama: Path) -> None:
    made = config(write_weather(tmp_path / "weather.jsonl", 60), tiny_llama, epochs=1)
    task = load(made).task
    task = replace(task, validation=replace(task.validation, ids=(), texts=()),
                   train=replace(task.train, ids=task.train.ids * 100))  # fmt: skip
    found = run_cost(prepare(made, task), task)(1000, 500)
    share = 1000 / len(task.train)
    predicted = 2 * 1000 * found.predict_seconds / found.train_seconds
    assert predicted == pytest.approx(500 + share * 1000, abs=1)
