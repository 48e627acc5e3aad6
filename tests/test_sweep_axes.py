import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rich_click as click
from click.testing import CliRunner

from llabel.compare.plan import command_line
from llabel.errors import InputError
from llabel.options import given, sweep_options
from llabel.precedence import layered
from llabel.presets import preset
from llabel.sweep.axes import Axes, read_axes
from llabel.sweep.cells import from_identity, grid, identity, planned, searched
from llabel.sweep.sweep import _corners

DATA = {"data": "x.csv", "text": ("text",), "label": "label"}


def axes(searching: bool = False, seeds: int = 1, **values: Any):
    return read_axes(DATA | values, searching=searching, seeds=seeds)


def test_values_are_cut_at_commas_and_checked() -> None:
    found = axes(r=("1,16", "128"), learning_rate="1e-4, 1e-3", use_rslora=("true,false",))
    assert found.lists == {
        "r": (1, 16, 128),
        "learning_rate": (1e-4, 1e-3),
        "use_rslora": (True, False),
    }
    assert found.shared == {"data": "x.csv", "text": ("text",), "label": "label"}
    assert found.names == ["r", "lr", "use_rslora"]
    assert len(list(found.combinations())) == 12


def test_the_last_axis_turns_fastest_and_seeds_come_last() -> None:
    found = axes(epochs="1,2", lora_alpha="1,2", r="1,2", seeds=2, seed="5")
    assert list(found.lists) == ["r", "lora_alpha", "epochs", "seed"]
    first, second, third, *_ = found.combinations()
    assert first == {"r": 1, "lora_alpha": 1, "epochs": 1, "seed": 5}
    assert second == first | {"seed": 6}
    assert third == first | {"epochs": 2}


def test_values_that_are_lists_are_given_one_an_option() -> None:
    found = axes(target_modules=("q_proj,v_proj", "all-linear"))
    assert found.lists == {"target_modules": (("q_proj", "v_proj"), ("all-linear",))}
    in_yaml = axes(target_modules=[["q_proj", "v_proj"], "all-linear"])
    assert in_yaml == found
    one = axes(target_modules=["q_proj", "v_proj"], r=[1, 2])
    assert one.shared["target_modules"] == ("q_proj", "v_proj")
    assert one.lists == {"r": (1, 2)}


def test_values_of_a_preset_are_one_each() -> None:
    typed = DATA | {"text": "text", "r": ("1", "16")}
    found = read_axes(layered(preset("alpaca-qlora"), {}, command_line=typed), searching=False)
    assert found.lists == {"r": (1, 16)}
    assert len(found.shared["target_modules"]) == 7


def test_prose_is_one_value_whatever_its_commas() -> None:
    found = axes(instruction=("Say which, please.", "Which, {labels}?"), r="2")
    assert found.lists == {"instruction": ("Say which, please.", "Which, {labels}?")}


def test_none_is_a_value_where_it_may_stand() -> None:
    assert axes(patience="none,1").lists == {"patience": (None, 1)}


