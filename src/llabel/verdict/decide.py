"""Which rung to use: one stated rule over paired intervals, and what it may not claim."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from llabel.errors import InputError
from llabel.statistics.paired import RESAMPLES, Pair, holm, rows_needed
from llabel.statistics.resampling import numbered
from llabel.task import ClassIndices
from llabel.verdict import text
from llabel.verdict.candidates import (
    ENOUGH_UNSEEN,
    LOOKUP,
    MAJORITY,
    Candidate,
    TestRows,
    by_validation,
)
from llabel.verdict.choice import ALPHA, choose, examine

MARGIN = 0.01
WORTHWHILE_GAIN = 0.03

Kind: TypeAlias = Literal[
    "use", "no_llm", "use_llm", "majority_class", "leakage", "cannot_tell", "nothing_to_choose"
]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to use and why, ready for JSON (`dataclasses.asdict`).

    Attributes:
        kind: what is claimed.
        choose: name of the rung to use; provisional where `kind` is "cannot_tell", and
            only a control where it is "nothing_to_choose".
        reason: the verdict in a few sentences.
        best: the rung best on validation.
        margin: how much less accuracy is as good, 0..1.
        basis: whether all test rows decided or the unseen ones.
        rows_needed: about how many such rows would settle what is open; None where nothing is,
            or where no number would (the reason says why).
    """

    kind: Kind
    choose: str
    reason: str
    best: str
    margin: float
    basis: Literal["all", "unseen"]
    rows_needed: int | None = None


