from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llabel.errors import InputError
from llabel.prompt import PromptEncoder, water_level
from llabel.template import BUILT_IN_TEMPLATES, load_template, read_template, template_digest
from tiny_models import BEGIN, SPECIAL_TOKENS

BOOLQ = ("question", "passage")
MARKERS = (*SPECIAL_TOKENS, "### Answer:", "\n ### Answer:", "### Response:\n", "{labels}", "{{")
CHAT = "<|im_start|>user\n{question} {passage}<|im_end|>\n<|im_start|>assistant\n\n"


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def qa(tokenizer) -> PromptEncoder:
    return encoder(tokenizer, "qa")


@pytest.fixture(scope="module")
def chat_file(tmp_path_factory) -> str:
    return written(tmp_path_factory.mktemp("chat"), CHAT)


def encoder(tokenizer, template: str, max_length: int = 100_000) -> PromptEncoder:
    return PromptEncoder(
        tokenizer, load_template(template, BOOLQ, ["false", "true"]), BOOLQ, max_length
    )


def written(folder: Path, text: str) -> str:
    path = folder / "template.txt"
    path.write_text(text, encoding="utf-8")
    return str(path)


# Templates


def test_boolq_gets_the_published_prompt():
    template = load_template("qa", BOOLQ, ["false", "true"])
    prompt = template.render(("is it so", "So it is."), BOOLQ)
    assert prompt == "### Question: is it so\n ### Context: So it is.\n ### Answer:"
    assert template.joint == " "


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("qa", ("review_text",), "### Review text: A\n ### Answer:"),
        ("qa", ("x", "y", "z"), "### X: A\n ### Y: B\n ### Z: C\n ### Answer:"),
        ("plain", ("x",), "A\nLabel:"),
        ("plain", ("x", "y"), "A\nB\nLabel:"),
    ],
)
def test_built_in_templates_take_any_fields(name, fields, expected):
    template = load_template(name, fields, ["no", "yes"])
    assert template.render(("A", "B", "C")[: len(fields)], fields) == expected


@pytest.mark.parametrize(
    ("fields", "shown"), [(("x",), "A"), (("x", "passage"), "X: A\nContext: B")]
)
def test_alpaca_lists_the_labels_in_its_instruction(fields, shown):
    template = load_template("alpaca", fields, ["no", "yes"])
    assert template.render(("A", "B")[: len(fields)], fields) == (
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nClassify the input. Answer with exactly one of these labels: no, yes"
        f"\n\n### Input:\n{shown}\n\n### Response:\n"
    )
    assert template.joint == ""


def test_an_own_instruction_is_text_but_for_the_label_list():
    template = load_template("alpaca", ("x",), ["no", "yes"], "Say {x} or {{}}, of {labels}.")
    assert "### Instruction:\nSay {x} or {{}}, of no, yes.\n" in template.literals[0]


@pytest.mark.parametrize("name", BUILT_IN_TEMPLATES)
@pytest.mark.parametrize("field", ["a:b", "a!r", "a{b", "}", "{}", "labels", "a.b[0]", "", "_"])
def test_columns_may_have_any_name(name, field):
    fields = (field, "other")
    rendered = load_template(name, fields, ["no", "yes"]).render(("FIRST", "SECOND"), fields)
    assert rendered.count("FIRST") == rendered.count("SECOND") == 1
    assert ("no, yes" in rendered) == (name == "alpaca")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Q {question} P {passage} A:", "Q 1 P 2 A:"),
        ("{passage}{question}\n{{x}} of {labels}:\n", "21\n{x} of no, y{es}:"),
        ("\ufeff{question} {question} {passage}?", "1 1 2?"),
        ("{question}\r\n{passage}\r\nA:\r\n", "1\n2\nA:"),
        ("{question}{passage}A:\n\n", "12A:\n"),
    ],
)
def test_template_files(tmp_path, source, expected):
    template = load_template(written(tmp_path, source), BOOLQ, ["no", "y{es}"])
    assert template.render(("1", "2"), BOOLQ) == expected


def test_a_file_may_name_a_column_with_a_colon(tmp_path):
    template = load_template(written(tmp_path, "{a:b}, {c!r} A:"), ("a:b", "c!r"), ["no", "yes"])
    assert template.render(("1", "2"), ("a:b", "c!r")) == "1, 2 A:"


