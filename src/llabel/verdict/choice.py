"""The choice among rungs: the cheapest that is shown no worse than the best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, TypeAlias

from llabel.statistics.paired import Pair, RowsNeeded, rows_needed
from llabel.verdict import text
from llabel.verdict.candidates import Candidate, TestRows, by_validation

ALPHA = 0.05

Standing: TypeAlias = Literal["no worse", "worse", "unclear"]
ChoiceKind: TypeAlias = Literal["use", "no_llm", "use_llm", "cannot_tell"]


@dataclass(frozen=True, slots=True)
class Examined:
    """A cheaper rung against the best."""

    rung: Candidate
    pair: Pair
    standing: Standing


@dataclass(frozen=True, slots=True)
class Choice:
    """What to use, before majority class and leakage are looked at.

    Attributes:
        kind: what is claimed.
        rung: the one to use.
        reason: the claim in words.
        needed: what would settle it, or None.
    """

    kind: ChoiceKind
    rung: Candidate
    reason: str
    needed: RowsNeeded | None = None


@dataclass(frozen=True, slots=True)
class _Claim:
    """What is said of the LLM: the kind, the reason's first words, what is added, what is open."""

    kind: ChoiceKind
    words: str
    note: str = ""
    needed: RowsNeeded | None = None


def examine(
    rows: TestRows, best: Candidate, rungs: Sequence[Candidate], margin: float
) -> list[Examined]:
    """Test every rung cheaper than the best (step 4 of `llabel.verdict.decide`).

    Returns:
        One entry per cheaper rung, the cheapest first. "no worse": the lower end of the interval
        of accuracy(rung) - accuracy(best) is at or above -margin; "worse": its upper end is
        below -margin.
    """
    cheaper = [c for c in rungs if c.cost_rank < best.cost_rank]
    widened = 1 - ALPHA / max(1, len(cheaper))  # 2.5 % a side, shared by all
    found = []
    in_sequence = True
    for rung in sorted(cheaper, key=by_validation):
        pair = rows.pair(rung, best)
        passes = pair.interval[0] >= -margin
        if passes and not in_sequence:
            pair = rows.pair(rung, best, confidence=widened)
            passes = pair.interval[0] >= -margin
        in_sequence = in_sequence and passes
        worse = pair.interval[1] < -margin
        found.append(
            Examined(rung, pair, "no worse" if passes else "worse" if worse else "unclear")
        )
    return sorted(found, key=lambda e: (e.rung.cost_rank, e.rung.name))


def choose(
    rows: TestRows,
    best: Candidate,
    rungs: Sequence[Candidate],
    examined: Sequence[Examined],
    margin: float,
    failed: Mapping[str, bool],
) -> Choice:
    """Take the cheapest rung that passes, and claim what the rows show and no more.

    Args:
        rows: the rows that decide.
        best: the best on validation.
        rungs: all rungs but the controls.
        examined: what `examine` returned.
        margin: how much less accuracy is as good, 0..1.
        failed: name -> is it an LLM, of rungs that failed.
    """
    passing = next((e for e in examined if e.standing == "no worse"), None)
    chosen = passing.rung if passing else best
    unclear = [
        e for e in examined if e.standing == "unclear" and e.rung.cost_rank < chosen.cost_rank
    ]
    without_llm = [e for e in unclear if chosen.is_llm and not e.rung.is_llm]
    in_doubt = without_llm if passing and without_llm else unclear
    open_ = max(in_doubt, key=lambda e: e.pair.difference, default=None)
    needed = rows_needed(open_.pair, margin) if open_ else None
    on = rows.basis(margin)

    if open_ and needed and (passing is None or without_llm):
        told = text.cannot_tell(rows.named(open_.rung), rows.named(best), open_.pair, needed, on)
        told += text.provisional(chosen.name)
        return Choice("cannot_tell", chosen, told, needed)

    also = text.may_do(open_.rung.name, needed, on) if open_ and needed else ""
    claim = _about_llm(rows, best, chosen, rungs, examined, failed, margin)
    named = rows.named(chosen)
    subject = f"{named}: it" if claim.kind == "use" else named
    if passing:
        told = text.no_worse(subject, rows.named(best), passing.pair, on)
    else:
        nearest = max(examined, key=lambda e: e.pair.difference, default=None)
        told = text.best_is_needed(
            subject,
            rows.named(nearest.rung) if nearest else None,
            nearest.pair if nearest else None,
            on,
        )
    return Choice(
        claim.kind, chosen, claim.words + told + claim.note + also, _more(needed, claim.needed)
    )


def _about_llm(
    rows: TestRows,
    best: Candidate,
    chosen: Candidate,
    rungs: Sequence[Candidate],
    examined: Sequence[Examined],
    failed: Mapping[str, bool],
    margin: float,
) -> _Claim:
    """What may be said of the LLM (step 6 of `llabel.verdict.decide`)."""
    use = _Claim("use", "Use ")
    if chosen.is_llm:
        beaten = chosen is best and any(not e.rung.is_llm for e in examined)
        # A cheaper rung that failed might have done as well.
        if beaten and all(failed.values()):
            return _Claim("use_llm", "The LLM is worth it: ")
        return use

    llms = [c for c in rungs if c.is_llm]
    pairs = {c.name: rows.pair(c, chosen) for c in llms}
    possible = [c for c in llms if pairs[c.name].interval[1] > margin]
    if possible:
        return _open_llm(rows, best, chosen, possible, margin, of=len(llms))
    if not llms or any(failed.values()):
        return use
    first = min(llms, key=by_validation)
    note = ""
    if first is not best:  # else the reason itself tells how they compare
        note = text.llm_no_better(
            rows.named(first),
            rows.named(chosen),
            pairs[first.name],
            _on_validation(first, best),
            rows.basis(margin),
        )
    return _Claim("no_llm", "Don't use the LLM: ", note)


def _open_llm(
    rows: TestRows,
    best: Candidate,
    chosen: Candidate,
    possible: Sequence[Candidate],
    margin: float,
    *,
    of: int,
) -> _Claim:
    """Recommend `chosen` no further than the rows do: one of `of` LLMs may be better, or is."""
    shared = {c.name: rows.pair(c, chosen, confidence=1 - ALPHA / of) for c in possible}
    ahead = max(possible, key=lambda c: shared[c.name].interval[0])
    if shared[ahead.name].interval[0] > 0:
        behind = _on_validation(ahead, best)
        note = text.llm_ahead_on_test(
            rows.named(ahead), rows.named(chosen), shared[ahead.name], behind
        )
        return _Claim("use", "Use ", note)
    pairs = {c.name: rows.pair(c, chosen) for c in possible}
    likeliest = max(possible, key=lambda c: pairs[c.name].interval[1])
    pair = pairs[likeliest.name]
    needed = rows_needed(pair.turned(), margin)
    note = text.llm_not_ruled_out(
        rows.named(likeliest), rows.named(chosen), pair, needed, rows.basis(margin)
    )
    return _Claim("use", "Use ", note, needed)


def _on_validation(rung: Candidate, best: Candidate) -> str:
    """How a rung stood there to the best, which may have won by log loss or cost alone."""
    accuracies = rung.validation_accuracy, best.validation_accuracy
    behind = None not in accuracies and accuracies[0] != accuracies[1]
    return f"{'behind' if behind else 'not ahead of'} {best.name} on validation"


def _more(a: RowsNeeded | None, b: RowsNeeded | None) -> RowsNeeded | None:
    """What settles both."""
    if a is None or b is None:
        return a or b
    return max(a, b, key=lambda needed: inf if needed.rows is None else needed.rows)
