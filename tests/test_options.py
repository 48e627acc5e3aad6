from dataclasses import MISSING, fields
from typing import Any

import pytest
import rich_click as click
from click.testing import CliRunner, Result

from llabel.config import checked
from llabel.options import PANELS, given, settings_options
from llabel.settings import (
    CompareSettings,
    DataSettings,
    LLMSettings,
    RunSettings,
    SimplerSettings,
)

SETTINGS = {
    field.name: field
    for room in (DataSettings, CompareSettings, RunSettings, LLMSettings, SimplerSettings)
    for field in fields(room)
}


def run(*arguments: str, names: tuple[str, ...] = ()) -> tuple[Result, dict[str, Any]]:
    seen: dict[str, Any] = {}

    @click.command()
    @settings_options(*names)
    @click.pass_context
    def command(ctx: click.Context, **_: Any) -> None:
        seen.update(given(ctx))

    result = CliRunner(env={"COLUMNS": "400"}).invoke(command, list(arguments))
    return result, seen


def test_every_setting_is_an_option_in_one_panel() -> None:
    names = [name for panel in PANELS.values() for name in panel]
    assert sorted(names) == sorted(SETTINGS)
    result, _ = run("--help")
    for name in names:
        assert f"--{name.replace('_', '-')}" in result.output
    for panel in PANELS:
        assert f"─ {panel} ─" in result.output


@pytest.mark.parametrize("name", SETTINGS)
def test_help_shows_the_default_of_the_settings(name: str) -> None:
    result, _ = run("--help", names=(name,))
    default = SETTINGS[name].default
    if default is MISSING:
        assert "Required, here or in --config." in result.output
    elif default in (None, ()) or isinstance(default, bool):
        assert "[default" not in result.output
    else:
        shown = ",".join(default) if isinstance(default, tuple) else default
        assert f"[default: {shown}]" in result.output


def test_only_what_was_given_is_handed_on() -> None:
    assert run()[1] == {}
    _, seen = run(
        *("--text", "a,b", "--r", "16", "--lr", "1e-3", "--loss", "sft", "--no-refit"),
        *("--compile", "--no-texts", "--label-words", "0=not so good", "--label-words", "1=a=b"),
    )
    assert seen == {
        "text": "a,b",
        "r": 16,  # given, though it is the default
        "learning_rate": 1e-3,
        "loss": "sft",
        "refit": False,
        "compile": True,
        "no_texts": True,
        "label_words": {"0": "not so good", "1": "a=b"},
    }


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--patience", "none"], "patience", None),
        (["--patience", "2"], "patience", 2),
        (["--max-seq-length", "None"], "max_seq_length", None),
        (["--train-rows", "none"], "train_rows", None),
        (["--group", "none"], "group", None),
        (["--calibrate", "none"], "calibrate", None),
        (["--sampling", "natural"], "sampling", "natural"),
        (["--balanced"], "sampling", "balanced"),
        (["--sampling", "natural", "--balanced"], "sampling", "balanced"),
        (["--abstain-below", "none"], "abstain_below", None),
        (["--label-words", "none"], "label_words", None),
        (["--text", '"a, or b",c'], "text", ("a, or b", "c")),
    ],
)
def test_an_optional_setting_may_be_none(arguments: list[str], name: str, value: Any) -> None:
    """Also to undo what a YAML file says."""
    _, seen = run(*arguments)
    assert checked({name: 7} | seen) == {name: value}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--r", "0"], "'--r': 0 is not in the range x>=1"),
        (["--r", "two"], "'--r': 'two' is not a valid integer"),
        (["--lora-dropout", "1"], "1.0 is not in the range 0<=x<1"),
        (["--lr", "0"], "0.0 is not in the range x>0"),
        (["--validation-size", "0"], "0.0 is not in the range 0<x<1"),
        (["--warmup-ratio", "1.1"], "1.1 is not in the range 0<=x<=1"),
        (["--epochs", "none"], "'none' is not a valid integer"),
        (["--patience", "0"], "0 is not in the range x>=1"),
        (["--loss", "answr"], "'answr' is not one of 'answer', 'sft', 'all'"),
        (["--lora-alhpa", "1"], "Did you mean one of: '--lora-alpha'"),
        (["--label-words", "good"], "'good' is not LABEL=WORDS, such as 0=negative"),
        (["--label-words", "a=b", "--label-words", "a=c"], "the label 'a' is given words twice"),
    ],
)
def test_wrong_values_end_with_what_is_allowed(arguments: list[str], message: str) -> None:
    result, _ = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_a_command_may_take_some_of_them() -> None:
    assert run("--r", "3", names=("r", "seed"))[1] == {"r": 3}
    assert run("--epochs", "3", names=("r", "seed"))[0].exit_code == 2
