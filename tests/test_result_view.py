from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from llabel.card import render_card
from llabel.record import RunRecord
from llabel.result_view import render_run

NUMBERS = ("10,000", "0.6122", "0.3122–0.6045", "0.5000", "1.2345", "0.1000")


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
        "report": [{"kind": "class", "predicted": 7}, {"kind": "unknown", "predicted": 1234}],
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
    for part in ("train (sample)", "validation", "test, unseen texts", "majority (test)"):
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
