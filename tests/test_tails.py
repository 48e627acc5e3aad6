"""Several targets behind one text: read once, each by itself."""

from typing import Any

import pytest
import torch

from llabel.engine.answer import AnswerHead
from llabel.engine.batching import FULL_VOCABULARY, Example, apart, collate
from llabel.engine.native.library import compiler
from llabel.engine.packed_reader import PackedReader
from llabel.errors import InputError
from llabel.labels import LabelTrie, join_tries
from test_packed import PROMPTS, SHARED, batch, gradients, int8, lora, model, packed, trie

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")
TAILS = {"author": (50, 51, 9), "language": (50, 52, 9)}
LABELS = {"author": ["5 6 7", "5 6 8", "7"], "language": ["5", "5 6"]}
TRIES = {name: trie(words) for name, words in LABELS.items()}
JOINED = join_tries({name: (TAILS[name], TRIES[name]) for name in TAILS})


def test_a_joined_trie_keeps_each_targets_own() -> None:
    assert JOINED.words == (*LABELS["author"], *LABELS["language"])
    assert [(t.tail, t.first, t.stop) for t in JOINED.targets] == [
        (TAILS["author"], 0, 3), (TAILS["language"], 3, 5)
    ]  # fmt: skip
    lengths = [len(branching.prefix) for branching in JOINED.branchings]
    assert lengths == sorted(lengths) == [3, 4, 5]
    for target, name in zip(JOINED.targets, TAILS, strict=True):
        own = TRIES[name]
        for row, joined in enumerate(range(target.first, target.stop)):
            assert JOINED.tokens[joined] == TAILS[name] + own.tokens[row]
            for (number, child), (there, same) in zip(
                own.steps[row], JOINED.steps[joined], strict=True
            ):
                assert child == same
                assert (
                    JOINED.branchings[there].prefix == TAILS[name] + own.branchings[number].prefix
                )
                assert JOINED.branchings[there].children == own.branchings[number].children


def test_targets_that_are_asked_alike_are_refused() -> None:
    with pytest.raises(InputError, match="'a' and 'b' are asked for in the same words"):
        join_tries({"a": ((1, 2), TRIES["author"]), "b": ((1, 2, 3), TRIES["language"])})


def apart_log_probs(base: Any, prompts: Any) -> torch.Tensor:
    """Each target by a prompt of its own: the reference."""
    parts = [
        AnswerHead(base, TRIES[name]).log_probs(batch(*((*p, *TAILS[name]) for p in prompts)))
        for name in TAILS
    ]
    return torch.cat(parts, dim=1)


def test_targets_are_read_in_one_pass_as_by_prompts_of_their_own() -> None:
    base = lora(model("Llama")).get_base_model()
    found = AnswerHead(base, JOINED).log_probs(batch(*PROMPTS))
    torch.testing.assert_close(found, apart_log_probs(base, PROMPTS), rtol=0, atol=2e-5)
    for target in JOINED.targets:
        sums = found[:, target.first : target.stop].exp().sum(1)
        torch.testing.assert_close(sums, torch.ones_like(sums))


@needs_compiler
def test_the_packed_engine_reads_the_same() -> None:
    base = lora(model("Llama")).get_base_model()
    head, expected = packed(base, JOINED), apart_log_probs(base, PROMPTS)
    torch.testing.assert_close(head.log_probs(batch(*PROMPTS)), expected, rtol=0, atol=2e-5)
    behind = head.log_probs(batch(*PROMPTS), head.read_prefix(SHARED))
    whole = apart_log_probs(base, [SHARED + prompt for prompt in PROMPTS])
    torch.testing.assert_close(behind, whole, rtol=0, atol=2e-5)


@needs_compiler
def test_int8_rows_are_the_same_to_the_bit_alone_and_together() -> None:
    base = lora(int8(model("Llama"))).get_base_model()
    base.get_decoder().norm = torch.nn.Identity()  # no integers follow that amplify its rounding
    read = packed(base, JOINED).reader
    together = read.at_branchings(batch(*PROMPTS), None)
    alone = torch.cat([read.at_branchings(batch(prompt), None) for prompt in PROMPTS])
    assert torch.equal(together, alone)


