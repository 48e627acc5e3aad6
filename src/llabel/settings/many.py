"""Many runs: a comparison, a sweep."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Interval

from llabel.settings.kinds import Help, RungName


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareSettings:
    """What a comparison asks beyond its runs."""

    rungs: Annotated[
        tuple[RungName, ...],
        Help("Systems to compare, as majority,encoder,llm-lora. Default: all but llm-qlora."),
    ] = tuple(name for name in get_args(RungName) if name != "llm-qlora")
    seeds: Annotated[
        int, Ge(1), Help("Train each rung with so many seeds; intervals and tests carry them.")
    ] = 1
    draws: Annotated[
        int,
        Ge(1),
        Help(
            "Do everything on so many random draws of the rows into training, validation and test; "
            "scores are their means, intervals and tests carry them."
        ),
    ] = 1
    margin: Annotated[
        float, Interval(ge=0, lt=1), Help("Accuracy that a cheaper rung may lack to be preferred.")
    ] = 0.01
    curve: Annotated[
        tuple[Annotated[int, Ge(1)], ...],
        Help("Training sizes of a learning curve, as 100,300,1000."),
    ] = ()
    reuse: Annotated[
        tuple[str, ...],
        Help("Finished run folders on the same rows and split, taken as rows of the table."),
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSettings:
    """What a sweep asks beyond the settings that it varies."""

    search: Annotated[
        Literal["tpe", "random"] | None,
        Help(
            "Try --trials combinations in place of all: settings may then be ranges, as 1..256. "
            "tpe learns from what it saw, random does not."
        ),
    ] = None
    trials: Annotated[int, Ge(1), Help("Combinations that a search tries.")] = 20
    seeds: Annotated[
        int,
        Ge(1),
        Help("Train every combination with so many seeds; the choice and its tests carry them."),
    ] = 1
    jobs: Annotated[
        int | None,
        Ge(1),
        Help(
            "Cells at a time, the cores shared among them. Default: 1; with --ray, one a GPU, or "
            "one a node without GPUs. Several GPUs of one machine need --ray."
        ),
    ] = None
    ray: Annotated[
        str | None,
        Help(
            "Run the cells on Ray: on a running cluster, else on one that is started here; or at "
            "an address. All nodes must see --out."
        ),
    ] = None
    keep_adapters: Annotated[
        bool,
        Help("Keep what every cell learned; else only the chosen and the recommended one's."),
    ] = False
