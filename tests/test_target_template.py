"""Templates that ask for several targets."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from llabel.config import RunConfig, checked
from llabel.errors import InputError
from llabel.ladder.llm import LLMRung
from llabel.names import label_columns
from llabel.target_template import load_targets_template
from two_targets import CLASSES

TARGETS = {"author": ["Ada", "Bo"], "mother_tongue": ["da", "de"]}


def written(tmp_path: Path, source: str) -> str:
    (tmp_path / "own.txt").write_text(source, encoding="utf-8")
    return str(tmp_path / "own.txt")


@pytest.mark.parametrize(
    ("name", "end", "tails", "joint"),
    [
        ("qa", "### Text: it\n ###", (" Author:", " Mother tongue:"), " "),
        ("plain", "it\n", ("Author:", "Mother tongue:"), " "),
        ("alpaca", "it\n\n### Response:\n", ("Author:", "Mother tongue:"), " "),
    ],
)
def test_built_in_templates_end_with_a_heading_for_each_target(
    name: str, end: str, tails: tuple[str, ...], joint: str
) -> None:
    template = load_targets_template(name, ("text",), TARGETS)
    assert template.render(("it",), ("text",)).endswith(end)
    assert (template.tails, template.joint) == (tails, joint)


def test_the_instruction_names_the_labels_of_each_target() -> None:
    labels = "Author: Ada, Bo; Mother tongue: da, de"
    prompt = load_targets_template("alpaca", ("text",), TARGETS).render(("it",), ("text",))
    assert f"answer with exactly one of its labels: {labels}\n" in prompt
    own = load_targets_template("alpaca", ("text",), TARGETS, "Say {labels}!")
    assert f"### Instruction:\nSay {labels}!\n" in own.render(("it",), ("text",))


@pytest.mark.parametrize(
    ("source", "head", "tails", "joint"),
    [
        ("{text}\n<{target}> =", "it\n<", ("Author> =", "Mother tongue> ="), " "),
        ("{text} ({labels}) {target}\n\n", None, (" Author\n", " Mother tongue\n"), ""),
        ("{text}\nAnswer:", "it\nAnswer:", (" Author:", " Mother tongue:"), " "),
        (
            "{text} # {target} of {{x}}: ",
            "it #",
            (" Author of {x}:", " Mother tongue of {x}:"),
            " ",
        ),
    ],
)
def test_a_file_says_where_the_heading_stands(
    tmp_path: Path, source: str, head: str | None, tails: tuple[str, ...], joint: str
) -> None:
    template = load_targets_template(written(tmp_path, source), ("text",), TARGETS)
    found = template.render(("it",), ("text",))
    assert found == (head or "it (Author: Ada, Bo; Mother tongue: da, de)")
    assert (template.tails, template.joint) == (tails, joint)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{target}: {text}\nA:", r"\{target\} must stand once, behind the last text column"),
        ("{text}\n{target} {target}:", r"\{target\} must stand once, behind the last text column"),
        ("{text}\n#{target}", r"ends with \{target\}. Put a mark such as ':' after it"),
        ("{text}{target}:", r"ends with \{text\}. Put a mark"),
        ("{text}\n{target} {colour}:", r"asks for \{colour\}, which is no text column"),
    ],
)
def test_files_that_ask_in_no_usable_way_are_refused(
    tmp_path: Path, source: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_targets_template(written(tmp_path, source), ("text",), TARGETS)


def test_headings_and_instructions_that_cannot_be_are_refused() -> None:
    alike = {"mother_tongue": ["da", "de"], "mother tongue": ["a", "b"]}
    with pytest.raises(InputError, match="two columns are both asked for as 'Mother tongue'"):
        load_targets_template("qa", ("text",), alike)
    with pytest.raises(InputError, match="--instruction was given, but template 'qa' has no place"):
        load_targets_template("qa", ("text",), TARGETS, "Decide.")


def test_special_tokens_stand_before_the_heading(llm_settings: Any, tmp_path: Path) -> None:
    good = written(tmp_path, "{note} {text}<|im_end|>\n<|im_start|>{target}:")
    rung = LLMRung(llm_settings(template=good)).prepare(("note", "text"), CLASSES)
    assert rung.tokenizer_.decode(rung.trie_.targets[0].tail) == "Weather:"
    bad = written(tmp_path, "{note} {text}\n{target}<|im_start|>:")
    with pytest.raises(InputError, match=r"the special token <\|im_start\|> behind \{target\}"):
        LLMRung(llm_settings(template=bad)).prepare(("note", "text"), CLASSES)


@pytest.mark.parametrize(
    ("given", "columns"),
    [
        ("label", ("label",)),
        ("author,language", ("author", "language")),
        ("author, language", ("author", "language")),
        ('"A, or B",C', ("A, or B", "C")),
        ('"A, or B"', ("A, or B",)),
        (["author", "language"], ("author", "language")),
        (["A, or B"], ("A, or B",)),
    ],
)
def test_label_columns_are_written_as_text_columns_are(
    given: Any, columns: tuple[str, ...]
) -> None:
    label = checked({"label": given})["label"]
    assert isinstance(label, str)
    assert label_columns(label) == columns
    assert checked({"label": label})["label"] == label
    assert checked({"label": yaml.safe_load(yaml.safe_dump({"x": given}))["x"]})["label"] == label


@pytest.mark.parametrize("given", ["author,", ",", ["author", ""], [1, "author"], ["a", None]])
def test_label_columns_without_a_name_are_refused(given: Any) -> None:
    with pytest.raises(InputError, match="--label "):
        checked({"label": given})


def test_only_several_label_columns_without_a_target_are_answered_together() -> None:
    told = {"data": "x.csv", "text": "text", "label": "author,language"}
    assert RunConfig.from_flat(told).joint
    assert RunConfig.from_flat(told).targets == ("author", "language")
    assert not RunConfig.from_flat(told | {"target": "author"}).joint
    assert RunConfig.from_flat(told | {"label": '"a, b"'}).targets == ()