def rows_of(labels: LabelTrie, loss: str) -> tuple[list[Example], list[Example]]:
    """Rows with two endings each, and the same choices in rows of their own."""
    joined, single = [], []
    for number, prompt in enumerate(PROMPTS):
        ids: tuple[int, ...] = prompt
        tails: tuple[int, ...] = ()
        choices: list[tuple[int, int, int]] = []
        for target in labels.targets:
            label = target.first + number % (target.stop - target.first)
            path, start = labels.tokens[label], len(ids)
            if loss == "answer":
                mine = [
                    (len(labels.branchings[n].prefix) - 1, n, child)
                    for n, child in labels.steps[label]
                ]
            else:
                mine = [(at, FULL_VOCABULARY, path[at + 1]) for at in range(len(path) - 1)]
            ids, tails = (*ids, *path), (*tails, start)
            choices += [(start + at, n, child) for at, n, child in mine]
            own = [(len(prompt) + at, n, child) for at, n, child in mine]
            single.append(Example((*prompt, *path), *map(tuple, zip(*own, strict=True))))
        columns = zip(*choices, strict=True)
        joined.append(Example(ids, *map(tuple, columns), tails=tails))
    return joined, single


@pytest.mark.parametrize("loss", ["answer", "sft"])
@pytest.mark.parametrize("engine", ["plain", pytest.param("packed", marks=needs_compiler)])
def test_gradients_are_those_of_rows_of_their_own(engine: str, loss: str) -> None:
    module = lora(model("Llama"))
    base = module.get_base_model()
    joined, single = rows_of(JOINED, loss)
    expected_loss, expected = gradients(module, AnswerHead(base, JOINED), single)
    head = packed(base, JOINED) if engine == "packed" else AnswerHead(base, JOINED)
    found_loss, found = gradients(module, head, joined)
    torch.testing.assert_close(found_loss, expected_loss, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.norm() > 0
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


@needs_compiler
def test_rows_with_endings_are_kept_below_the_adapters() -> None:
    module = lora(model("Llama"), layers=1)
    head = packed(module.get_base_model(), JOINED)
    joined, _ = rows_of(JOINED, "answer")
    plain_loss, plain = gradients(module, head, joined)
    assert isinstance(head.reader, PackedReader)
    head.reader.keep_lower(True)
    for rows in (joined[:1], joined, joined):
        loss, found = gradients(module, head, rows)
    torch.testing.assert_close(loss, plain_loss, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(found, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_model_that_cannot_hide_tokens_reads_endings_apart() -> None:
    """ALiBi takes its positions from the mask: no pass for all endings, the same result."""
    from transformers import BloomConfig

    from tiny_models import random_model

    config = BloomConfig(vocab_size=60, hidden_size=64, n_layer=2, n_head=4, initializer_range=0.1)
    base = random_model(config).requires_grad_(False)
    head = AnswerHead(base, JOINED)
    joined, single = rows_of(JOINED, "answer")
    torch.testing.assert_close(head.loss(collate(joined)), head.loss(collate(single)))


def test_rows_apart_keep_their_choices() -> None:
    ids = (1, 2, 3, 10, 11, 20, 21)
    row = Example(ids, (1, 4, 6), (0, 1, 2), (5, 6, 7), tails=(3, 5))
    found = apart(collate([row, Example((8, 9), (1,), (3,), (4,))]))
    assert found.input_ids.tolist() == [[1, 2, 3, 10, 11], [1, 2, 3, 20, 21], [8, 9, 0, 0, 0]]
    assert found.lengths.tolist() == [5, 5, 2]
    pairs = list(zip(found.rows.tolist(), found.positions.tolist(), strict=True))
    assert pairs == [(0, 1), (0, 4), (1, 4), (2, 1)]
    assert found.targets.tolist() == [5, 6, 7, 4]
