"""What `rope_scaling` says: rotary positions beyond the context that a model was trained with."""

import math
from dataclasses import dataclass
from typing import get_args

from llabel.errors import InputError
from llabel.settings.kinds import RopeKind


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How angles are stretched.

    Attributes:
        kind: `linear` divides positions by the factor (Chen et al. 2023, arXiv 2306.15595);
            `dynamic` raises the base as NTK-aware scaling does at the whole new context (as vLLM
            has it: transformers takes the longest row so far, so that what it says of a row
            depends on the rows before and beside it); `yarn` (Peng et al. 2023, arXiv 2309.00071)
            and `llama3` stretch slow angles alone.
        factor: the new context over the old one, at least 1.
    """

    kind: RopeKind
    factor: float


def parse_rope(given: str | None) -> RopeScaling | None:
    """`yarn:4` → kind and factor; None stays None.

    Raises:
        InputError: the kind is unknown, or the factor is no number from 1 on.
    """
    if given is None:
        return None
    kinds: tuple[RopeKind, ...] = get_args(RopeKind)
    kind, colon, number = given.partition(":")
    known = [known for known in kinds if known == kind]
    if not known or not colon:
        raise InputError(
            f"--rope-scaling {given!r}: write KIND:FACTOR, as yarn:4, where KIND is one of "
            f"{', '.join(kinds)}."
        )
    try:
        factor = float(number)
    except ValueError:
        factor = math.nan
    if not 1 <= factor < math.inf:
        raise InputError(
            f"--rope-scaling {given!r}: the factor must be a number of at least 1; the context "
            "becomes so many times as long."
        )
    return RopeScaling(known[0], factor)
