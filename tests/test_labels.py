import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llabel.errors import InputError
from llabel.labels import AnswerTokeniser, Branching, compile_labels, label_words
from llabel.prompt import answer_tail
from llabel.template import load_template

END = 0
WORDS = st.lists(st.text("abc", min_size=1, max_size=5), min_size=2, max_size=12, unique=True)


def letters(word: str) -> list[int]:
    return [ord(letter) for letter in word]


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


def answers(tokenizer, template: str = "qa") -> AnswerTokeniser:
    loaded = load_template(template, ("question",), ["no", "yes"])

    def encode(text: str) -> list[int]:
        return tokenizer(text, split_special_tokens=True)["input_ids"]

    return AnswerTokeniser(encode, answer_tail(loaded, tokenizer), loaded.joint)


# Words


@pytest.mark.parametrize(
    ("classes", "given_words", "expected"),
    [
        ((False, True), None, ["false", "true"]),
        ((np.False_, np.True_), None, ["false", "true"]),
        ((False, True), {"True": "yes"}, ["false", "yes"]),
        ((-1, 0, 10), {"-1": "bad"}, ["bad", "0", "10"]),
        (("B", "a "), None, ["B", "a"]),
        (("0", "1"), {"0": "no", "1": " yes "}, ["no", "yes"]),
    ],
)
def test_words_of_labels(classes, given_words, expected):
    assert label_words(classes, given_words) == expected


@pytest.mark.parametrize(
    ("classes", "given_words", "message"),
    [
        (("a", "b"), {"c": "see"}, "--label-words names 'c', which is no label. Labels: a, b"),
        (("a", " "), None, "The label ' ' has no words"),
        (("a", "b"), {"b": ""}, "The label 'b' has no words.*--label-words 'b="),
        (("a", "b"), {"a": "x", "b": "x "}, "'a' and 'b' have the same words 'x'"),
        (("x", " x"), None, "'x' and ' x' have the same words 'x'.*--label-words ' x="),
    ],
)
def test_words_that_cannot_be_used(classes, given_words, message):
    with pytest.raises(InputError, match=message):
        label_words(classes, given_words)


# The trie


@given(WORDS, st.integers(0, 2**31))
@example(["a", "ab", "abc", "abcb"], 0)
@example(["aab", "aac"], 0)
def test_any_labels_get_a_proper_distribution(words, seed):
    trie = compile_labels(words, letters, END)
    assert trie.words == tuple(words)
    rng = np.random.default_rng(seed)
    softmaxes = []
    for branching in trie.branchings:
        weights = np.exp(rng.normal(0, 3, len(branching.children)))
        softmaxes.append(weights / weights.sum())
    probabilities = [math.prod(softmaxes[n][child] for n, child in path) for path in trie.steps]
    assert sum(probabilities) == pytest.approx(1)
    assert min(probabilities) > 0


@given(WORDS)
def test_steps_spell_the_label(words):
    trie = compile_labels(words, letters, END)
    for word, path in zip(words, trie.steps, strict=True):
        closed = [*letters(word), END]
        assert path, "every label needs a choice"
        for number, child in path:
            branching = trie.branchings[number]
            assert tuple(closed[: len(branching.prefix)]) == branching.prefix
            assert branching.children[child] == closed[len(branching.prefix)]


def test_a_label_that_begins_another_ends_by_choice():
    trie = compile_labels(["style", "style & beauty", "news"], str.split, "<end>")
    assert trie.branchings == (
        Branching((), ("news", "style")),
        Branching(("style",), ("&", "<end>")),
    )
    assert trie.steps == (((0, 1), (1, 1)), ((0, 1), (1, 0)), ((0, 0),))
    assert trie.longest == 4


def test_a_shared_beginning_is_no_choice():
    trie = compile_labels(["very good", "very bad"], str.split, "<end>")
    assert trie.branchings == (Branching(("very",), ("bad", "good")),)
    assert trie.steps == (((0, 1),), ((0, 0),))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["one"], "needs at least two labels; given: \\['one'\\]"),
        (["a", ""], "The label '' has no tokens"),
        (["a  b", "c", "a b"], "The labels 'a  b' and 'a b' have the same tokens"),
        (["a", "a <end>"], "The label 'a <end>' holds the token that ends an answer"),
    ],
)
def test_labels_that_cannot_be_told_apart(words, message):
    with pytest.raises(InputError, match=message):
        compile_labels(words, str.split, "<end>")


def test_a_model_without_an_end_token():
    with pytest.raises(InputError, match="no eos_token"):
        compile_labels(["a", "b"], letters, None)


# Tokens in the context of the template


@pytest.mark.parametrize(
    ("template", "word", "tokens"),
    [
        ("qa", "true", ["Ġtrue"]),
        ("alpaca", "true", ["t", "ru", "e"]),
        ("qa", "style & beauty", ["Ġ", "style", "Ġ", "&", "Ġbeaut", "y"]),
    ],
)
def test_answers_are_tokenised_after_the_prompt(tokenizer, template, word, tokens):
    found = tokenizer.convert_ids_to_tokens(answers(tokenizer, template)(word))
    assert found == tokens


@pytest.mark.parametrize("end", ["<|im_start|>assistant\n", "<|im_start|>assistant", "<|im_end|>"])
def test_special_tokens_in_a_label_are_text(tokenizer, tmp_path, end):
    path = tmp_path / "chat.txt"
    path.write_text("<|im_start|>{question}<|im_end|>" + end + "\n")
    tokens = answers(tokenizer, str(path))("<|endoftext|>")
    assert not set(tokens) & set(tokenizer.added_tokens_decoder)
    assert tokenizer.decode(tokens).strip() == "<|endoftext|>"
    compile_labels(["a", "a<|endoftext|>"], answers(tokenizer, str(path)), tokenizer.eos_token_id)


def test_a_label_may_not_change_the_prompts_own_tokens(tokenizer):
    def encode(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    with pytest.raises(InputError, match=r"'ue' melts into the end of the template ' tr'"):
        AnswerTokeniser(encode, " tr", "")("ue")


@pytest.mark.parametrize(("tail", "told"), [(" tr", "a newline"), ("\n\n", "a single newline")])
def test_how_a_template_should_end(tail, told):
    with pytest.raises(InputError, match=rf"End the template with ':' or {told}\.$"):
        AnswerTokeniser(lambda text: [hash(text)], tail, "")("ue")
