"""The verdict's sentences: short, for practitioners, every claim with its figures."""

from collections.abc import Sequence
from dataclasses import dataclass

from llabel.statistics.paired import Pair, RowsNeeded


@dataclass(frozen=True, slots=True)
class Named:
    """A rung and its accuracy (0..1) on the rows that decide."""

    name: str
    accuracy: float

    def __str__(self) -> str:
        return f"{self.name} ({100 * self.accuracy:.1f} %)"


@dataclass(frozen=True, slots=True)
class Basis:
    """The rows that decide: how many, whether only unseen ones, and the margin (0..1)."""

    rows: int
    unseen: bool
    margin: float

    def __str__(self) -> str:
        where = " whose text is not in training" if self.unseen else ""
        return f"{self.rows:,} test rows{where}"

    @property
    def margin_text(self) -> str:
        """The margin in points."""
        return f"the margin of {amount(self.margin)}"


def points(value: float) -> str:
    """Write a signed difference of accuracies (-1..1) in percentage points: +0.4, −1.2, 0.0."""
    rounded = round(100 * value, 1)
    sign = "+" if rounded > 0 else "−" if rounded < 0 else ""
    return f"{sign}{abs(rounded):.1f}"


def amount(value: float) -> str:
    """Write an unsigned difference of accuracies (0..1): 1 point, 0.5 points."""
    number = f"{100 * value:.3g}"
    return f"{number} point{'' if number == '1' else 's'}"


def figures(pair: Pair) -> str:
    """Write a difference with its interval."""
    lower, upper = pair.interval
    return (
        f"difference {points(pair.difference)} points, "
        f"{100 * pair.confidence:.3g} % interval {points(lower)} to {points(upper)}"
    )


def no_worse(chosen: Named | str, best: Named, pair: Pair, on: Basis) -> str:
    """Say that a cheaper rung does as well as the best."""
    return (
        f"{chosen} is no worse than {best}, the best on validation, by more than "
        f"{on.margin_text} ({figures(pair)}; {on})."
    )


def best_is_needed(best: Named | str, nearest: Named | None, pair: Pair | None, on: Basis) -> str:
    """Say that the best is better than all that is cheaper, if anything is."""
    if nearest is None or pair is None:
        return f"{best} is the best on validation, and nothing cheaper ran, controls aside ({on})."
    return (
        f"{best} beats every cheaper rung that ran by more than {on.margin_text}; the nearest is "
        f"{nearest} ({figures(pair)}; {on})."
    )


def llm_no_better(llm: Named, chosen: Named, pair: Pair, behind: str, on: Basis) -> str:
    """Say that the LLM, `behind` on validation, isn't ahead by the margin on test either."""
    return (
        f" {llm} was {behind} and is not better than {chosen.name} by more than {on.margin_text} "
        f"on the test rows ({figures(pair)})."
    )


def llm_ahead_on_test(llm: Named, chosen: Named, pair: Pair, behind: str) -> str:
    """Say that validation and test disagree about the LLM."""
    return (
        f" But {llm} beats {chosen.name} on the test rows ({figures(pair)}) though it was "
        f"{behind}: a larger validation part would tell."
    )


def llm_not_ruled_out(llm: Named, chosen: Named, pair: Pair, needed: RowsNeeded, on: Basis) -> str:
    """Say that the LLM may be better, by how much, and what would tell."""
    whether = f"whether it is better by more than {on.margin_text}"
    return (
        f" These rows do not rule out that {llm} is up to {100 * pair.interval[1]:.1f} points "
        f"better than {chosen.name} ({figures(pair)}); {_would_show(needed, on, whether)}."
    )


def cannot_tell(rung: Named, best: Named, pair: Pair, needed: RowsNeeded, on: Basis) -> str:
    """Say what the rows leave open, and what would settle it."""
    whether = f"whether {rung} is as good as {best} within {on.margin_text}"
    if needed.rows is None:
        told = f"Can't tell yet {whether}: {_would_show(needed, on)}"
    else:
        told = f"Can't tell yet: {_about(needed.rows, on)} would show {whether}"
    return f"{told} ({figures(pair)}; {on})."