def decide(
    y: ClassIndices,
    candidates: Sequence[Candidate],
    *,
    unseen: npt.NDArray[np.bool_] | None = None,
    groups: npt.ArrayLike | None = None,
    ids: npt.ArrayLike | None = None,
    margin: float = MARGIN,
    failed: Mapping[str, bool] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Verdict:
    """Say which rung to use.

    The rule:

    1. Rows. Where texts of the test part stand in training too, the unseen rows decide if they
       are at least 100 (in two or more groups), since future texts are new. Otherwise all rows.
    2. Best. The rung with the highest validation accuracy, the measure the margin is in; ties go
       to the lower log loss, then to the cheaper rung. Controls are never best. The test rows
       have no say in this, so they do not flatter the best.
    3. Signal. If no rung is shown to beat `majority` (paired tests, Holm-corrected, 5 %), use
       `majority`: nothing is cheaper. "No rung beats it" is claimed only if each rung is either
       not ahead of it or has the upper end of its 95 % interval at or below a gain worth having:
       3 points, or the margin if that is more. (To rule out a gain of one point takes some 16,000
       rows where two systems disagree on a fifth of them, of three points some 1,700.) Else the
       rows can't tell, and `majority` is provisional. It is so, too, where a rung beats it but
       that of step 4 is shown to be worse than it (upper end of its 95 % interval below 0).
    4. Choice. The cheapest rung shown no worse than the best by more than the margin. Rungs
       cheaper than the best are tested in the order of their validation accuracy, each by its
       95 % interval, until one is not shown no worse (fixed-sequence test: Maurer, Hothorn and
       Lehmacher 1995; Westfall and Krishen 2001, Journal of Statistical Planning and Inference
       99, p. 25). Those after it must pass an interval widened for the number of cheaper rungs
       (Bonferroni). Either way errs in at most 2.5 %, so the chosen rung is truly worse than
       the best by more than the margin in at most 5 % of cases. With no correction that share
       would grow with the number of rungs; with Bonferroni alone, clearly bad rungs would make
       it hard for good ones to pass.
    5. Doubt. "Can't tell" if nothing cheaper passes, or only LLM rungs do, while a cheaper rung
       (in the second case one without an LLM) is shown neither no worse nor worse.
    6. LLM. "The LLM is worth it" if it is the best and is shown better than every cheaper rung by
       more than the margin. "Don't use the LLM" if another rung is chosen and every LLM that ran
       is shown not to be better than it by more than the margin (upper end of the 95 % interval
       at or below it; all must be, so their number asks for no correction). Neither where a rung
       failed that might say otherwise. Else the choice is recommended without a word against the
       LLM: an LLM that beats it on the test rows (interval widened for the number of LLMs) is
       named, or else how much better one may be.
    7. Leakage. Only if `lookup` beats `majority` on all rows (p at most 0.05) and the best gains
       on `majority` there. With enough unseen rows: if the best's gain on them is shown (upper
       end of its 95 % interval) to be under half of its gain on all rows, or if it is under half
       and no rung beats `majority` on them. With too few unseen rows: if the best is not shown to
       beat `lookup` by more than the margin. The choice of the steps before stands.

    Args:
        y: (n,) true class indices of the test rows.
        candidates: rungs that ran to their end, controls among them.
        unseen: (n,) True where no text of the row stands in training; None if not known.
        groups: (n,) the group of each row, or None.
        ids: (n,) which row each is, where several draws test one several times: it counts once
            among the rows that decide or are needed. None where all are different.
        margin: how much less accuracy is as good, 0..1.
        failed: name -> is it an LLM, of rungs that failed: nothing is claimed of them.
        resamples: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        ValueError: no candidates, twice the same name, or shapes disagree.
        InputError: the margin lies outside 0..1, or all rows form a single group.
    """
    _check(y, candidates, unseen, margin)
    every = TestRows(
        y=np.asarray(y),
        keep=np.ones(len(y), dtype=bool),
        groups=None if groups is None else numbered(groups),
        resamples=resamples,
        seed=seed,
        ids=None if ids is None else numbered(ids),
    )
    rows = _deciding_rows(every, unseen)
    rungs = [c for c in candidates if not c.is_control]
    controls = {c.name: c for c in candidates if c.is_control}
    failed = failed or {}
    if not rungs:
        return _only_controls(candidates, rows, margin, failed)

    best = min(rungs, key=by_validation)
    examined = examine(rows, best, rungs, margin)
    choice = choose(rows, best, rungs, examined, margin, failed)
    verdict = Verdict(
        kind=choice.kind,
        choose=choice.rung.name,
        reason=choice.reason,
        best=best.name,
        margin=margin,
        basis="unseen" if rows.unseen_only else "all",
        rows_needed=choice.needed.rows if choice.needed else None,
    )
    majority, lookup = controls.get(MAJORITY), controls.get(LOOKUP)
    if majority:
        pairs = {c.name: rows.pair(c, majority) for c in rungs}
        ahead = _shown_ahead(rungs, pairs)
        if not ahead:
            verdict = _no_signal(verdict, rows, rungs, majority, pairs)
        elif pairs[choice.rung.name].interval[1] < 0:
            verdict = _worse_than_majority(verdict, rows, choice.rung, majority, pairs, ahead)
        if lookup:
            claim = _leakage(
                every,
                rows,
                best,
                majority,
                lookup,
                margin=margin,
                signal=bool(ahead),
                all_unseen=unseen is not None and bool(np.all(unseen)),
            )
            if claim:
                verdict = replace(verdict, kind="leakage", reason=claim + verdict.reason)
    return replace(verdict, reason=verdict.reason + text.not_compared(list(failed)))


def _check(
    y: ClassIndices,
    candidates: Sequence[Candidate],
    unseen: npt.NDArray[np.bool_] | None,
    margin: float,
) -> None:
    if not 0 <= margin <= 1:
        raise InputError(
            f"margin is {margin}, but it is a share of accuracy from 0 to 1: "
            "give 0.01 for one percentage point"
        )
    names = [c.name for c in candidates]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"need at least one candidate and no name twice, got {names}")
    if unseen is not None and np.shape(unseen) != np.shape(y):
        raise ValueError(f"unseen must have shape {np.shape(y)}, got {np.shape(unseen)}")


def _deciding_rows(every: TestRows, unseen: npt.NDArray[np.bool_] | None) -> TestRows:
    if unseen is None:
        return every
    kept = replace(every, keep=np.asarray(unseen, dtype=bool))
    if kept.count < ENOUGH_UNSEEN:
        return every
    if kept.groups is not None and len(np.unique(kept.groups[kept.keep])) < 2:
        return every
    return kept


