from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import transformers

from llabel.engine.answer import AnswerHead
from llabel.engine.batching import FULL_VOCABULARY, Example, collate, shared_tokens
from llabel.engine.linear import quantise_frozen
from llabel.engine.prefix import pays
from llabel.errors import InputError
from llabel.labels import compile_labels
from tiny_models import llama_config, random_model

VOCABULARY, END = 60, 0
PROMPTS = ((11, 12, 13, 14, 15, 16, 17, 18, 19), (21,), (31, 32, 33, 34))
WORDS = {
    "first token": ["5", "6", "7"],
    "shared beginning": ["5 6 7", "5 6 8"],
    "deep": ["5", "5 6", "5 6 7", "5 6 7 8", "5 6 9", "6 5 5", "6 5 6 1", "6 5 6 2", "7 5 6 1"],
}
SMALL = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 60},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    **{"initializer_range": 0.15, "eos_token_id": 0, "bos_token_id": None, "pad_token_id": None},
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 60}
GPT |= {"eos_token_id": 0, "bos_token_id": 0, "initializer_range": 0.15}


def configuration(kind: str, **changes: Any) -> Any:
    shared = {name: value for name, value in SMALL.items() if kind != "GPTNeoX" or "kv" not in name}
    settings = GPT if kind in {"GPT2", "Bloom"} else shared
    return getattr(transformers, f"{kind}Config")(**(settings | changes))


@dataclass(frozen=True)
class Case:
    """An architecture, and what is special about its logits, positions or attention."""

    kind: str
    changes: dict[str, Any]

    def __str__(self) -> str:
        return "-".join([self.kind, *self.changes])


ARCHITECTURES = [
    Case("Llama", {"tie_word_embeddings": True}),
    Case("Llama", {"tie_word_embeddings": False, "attention_bias": True}),
    Case("Qwen2", {}),
    Case("Qwen3", {"head_dim": 8}),
    Case("GPT2", {}),  # learned positions
    Case("GPTNeoX", {}),
    Case("Bloom", {}),  # ALiBi: no tree pass
    Case("Cohere", {"logit_scale": 0.25}),
    Case("Granite", {"logits_scaling": 4.0}),
    Case("Gemma2", {"head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 64}),
    Case("Gemma2", {"head_dim": 8, "sliding_window": 10}),  # layers that forget the prompt's start
    Case("Mistral", {"sliding_window": 10}),
]


def trie(words: list[str]):
    return compile_labels(words, lambda word: [int(token) for token in word.split()], END)


def by_hand(model, labels, prompt: tuple[int, ...]) -> torch.Tensor:
    """(n_classes,) log-probabilities from the model's own full logits, one label at a time."""
    columns = []
    for tokens in labels.tokens:
        logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0].float()
        total = torch.zeros(())
        closed = (*tokens, END)
        for depth, token in enumerate(closed):
            options = {
                (*other, END)[depth]
                for other in labels.tokens
                if len(other) >= depth and other[:depth] == tokens[:depth]
            }
            if len(options) > 1:  # softmax over what may follow here
                here = logits[len(prompt) - 1 + depth]
                total = total + here[token] - here[sorted(options)].logsumexp(0)
        columns.append(total)
    return torch.stack(columns)


@pytest.fixture(scope="module")
def llama():
    return random_model(llama_config(VOCABULARY))


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("case", ARCHITECTURES, ids=str)
@torch.no_grad()
def test_log_probs_are_those_of_the_models_own_logits(case, words):
    model, labels = random_model(configuration(case.kind, **case.changes)), trie(WORDS[words])
    head = AnswerHead(model, labels)
    found = head.log_probs(collate([Example(p) for p in PROMPTS]))
    expected = torch.stack([by_hand(model, labels, prompt) for prompt in PROMPTS])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(len(PROMPTS)))
    assert found.std() > 0.05  # else anything would pass
    no_tree = words == "first token" or case.kind == "Bloom"
    assert (head.reader.tree is None) == no_tree  # the rest need not fall back on the slow way