def test_ranges_are_for_a_search() -> None:
    found = axes(
        searching=True,
        learning_rate="1e-5..1e-2",
        r="1..256",
        lora_dropout="0..0.5",
        lora_alpha="0..64",
        weight_decay="0.1..1:linear",
    )
    assert found.ranges == {
        "r": {"low": 1, "high": 256, "log": True, "whole": True},
        "lora_alpha": {"low": 0, "high": 64, "log": False, "whole": False},
        "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True, "whole": False},
        "lora_dropout": {"low": 0, "high": 0.5, "log": False, "whole": False},
        "weight_decay": {"low": 0.1, "high": 1, "log": False, "whole": False},
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": "0,1"}, "--r '0': it should be greater than or equal to 1"),
        ({"lora_alpha": "-1,16"}, "--lora-alpha '-1': it should be greater than or equal to 0"),
        ({"r": ""}, "--r: a value is missing"),
        ({"r": "1,,16"}, "--r: a value is missing"),
        ({"r": []}, "--r: a value is missing"),
        ({"r": "16,1,16"}, "--r: 16 is given twice"),
        ({"learning_rate": "1e-4,0.0001"}, "--learning-rate: 0.0001 is given twice"),
        ({"rank": "1,2"}, r"unknown setting 'rank'. Did you mean r\?"),
        ({"r": "one,2"}, "--r 'one'"),
        ({"rung": "llm-lora,encodr"}, r"--rung 'encodr'.*did you mean encoder\?"),
        ({"validation_size": [0.1, 0.2]}, "--validation-size: all cells share it"),
        ({"r": "1..16"}, "--r: a range is for a search: add --search tpe"),
        ({"r": "16"}, "Nothing varies"),
        ({"seed": "1,2", "seeds": 2}, "--seed has several values already"),
        ({"rung": "encoder", "r": "1,2"}, "--r varies.* effect on encoder.*: llm-lora, llm-qlora"),
        ({"rung": "majority,lookup", "seeds": 2}, "--seed varies.* effect on majority, lookup"),
        ({"epochs": "1,2", "max_steps": "9"}, "--epochs varies.* effect with --max-steps 9"),
    ],
)
def test_bad_values_are_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        axes(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": "16..1"}, "write the lower limit first"),
        ({"r": "1..16,32"}, "a range stands alone"),
        ({"r": "1..16:cubic"}, "write log or linear"),
        ({"lora_alpha": "0..16:log"}, "begins above 0"),
        ({"learning_rate": "0..1"}, "--learning-rate '0'"),
        ({"r": "1..16", "seeds": 2}, "with one seed"),
        ({"seed": "0..5"}, "with one seed"),
        ({"learning_rate": "1e-5:log..1e-2"}, "a range is written as LOW..HIGH.*:log"),
        ({"rung": "encoder", "r": "1..16"}, "--r varies"),
    ],
)
def test_bad_searches_are_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        axes(searching=True, **values)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(InputError) as error:
        axes(r="0", lora_alpha="-1", epoch="1,2")
    assert len(str(error.value).splitlines()) == 3


def test_cells_have_short_names_that_others_do_not_change() -> None:
    cells = grid(axes(r="1,16", lora_alpha="0,32", learning_rate="1e-4"))
    assert [cell.name for cell in cells] == [
        "r1-alpha0-lr0.0001-epochs3-seed0",
        "r1-alpha32-lr0.0001-epochs3-seed0",
        "r16-alpha0-lr0.0001-epochs3-seed0",
        "r16-alpha32-lr0.0001-epochs3-seed0",
    ]
    assert [cell.control for cell in cells] == [True, False, True, False]
    assert cells[3].name in {cell.name for cell in grid(axes(r="16,4", learning_rate="1e-4"))}
    (modules, _) = grid(axes(target_modules=("q_proj,v_proj", "all-linear")))
    assert modules.name.endswith("-target-modules-q-proj+v-proj")


def test_names_that_would_be_alike_are_told_apart() -> None:
    cells = grid(axes(instruction=("Yes?", "Yes!")))
    assert len({cell.name for cell in cells}) == 2


def test_rungs_get_one_cell_for_what_they_do_not_read() -> None:
    cells = grid(axes(rung="bag-of-words,encoder,llm-lora", r="1,2", seeds=2))
    rungs = [cell.config.run.rung for cell in cells]
    assert [rungs.count(name) for name in ("bag-of-words", "encoder", "llm-lora")] == [1, 2, 4]
    bag = cells[0]
    assert bag.name == "bag-of-words-seed0"
    assert bag.settings["r"] is bag.settings["lora_alpha"] is bag.settings["lr"] is None
    assert bag.scaling is None
    assert all(cell.config.data.split_seed == 0 for cell in cells), "all cut the rows alike"


def test_where_steps_are_counted_epochs_decide_nothing() -> None:
    cells = grid(axes(r="1,2", max_steps="9"))
    assert [cell.name for cell in cells] == [
        "r1-alpha32-lr0.0005-seed0",
        "r2-alpha32-lr0.0005-seed0",
    ]
    assert [cell.settings["epochs"] for cell in cells] == [None, None]
    (nine, whole) = grid(axes(max_steps="9,none"))
    assert (nine.settings["epochs"], whole.settings["epochs"]) == (None, 3)


def test_scaling_is_that_of_peft() -> None:
    (plain, stable) = grid(axes(r="4", lora_alpha="16", use_rslora="false,true"))
    assert (plain.scaling, stable.scaling) == (4, 8)


def test_an_identity_is_a_cell_s_settings_again() -> None:
    for cell in grid(axes(r="1,2", text=("a,b",), target_modules=("q_proj", "all-linear"))):
        assert from_identity(cell.identity) == cell.config
        assert identity(from_identity(cell.identity)) == cell.identity


def test_cells_of_one_setting_differ_by_their_seed() -> None:
    cells = grid(axes(r="1,2", lora_alpha="0,1", seeds=2))
    settings = [cell.setting for cell in cells]
    assert len(set(settings)) == 3, "two tuned ones, and the untouched model"