def _only_controls(
    candidates: Sequence[Candidate], rows: TestRows, margin: float, failed: Mapping[str, bool]
) -> Verdict:
    names = [c.name for c in candidates]
    chosen = MAJORITY if MAJORITY in names else names[0]
    return Verdict(
        kind="nothing_to_choose",
        choose=chosen,
        reason=text.only_controls(names) + text.not_compared(list(failed)),
        best=chosen,
        margin=margin,
        basis="unseen" if rows.unseen_only else "all",
    )


def _shown_ahead(rungs: Sequence[Candidate], pairs: Mapping[str, Pair]) -> list[Candidate]:
    """The rungs that are shown to beat the majority class, the furthest ahead first."""
    adjusted = holm([pairs[c.name].p_value for c in rungs])
    shown = [
        c
        for c, p in zip(rungs, adjusted, strict=True)
        if p <= ALPHA and pairs[c.name].difference > 0
    ]
    return sorted(shown, key=lambda c: -pairs[c.name].difference)


def _no_signal(
    verdict: Verdict,
    rows: TestRows,
    rungs: Sequence[Candidate],
    majority: Candidate,
    pairs: Mapping[str, Pair],
) -> Verdict:
    """Choose the majority class, and say whether nothing beats it or the rows can't tell.

    Two findings would settle it: a gain above 0, or none above the bound. The rows needed are
    those for the likelier one, judged by which of 0 and the bound the observed gain is nearer to.
    """
    bound = max(verdict.margin, WORTHWHILE_GAIN)
    on = rows.basis(verdict.margin)
    told = replace(verdict, choose=majority.name, rows_needed=None)
    best = next(c for c in rungs if c.name == verdict.best)
    unsettled = [
        c for c in rungs if pairs[c.name].difference > 0 and pairs[c.name].interval[1] > bound
    ]
    if not unsettled:
        reason = text.majority_class(
            rows.named(best), rows.named(majority), pairs[best.name], bound, on
        )
        return replace(told, kind="majority_class", reason=reason)

    ahead = max(unsettled, key=lambda c: (c is best, pairs[c.name].difference))
    pair = pairs[ahead.name]
    if pair.difference > bound / 2:
        needed = rows_needed(replace(pair, confidence=1 - ALPHA / len(rungs)))  # as Holm's first
    else:
        needed = rows_needed(pair, -bound)
    reason = text.cannot_tell_majority(rows.named(ahead), rows.named(majority), pair, needed, on)
    return replace(
        told,
        kind="cannot_tell",
        reason=reason + text.provisional(majority.name),
        rows_needed=needed.rows,
    )


def _worse_than_majority(
    verdict: Verdict,
    rows: TestRows,
    chosen: Candidate,
    majority: Candidate,
    pairs: Mapping[str, Pair],
    ahead: Sequence[Candidate],
) -> Verdict:
    """Recommend no rung that reading no text beats, nor one that the test rows would choose."""
    reason = text.worse_than_majority(
        rows.named(chosen),
        rows.named(majority),
        pairs[chosen.name],
        rows.named(ahead[0]),
        rows.basis(verdict.margin),
    )
    return replace(
        verdict,
        kind="cannot_tell",
        choose=majority.name,
        reason=reason + text.provisional(majority.name),
        rows_needed=None,
    )


def _leakage(
    every: TestRows,
    rows: TestRows,
    best: Candidate,
    majority: Candidate,
    lookup: Candidate,
    *,
    margin: float,
    signal: bool,
    all_unseen: bool,
) -> str:
    """Return the claim of leakage, or "" where it is not shown: step 7 of the rule."""
    looked_up, gain = every.pair(lookup, majority), every.pair(best, majority)
    if looked_up.p_value > ALPHA or looked_up.difference <= 0 or gain.difference <= 0:
        return ""
    if rows.unseen_only:
        unseen, half = rows.pair(best, majority), gain.difference / 2
        shown = unseen.interval[1] < half
        if shown or (not signal and unseen.difference < half):
            return text.leakage_unseen(every.named(best), gain, unseen, looked_up, shown=shown)
        return ""
    pair = every.pair(best, lookup)
    if pair.interval[0] > margin:
        return ""
    return text.leakage_lookup(
        every.named(best), every.named(lookup), pair, every.basis(margin), short=all_unseen
    )
