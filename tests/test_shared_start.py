"""Training rows that begin alike: the start is read once a micro-batch, and learned from by all."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llabel.engine.batching import Batch, Example, collate, shared_start
from test_packed import (
    PROMPTS,
    SHARED,
    TARGETS,
    WORDS,
    examples,
    gradients,
    int8,
    lora,
    model,
    packed,
    trie,
)
from test_tails import JOINED, needs_compiler, rows_of
from test_training import SETTINGS, Training, example


def behind(rows: list[Example]) -> list[Example]:
    """The rows with the same tokens before them; with `all`, these are learned, too."""
    return [
        replace(
            row,
            input_ids=SHARED + row.input_ids,
            positions=tuple(at + len(SHARED) for at in row.positions),
            tails=tuple(at + len(SHARED) for at in row.tails),
        )
        for row in rows
    ]


class Once:
    """A head whose batches say how much their rows share."""

    def __init__(self, head: Any) -> None:
        self.head = head
        self.read: list[int] = []

    def loss(self, batch: Batch) -> torch.Tensor:
        decoder = self.head.reader.decoder
        forward = decoder.forward
        decoder.forward = lambda tokens, *kept: (
            self.read.append(len(tokens.ids)) or forward(tokens, *kept)
        )
        try:
            return self.head.loss(replace(batch, shared=len(SHARED)))
        finally:
            del decoder.forward


def equal(one: Any, other: Any) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(one[1], other[1], strict=True):
        assert theirs.norm() > 0
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


@needs_compiler
@pytest.mark.parametrize(
    ("targets", "loss", "recompute"),
    [*((name, "answer", False) for name in TARGETS), ("all", "all", False), ("all", "all", True)],
)
def test_loss_and_gradients_are_those_of_whole_rows(
    targets: str, loss: str, recompute: bool
) -> None:
    module = lora(model("Qwen2"), **TARGETS[targets])
    labels = trie(WORDS["deep"])
    head, rows = packed(module.get_base_model(), labels), behind(examples(labels, loss))
    expected = gradients(module, head, rows)
    if recompute:
        head.reader.checkpoint_layers()
    once = Once(head)
    equal(gradients(module, once, rows), expected)
    whole = sum(len(row.input_ids) for row in rows)
    assert once.read == [whole - (len(rows) - 1) * len(SHARED)]


@needs_compiler
def test_the_start_itself_can_be_learned() -> None:
    """Choices within the shared tokens are those of every row."""
    module, labels = lora(model("Llama")), trie(WORDS["first token"])
    ids = [SHARED + prompt for prompt in PROMPTS]
    rows = [
        Example(row, (3, len(row) - 1), (0, 0), (number % 3, (number + 1) % 3))
        for number, row in enumerate(ids)
    ]
    head = packed(module.get_base_model(), labels)
    equal(gradients(module, Once(head), rows), gradients(module, head, rows))


@needs_compiler
@pytest.mark.parametrize("loss", ["answer", "sft"])
def test_rows_with_several_endings_share_a_start(loss: str) -> None:
    module = lora(model("Llama"))
    head, rows = packed(module.get_base_model(), JOINED), behind(rows_of(JOINED, loss)[0])
    equal(gradients(module, Once(head), rows), gradients(module, head, rows))


@needs_compiler
def test_int8_states_are_the_same_to_the_bit() -> None:
    base = lora(int8(model("Llama"))).get_base_model()
    base.get_decoder().norm = torch.nn.Identity()  # no integers follow that amplify its rounding
    labels = trie(WORDS["deep"])
    rows = collate(behind(examples(labels, "answer")), pad_token=3)
    read = packed(base, labels).reader
    with torch.no_grad():
        whole = read.at_choices(rows)
        assert torch.equal(whole, read.at_choices(replace(rows, shared=len(SHARED))))
        assert torch.equal(whole, read.at_choices(replace(rows, shared=5)))


@needs_compiler
def test_where_lower_layers_are_kept_rows_are_read_whole() -> None:
    module = lora(model("Llama"), layers=1)
    labels = trie(WORDS["deep"])
    head, rows = packed(module.get_base_model(), labels), behind(examples(labels, "answer"))
    assert head.reader.reads_start_once
    expected = gradients(module, head, rows)
    head.reader.keep_lower(True)
    assert not head.reader.reads_start_once
    equal(gradients(module, Once(head), rows), expected)


def test_a_trainer_cuts_what_the_rows_do_not_share() -> None:
    """And the budget counts the start once."""
    rows = behind([example(row) for row in range(8)])
    seen: list[tuple[int, int, int]] = []

    def training(once: bool) -> Training:
        made = Training(
            replace(SETTINGS, batch_size=8, epochs=1, token_budget=60), reads_start_once=once
        )
        loss = made.head.loss

        def watched(batch: Batch) -> torch.Tensor:
            seen.append((batch.shared, len(batch.lengths), int(batch.lengths.max())))
            return loss(batch)

        made.trainer.loss = watched
        return made

    one, other = training(True), training(False)
    one.run(rows)
    shared = seen[:]
    seen.clear()
    other.run(rows)
    assert {batch[0] for batch in shared} == {len(SHARED)}
    for start, count, longest in shared:
        assert count == 1 or start + (longest - start) * count <= 60
    assert len(shared) < len(seen)
    assert {batch[0] for batch in seen} == {0}
    # The plain engine reads rows whole either way, so the two trainings are one.
    assert [step.loss for step in one.steps()] == pytest.approx(
        [step.loss for step in other.steps()], rel=1e-5
    )


@pytest.mark.parametrize("rows", [3, 4])
def test_a_start_must_be_worth_it(rows: int) -> None:
    seen = []
    made = Training(replace(SETTINGS, batch_size=rows, epochs=1), reads_start_once=True)
    loss = made.head.loss
    made.trainer.loss = lambda batch: seen.append(batch.shared) or loss(batch)
    ids = [(*SHARED, 50 + row, 1) for row in range(rows)]
    made.run([Example(row, (len(row) - 1,), (0,), (0,)) for row in ids])
    assert set(seen) == ({len(SHARED)} if rows == 4 else {0})


@given(
    start=st.lists(st.integers(0, 3), max_size=5),
    rests=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=4),
    tail=st.integers(1, 9),
)
@settings(max_examples=100)
def test_what_examples_share(start: list[int], rests: list[list[int]], tail: int) -> None:
    rows = [tuple(start + rest) for rest in rests]
    first = min(tail, len(rows[0]))
    made = [Example(row, tails=(first,) if number == 0 else ()) for number, row in enumerate(rows)]
    same = shared_start(made)
    assert len({row[:same] for row in rows}) == 1
    assert all(len(row) > same for row in rows)
    assert same <= first
    assert same >= min(len(start), first)
