from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from llabel.engine.answer import AnswerHead
from llabel.engine.batching import FULL_VOCABULARY, Example, collate, shared_tokens
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
    import transformers

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