def test_free_settings_decide_nothing() -> None:
    found = axes(r="1,2")
    cell = planned(found, {"r": 1})
    told = replace(cell.config, run=replace(cell.config.run, track="mlflow", no_texts=True))
    assert identity(told) == cell.identity
    assert Path(cell.name).name == cell.name


def test_a_search_s_names_tell_values_apart_that_look_alike() -> None:
    long = "review by its overall sentiment, positive or negative."
    asked = ("Classify this product " + long, "Judge the following film " + long)
    found = axes(searching=True, instruction=asked, r="1..8", template="a/v1.txt,a-v1.txt")
    combinations = [{"r": 4, **one} for one in found.combinations()]
    cells = [searched(found, one) for one in combinations]
    assert len({cell.name for cell in cells}) == 4
    assert searched(found, combinations[0]).name == cells[0].name
    plain = axes(searching=True, r="1..8", template="qa,chat")
    one = {"r": 4, "template": "chat"}
    assert searched(plain, one).name == planned(plain, one).name, "nothing is like it"


def test_names_of_folders_have_an_end() -> None:
    more = dict.fromkeys(("model", "template", "encoder", "device"), ("a" * 40, "b" * 40))
    found = axes(**more, system=("c" * 40, "d" * 40), rung="encoder,llm-lora")
    names = [cell.name for cell in grid(found)]
    assert len(set(names)) == 4 + 16, "an encoder is nothing to LoRA"
    assert max(map(len, names)) < 170


def test_distinct_cells_are_many_at_once() -> None:
    rates = ",".join(f"{n}e-6" for n in range(1, 301))
    found = axes(
        searching=True,
        learning_rate=rates,
        lora_dropout="0..0.5",
        r="1,2,3,4",
        weight_decay="0.1,0.2,0.3",
        epochs="1,2,3",
        rung="bag-of-words,llm-lora",
    )
    cells = _corners(found)
    assert len(cells) == 1 + 1 + 299 + 1 + 3 + 2 + 2, "one, and of LoRA each value once more"
    assert len({cell.config.llm.learning_rate for cell in cells}) == 300
    assert {cell.config.llm.lora_dropout for cell in cells} == {0.0, 0.5}


@pytest.mark.parametrize(
    "values",
    [
        {"decode": "free"}, {"untested": True}, {"calibrate": "temperature"},
        {"abstain_below": 0.5}, {"target_precision": 0.9},
    ],
    ids=str,
)  # fmt: skip
def test_what_only_fit_can_do_is_refused(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(InputError, match=f"{name}: known to `llabel fit` only"):
        axes(r="1,2", **values)
    assert axes(r="1,2", decode="labels", untested=False).lists == {"r": (1, 2)}


seen: dict[str, Any] = {}


@click.command()
@sweep_options
@click.pass_context
def command(ctx: click.Context, **_: Any) -> None:
    seen.clear()
    seen.update(layered(command_line=given(ctx)))


def typed(*arguments: str) -> Axes:
    """What these options of `llabel sweep` come to."""
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    return read_axes(DATA | seen, searching=False)


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--train-rows", "20", "--balanced"], "sampling", "balanced"),
        (
            ["--per-device-train-batch-size", "4", "--gradient-accumulation-steps", "2"],
            *("batch_size", 8),
        ),
    ],
)
def test_a_sweep_takes_the_same_other_names_of_options(
    arguments: list[str], name: str, value: Any
) -> None:
    assert typed("--r", "1,2", *arguments).shared[name] == value


def test_what_is_on_or_off_is_said_as_to_fit_or_with_both_values() -> None:
    words = (
        "--no-double-quant",
        "--refit",
        "--compile",
        "--no-compile",
        "--use-rslora",
        "true,false",
    )
    found = typed(*words)
    assert (found.shared["double_quant"], found.shared["refit"]) == (False, True)
    assert found.lists == {"compile": (True, False), "use_rslora": (True, False)}
    words = shlex.split(command_line(grid(found)[0].config, Path("o")))[3:-2]
    again = typed(*(word for word in words if word != "--untested"), "--r", "1,2")
    assert again.shared["double_quant"] is False, "a cell's own command may go on as a sweep"


def test_help_tells_what_is_on_or_off() -> None:
    result = CliRunner(env={"COLUMNS": "300"}).invoke(command, ["--help"])
    assert re.search(
        r"--double-quant/--no-double-quant .*\[true,false; default: true\]", result.output
    )
