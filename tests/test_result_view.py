from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from llabel.card import render_card
from llabel.metrics import wilson_interval
from llabel.numbers import size, two_digits
from llabel.record import RunRecord
from llabel.result_view import render_evaluation, render_run

NUMBERS = ("10,000", "0.6122", "0.3122–0.6045", "0.5000", "1.2345", "0.1000")
REPORT = {"kind": "class", "precision": 0.5, "recall": 0.25, "f1": 0.3333, "support": 10_000,
          "predicted": 7}  # fmt: skip


def scores(rows: int) -> dict[str, Any]:
    low_high = [0.3122, 0.6045]
    return {"rows": rows, "accuracy": 0.6122, "accuracy_ci95": low_high, "macro_f1": 0.5,
            "log_loss": 1.2345, "ece": 0.1}  # fmt: skip


def record(*, decode: str = "labels", train_rows: int = 8485) -> RunRecord:
    baseline = {"accuracy": 0.62, "accuracy_ci95": [0.6, 0.63], "accuracy_unseen": None}
    made = {
        "rung": "llm-lora",
        "config": {"model": "tiny", "decode": decode, "r": 16, "lora_alpha": 32.0},
        "data": {
            "source": "boolq", "fields": ["question"], "classes": [False, True], "notes": [],
            "fingerprint": "f" * 64,
            "rows": {"train": train_rows, "validation": 942, "test": 10_000},
        },
        "metrics": {"train": scores(1000), "validation": scores(942), "test": scores(10_000),
                    "test_unseen": scores(2318)},
        "baselines": {"majority": baseline | {"column": None},
                      "lookup": baseline | {"column": "a_column_with_a_very_long_name"}},
        "report": [
            REPORT | {"name": "a label|with a very long name", "precision_ci95": [0.31224, 0.6],
                      "recall_ci95": [0.5, 1.0]},
            REPORT | {"kind": "unknown", "name": "unknown", "predicted": 1234},
            REPORT | {"kind": "macro avg with unknown", "name": "macro avg with unknown"},
        ],
        "training": {"epochs": 2, "refit": False},
        "cost": {"train_seconds": 100.0, "train_rows_per_second": 3.0,
                 "train_tokens_per_second": 500.0, "predict_rows_per_second": 11.0,
                 "peak_rss_mb": 2000.0, "trainable_parameters": 1_000_000},
        "model_note": None,
        "command": "llabel fit",
    }  # fmt: skip
    return cast(RunRecord, made)


def shown(of: RunRecord, width: int) -> list[str]:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(render_run(of, Path("runs/x")))
    return capture.get().splitlines()


@pytest.mark.parametrize("decode", ["labels", "free"])
def test_the_scores_stand_whole_in_80_columns(decode: str) -> None:
    lines = shown(record(decode=decode), 80)
    assert "…" not in "".join(lines)
    name = "test, free answers" if decode == "free" else "test"
    assert [name, *NUMBERS] in [line.split("  ") for line in map(_single_gaps, lines)]
    parts = ("train (sample)", "validation", "test, unseen texts", "majority (test)", "unknown")
    for part in parts:
        assert sum(line.startswith(f"{part} ") for line in lines) == 1


def _single_gaps(line: str) -> str:
    return "  ".join(part.strip() for part in line.split("  ") if part)


@pytest.mark.parametrize(("rows", "name"), [(1000, "train"), (1001, "train (sample)")])
def test_a_sample_is_called_one_only_where_it_is(rows: int, name: str) -> None:
    of = record(train_rows=rows)
    assert f"\n| {name} | 1,000 |" in render_card(of)
    assert any(line.startswith(f"{name}  ") for line in shown(of, 120))


def test_free_answers_are_marked_and_unknown_ones_counted() -> None:
    told = "1,234 of 10,000 are no label (`unknown`)"
    free, labels = record(decode="free"), record()
    assert "| **test, free answers** | 10,000 |" in render_card(free)
    assert told in render_card(free)
    assert told in " ".join(shown(free, 200))
    assert "| **test** | 10,000 |" in render_card(labels)
    assert told not in render_card(labels)
    assert told not in " ".join(shown(labels, 200))


def test_every_class_is_told_with_its_intervals() -> None:
    line = next(line for line in shown(record(), 80) if line.startswith("a label|with"))
    assert line.split()[-7:] == ["0.5000", "0.31–0.60", "0.2500", "0.50–1.00", "0.3333", "10,000",
                                 "7"]  # fmt: skip
    card = render_card(record())
    row = (
        "a label\\|with a very long name | 0.5000 (0.3122–0.6000) | 0.2500 (0.5000–1.0000) | 0.3333"
    )
    assert f"\n| {row} | 10,000 | 7 |" in card
    assert "\n| *unknown* | 0.5000 | 0.2500 | 0.3333 | 10,000 | 1,234 |" in card