@pytest.mark.parametrize(
    ("end", "prompt_end", "joint"),
    [
        ("A:", "A:", " "),
        ("A: ", "A:", " "),
        ("A:   ", "A:", "   "),
        ("A:\n\n", "A:\n", ""),
        ("A:\t", "A:\t", ""),
        ("A:\n ", "A:\n", " "),
    ],
)
def test_a_space_at_the_end_belongs_to_the_answer(tmp_path, end, prompt_end, joint):
    template = load_template(written(tmp_path, "{x} " + end), ("x",), ["no", "yes"])
    assert (template.literals[-1], template.joint) == (" " + prompt_end, joint)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{question} A:", "does not use the text column 'passage'"),
        ("{question} {passage} {answer}:", "{answer}, which is no text column.*question, passage"),
        ("{question} {passage:>8} A:", "{passage:>8}, which is no text column"),
        ("{question} {passage!r} A:", "{passage!r}, which is no text column"),
        ("{question} {} {passage} A:", "{}, which is no text column"),
        ("{question} {passage", "cannot be read: .*Write {{ and }} for literal braces"),
        ("{question} } {passage} A:", "Write {{ and }} for literal braces"),
        ("A: {question} {passage}", "ends with {passage}.*so that the model can tell"),
        ("A: {question} {passage}  ", "ends with {passage}"),
        ("", "does not use the text column 'question'"),
    ],
)
def test_template_files_that_cannot_work(tmp_path, source, message):
    with pytest.raises(InputError, match=message):
        load_template(written(tmp_path, source), BOOLQ, ["no", "yes"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alpacca", "Did you mean 'alpaca'?"),
        ("nowhere/mine.txt", r"nor a file that can be read \(No such file.*Write your template"),
        ("### Q: {question}" * 100, "File name too long.*Write your template into a file"),
        ("a\0b", "null byte"),
        (".", "Is a directory"),
    ],
)
def test_names_that_are_no_template(name, message):
    with pytest.raises(InputError, match=message):
        load_template(name, BOOLQ, ["no", "yes"])


def test_a_template_in_another_encoding(tmp_path):
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"caf\xe9 {question} {passage} A:")
    with pytest.raises(InputError, match="not UTF-8 at byte 3"):
        load_template(str(path), BOOLQ, ["no", "yes"])


@pytest.mark.parametrize("name", ["qa", "plain"])
def test_an_instruction_without_a_place(name):
    with pytest.raises(InputError, match=r"--instruction was given, but .*Use --template alpaca"):
        load_template(name, BOOLQ, ["no", "yes"], "Decide.")


# Token ids


@given(st.text(), st.text())
@example("ends with a newline\n", "\n ### Answer:")
def test_a_prompt_is_tokenised_as_one_text(qa, tokenizer, question, passage):
    rendered = qa.template.render((question, passage), BOOLQ)
    [prompt] = qa.encode([(question, passage)])
    assert list(prompt.input_ids) == tokenizer(rendered)["input_ids"]
    assert not prompt.truncated


@given(st.tuples(st.text(), st.sampled_from(MARKERS), st.text()).map("".join), st.text())
def test_markers_in_a_users_text_stay_text(qa, tokenizer, marked, other):
    for text in ((marked, other), (other, marked)):
        [prompt] = qa.encode([text])
        assert not set(prompt.input_ids) & set(tokenizer.added_tokens_decoder)
        assert tokenizer.decode(prompt.input_ids) == qa.template.render(text, BOOLQ)


@given(st.sampled_from(MARKERS), st.text(max_size=5), st.integers(0, 40))
def test_special_tokens_of_the_template_are_parsed(tokenizer, chat_file, marker, text, room):
    chat = encoder(tokenizer, chat_file, max_length=24 + room)
    [prompt] = chat.encode([(text + marker + text, marker)])
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    special = [i for i in prompt.input_ids if i in tokenizer.added_tokens_decoder]
    assert special == [start, end, start]
    assert tokenizer.decode(prompt.input_ids).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_the_begin_token_is_kept_and_never_doubled(tiny_llama_bos, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_bos)
    plain = encoder(tokenizer, "qa").encode([("why", "so")])[0].input_ids
    own_begin = BEGIN + "### Question: {question}\n ### Context: {passage}\n ### Answer:\n"
    own = encoder(tokenizer, written(tmp_path, own_begin)).encode([("why", "so")])[0].input_ids
    rendered = "### Question: why\n ### Context: so\n ### Answer:"
    assert list(plain) == list(own) == tokenizer(rendered)["input_ids"]
    assert [at for at, token in enumerate(plain) if token == tokenizer.bos_token_id] == [0]