@pytest.mark.parametrize("words", WORDS)
def test_a_batch_is_as_its_rows_alone(llama, words):
    head = AnswerHead(llama, trie(WORDS[words]))
    together = head.log_probs(collate([Example(p) for p in PROMPTS], pad_token=3))
    alone = torch.cat([head.log_probs(collate([Example(p)])) for p in PROMPTS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_the_tree_pass_equals_a_pass_per_branching(llama):
    head = AnswerHead(llama, trie(WORDS["deep"]))
    batch = collate([Example(p) for p in PROMPTS])
    tree = head.log_probs(batch)
    assert head.reader.tree is not None
    head.reader.tree = None
    torch.testing.assert_close(tree, head.log_probs(batch), rtol=0, atol=1e-5)


def test_the_loss_is_the_cross_entropy_of_every_choice(llama):
    labels = trie(WORDS["deep"])
    head = AnswerHead(llama, labels)
    examples, expected = [], torch.zeros(())
    for prompt, label in zip(PROMPTS, (3, 7, 0), strict=True):
        path = labels.steps[label]
        depths = [len(labels.branchings[number].prefix) for number, _ in path]
        examples.append(
            Example(
                (*prompt, *labels.tokens[label][: max(depths)]),
                tuple(len(prompt) - 1 + depth for depth in depths),
                tuple(number for number, _ in path),
                tuple(child for _, child in path),
            )
        )
        expected = expected - by_hand(llama, labels, prompt)[label]
    torch.testing.assert_close(head.loss(collate(examples)), expected, rtol=0, atol=1e-5)


def test_the_loss_over_the_vocabulary(llama):
    head = AnswerHead(llama, trie(WORDS["first token"]))
    examples = [
        Example(PROMPTS[0], (2, 7), (FULL_VOCABULARY,) * 2, (50, 51)),
        Example(PROMPTS[2], (3,), (FULL_VOCABULARY,), (52,)),
    ]
    one = llama(input_ids=torch.tensor([PROMPTS[0]])).logits[0].log_softmax(-1)
    two = llama(input_ids=torch.tensor([PROMPTS[2]])).logits[0].log_softmax(-1)
    expected = -(one[2, 50] + one[7, 51] + two[3, 52])
    torch.testing.assert_close(head.loss(collate(examples)), expected, rtol=0, atol=1e-5)


def test_a_mask_that_hides_nothing_has_a_gradient():
    """The loss must reach every layer, and only through positions that are read."""
    model = random_model(llama_config(VOCABULARY)).requires_grad_(True)
    head = AnswerHead(model, trie(WORDS["first token"]))
    example = Example((*PROMPTS[0], 40, 41), (len(PROMPTS[0]) - 1,), (0,), (1,))
    head.loss(collate([example])).backward()
    embedding = model.get_input_embeddings().weight.grad
    assert (embedding[list(PROMPTS[0])].abs().sum(1) > 0).all()
    assert embedding[[40, 41]].abs().sum() == 0  # to the right of the answer position
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("change", [lambda logits: 3 * logits, lambda logits: logits - 5])
def test_models_that_treat_their_logits_in_other_ways_are_refused(change):
    model = random_model(llama_config(VOCABULARY))
    forward = model.forward

    def changed(*args, **kwargs):
        output = forward(*args, **kwargs)
        return replace(output, logits=change(output.logits))

    model.forward = changed
    with pytest.raises(InputError, match=r"LlamaForCausalLM treats its logits.*difference \d"):
        AnswerHead(model, trie(WORDS["first token"]))


@pytest.mark.parametrize("training", [True, False])
def test_the_check_leaves_the_model_as_it_was(training):
    model = random_model(configuration("GPT2")).train(training)  # it has dropout
    AnswerHead(model, trie(WORDS["deep"]))
    assert model.training is training


# What many prompts begin with


SHARED = tuple(range(20, 38))  # longer than the small sliding windows


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("case", ARCHITECTURES, ids=str)
def test_a_prefix_read_once_changes_nothing(case, words):
    model = random_model(configuration(case.kind, **case.changes))
    head = AnswerHead(model, trie(WORDS[words]))
    plain = head.log_probs(collate([Example(SHARED + p) for p in PROMPTS]))
    prefix = head.read_prefix(SHARED)
    cannot = case.kind == "Bloom" or case.changes.get("sliding_window") == 10
    assert (prefix is None) == cannot
    if prefix is None:
        return
    for _ in range(2):  # the cache is as it was after the first time
        found = head.log_probs(collate([Example(p) for p in PROMPTS], pad_token=3), prefix)
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
    one_by_one = [head.log_probs(collate([Example(p)]), prefix) for p in PROMPTS]
    torch.testing.assert_close(torch.cat(one_by_one), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("words", WORDS)
def test_rows_that_outgrow_the_window_are_read_whole(words):
    """The window holds prefix and longest row, but not all rows packed behind it."""
    model = random_model(configuration("Mistral", sliding_window=36))
    head = AnswerHead(model, trie(WORDS[words]))
    prefix = head.read_prefix(SHARED[:12])
    assert prefix is not None
    plain = head.log_probs(collate([Example(SHARED[:12] + p) for p in PROMPTS]))
    for group in (PROMPTS, PROMPTS * 3, PROMPTS):
        found = head.log_probs(collate([Example(p) for p in group]), prefix)
        expected = plain.repeat(len(group) // len(PROMPTS), 1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# Rows of both sides of a length beyond which a model reads otherwise


LONGER = {"max_position_embeddings": 256}
ROPE = {"rope_theta": 1e4, "original_max_position_embeddings": 40}
TEXT = SMALL | LONGER | {"head_dim": 8, "sliding_window": 36, "pad_token_id": 0}
SLIDING_AND_FULL = {"layer_types": ["sliding_attention", "full_attention"]}
VISION = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
}
UNEQUAL = [
    Case("GPTNeo", {"window_size": 36, "attention_types": [[["global", "local"], 1]]} | LONGER),
    Case("Phi3", LONGER | {
        "original_max_position_embeddings": 40,
        "rope_parameters": ROPE | {
            "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4
        },
    }),
    Case("Mpt", {  # ALiBi
        **{"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 60},
        "initializer_range": 0.15,
    }),
    Case("Gemma3", {"text_config": TEXT | SLIDING_AND_FULL, "vision_config": VISION}),
    Case("Gemma4", {"text_config": TEXT | SLIDING_AND_FULL | {
        **{"vocab_size_per_layer_input": 60, "hidden_size_per_layer_input": 8},
        **{"global_head_dim": 8, "final_logit_softcapping": 2.0},
    }}),
]  # fmt: skip


@pytest.fixture(scope="module", params=UNEQUAL, ids=lambda case: case.kind)
def unequal(request):
    """A tiny model for which it matters how long the longest row of a pass is."""
    case = request.param
    nested = case.kind in {"Mpt", "Gemma3", "Gemma4"}
    made = getattr(transformers, f"{case.kind}Config")
    return random_model(made(**({} if nested else SMALL) | case.changes))


@pytest.mark.parametrize("words", WORDS)
def test_short_and_long_rows_are_read_as_alone(unequal, words):
    labels, rests = trie(WORDS[words]), [(21, 22), PROMPTS[0], (7, 8) * 13, (*range(10, 55),)]
    rows = [SHARED + rest for rest in rests]  # of 20, 27, 44 and 63 tokens
    head = AnswerHead(unequal, labels)
    with torch.no_grad():
        expected = torch.stack([by_hand(unequal, labels, row) for row in rows])
    assert expected.std() > 0.05
    alone = [head.log_probs(collate([Example(row)])) for row in rows]
    torch.testing.assert_close(torch.cat(alone), expected, rtol=0, atol=1e-4)
    found = head.log_probs(collate([Example(row) for row in rows], pad_token=3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    no_tree = words == "first token" or type(unequal).__name__.startswith("Mpt")
    assert (head.reader.tree is None) == no_tree  # short rows at least need no other way
    prefix = head.read_prefix(SHARED)
    assert (prefix is None) == type(unequal).__name__.startswith("Mpt")
    if prefix is not None:
        for chosen in ([0, 1], [2], [0, 1, 2, 3]):
            behind = collate([Example(rests[row]) for row in chosen], pad_token=3)
            found = head.log_probs(behind, prefix)
            torch.testing.assert_close(found, expected[chosen], rtol=0, atol=1e-4)


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_few_bits_do_not_hide_that_places_are_those_in_memory(precision, words):
    (case,) = (case for case in UNEQUAL if case.kind == "Mpt")
    model = random_model(transformers.MptConfig(**case.changes))
    if precision == "int8":
        quantise_frozen(model.get_decoder())
    else:
        model.bfloat16()
    head = AnswerHead(model, trie(WORDS[words]))
    assert head.reader.tree is None
    assert head.read_prefix(SHARED) is None


@pytest.mark.parametrize("words", WORDS)
def test_rotary_tables_that_grow_with_a_row_are_its_own(words):
    labels, rope = trie(WORDS[words]), {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 4.0}
    rows = [SHARED + PROMPTS[0], SHARED + tuple(range(10, 55))]  # of 27 and 63 tokens

    def fresh():  # what a longer row leaves behind stays until a short one is read
        settings = {"rope_parameters": rope, "max_position_embeddings": 40}
        return AnswerHead(random_model(configuration("Llama", **settings)), labels)

    alone = torch.cat([fresh().log_probs(collate([Example(row)])) for row in rows])
    found = fresh().log_probs(collate([Example(row) for row in rows]))
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)
    head = fresh()
    behind = collate([Example(row[len(SHARED) :]) for row in rows])
    found = head.log_probs(behind, head.read_prefix(SHARED))
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)


def test_the_loss_of_short_and_long_rows_is_that_of_each_alone(unequal):
    head = AnswerHead(unequal, trie(WORDS["first token"]))
    rows = [Example((*SHARED, *[7] * n), (17 + n,), (0,), (1,)) for n in (3, 9, 26, 45)]
    with torch.no_grad():
        alone = sum(head.loss(collate([row])) for row in rows)
        torch.testing.assert_close(head.loss(collate(rows)), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([(1, 2, 3, 4), (1, 2, 5), (1, 2, 3, 9)], (1, 2)),
        ([(1, 2, 3), (1, 2, 3), (1, 2, 3, 4)], (1, 2)),  # each row keeps a token of its own
        ([(1,), (1, 2)], ()),
        ([(1, 2), (2, 2)], ()),
        ([(7, 8, 9)], (7, 8)),
        ([], ()),
    ],
)
def test_shared_tokens(prompts, expected):
    assert shared_tokens(prompts) == expected


def test_short_prefixes_and_few_rows_are_not_worth_it():
    assert [pays(n, rows) for n, rows in ((16, 4), (15, 999), (999, 3))] == [
        True,
        False,
        False,
    ]


# CUDA


@pytest.mark.gpu
@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("case", ARCHITECTURES, ids=str)
@torch.no_grad()
def test_log_probs_on_cuda_are_those_of_the_cpu(case, words):
    labels, batch = trie(WORDS[words]), collate([Example(p) for p in PROMPTS])
    model = random_model(configuration(case.kind, **case.changes))
    expected = AnswerHead(model, labels).log_probs(batch)
    head = AnswerHead(model.cuda(), labels)
    found = head.log_probs(batch.to(torch.device("cuda")))
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-3)
    prefix = head.read_prefix(SHARED)
    if prefix is not None:
        behind = head.log_probs(batch.to(torch.device("cuda")), prefix)
        whole = collate([Example(SHARED + p) for p in PROMPTS]).to(torch.device("cuda"))
        torch.testing.assert_close(behind, head.log_probs(whole), rtol=0, atol=1e-3)
