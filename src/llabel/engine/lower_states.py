"""What the layers below the lowest adapter make of a row: the same in every epoch."""

from torch import Tensor

LIMIT = 2 * 2**30  # bytes; rows beyond it are computed anew each time


class LowerStates:
    """Keeps rows' states by their token ids.

    Args:
        limit: most bytes to keep.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit, self.size = limit, 0
        self._kept: dict[tuple[int, ...], Tensor] = {}

    def get(self, ids: tuple[int, ...]) -> Tensor | None:
        """(seq, hidden) states of a row; None if they are not kept."""
        return self._kept.get(ids)

    def keep(self, ids: tuple[int, ...], states: Tensor) -> None:
        """Keep a row's (seq, hidden) states if there is room."""
        size = states.numel() * states.element_size()
        if self.size + size <= self.limit and ids not in self._kept:
            self._kept[ids] = states.clone()  # not a view that holds its whole batch
            self.size += size