def test_a_template_may_lie_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.txt").write_text("{question} Answer:\n")
    assert read_template("~/mine.txt") == "{question} Answer:"
    assert template_digest("~/mine.txt") == template_digest(str(tmp_path / "mine.txt"))


def test_half_a_surrogate_pair_is_one_unknown_character(qa):
    odd, even = qa.encode([("a\ud83d", "b"), ("a\ufffd", "b")])
    assert odd.input_ids == even.input_ids
    assert odd.text == ("a\ud83d", "b")


@pytest.mark.parametrize("template", ["qa", "alpaca"])
def test_one_row_is_encoded_as_in_company(tokenizer, template):
    texts = [("why", "so"), ("", ""), ("is it " * 50, "it is"), ("true", "no " * 300)]
    few = encoder(tokenizer, template, max_length=300)
    assert few.encode(texts) == [few.encode([text])[0] for text in texts]
    lengths = encoder(tokenizer, template).lengths(texts)
    assert [p.truncated for p in few.encode(texts)] == [n > 300 for n in lengths]


# Truncation

TEXTS = st.text() | st.text("ab \n😀é", max_size=200) | st.text(max_size=3).map(lambda t: t * 40)


@given(TEXTS, TEXTS, st.integers(14, 60))
@example("why", "😀" * 50, 30)
@example(" " * 500, "\n\t " * 100, 30)
@example("x" * 200, "<|im_end|>" * 20, 20)
def test_cut_prompts_keep_the_template_and_whole_characters(
    tokenizer, question, passage, max_length
):
    few = encoder(tokenizer, "qa", max_length)
    [prompt] = few.encode([(question, passage)])
    assert len(prompt.input_ids) <= max_length
    head, tail = tokenizer("### Question:")["input_ids"], tokenizer(" ### Answer:")["input_ids"]
    assert list(prompt.input_ids[: len(head)]) == head
    assert list(prompt.input_ids[-len(tail) :]) == tail
    # What is left reads as the template around beginnings of the two texts, no character broken.
    left = tokenizer.decode(prompt.input_ids)
    spare = len(left) - len(few.template.render(("", ""), BOOLQ))
    cuts = [(question[:n], passage[: spare - n]) for n in range(min(spare, len(question)) + 1)]
    assert left in {few.template.render(cut, BOOLQ) for cut in cuts}
    assert prompt.truncated == (left != few.template.render((question, passage), BOOLQ))


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ((3, 90), (3, 37)),
        ((90, 3), (37, 3)),
        ((90, 90), (20, 20)),
        ((22, 90), (20, 20)),
        ((15, 90), (15, 25)),
        ((15, 25), (15, 25)),
    ],
)
def test_the_longest_field_is_cut_first(tokenizer, words, kept):
    few = encoder(tokenizer, "qa", max_length=51)
    question, passage = " ".join(["true"] * words[0]), " ".join(["false"] * words[1])
    [prompt] = few.encode([(question, passage)])
    found = tokenizer.decode(prompt.input_ids)
    assert (found.count("true"), found.count("false")) == kept
    assert prompt.truncated == (words != kept)
    assert len(prompt.input_ids) == 51


@pytest.mark.parametrize("words", [30, 90])
def test_a_field_that_stands_twice_is_cut_once(tokenizer, tmp_path, words):
    path = written(tmp_path, "{question} and again: {question}\n{passage}\nA:")
    few = encoder(tokenizer, path, max_length=60)
    [prompt] = few.encode([(" ".join(["true"] * words), "c")])
    first, second = tokenizer.decode(prompt.input_ids)[: -len("\nc\nA:")].split(" and again: ")
    assert first == second
    assert 57 <= len(prompt.input_ids) <= 60


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(0, 100))
def testwater_level(counts, budget):
    level = water_level(counts, budget)
    assert sum(min(count, level) for count in counts) <= budget
    assert level == max(counts) or sum(min(count, level + 1) for count in counts) > budget


def test_a_limit_that_holds_no_text(tokenizer):
    needed = len(encoder(tokenizer, "qa").encode([("", "")])[0].input_ids)
    with pytest.raises(InputError, match=rf"takes {needed} tokens, but only {needed} are allowed"):
        encoder(tokenizer, "qa", max_length=needed)
    [prompt] = encoder(tokenizer, "qa", max_length=needed + 1).encode([("why why", "so")])
    assert len(prompt.input_ids) <= needed + 1


def test_tokenizers_without_offsets_are_refused():
    from transformers import ByT5Tokenizer

    with pytest.raises(InputError, match=r"ByT5Tokenizer.*tokenizer\.json"):
        encoder(ByT5Tokenizer(), "qa")
