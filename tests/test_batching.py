import torch
from hypothesis import given
from hypothesis import strategies as st

from llabel.engine.batching import FULL_VOCABULARY, Example, collate, micro_batches


@given(st.lists(st.integers(1, 40), max_size=50), st.integers(1, 200))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths, budget):
    groups = list(micro_batches(lengths, budget))
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    in_order = [lengths[row] for group in groups for row in group]
    assert in_order == sorted(lengths, reverse=True)
    for group in groups:
        assert len(group) == 1 or max(lengths[row] for row in group) * len(group) <= budget


def test_micro_batches_are_as_full_as_they_may():
    assert list(micro_batches([5, 5, 5, 5, 5], 10)) == [[0, 1], [2, 3], [4]]
    assert list(micro_batches([1, 9, 3], 9)) == [[1], [2, 0]]


def test_collate_pads_on_the_right_and_keeps_choices_with_their_rows():
    batch = collate(
        [
            Example((7, 8, 9), (2,), (0,), (1,)),
            Example((5,)),
            Example((4, 3), (0, 1), (FULL_VOCABULARY, 2), (3, 0)),
        ],
        pad_token=1,
    )
    assert batch.input_ids.tolist() == [[7, 8, 9], [5, 1, 1], [4, 3, 1]]
    assert batch.lengths.tolist() == [3, 1, 2]
    choices = [batch.rows, batch.positions, batch.branchings, batch.targets]
    assert torch.stack(choices, dim=1).tolist() == [[2, 0, -1, 3], [0, 2, 0, 1], [2, 1, 2, 0]]
