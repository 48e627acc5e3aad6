import json
from pathlib import Path
from typing import Any

import pytest

from llabel.config import (
    RunConfig,
    checked,
    compare_settings,
    load_yaml,
    read_yaml,
    required,
    sweep_settings,
)
from llabel.errors import InputError
from llabel.presets import preset
from llabel.settings import CompareSettings, DataSettings, LLMSettings, RunSettings

NEEDED = {"data": "reviews.csv", "text": "title,body", "label": "stars"}


def test_names_left_out_keep_their_defaults() -> None:
    config = RunConfig.from_flat(NEEDED)
    assert config.source == "reviews.csv"
    assert config.data == DataSettings(text=("title", "body"), label="stars")
    assert config.llm == LLMSettings()
    assert config.run == RunSettings()


def test_flat_and_back_through_json() -> None:
    config = RunConfig(
        source="boolq",
        data=DataSettings(text=("a", "b"), label="y", group="a", train_rows=500),
        run=RunSettings(decode="free", no_texts=True),
        llm=LLMSettings(target_modules=("q_proj",), label_words={"True": "yes"}, patience=None),
    )
    assert RunConfig.from_flat(json.loads(json.dumps(config.flat()))) == config


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("text", " a , b", ("a", "b")),
        ("text", ["a,b", "c"], ("a,b", "c")),
        ("text", '"a, b",c', ("a, b", "c")),
        ("text", ' x , "a,b"', ("x", "a,b")),
        ("text", '"""a"" b"', ('"a" b',)),
        ("text", 'a," b "', ("a", " b ")),
        ("text", " a", (" a",)),
        ("label", [" a", "b"], '" a",b'),
        ("text", "none", ("none",)),  # a name: this setting cannot be left out
        ("label", "none", "none"),
        ("group", "none", None),
        ("patience", "None", None),
        ("label_words", "none", None),
        ("max_seq_length", "none", None),
        ("target_modules", "q_proj,v_proj", ("q_proj", "v_proj")),
        ("learning_rate", "5e-4", 5e-4),  # a string in YAML 1.1
        ("lora_alpha", 16, 16.0),
        ("epochs", "3", 3),
        ("refit", "no", False),
        ("group", None, None),
        ("label_words", {True: "yes", 0: "nil"}, {"True": "yes", "0": "nil"}),
    ],
)
def test_values_may_come_in_other_types(name: str, value: Any, expected: Any) -> None:
    assert checked({name: value}) == {name: expected}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("r", 0, "--r 0: it should be greater than or equal to 1."),
        ("r", 2.5, "--r 2.5: it should be a valid integer"),
        ("r", True, "--r True: a truth value stands where none is meant"),
        ("label", True, "--label True: a truth value .* quotes"),
        ("seed", None, "--seed None: it should be a valid integer"),
        ("seed", 2**31, "--seed 2147483648: it should be less than 2147483648"),
        ("lora_dropout", 1, "--lora-dropout 1: it should be less than 1"),
        ("learning_rate", "nan", "--learning-rate 'nan': it should be a finite number"),
        ("learning_rate", float("inf"), "it should be a finite number"),
        ("loss", "answr", r"--loss 'answr': .*'answer', 'sft' or 'all' \(did you mean answer\?\)"),
        (
            "text",
            "a,,b",
            "--text 'a,,b': a name is empty; write A,B, and a name that holds a comma",
        ),
        ("text", "", "--text '': a name is empty"),
        ("text", '"a,b', "no list of names .unexpected end of data.; write A,B"),
        ("text", '"a"b,c', "no list of names"),
        ("text", "a\nb", "no list of names"),
        ("epochs", "none", "--epochs 'none': it should be a valid integer"),
        ("text", 3, "--text 3: it should be a list, or text as A,B"),
        ("target_modules", ["q", 1], r"it should be a valid string \(at 1\)"),
        ("label_words", {"a": 1}, r"--label-words .*it should be a valid string \(at a\)"),
        ("data", 7, "DATA 7: it should be a valid string"),
        ("lora_alhpa", 3, "unknown setting 'lora_alhpa'. Did you mean lora_alpha?"),
        ("lr", 3, "unknown setting 'lr'. Did you mean learning_rate?"),
        ("random_state", 3, "Did you mean seed?"),
        ("load_in_4bit", True, "Did you mean base?"),
        ("zzz", 3, "unknown setting 'zzz'. `llabel fit --help` lists all settings"),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(name: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked({name: value})


def test_all_that_is_wrong_is_said_at_once_and_shortened() -> None:
    with pytest.raises(InputError) as caught:
        checked({"r": 0, "epoch": 1, "seed": "x" * 1000}, "run.yaml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("run.yaml: ") for line in lines)
    assert max(map(len, lines)) < 250


def test_what_is_missing_is_named() -> None:
    assert required() == ["data", "text", "label"]
    with pytest.raises(InputError, match=r"(?s)Missing.*DATA: File.*--label: Label column") as it:
        RunConfig.from_flat({"text": "a", "label": None})
    assert "--text" not in str(it.value)


def test_yaml_names_may_have_hyphens(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "data: boolq\nout: runs/x\ntext: [question, passage]\nlabel: answer\n"
        "learning-rate: 5e-4\nlabel_words: {true: 'yes'}\n"
    )
    assert load_yaml(path) == {
        "data": "boolq",
        "out": "runs/x",
        "text": ("question", "passage"),
        "label": "answer",
        "learning_rate": 5e-4,
        "label_words": {"True": "yes"},
    }


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "examples").glob("*.yaml")))
def test_the_examples_are_whole_runs(path: Path) -> None:
    values = load_yaml(path)
    values.pop("out", None)
    _, of_runs = compare_settings(values)
    RunConfig.from_flat(of_runs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r: 1\nepochs: 2\nr: 2", "r stands at line 1 and again at line 3"),
        ("lora-alpha: 1\nlora_alpha: 2", "lora_alpha stands at line 1 and again at line 2"),
        ("label_words:\n  bad: no\n  bad: never", "bad stands at line 2 and again at line 3"),
        ("data: 2024-02-30", r"value cannot be read \(day is out of range.*Put it in quotes"),
        ("a: b: c", "no YAML at line 1"),
        ("r: 1\n\tepochs: 1", "no YAML at line 2"),
        ("a: [", "no YAML"),
        ("? {a: 1}\n: 2", "no YAML"),
        ("x: !!python/object/apply:os.getcwd []", "no YAML at line 1: could not determine"),
        ("label: 'a\x00'", "no YAML"),
        ("- r", "a file of lines such as `epochs: 2` is needed"),
        ("", "a file of lines such as `epochs: 2` is needed"),
        ("r: 0", "run.yaml: --r 0: it should be greater"),
        ("lora: {r: 1}", "run.yaml: unknown setting 'lora'"),
    ],
)
def test_yaml_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_yaml(path)


