"""What is kept of texts that are too long."""

from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llabel.engine.model import load_tokenizer
from llabel.events import Event, Note
from llabel.ladder.llm import LLMRung
from llabel.ladder.prompted import PromptedRung
from llabel.prompt import PromptEncoder
from llabel.task import Split, Task
from llabel.template import load_template
from tiny_models import save_tokenizer
from tiny_rungs import TASK, untrained

WAYS = ("head", "tail", "middle")


@cache
def encoder(long: str, length: int) -> PromptEncoder:
    folder = Path(mkdtemp())
    save_tokenizer(folder)
    template = load_template("qa", ("text",), ["no", "yes"])
    return PromptEncoder(load_tokenizer(folder), template, ("text",), length, long=long)


def test_which_end_is_kept():
    text = "".join(f"{number:03}" for number in range(100))  # each digit a token
    room = 60 - encoder("head", 60).least_length
    (head,), (tail,), (middle,) = (encoder(way, 60).encode([(text,)]) for way in WAYS)
    assert head.text == (text[:room],)
    assert tail.text == (text[-room:],)
    half = room // 2
    assert middle.text == (text[: room - half] + text[-half:],)
    for prompt in (head, tail, middle):
        assert prompt.truncated
        assert len(prompt.input_ids) == 60


@given(st.text(max_size=200) | st.text("ab ć€😀", max_size=200), st.sampled_from(WAYS))
def test_what_is_kept_is_in_the_text_in_its_order(text, long):
    made = encoder(long, 50)
    (prompt,) = made.encode([(text,)])
    assert len(prompt.input_ids) <= 50
    assert prompt.truncated == (made.lengths([(text,)])[0] > 50)
    if not prompt.truncated:
        assert prompt.text == (text,)
    (kept,) = prompt.text
    rest = iter(text)
    assert all(character in rest for character in kept)
    assert {"head": text.startswith(kept), "tail": text.endswith(kept), "middle": True}[long]
    last = made.tokenizer("### Answer:", add_special_tokens=False)["input_ids"]
    assert list(prompt.input_ids[-2:]) == last[-2:]


@given(st.text(max_size=300) | st.text("ab ć€😀", max_size=300))
def test_pieces_are_the_whole_text_and_fit(text):
    made = encoder("chunks", 50)
    pieces = made.pieces((text,))
    assert "".join(piece for (piece,) in pieces) == text
    prompts = made.encode(pieces)
    assert not any(prompt.truncated for prompt in prompts)
    assert (len(pieces) > 1) == (made.lengths([(text,)])[0] > 50)
    assert all(encoder(way, 50).pieces((text,)) == [(text,)] for way in WAYS)
    assert made.encode([(text,)])[0].text == pieces[0]


RUNS = st.lists(
    st.tuples(st.text("ab ć€😀\n", max_size=6) | st.text(max_size=6), st.integers(1, 80)),
    max_size=6,
).map(lambda runs: "".join(text * times for text, times in runs))


@settings(deadline=None, max_examples=30)
@given(RUNS)
def test_pieces_are_those_of_reading_all_that_is_left(text):
    made = encoder("chunks", 40)
    naive, rest = [], text
    while rest:
        naive += [piece := made.encode([(rest,)])[0].text]
        rest = rest[len(piece[0]) :]
    assert made.pieces((text,)) == (naive or [("",)])


def test_finding_pieces_takes_time_in_proportion_to_the_text():
    made, read = copy(encoder("chunks", 40)), []
    tokenizer = made.tokenizer

    def tokenise(text, **options):
        read.append(len(text))
        return tokenizer(text, **options)

    made.tokenizer = tokenise
    taken = []
    for times in (200, 400):
        read.clear()
        assert len(made.pieces(("one word after another, " * times,))) > 50
        taken.append(sum(read))
    assert taken[1] < 2.2 * taken[0]


def test_only_the_longest_field_is_cut_into_pieces():
    folder = Path(mkdtemp())
    save_tokenizer(folder)
    template = load_template("qa", ("a", "b"), ["no", "yes"])
    made = PromptEncoder(load_tokenizer(folder), template, ("a", "b"), 70, long="chunks")
    pieces = made.pieces(("short", "0123456789" * 12))
    assert len(pieces) > 2
    assert {a for a, _ in pieces} == {"short"}
    assert "".join(b for _, b in pieces) == "0123456789" * 12


def test_the_answer_to_pieces_is_their_mean(llm_settings, tmp_path):
    rung = untrained(llm_settings(long="chunks", max_seq_length=48))
    texts = [TASK.test.texts[0], tuple(30 * f"{value} " for value in TASK.test.texts[1])]
    short, long = texts
    pieces = rung.encoder_.pieces(long)
    assert len(pieces) > 2
    expected = rung.predict_proba(pieces).mean(axis=0)
    found = rung.predict_proba([short, long, short])
    np.testing.assert_allclose(found[1], expected, atol=1e-6)
    np.testing.assert_allclose(found[0], rung.predict_proba([short])[0], atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-9)
    rows = []
    rung.predict_proba(texts, lambda event: rows.append(event.rows))
    assert sum(rows) == 2


def with_long_texts() -> Task:
    def lengthened(part: Split, rows: int) -> Split:
        texts = [(a, b * 60 if row < rows else b) for row, (a, b) in enumerate(part.texts)]
        return replace(part, texts=tuple(texts))

    return replace(TASK, train=lengthened(TASK.train, 3), validation=lengthened(TASK.validation, 2))


@pytest.mark.parametrize("refit", [False, True])
def test_of_rows_read_in_pieces_only_those_learned_from_are_cut(llm_settings, refit):
    told: list[Event] = []
    chosen = llm_settings(long="chunks", max_seq_length=48, epochs=1, refit=refit)
    rung = LLMRung(chosen).fit(with_long_texts(), notify=told.append)
    assert rung.record_.truncated == {"train": 3, "validation": 2 if refit else 0}
    [note] = [event.text for event in told if isinstance(event, Note)]
    cut, rows = (5, 26) if refit else (3, len(TASK.train))
    assert note == (
        f"{cut} of {rows} rows are longer than 46 tokens: training reads their first piece "
        "(--long chunks)."
    )


@pytest.mark.parametrize(("long", "cut"), [("head", 2), ("chunks", 0)])
def test_what_is_only_read_is_not_cut_into_pieces(llm_settings, long, cut):
    chosen = llm_settings(long=long, max_seq_length=48)
    rung = PromptedRung(chosen, few_shot=False, calibrated=False).fit(with_long_texts())
    assert rung.record_.truncated == {"train": 3 if cut else 0, "validation": cut}


@pytest.mark.parametrize("long", WAYS)
def test_rungs_read_it_alike_alone_and_beside_others(long, llm_settings, tmp_path):
    rung = untrained(llm_settings(long=long, max_seq_length=48))
    texts = [("is this 7", "film " * 40 + "music " * 40), *TASK.test.texts]
    proba = rung.predict_proba(texts)
    alone = np.concatenate([rung.predict_proba([text]) for text in texts])
    np.testing.assert_allclose(alone, proba, atol=1e-6)
    rung.save(tmp_path)
    assert np.array_equal(LLMRung.load(tmp_path).predict_proba(texts), proba)
    (prompt,) = rung.encoder_.encode(texts[:1])
    assert ("film" in prompt.text[1], "music" in prompt.text[1]) == (long != "tail", long != "head")