def test_knowing_and_keeping_the_form_are_told_apart() -> None:
    of = record(decode="free")
    of["free_answers"] = {
        "rows": 10_000, "unknown": 1234, "unknown_share": 0.1234, "unknown_ci95": [0.117, 0.13],
        "accuracy": 0.6122, "accuracy_of_labels": 0.6984, "constrained": scores(10_000),
    }  # type: ignore[typeddict-item]  # fmt: skip
    told = (
        "It knows the answer: accuracy 0.6122 by the most probable label. It keeps the form: 87.7% "
        "of its answers are labels (no label: 12.3%, 95 % interval 11.7% to 13.0%); of these "
        "0.6984 are right."
    )
    assert told in " ".join(shown(of, 500))
    assert told in render_card(of)
    assert "| test, most probable label | 10,000 |" in render_card(of)


def test_calibration_and_abstention_are_told() -> None:
    of = record()
    sure = {"before": {"log_loss": 0.7, "ece": 0.2}, "after": {"log_loss": 0.5, "ece": 0.05}}
    of["calibration"] = {
        "method": "temperature", "temperature": 2.345, "chosen_on": "validation",
        "validation": sure, "test": sure,
    }  # type: ignore[typeddict-item]  # fmt: skip
    rows = {"rows": 200, "answered": 150, "coverage": 0.75, "coverage_ci95": [0.6, 0.8],
            "accuracy": 0.96, "accuracy_ci95": [0.9, 0.99]}  # fmt: skip
    of["abstention"] = {
        "rule": "target_precision", "threshold": 0.8123, "target_precision": 0.95,
        "attained": True, "validation": rows, "test": rows, "curve": [],
    }  # type: ignore[typeddict-item]  # fmt: skip
    told = " ".join(shown(of, 500))
    assert "temperature 2.35, chosen on validation: test log loss 0.7000 → 0.5000, ECE" in told
    assert "`abstain` is answered where no label has probability 0.8123. Of 200 test rows" in told
    assert "150 (75.0%) are answered, with accuracy 0.9600 (95 % interval 0.9000–0.9900)" in told
    assert "smallest threshold that shows precision 0.95 on validation." in told
    of["abstention"]["attained"] = False
    assert "no threshold shows precision 0.95 on 200 validation rows" in render_card(of)


def test_the_kind_of_interval_is_told() -> None:
    of = record()
    of["config"]["group"] = "user"
    told = "effective number of rows, as rows that share their user are not independent"
    assert told in render_card(of)
    assert told in " ".join(shown(of, 500))
    for scores in filter(None, of["metrics"].values()):  # a run of an earlier version
        right = round(scores["accuracy"] * scores["rows"])  # type: ignore[index]
        scores["accuracy_ci95"] = list(wilson_interval(right, scores["rows"]))  # type: ignore[index]
    assert told not in render_card(of)
    assert "Intervals are Wilson's; they cover the sampling of test rows" in render_card(of)


def test_an_evaluation_tells_what_was_answered_and_what_was_free() -> None:
    answered: Any = {
        "rows": 200, "answered": 150, "coverage": 0.75, "coverage_ci95": [0.6, 0.8],
        "accuracy": 0.96, "accuracy_ci95": [0.9, 0.99],
    }  # fmt: skip
    free: Any = {
        "rows": 200, "unknown": 20, "unknown_share": 0.1, "unknown_ci95": [0.07, 0.15],
        "accuracy": 0.5, "accuracy_of_labels": None, "constrained": scores(200),
    }  # fmt: skip
    told = {}
    for name, values in (("answered", {"answered": answered}), ("free", {"free": free})):
        console = Console(width=200, force_terminal=False)
        with console.capture() as capture:
            console.print(render_evaluation("runs/x on y", cast(Any, scores(200)), [], **values))
        told[name] = capture.get()
    assert "Of 200 labelled rows 150 (75.0%) are answered, with accuracy 0.9600" in told["answered"]
    assert "all rows, free answers" in told["free"]
    assert "all rows, most probable label" in told["free"]
    assert "90.0% of its answers are labels (no label: 10.0%, 95 % interval" in told["free"]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (two_digits(9.94), "9.9"),
        (two_digits(9.96), "10"),
        (two_digits(0.0996), "0.10"),
        (size(0.9999), "1 MiB"),
        (size(0.5), "512 KiB"),
        (size(1023.4), "1,023 MiB"),
        (size(1023.7), "1.0 GiB"),
    ],
)
def test_numbers_that_are_rounded_up_to_the_next_unit(told: str, expected: str) -> None:
    assert told == expected
