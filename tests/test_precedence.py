"""Which place decides a setting, and what other tools' names of a batch come to."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import llabel
from llabel import LLMClassifier
from llabel.cli import main
from llabel.config import load_yaml
from llabel.errors import InputError
from llabel.precedence import layered, with_batch_size
from llabel.presets import PRESETS, preset
from runs import write_weather


@pytest.mark.parametrize(
    ("layers", "command_line", "expected"),
    [
        ([{"max_steps": 200, "r": 16}], {"epochs": 2}, {"epochs": 2, "r": 16}),
        ([{"epochs": 1}], {"max_steps": 5}, {"max_steps": 5}),
        ([{"max_steps": 200}, {"epochs": 1}], {"r": 4}, {"epochs": 1, "r": 4}),
        ([{"max_steps": 200}, {"epochs": 1}], {"max_steps": 9}, {"max_steps": 9}),
        ([{"warmup_steps": 5}], {"warmup_ratio": 0.1}, {"warmup_ratio": 0.1}),
        ([{"max_steps": 200}], {"max_steps": "none"}, {"max_steps": "none"}),
        ([], {"max_steps": "none", "epochs": 2}, {"max_steps": "none", "epochs": 2}),
        ([], {"max_steps": ("none",), "epochs": ("1", "2")}, None),  # of a sweep
        # the record of a run, which says everything
        ([{"max_steps": 7, "epochs": 3}], {}, {"max_steps": 7}),
        ([{"max_steps": None, "epochs": 4}], {}, {"max_steps": None, "epochs": 4}),
        ([{"batch_size": 8}], {"per_device_train_batch_size": 2}, {"batch_size": 2}),
        (
            [{"per_device_batch_size": 2, "gradient_accumulation_steps": 4}],
            {},
            {"batch_size": 8},
        ),
    ],
)
def test_the_highest_place_that_speaks_of_a_setting_decides(
    layers: list[dict[str, Any]], command_line: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    expected = command_line if expected is None else expected
    assert layered(*layers, command_line=command_line) == expected


@pytest.mark.parametrize(
    ("steps", "share"), [("max_steps", "epochs"), ("warmup_steps", "warmup_ratio")]
)
def test_both_on_the_command_line_are_refused(steps: str, share: str) -> None:
    dashed = steps.replace("_", "-"), share.replace("_", "-")
    with pytest.raises(InputError, match=f"--{dashed[0]} stands in place of --{dashed[1]}"):
        layered({}, command_line={steps: 1, share: 1})


def test_other_tools_settings_that_have_one_value_here(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("packing: false\nbias: none\nloftq_config: null\nlogging_steps: 1\nr: 8\n")
    assert load_yaml(path) == {"r": 8}
    path.write_text("loftq_config: None\n")
    assert load_yaml(path) == {}
    path.write_text("packing: true\n")
    with pytest.raises(InputError, match=r"packing: True is not .*packed into.* Use false\."):
        load_yaml(path)


@given(rows=st.integers(1, 64), times=st.integers(1, 64))
def test_a_step_has_the_product_of_both(rows: int, times: int) -> None:
    said = {"per_device_train_batch_size": str(rows), "gradient_accumulation_steps": times}
    assert with_batch_size(said) == {"batch_size": rows * times}
    assert with_batch_size({"batch_size": rows, "r": 2}) == {"batch_size": rows, "r": 2}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gradient_accumulation_steps": 4}, "of how many rows.*--per-device-train-batch-size"),
        (
            {"per_device_train_batch_size": 2, "batch_size": 8},
            "--per-device-train-batch-size 2: --batch-size 8 says the same",
        ),
        (
            {"per_device_batch_size": 2, "per_device_train_batch_size": 4},
            "per_device_batch_size 2 and per_device_train_batch_size 4 are the same setting",
        ),
        ({"per_device_batch_size": "few"}, "few: whole numbers are needed"),
        (
            {"per_device_batch_size": 2, "gradient_accumulation_steps": 0},
            "--gradient-accumulation-steps 0: 1 is the least",
        ),
    ],
)
def test_what_makes_no_batch_is_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_batch_size(values)


def test_a_run_knows_our_names_only(tmp_path: Path, tiny_llama: Path) -> None:
    """Its settings are those of --batch-size 8 --seed 3, and so is all that follows."""
    data = write_weather(tmp_path / "weather.jsonl", 40)
    told = ["fit", str(data), "--text", "text", "--label", "label", "--model", str(tiny_llama)]
    told += ["--max-steps", "1", "--device", "cpu", "--out", str(tmp_path / "o")]
    told += ["--per-device-batch-size", "2", "--gradient-accumulation-steps", "4"]
    done = CliRunner().invoke(main, [*told, "--random-state", "3"])
    assert done.exit_code == 0, done.output
    recorded = json.loads((tmp_path / "o/run.json").read_text())["config"]
    assert (recorded["batch_size"], recorded["seed"]) == (8, 3)
    assert not {"per_device_train_batch_size", "gradient_accumulation_steps"} & recorded.keys()
    lines = (tmp_path / "o/train.log.jsonl").read_text().splitlines()
    assert [line["rows"] for line in map(json.loads, lines) if "rows" in line][:1] == [8]


def test_a_file_may_say_it_either_way(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("per-device-train-batch-size: 2\ngradient-accumulation-steps: 4\n")
    assert load_yaml(file) == {"batch_size": 8}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_makes_a_classifier(name: str) -> None:
    classifier = LLMClassifier(model="x", **llabel.preset(name))
    parameters = classifier.get_params()
    published = preset(name)
    assert parameters["learning_rate"] == published["learning_rate"]
    assert parameters["base"] == ("nf4" if published["rung"] == "llm-qlora" else "auto")
    assert parameters["random_state"] == published.get("seed", 0)
    with pytest.raises(InputError, match="choose alpaca-qlora or boolq-lora"):
        llabel.preset("alpaca")