def provisional(chosen: str) -> str:
    """Say what to use meanwhile."""
    return f" Until then: {chosen}."


def may_do(name: str, needed: RowsNeeded, on: Basis) -> str:
    """Say that something still cheaper is open."""
    return f" The still cheaper {name} may do as well: can't tell yet; {_would_show(needed, on)}."


def majority_class(best: Named, majority: Named, pair: Pair, bound: float, on: Basis) -> str:
    """Say that nothing beats the majority class; `bound` (0..1) is the least gain worth having."""
    told = (
        f"No rung beats the majority class: {best}, the best on validation, against {majority} "
        f"({figures(pair)}; {on})."
    )
    if pair.interval[1] > bound:
        told += f" These rows don't rule out a gain of more than {amount(bound)}."
    return told


def cannot_tell_majority(
    rung: Named, majority: Named, pair: Pair, needed: RowsNeeded, on: Basis
) -> str:
    """Say that the rows leave open whether anything beats the majority class."""
    return (
        f"Can't tell yet whether any rung beats the majority class: {rung} against {majority} "
        f"({figures(pair)}; {on}); {_would_show(needed, on)}."
    )


def worse_than_majority(chosen: Named, majority: Named, pair: Pair, ahead: Named, on: Basis) -> str:
    """Say that what the rule chose is shown to be worse than the majority class."""
    return (
        f"Can't tell yet which rung to use: {chosen}, which validation and the margin would "
        f"choose, is worse than {majority} on the test rows ({figures(pair)}; {on}). {ahead} beats "
        "it there, but to choose by the test rows would flatter what is chosen: a larger "
        "validation part would tell."
    )


def only_controls(names: Sequence[str]) -> str:
    """Say that there is nothing to choose from."""
    return f"Nothing to choose from: only {' and '.join(names)} ran."


def leakage_unseen(
    best: Named, everywhere: Pair, unseen: Pair, lookup: Pair, *, shown: bool
) -> str:
    """Say that the gain is, or (not `shown`) may be, mostly gone where the text is new."""
    lower, upper = unseen.interval
    return (
        f"Most of this score {'is' if shown else 'may be'} leakage: over the majority class "
        f"{best.name} gains {points(everywhere.difference)} points on all {everywhere.rows:,} test "
        f"rows but {points(unseen.difference)} (95 % interval {points(lower)} to {points(upper)}) "
        f"on the {unseen.rows:,} whose text is not in training; looking training texts up gains "
        f"{points(lookup.difference)} on all rows. "
    )


def leakage_lookup(best: Named, lookup: Named, pair: Pair, on: Basis, *, short: bool) -> str:
    """Say that looking up may do as well, and why no rows tell more.

    `short`: no row has a long text of training, so it is short ones that are looked up.
    """
    why = (
        "no test row shares a long text with training, but short ones are looked up as well"
        if short
        else "too few test rows are known to have a text that is not in training"
    )
    return (
        f"Most of this score may be leakage: {best} is not shown to beat looking training texts "
        f"up, {lookup}, by more than {on.margin_text} ({figures(pair)}; {on}), and {why}. "
    )


def not_compared(failed: Sequence[str]) -> str:
    """Name the rungs of which nothing is said."""
    return f" Failed, so nothing is said of: {', '.join(failed)}." if failed else ""


def _would_show(needed: RowsNeeded, on: Basis, what: str = "it") -> str:
    if needed.rows is not None:
        return f"{_about(needed.rows, on)} would show {what}"
    if needed.reason == "seeds":
        return f"more seeds, not rows, would show {what}, as the trainings differ too much"
    if needed.reason == "too few rows":
        return f"too few test rows to say how many would show {what}"
    return f"no practical number of rows would show {what}, as the gap to be seen is so small"


def _about(rows: int, on: Basis) -> str:
    return f"about {_round(rows)}{' unseen' if on.unseen else ''} test rows"


def _round(rows: int) -> str:
    """Two significant digits: the number is no more exact than that."""
    return f"{float(f'{rows:.1e}'):,.0f}"
