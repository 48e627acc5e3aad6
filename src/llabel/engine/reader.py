"""What an answer head needs of a model: hidden states where choices are read."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from llabel.engine.batching import Batch
from llabel.engine.prefix import Prefix


class Reader(Protocol):
    """One way of running a decoder. Hidden states are those after its last norm.

    Attributes:
        device: where batches go.
    """

    device: torch.device

    @property
    def reads_start_once(self) -> bool:
        """Whether `at_choices` reads a batch's `shared` tokens once, and not in each row."""

    @property
    def tree_tokens(self) -> int:
        """Tokens of the label trie that ride along with each row behind a prefix."""

    def checkpoint_layers(self) -> None:
        """From now on keep each layer's input alone for the backward pass, and run it again there.

        Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): less memory, half as much work
        again (1.5 to 1.6 times the time was measured), the same gradients. It is a third where all
        weights are trained; frozen ones have no gradient of their own.

        Raises:
            InputError: the model cannot do it.
        """

    def at_choices(self, batch: Batch) -> Tensor:
        """(m, hidden) at every choice of the batch, differentiable."""

    def at_branchings(self, batch: Batch, prefix: Prefix | None) -> Tensor:
        """(batch, n_branchings, hidden) where each branching of the trie is read; no gradient.

        Args:
            batch: prompts, or what follows `prefix` in each, at least one token.
            prefix: what all of them begin with, from `read_prefix`.
        """

    def read_prefix(self, tokens: Sequence[int]) -> Prefix | None:
        """What is to be known of tokens that many rows begin with, as long as the weights stay.

        None where the model cannot reuse them.
        """