def test_yaml_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        load_yaml(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"label: caf\xe9")
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        load_yaml(tmp_path / "latin.yaml")


def test_the_short_name_of_the_learning_rate_may_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("lr: 1e-4\n")
    assert load_yaml(path) == {"learning_rate": 1e-4}
    path.write_text("lr: 1e-4\nlearning_rate: 1e-3\n")
    for read in (load_yaml, read_yaml):  # of all commands but the sweep, and of the sweep
        with pytest.raises(
            InputError, match=r"learning_rate and lr are the same setting\. Remove one"
        ):
            read(path)


def test_trials_are_of_a_search() -> None:
    with pytest.raises(InputError, match=r"--trials 5 .* Add --search tpe \(or random\), or leave"):
        sweep_settings({"trials": 5, "r": "1,2"})
    assert sweep_settings({"trials": 5, "search": "tpe"})[0].trials == 5
    assert sweep_settings({"trials": 1, "r": "1,2"})[1] == {"r": "1,2"}, "as in a file for fit"


def test_the_rung_of_a_preset_is_one_row_of_a_comparison() -> None:
    asked, rest = compare_settings({**preset("alpaca-qlora"), **NEEDED})
    assert asked.rungs == (*CompareSettings().rungs, "llm-qlora")
    assert RunConfig.from_flat(rest).llm.base == "auto", "of the other rungs"
    asked, _ = compare_settings({"rung": "llm-qlora", "rungs": "majority,encoder", **NEEDED})
    assert asked.rungs == ("majority", "encoder")
    asked, _ = compare_settings({"rung": "encoder", **NEEDED})
    assert asked.rungs == CompareSettings().rungs
