"""The terms of an analysis of variance that cells allow, and their sums of squares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from llabel.statistics.design import Axis, Fit, fit, indicators, product
from llabel.statistics.resampling import Floats
from llabel.statistics.shares import Squares

Term = tuple[str, ...]
COVERED = 0.75  # share of the combinations that must occur for an interaction to be told


@dataclass(frozen=True)
class Model:
    """A least squares model of a loss.

    Attributes:
        y: (n,) losses.
        terms: the columns of main effects and interactions, by the names of their axes.
        blocks: columns of the seeds, or none.
        settings: (n, settings) indicators of the cells that differ at most in the seed.
        replicated: whether some settings were trained with several seeds.
        noise: residual squares: of the settings' replicates, or else of the terms.
        total: squares about the mean.
        untold: interactions that the cells do not cover.
    """

    y: Floats
    terms: Mapping[Term, Floats]
    blocks: tuple[Floats, ...]
    settings: Floats
    replicated: bool
    noise: Squares
    total: Squares
    untold: tuple[Term, ...]

    @property
    def explained(self) -> Squares:
        """What is not noise."""
        return Squares(self.total.ss - self.noise.ss, self.total.df - self.noise.df)

    def of_term(self, term: Term) -> Squares:
        """Type II: what a term adds to all terms that do not contain it."""
        others = [columns for name, columns in self.terms.items() if not set(term) <= set(name)]
        return added(self.y, [_constant(self.y), *others, *self.blocks], [self.terms[term]])

    def of_rest(self) -> Squares:
        """What the settings do beyond the terms; without replicates that is noise."""
        if not self.replicated:
            return Squares(0.0, 0)
        return added(
            self.y, [_constant(self.y), *self.terms.values(), *self.blocks], [self.settings]
        )

    def of_seed(self) -> Squares:
        """What the seeds add to the settings."""
        return added(self.y, [self.settings], self.blocks)


def model_of(y: Floats, factors: Sequence[Axis], seed: Axis | None) -> Model:
    """Choose the terms: all main effects, and the interactions of two axes that can be told.

    Args:
        y: (n,) losses.
        factors: the axes but the seed.
        seed: the seeds, where they differ.
    """
    settings = indicators(factors, len(y))
    blocks: tuple[Floats, ...] = ()
    if seed and fit(y, settings, seed.basis).rank < len(y):  # else each cell has its own
        blocks = (seed.basis,)
    whole = fit(y, settings, *blocks)
    replicated = whole.rank < len(y)
    terms: dict[Term, Floats] = {(axis.name,): axis.basis for axis in factors}
    untold: list[Term] = []
    for pair in combinations(factors, 2):
        name = (pair[0].name, pair[1].name)
        more = {**terms, name: product(pair)}
        if _is_told(pair, settings, _fit(y, more, blocks), replicated):
            terms = more
        else:
            untold.append(name)
    last = whole if replicated else _fit(y, terms, blocks)
    total = fit(y, _constant(y))
    noise = Squares(last.rss, len(y) - last.rank)
    everything = Squares(total.rss, len(y) - 1)
    return Model(y, terms, blocks, settings, replicated, noise, everything, tuple(untold))


def added(y: Floats, before: Sequence[Floats], more: Sequence[Floats]) -> Squares:
    """What columns explain beyond others."""
    without, within = fit(y, *before), fit(y, *before, *more)
    return Squares(max(0.0, without.rss - within.rss), within.rank - without.rank)


def _is_told(pair: Sequence[Axis], settings: Floats, within: Fit, replicated: bool) -> bool:
    """Whether an interaction is covered, and leaves something to tell noise from."""
    n, count = settings.shape
    if not replicated and within.rank >= n:
        return False
    if any(axis.curve for axis in pair):
        return count >= 2 * within.rank
    met = {(a, b) for a, b in zip(pair[0].of_cell, pair[1].of_cell, strict=True)}
    return len(met) >= COVERED * len(pair[0].levels) * len(pair[1].levels)


def _fit(y: Floats, terms: Mapping[Term, Floats], blocks: Sequence[Floats]) -> Fit:
    return fit(y, _constant(y), *terms.values(), *blocks)


def _constant(y: Floats) -> Floats:
    return np.ones((len(y), 1))
