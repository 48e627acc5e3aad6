"""What the layers below the lowest adapter make of a row: the same in every epoch.

A row has the states of the micro-batch in which it first stood. A training that was interrupted
makes them anew, as the rows then come: in int8 the same to the bit, in float32 up to rounding.
"""

from torch import Tensor

from llabel.events import Listener, Note, ignore

LIMIT = 2 * 2**30  # bytes; rows beyond it are computed anew each time


class LowerStates:
    """Keeps rows' states by their token ids.

    Args:
        limit: most bytes to keep.
        notify: told once, when a row no longer fits.
    """

    def __init__(self, limit: int = LIMIT, notify: Listener = ignore) -> None:
        self.limit, self.size, self.notify = limit, 0, notify
        self._kept: dict[tuple[int, ...], Tensor] = {}
        self._told = False

    def get(self, ids: tuple[int, ...]) -> Tensor | None:
        """(seq, hidden) states of a row; None if they are not kept."""
        return self._kept.get(ids)

    def keep(self, ids: tuple[int, ...], states: Tensor) -> None:
        """Keep a row's (seq, hidden) states if there is room."""
        if ids in self._kept:
            return
        size = states.numel() * states.element_size()
        if self.size + size > self.limit:
            self._tell()
            return
        self._kept[ids] = states.clone()  # not a view that holds its whole batch
        self.size += size

    def _tell(self) -> None:
        if self._told:
            return
        self._told = True
        self.notify(
            Note(
                "What the layers below the adapters give is kept up to "
                f"{self.limit / 2**30:.3g} GiB, which {len(self._kept):,} rows fill: for the other "
                "rows it is computed in every pass (--adapt-layers)."
            )
        )
