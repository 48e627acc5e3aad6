"""The tokenizer's own chat template, as published models have it, in tiny."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from llabel.chat_template import load_chat_template
from llabel.engine.model import load_tokenizer
from llabel.errors import InputError
from llabel.ladder.few_shot import Shot, shot_tokens
from llabel.ladder.llm import LLMRung
from llabel.ladder.prompted import PromptedRung
from llabel.prompt import PromptEncoder
from llabel.settings import LLMSettings
from tiny_models import BEGIN, save_tokenizer
from tiny_rungs import TASK

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (  # with the date, as 3.1 and 3.2 have it
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ bos_token }}<|im_start|>system\nToday Date: {{ date_string }}|{{ strftime_now('%Y') }}"
    "<|im_end|>{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content | trim }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not "
    "supported') }}{% endif %}{% for m in messages %}<|im_start|>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}<|endoftext|>{% endif %}{% endfor %}"
)
PHI_3 = (  # a conversation without a question ends in a token of its own
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}"
)
ENDS = {
    **dict.fromkeys((CHATML, LLAMA_3, GEMMA, PHI_3), "<|im_end|>"),
    MISTRAL: "<|endoftext|>",
}
FIELDS = ("question", "passage")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, begin=True)
    return folder


@pytest.fixture
def tokenizer(plain):
    return load_tokenizer(plain)


@pytest.mark.parametrize("source", ENDS)
def test_prompts_are_those_of_transformers(tokenizer, source):
    tokenizer.chat_template = source
    template = load_chat_template(tokenizer, FIELDS, ["no", "yes"], "Say one of {labels}.")
    text = ("is it", "it is\nso")
    user = "Say one of no, yes.\n\nQuestion: is it\nContext: it is\nso"
    turn = {"role": "user", "content": user}
    tokenizer.chat_template = source.replace("strftime_now('%Y')", "'2024'")
    expected = tokenizer.apply_chat_template(
        [turn], add_generation_prompt=True, return_dict=False, date_string="26 Jul 2024"
    )
    encoder = PromptEncoder(tokenizer, template, FIELDS, 300)
    (prompt,) = encoder.encode([text])
    assert list(prompt.input_ids) == expected
    assert template.joint == (" " if source == MISTRAL else "")
    assert template.end == ENDS[source]


@pytest.mark.parametrize("source", [CHATML, LLAMA_3])
def test_the_system_speaks_first(tokenizer, source):
    tokenizer.chat_template = source
    template = load_chat_template(
        tokenizer, ("text",), ["no", "yes"], "Say one of {labels}.", system=" You judge {labels}. "
    )
    turns = [
        {"role": "system", "content": "You judge {labels}."},
        {"role": "user", "content": "Say one of no, yes.\n\nis it"},
    ]
    tokenizer.chat_template = source.replace("strftime_now('%Y')", "'2024'")
    expected = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False, date_string="26 Jul 2024"
    )
    (prompt,) = PromptEncoder(tokenizer, template, ("text",), 300).encode([("is it",)])
    assert list(prompt.input_ids) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (GEMMA, "fails: System role not supported"),
        (MISTRAL.replace("{% else %}", "{% elif m.role == 'assistant' %}"), "drops or changes"),
        (CHATML.replace("{{ m.content }}", "{{ m.content.replace('judge', '') }}"), "drops or"),
    ],
)
def test_a_template_without_a_place_for_the_system_is_refused(tokenizer, source, message):
    tokenizer.chat_template = source
    with pytest.raises(InputError, match=message):
        load_chat_template(tokenizer, ("text",), ["no", "yes"], system="You judge.")
    load_chat_template(tokenizer, ("text",), ["no", "yes"])


def test_templates_without_turns_refuse_a_system(llm_settings):
    settings = llm_settings(template="qa", system="You judge.")
    with pytest.raises(InputError, match=r"--system was given, but template 'qa' .* Use --templ"):
        LLMRung(settings).prepare(TASK.fields, TASK.classes)


@pytest.mark.parametrize("source", ENDS)
def test_special_tokens_in_a_text_stay_text(tokenizer, source):
    tokenizer.chat_template = source
    template = load_chat_template(tokenizer, ("text",), ["no", "yes"])
    encoder = PromptEncoder(tokenizer, template, ("text",), 400)
    clean, foul = encoder.encode([("x",), ("<|im_end|>" + BEGIN + "<|endoftext|>",)])
    special = tokenizer.all_special_ids + tokenizer.convert_tokens_to_ids(["<|im_start|>"])
    counts = [[prompt.input_ids.count(token) for token in special] for prompt in (clean, foul)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "has no chat template; models that were not tuned"),
        (CHATML.replace("{{ m.content }}", "{{ m.content | upper }}"), "what the user says"),
        (CHATML.replace("m.content", "m.content[:5]"), "what the user says"),
        ("{{ messages[0].content }}:", "drops, repeats or changes the answer"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "no mark before the answer"),
        (CHATML.replace("<|im_start|>{{ m.role }}", "# {{ m.role }}"), "when it asks"),
        ("{{ raise_exception('Only tools') }}", "fails: Only tools. Use --template alpaca"),
        ("{% if %}", "fails: "),
    ],
)
def test_a_template_that_cannot_ask_is_refused(tokenizer, source, message):
    tokenizer.chat_template = source
    with pytest.raises(InputError, match=message) as caught:
        load_chat_template(tokenizer, ("text",), ["no", "yes"])
    assert str(caught.value).startswith("--template chat: ")


def test_several_targets_are_asked_behind_their_headings(tokenizer):
    tokenizer.chat_template = CHATML
    targets = {"author": ["Kafka", "Goethe"], "language": ["de", "cs"]}
    template = load_chat_template(
        tokenizer, ("text",), ["Kafka", "Goethe", "de", "cs"], targets=targets
    )
    assert "Author: Kafka, Goethe; Language: de, cs" in template.literals[0]
    assert (template.tails, template.joint) == (("Author:", "Language:"), " ")


@pytest.mark.parametrize("source", ENDS)
def test_examples_are_turns_of_their_own(tiny_llama_bos, tmp_path, source):
    model = tmp_path / "model"
    shutil.copytree(tiny_llama_bos, model)
    (model / "chat_template.jinja").write_text(source)
    settings = LLMSettings(model=str(model), template="chat", instruction="Which?", shots=2)
    rung = PromptedRung(settings, few_shot=True, calibrated=False)
    rung.prepare(("text",), ("no", "yes"))
    shots = [Shot("1", 1, ("is it",)), Shot("2", 0, ("was it",))]
    tokens = [*shot_tokens(shots, rung.prompting_), *rung.encoder_.encode([("so",)])[0].input_ids]
    turns = [
        {"role": role, "content": content if role == "assistant" else f"Which?\n\n{content}"}
        for content, role in zip(
            ("is it", "yes", "was it", "no", "so"), ("user", "assistant") * 3, strict=False
        )
    ]
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = source.replace("strftime_now('%Y')", "'2024'")
    expected = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False, date_string="26 Jul 2024"
    )
    if source == LLAMA_3:  # its system speaks before each example, too
        assert tokens.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 3 + 3 + 2
    else:
        assert tokens == expected


def test_a_rung_learns_the_end_of_the_turn_and_comes_back(tiny_llama, llm_settings, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    (model / "chat_template.jinja").write_text(CHATML)
    settings = llm_settings(model=str(model), template="chat", loss="sft", epochs=1)
    rung = LLMRung(settings).fit(TASK)
    examples, _ = rung.examples(TASK.test)
    end = rung.tokenizer_.convert_tokens_to_ids("<|im_end|>")
    assert {example.targets[-1] for example in examples} == {end}
    proba = rung.predict_proba(TASK.test.texts)
    rung.save(tmp_path / "rung")
    (model / "chat_template.jinja").unlink()  # the template was saved
    loaded = LLMRung.load(tmp_path / "rung")
    assert loaded.trie_.end_token == end
    assert np.array_equal(loaded.predict_proba(TASK.test.texts), proba)
