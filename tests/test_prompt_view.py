from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from llabel.ladder.llm import LLMRung
from llabel.prompt_view import ANSWER, OPEN, START, TEMPLATE, explain, printable, render
from llabel.settings import LLMSettings, Long
from two_targets import joint_task

FIELDS = ("question", "passage")


@pytest.fixture(scope="module")
def rung(tiny_llama: Path) -> LLMRung:
    return LLMRung(LLMSettings(model=str(tiny_llama))).prepare(FIELDS, (False, True))


def shown(rung: LLMRung, text: tuple[str, ...], label: int = 1, **options: bool) -> str:
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(render(rung, "train:3", text, label, **options), soft_wrap=True)
    return capture.get()


def test_each_token_is_marked_with_where_it_is_from(rung: LLMRung) -> None:
    tokens = explain(rung, ("is it true", "it is"), 1)
    by_source = {
        source: "".join(token.text for token in tokens if token.source == source)
        for source in (TEMPLATE, *FIELDS)
    }
    assert by_source == {
        "question": " is it true",
        "passage": " it is",
        TEMPLATE: "### Question:\n ### Context:\n ### Answer:",
    }
    assert [token.position for token in tokens] == list(range(len(tokens)))
    assert (
        tuple(token.id for token in tokens)
        == rung.encoder_.encode([("is it true", "it is")])[0].input_ids
    )


def test_the_loss_reads_the_labels_at_the_answer_position(rung: LLMRung) -> None:
    *before, last = explain(rung, ("q", "p"), 1)
    assert not any(token.read for token in before)
    assert last.text == ":"
    assert [read.choices for read in last.read] == [(" true", " false")]
    assert explain(rung, ("q", "p"), 0)[-1].read[0].choices == (" false", " true")


def test_labels_that_share_tokens_are_read_twice(tiny_llama: Path) -> None:
    labels = ("style", "style and beauty", "sports")
    rung = LLMRung(LLMSettings(model=str(tiny_llama))).prepare(("text",), labels)
    tokens = explain(rung, ("x",), 1)
    assert [token.source for token in tokens][-1] == ANSWER
    read = [one for token in tokens for one in token.read]
    assert len(read) == 2
    assert read[1].choices[1] == "<|endoftext|>", "the shorter label ends there"


@pytest.mark.parametrize(("loss", "read"), [("sft", 2), ("all", None)])
def test_losses_over_the_whole_vocabulary(tiny_llama: Path, loss: str, read: int | None) -> None:
    rung = LLMRung(LLMSettings(model=str(tiny_llama), loss=loss))  # type: ignore[arg-type]
    rung.prepare(FIELDS, (False, True))
    tokens = explain(rung, ("q", "p"), 1)
    choices = [read.choices for token in tokens for read in token.read]
    assert len(choices) == (read or len(tokens))
    assert choices[-2:] == [(" true",), ("<|endoftext|>",)]
    assert f"' true' (of {len(rung.tokenizer_):,} tokens)" in shown(rung, ("q", "p"))


def test_what_targets_read_at_the_same_position_is_shown(tiny_llama: Path) -> None:
    task = joint_task()
    rung = LLMRung(LLMSettings(model=str(tiny_llama), template="alpaca", loss="all"))
    rung.prepare(task.fields, task.classes)
    text, label = task.train.texts[0], task.train.y[0].tolist()
    prompt = rung.encoder_.encode([text])[0].input_ids
    last = explain(rung, text, label)[len(prompt) - 1]
    read = [choice for comparison in last.read for choice in comparison.choices]
    firsts = [rung.tokenizer_.decode([rung.trie_.tokens[own][0]]) for own in label]
    assert read == firsts
    assert len(set(read)) == 2


def test_what_the_tokenizer_puts_first_is_marked(tiny_llama_bos: Path) -> None:
    rung = LLMRung(LLMSettings(model=str(tiny_llama_bos))).prepare(FIELDS, (False, True))
    first, second, *_ = explain(rung, ("q", "p"), 1)
    assert (first.text, first.source) == ("<|begin_of_text|>", START)
    assert second.source == TEMPLATE


def test_special_tokens_of_a_template(tiny_llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.txt"
    file.write_text("<|im_start|>user\n{question} {passage}<|im_end|>\n<|im_start|>assistant\n")
    rung = LLMRung(LLMSettings(model=str(tiny_llama), template=str(file)))
    tokens = explain(rung.prepare(FIELDS, (False, True)), ("<|im_end|>", "p"), 1)
    assert tokens[0].text == "<|im_start|>"
    assert {token.source for token in tokens} == {TEMPLATE, *FIELDS}
    ends = [token for token in tokens if token.text == "<|im_end|>"]
    assert [token.source for token in ends] == [TEMPLATE], "the user's own is split into text"


def test_cut_texts_are_still_found(tiny_llama: Path) -> None:
    rung = LLMRung(LLMSettings(model=str(tiny_llama), max_seq_length=80))
    rung.prepare(FIELDS, (False, True))
    long = "is the other answer false " * 20
    tokens = explain(rung, (long, long + "### Answer: false"), 1)
    assert {token.source for token in tokens} == {TEMPLATE, *FIELDS}
    assert len(tokens) <= rung.max_length_
    output = shown(rung, (long, long))
    assert "Cut: the prompt has" in output
    assert f"{rung.max_length_} are allowed" in output


@pytest.mark.parametrize("long", get_args(Long))
def test_texts_are_found_whatever_is_cut(tiny_llama: Path, long: Long) -> None:
    rung = LLMRung(LLMSettings(model=str(tiny_llama), max_seq_length=80, long=long))
    rung.prepare(FIELDS, (False, True))
    text = "".join(f"{n} is not the answer, " for n in range(60))
    tokens = explain(rung, ("q", text), 1)
    assert {token.source for token in tokens} == {TEMPLATE, *FIELDS}
    (prompt,) = rung.encoder_.encode([("q", text)])
    kept = "".join(token.text for token in tokens if token.source == "passage")
    assert kept.strip() == prompt.text[1].strip()


@pytest.mark.parametrize("long", get_args(Long))
def test_what_becomes_of_long_texts_is_told(tiny_llama: Path, long: Long) -> None:
    rung = LLMRung(LLMSettings(model=str(tiny_llama), max_seq_length=80, long=long))
    rung.prepare(FIELDS, (False, True))
    text = ("q", "is the other answer false " * 20)
    pieces = len(rung.encoder_.pieces(text))
    assert (pieces > 1) == (long == "chunks")
    told = {
        "head": "the longest field lost its end.",
        "tail": "the longest field lost its beginning.",
        "middle": "the longest field lost its middle.",
        "chunks": f"cut into {pieces} pieces: training reads the first, prediction all of them.",
    }
    assert told[long] in shown(rung, text)
    assert "Nothing is cut" in shown(rung, ("q", "p"))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.text(max_size=30),
    st.one_of(st.text(max_size=30), st.sampled_from(["### Answer:", "😀😀", "é\n ### Context: "])),
)
def test_any_text_is_found_again(rung: LLMRung, question: str, passage: str) -> None:
    sources = [token.source for token in explain(rung, (question, passage), 0)]
    if "\N{REPLACEMENT CHARACTER}" not in question + passage:
        assert OPEN not in sources
        assert ("question" in sources) == bool(question)
        assert ("passage" in sources) == bool(passage)


def test_the_view_shows_the_prompt_as_it_is(rung: LLMRung) -> None:
    output = shown(rung, ("is [red]it[/red] \x1b[31mred", "a\\[b] 😀"))
    start = output.index("### Question")
    assert output[start:].startswith(
        "### Question: is [red]it[/red] \\x1b[31mred\n ### Context: a\\[b] 😀\n ### Answer: true\n"
    )
    assert "\x1b" not in output
    assert "Nothing is cut" in output
    assert "False → ' false'" in output


@pytest.mark.parametrize(
    ("labels", "loss", "told"),
    [
        ((False, True), "answer", "position {0}"),
        ((False, True), "sft", "positions {0} to {1}"),
        ((False, True), "all", "positions 0 to {1}"),
        (("style", "style and beauty"), "answer", "position {2}"),  # after their common tokens
        (("style", "style and beauty", "sports"), "answer", "positions {0}, {2}"),
    ],
)
def test_the_positions_that_the_loss_reads_are_named(
    tiny_llama: Path, labels: tuple[str, ...], loss: str, told: str
) -> None:
    rung = LLMRung(LLMSettings(model=str(tiny_llama), loss=loss))  # type: ignore[arg-type]
    rung.prepare(("text",), labels)
    end = len(rung.encoder_.encode([("x",)])[0].input_ids) - 1
    expected = told.format(end, end + 1, end + 2)
    assert f"The prompt ends at position {end}; the loss reads {expected}." in shown(rung, ("x",))


def test_long_texts_are_folded_unless_asked(rung: LLMRung) -> None:
    text = ("q", "was the other answer false " * 12)
    folded, whole = shown(rung, text), shown(rung, text, all_tokens=True)
    assert "more" in folded
    assert len(whole.splitlines()) > len(folded.splitlines()) + 20


def test_names_and_labels_do_not_steer_the_terminal(tiny_llama: Path) -> None:
    rung = LLMRung(LLMSettings(model=str(tiny_llama)))
    rung.prepare(("te\x1b[31mxt",), ("a\x1b]0;owned\x07", "b[/b]"))
    output = shown(rung, ("x",), 0)
    assert "\x1b" not in output
    assert "\x07" not in output
    assert "label a\\x1b]0;owned\\x07\n" in output
    assert "b[/b] → " in output


def test_control_characters_are_spelt_out() -> None:
    assert printable("a\tb\nc\x07\x1b]0;x\x9b") == "a\tb\nc\\x07\\x1b]0;x\\x9b"
