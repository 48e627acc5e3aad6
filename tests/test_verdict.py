import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from llabel.errors import InputError
from llabel.statistics.paired import compare_pair
from llabel.verdict import Candidate, decide
from llabel.verdict.candidates import TestRows
from llabel.verdict.choice import examine

LADDER = {"majority": 0, "lookup": 1, "bag-of-words": 2, "rnn": 3, "encoder": 4, "llm-lora": 9}


def answering(right, n):
    """Answers to n rows of class 1 that are right on the rows named."""
    answers = np.zeros(n, int)
    answers[list(right)] = 1
    return answers


def rung(name, right, n, validation=0.5, **more):
    return Candidate(
        name,
        LADDER[name],
        answering(right, n),
        validation_accuracy=validation,
        is_llm=name.startswith("llm"),
        is_control=name in ("majority", "lookup"),
        **more,
    )


def ladder(n, validation=None, **right):
    """Rungs that get the first so many rows right; names with _ for -."""
    names = {key.replace("_", "-"): rows for key, rows in right.items()}
    given = {"encoder": 0.8, "llm-lora": 0.9} | (validation or {})
    return [
        rung(name, range(rows) if isinstance(rows, int) else rows, n, given.get(name, 0.5))
        for name, rows in names.items()
    ]


def ask(n, candidates, **more):
    return decide(np.ones(n, int), candidates, resamples=1000, **more)


def test_a_cheap_rung_as_good_means_no_llm():
    verdict = ask(4000, ladder(4000, majority=2000, bag_of_words=3510, llm_lora=3520))
    assert (verdict.kind, verdict.choose, verdict.best) == ("no_llm", "bag-of-words", "llm-lora")
    assert verdict.reason == (
        "Don't use the LLM: bag-of-words (87.8 %) is no worse than llm-lora (88.0 %), the best on "
        "validation, by more than the margin of 1 point (difference −0.3 points, 95 % interval "
        "−0.5 to −0.1; 4,000 test rows)."
    )
    assert verdict.rows_needed is None


def test_an_llm_far_ahead_is_worth_it():
    verdict = ask(2000, ladder(2000, majority=1000, bag_of_words=1300, rnn=1200, llm_lora=1600))
    assert (verdict.kind, verdict.choose) == ("use_llm", "llm-lora")
    assert verdict.reason.startswith(
        "The LLM is worth it: llm-lora (80.0 %) beats every cheaper rung that ran by more than "
        "the margin of 1 point; the nearest is bag-of-words (65.0 %) (difference −15.0 points"
    )


def test_an_llm_behind_on_validation_and_on_test_is_not_used():
    rungs = ladder(2000, {"encoder": 0.95}, majority=1000, encoder=1600, llm_lora=1580)
    verdict = ask(2000, rungs)
    assert (verdict.kind, verdict.choose) == ("no_llm", "encoder")
    assert verdict.reason.startswith("Don't use the LLM: encoder (80.0 %) is the best on validati")
    assert verdict.reason.endswith(
        " llm-lora (79.0 %) was behind encoder on validation and is not better than encoder by "
        "more than the margin of 1 point on the test rows (difference −1.0 points, 95 % interval "
        "−1.5 to −0.6)."
    )


def test_validation_and_test_may_disagree_about_the_llm():
    rungs = ladder(2000, {"encoder": 0.95}, majority=1000, encoder=1500, llm_lora=1700)
    verdict = ask(2000, rungs)
    assert (verdict.kind, verdict.choose) == ("use", "encoder")
    assert "But llm-lora (85.0 %) beats encoder on the test rows" in verdict.reason
    assert "though it was behind encoder on validation: a larger" in verdict.reason


def apart(n, right, only_other, ahead):
    """(n_right) rows, and as many others besides as make a system with them better by `ahead`."""
    return range(right), range(only_other, right + only_other + ahead)


@pytest.mark.parametrize(("tie", "behind"), [(False, "behind"), (True, "not ahead of")])
def test_a_gain_of_the_llm_that_is_not_ruled_out_is_no_finding_against_it(tie, behind):
    n = 300
    encoder, llm = apart(n, 240, 18, 12)
    validation = {"encoder": 0.9, "llm-lora": 0.9 if tie else 0.8999}
    rungs = ladder(n, validation, majority=120, encoder=encoder, llm_lora=llm)
    verdict = ask(n, rungs)
    assert (verdict.kind, verdict.choose, verdict.best) == ("use", "encoder", "encoder")
    assert verdict.reason.startswith("Use encoder (80.0 %): it is the best on validation")
    assert (
        " These rows do not rule out that llm-lora (84.0 %) is up to 8.7 points better than "
        "encoder (difference +4.0 points, 95 % interval −0.5 to +8.7); about "
    ) in verdict.reason
    assert verdict.reason.endswith(
        " test rows would show whether it is better by more than the margin of 1 point."
    )
    assert verdict.rows_needed > n
    far = ladder(n, validation, majority=120, encoder=range(200), llm_lora=range(290))
    assert f"though it was {behind} encoder on validation" in ask(n, far).reason


def test_no_llm_may_be_better_where_none_is_to_be_used():
    """The one best on validation is no better; one that was behind may be."""
    n = 4000
    cheap = ladder(n, majority=2000, bag_of_words=3200, llm_lora=3210)
    assert ask(n, cheap).kind == "no_llm"
    other = Candidate(
        "llm-few-shot", 8, answering(range(100, 3350), n), validation_accuracy=0.7, is_llm=True
    )
    verdict = ask(n, [*cheap, other])
    assert (verdict.kind, verdict.choose, verdict.best) == ("use", "bag-of-words", "llm-lora")
    assert "But llm-few-shot (81.2 %) beats bag-of-words on the test rows" in verdict.reason
    assert "though it was behind llm-lora on validation" in verdict.reason


def test_the_rung_that_the_llm_was_behind_is_named():
    """Ahead of the cheap rung that is used, behind the dearer one that it is as good as."""
    n = 2000
    validation = {"encoder": 0.95, "llm-lora": 0.9, "bag-of-words": 0.8}
    rungs = ladder(
        n, validation, majority=800, bag_of_words=1500, encoder=1505, llm_lora=range(1600)
    )
    verdict = ask(n, rungs)
    assert verdict.choose == "bag-of-words"
    assert "beats bag-of-words on the test rows" in verdict.reason
    assert "though it was behind encoder on validation" in verdict.reason


def test_the_best_of_several_llms_is_not_ahead_by_chance():
    """One LLM's interval leaves out 0; widened for three of them it does not."""
    n = 1000
    encoder, llm = apart(n, 800, 30, 18)
    validation = {"encoder": 0.9, "llm-lora": 0.8}
    rungs = ladder(n, validation, majority=400, encoder=encoder, llm_lora=llm)
    assert "But llm-lora (81.8 %) beats encoder" in ask(n, rungs).reason
    more = [
        Candidate(f"llm-{k}", 10 + k, answering(range(700), n), 0.7, is_llm=True) for k in (1, 2)
    ]
    verdict = ask(n, [*rungs, *more])
    assert verdict.kind == "use"
    assert "do not rule out that llm-lora (81.8 %) is up to 3." in verdict.reason
    assert " beats " not in verdict.reason


def test_what_settles_the_larger_question_is_what_is_needed():
    n = 3000
    bag, llm = range(120, 2480), range(90, 2490)
    validation = {"encoder": 0.95, "rnn": 0.9, "llm-lora": 0.9}
    rungs = ladder(
        n, validation, majority=1000, bag_of_words=bag, rnn=2395, encoder=2400, llm_lora=llm
    )
    both = ask(n, rungs)
    of_bag, of_llm = ask(n, rungs[:-1]), ask(n, [rungs[0], *rungs[2:]])
    assert both.choose == of_bag.choose == of_llm.choose == "rnn"
    assert "bag-of-words may do as well" in both.reason
    assert "do not rule out that llm-lora" in both.reason
    assert both.rows_needed == max(of_bag.rows_needed, of_llm.rows_needed)


def test_the_doubt_is_about_a_rung_without_an_llm():
    """A cheap LLM passes; of the cheaper rungs in doubt, the nearest is an LLM as well."""
    n = 3000
    zero_shot = Candidate(
        "llm-zero-shot", 5, answering(range(90, 2485), n), validation_accuracy=0.6, is_llm=True
    )
    few_shot = Candidate("llm-few-shot", 6, answering(range(2395), n), 0.85, is_llm=True)
    rungs = ladder(n, majority=1000, bag_of_words=range(120, 2490), llm_lora=2400)
    verdict = ask(n, [*rungs, zero_shot, few_shot])
    assert (verdict.kind, verdict.choose) == ("cannot_tell", "llm-few-shot")
    assert "would show whether bag-of-words (79.0 %) is as good as llm-lora" in verdict.reason


def test_a_rung_below_the_majority_class_is_not_recommended():
    n = 2000
    rungs = ladder(
        n,
        {"bag-of-words": 0.9, "encoder": 0.8},
        majority=1000,
        bag_of_words=900,
        encoder=1300,
    )
    verdict = ask(n, rungs)
    assert (verdict.kind, verdict.choose) == ("cannot_tell", "majority")
    assert (verdict.best, verdict.rows_needed) == ("bag-of-words", None)
    assert verdict.reason.startswith(
        "Can't tell yet which rung to use: bag-of-words (45.0 %), which validation and the margin "
        "would choose, is worse than majority (50.0 %) on the test rows (difference −5.0 points, "
    )
    assert "encoder (65.0 %) beats it there" in verdict.reason
    assert verdict.reason.endswith("Until then: majority.")


def test_too_few_rows_cannot_tell():
    n = 400
    spread_out = [*range(20, 300)]
    verdict = ask(n, ladder(n, majority=150, bag_of_words=spread_out, llm_lora=285))
    assert (verdict.kind, verdict.choose) == ("cannot_tell", "llm-lora")
    assert verdict.rows_needed > n
    assert verdict.reason.startswith("Can't tell yet: about ")
    assert "test rows would show whether bag-of-words (70.0 %) is as good as" in verdict.reason
    assert verdict.reason.endswith("Until then: llm-lora.")


def test_a_passing_rung_is_used_though_a_cheaper_one_is_open():
    n = 3000
    rungs = ladder(n, majority=1000, bag_of_words=[*range(120, 2480)], encoder=2395, llm_lora=2400)
    verdict = ask(n, rungs)
    assert (verdict.kind, verdict.choose) == ("no_llm", "encoder")
    assert "The still cheaper bag-of-words may do as well: can't tell yet; about " in verdict.reason


def ahead_of_majority(n, *gains, discordant=0.2):
    """Majority on half the rows, and rungs ahead of it by so many points of accuracy."""
    half = n // 2
    rungs = [rung("majority", range(half), n)]
    for name, gain in zip(["llm-lora", "rnn"], gains, strict=False):
        lost = round(n * (discordant - gain / 100) / 2)
        won = lost + round(n * gain / 100)
        rungs.append(rung(name, range(lost, half + won), n, 0.9 if name == "llm-lora" else 0.5))
    return rungs


@pytest.mark.parametrize("gains", [(1,), (1, 0.5), (-1,), (0,), (-5, 1)])
def test_nothing_beats_the_majority_class(gains):
    verdict = ask(5000, ahead_of_majority(5000, *gains))
    assert (verdict.kind, verdict.choose) == ("majority_class", "majority")
    assert verdict.reason.startswith(
        f"No rung beats the majority class: llm-lora ({50 + gains[0]:.1f} %), the best on "
        "validation, against majority (50.0 %) (difference "
    )
    assert "rule out" not in verdict.reason
    assert verdict.rows_needed is None


def test_an_observed_tie_on_few_rows_owns_that_a_gain_is_possible():
    verdict = ask(60, ahead_of_majority(60, 0))
    assert verdict.kind == "majority_class"
    assert verdict.reason.endswith("These rows don't rule out a gain of more than 3 points.")


@pytest.mark.parametrize("gains", [(4,), (1,), (-5, 4)])  # the last: another than the best
def test_rows_that_cannot_show_a_gain_do_not_deny_it(gains):
    n = 400
    verdict = ask(n, ahead_of_majority(n, *gains))
    assert (verdict.kind, verdict.choose, verdict.best) == ("cannot_tell", "majority", "llm-lora")
    ahead = "rnn" if len(gains) > 1 else "llm-lora"
    assert verdict.reason.startswith(
        f"Can't tell yet whether any rung beats the majority class: {ahead} "
        f"({50 + gains[-1]:.1f} %) against majority (50.0 %) (difference +{gains[-1]:.1f} points"
    )
    assert n < verdict.rows_needed < 10_000
    assert " 400 test rows); about " in verdict.reason
    assert verdict.reason.endswith(" test rows would show it. Until then: majority.")


def test_a_wide_margin_is_what_a_gain_must_exceed():
    rungs = ahead_of_majority(400, 1)
    assert ask(400, rungs, margin=0.1).kind == "majority_class"


def test_the_rows_named_settle_the_majority_class():
    """With as many rows and the same shares, a real gain is shown and a small one ruled out."""
    for gain, kind in [(4, "use"), (1, "majority_class")]:
        needed = ask(400, ahead_of_majority(400, gain)).rows_needed
        assert ask(needed, ahead_of_majority(needed, gain)).kind == kind


def test_three_rows_say_nothing_not_even_how_many_would():
    rungs = [rung("majority", [0], 3), rung("encoder", range(3), 3)]
    verdict = ask(3, rungs)
    assert (verdict.kind, verdict.choose, verdict.rows_needed) == ("cannot_tell", "majority", None)
    assert "encoder (100.0 %) against majority (33.3 %) (difference +66.7" in verdict.reason
    assert verdict.reason.endswith(
        "; 3 test rows); too few test rows to say how many would show it. Until then: majority."
    )


def leaky(n, seen, gain_seen, gain_unseen):
    """Majority gets a third; lookup and the LLM gain so many seen and unseen rows besides."""
    unseen = np.arange(n) >= seen
    base = [*range(0, n, 3)]
    rest = np.setdiff1d(np.arange(n), base)
    on_seen, on_unseen = rest[~unseen[rest]][:gain_seen], rest[unseen[rest]][:gain_unseen]
    return unseen, [
        rung("majority", base, n),
        rung("lookup", [*base, *on_seen], n, 0.99),
        rung("llm-lora", [*base, *on_seen, *on_unseen], n, 0.9),
    ]


def test_a_gain_on_seen_rows_only_is_leakage():
    unseen, rungs = leaky(3000, 1500, gain_seen=500, gain_unseen=40)
    verdict = ask(3000, rungs, unseen=unseen)
    assert (verdict.kind, verdict.choose, verdict.basis) == ("leakage", "llm-lora", "unseen")
    assert verdict.reason.startswith(
        "Most of this score is leakage: over the majority class llm-lora gains +18.0 points on "
        "all 3,000 test rows but +2.7 (95 % interval "
    )
    assert "on the 1,500 whose text is not in training" in verdict.reason


def test_leakage_is_a_guess_where_the_unseen_rows_leave_it_open():
    unseen, rungs = leaky(3000, 2850, gain_seen=200, gain_unseen=0)
    answers = rungs[2].answers.copy()
    by_majority = rungs[0].answers == 1
    answers[np.flatnonzero(unseen & by_majority)[:24]] = 0  # as many lost as won on unseen rows
    answers[np.flatnonzero(unseen & ~by_majority)[:24]] = 1
    verdict = ask(3000, [*rungs[:2], replace(rungs[2], answers=answers)], unseen=unseen)
    assert verdict.kind == "leakage"
    assert verdict.reason.startswith("Most of this score may be leakage: over the majority class")


def test_no_gain_on_unseen_rows_is_leakage_and_chooses_the_majority():
    unseen, rungs = leaky(3000, 1500, gain_seen=500, gain_unseen=0)
    verdict = ask(3000, rungs, unseen=unseen)
    assert (verdict.kind, verdict.choose) == ("leakage", "majority")
    assert "No rung beats the majority class" in verdict.reason


def test_a_gain_that_stays_on_unseen_rows_is_no_leakage():
    unseen, rungs = leaky(3000, 1500, gain_seen=300, gain_unseen=300)
    verdict = ask(3000, rungs, unseen=unseen)
    assert (verdict.kind, verdict.choose, verdict.basis) == ("use", "llm-lora", "unseen")


@pytest.mark.parametrize("unseen_rows", [None, 50])
def test_without_unseen_rows_the_look_up_speaks(unseen_rows):
    _, rungs = leaky(3000, 2950, gain_seen=500, gain_unseen=10)
    unseen = None if unseen_rows is None else np.arange(3000) >= 3000 - unseen_rows
    verdict = ask(3000, rungs, unseen=unseen)
    assert (verdict.kind, verdict.choose, verdict.basis) == ("leakage", "llm-lora", "all")
    assert verdict.reason.startswith("Most of this score may be leakage: llm-lora (50.3 %)")
    assert "is not shown to beat looking training texts up, lookup (50.0 %)" in verdict.reason
    assert "too few test rows are known to have a text that is not in training." in verdict.reason


def test_short_texts_are_looked_up_where_no_long_one_is_known():
    _, rungs = leaky(3000, 2950, gain_seen=500, gain_unseen=10)
    verdict = ask(3000, rungs, unseen=np.ones(3000, bool))
    assert (verdict.kind, verdict.basis) == ("leakage", "all")
    assert "too few" not in verdict.reason
    assert "no test row shares a long text with training, but short ones are" in verdict.reason


def test_lookup_and_majority_are_never_best():
    _, rungs = leaky(3000, 1500, gain_seen=500, gain_unseen=400)
    verdict = ask(3000, [replace(r, validation_accuracy=1 - r.cost_rank / 10) for r in rungs])
    assert verdict.best == "llm-lora"
    assert verdict.choose != "lookup"


def test_unseen_rows_decide_against_all_rows():
    """On all rows the LLM is far ahead; where texts are new a cheap rung does as well."""
    n, unseen = 6000, np.arange(6000) >= 2000
    rungs = ladder(
        n,
        majority=[*range(2000, 3000)],
        bag_of_words=[*range(2000, 5500)],
        llm_lora=range(5500),
    )
    assert ask(n, rungs).kind == "use_llm"
    verdict = ask(n, rungs, unseen=unseen)
    assert (verdict.kind, verdict.choose) == ("no_llm", "bag-of-words")
    assert "4,000 test rows whose text is not in training" in verdict.reason


def test_best_is_by_accuracy_then_log_loss_then_cost():
    tie = ladder(2000, {"rnn": 0.7, "encoder": 0.7}, majority=500, rnn=1500, encoder=1510)
    assert ask(2000, tie).best == "rnn"
    losses = {"rnn": 0.6, "encoder": 0.5}
    told = [replace(c, validation_log_loss=losses.get(c.name)) for c in tie]
    assert ask(2000, told).best == "encoder"
    unmeasured = [replace(c, validation_accuracy=None if c.name == "encoder" else 0.1) for c in tie]
    assert ask(2000, unmeasured).best == "rnn"


def test_failed_rungs_are_named_and_nothing_is_claimed_of_them():
    n = 4000
    rungs = ladder(n, majority=2000, bag_of_words=3510, encoder=3520)
    without = ask(n, rungs, failed={"llm-lora": True})
    assert without.kind == "use"
    assert without.reason.endswith("Failed, so nothing is said of: llm-lora.")
    assert "LLM" not in without.reason
    ahead = ladder(n, majority=2000, bag_of_words=2600, llm_lora=3520)
    assert ask(n, ahead, failed={"encoder": False}).kind == "use"  # it might have done as well
    assert ask(n, ahead).kind == "use_llm"


def test_few_rungs():
    n = 1000
    alone = ask(n, ladder(n, llm_lora=800))
    assert (alone.kind, alone.choose) == ("use", "llm-lora")
    assert "nothing cheaper ran, controls aside" in alone.reason
    controls = ask(n, ladder(n, majority=500, lookup=600), failed={"rnn": False})
    assert (controls.kind, controls.choose) == ("nothing_to_choose", "majority")
    assert controls.reason == (
        "Nothing to choose from: only majority and lookup ran. Failed, so nothing is said of: rnn."
    )


def test_record_is_json():
    verdict = ask(1000, ladder(1000, majority=500, lookup=500, rnn=700, llm_lora=800))
    assert json.loads(json.dumps(asdict(verdict))) == asdict(verdict)


def test_a_pair_has_one_interval_whichever_is_first():
    """That of the table of pairs, whose first is the cheaper."""
    n = 300
    y, groups = np.ones(n, int), np.arange(n) // 2
    a, b = ladder(n, encoder=range(240), llm_lora=range(20, 272))
    rows = TestRows(y, np.ones(n, bool), groups, 500, 0)
    there, back = rows.pair(a, b), rows.pair(b, a)
    assert there == compare_pair(y, a.answers, b.answers, groups=groups, resamples=500)
    assert back.interval == (-there.interval[1], -there.interval[0])
    assert back.difference == -there.difference
    assert back.p_value == there.p_value


def test_seeds_and_groups_are_carried_into_the_choice():
    n = 1000
    rungs = ladder(n, majority=300, bag_of_words=790, llm_lora=800)
    seeds = np.stack([answering(range(800 + d), n) for d in (-60, 0, 60)])
    wavering = [*rungs[:2], replace(rungs[2], answers=seeds)]
    verdict = ask(n, wavering)
    assert verdict.kind == "cannot_tell"
    assert verdict.rows_needed is None
    assert "more seeds, not rows, would show" in verdict.reason
    blocks = np.arange(n) // 10  # all ten rows on which the two differ are one group
    grouped, plain = ask(n, rungs, groups=blocks), ask(n, rungs)
    assert grouped.kind == plain.kind == "cannot_tell"
    assert grouped.rows_needed > 3 * plain.rows_needed


def test_refusals():
    rungs = ladder(10, majority=5, rnn=6)
    with pytest.raises(InputError, match=r"margin is 1\.5.*give 0\.01 for one percentage point"):
        ask(10, rungs, margin=1.5)
    with pytest.raises(ValueError, match="no name twice"):
        ask(10, [*rungs, rungs[0]])
    with pytest.raises(ValueError, match=r"unseen must have shape \(10,\)"):
        ask(10, rungs, unseen=np.ones(9, bool))


def simulate(runs, n, cheaper, *, seeds=1, seed_sd=0.0, margin=0.05, order="random"):
    """How often the rung chosen is truly worse than the best by the margin or more.

    `cheaper`: true accuracy below the best's 0.8 of each cheaper rung.
    """
    rng = np.random.default_rng(11)
    wrong, chosen = 0, np.zeros(len(cheaper) + 1)
    for _ in range(runs):
        shared = rng.random(n)
        candidates = []
        validation = rng.permutation(len(cheaper)) if order == "random" else -np.asarray(cheaper)
        for i, below in enumerate([*cheaper, 0.0]):
            own = np.where(rng.random((seeds, n)) < 0.5, shared, rng.random((seeds, n)))
            drift = rng.normal(0, seed_sd, (seeds, 1))
            answers = (own < 0.8 - below + drift).astype(int)
            best = i == len(cheaper)
            candidates.append(Candidate(f"rung-{i}", i, answers, 99.0 if best else validation[i]))
        rows = TestRows(np.ones(n, int), np.ones(n, bool), None, 300, 0)
        found = examine(rows, candidates[-1], candidates, margin)
        take = next((i for i, e in enumerate(found) if e.standing == "no worse"), len(cheaper))
        chosen[take] += 1
        wrong += take < len(cheaper) and cheaper[take] >= margin
    return wrong / runs, chosen / runs


@pytest.mark.parametrize(
    "case",
    [
        {"cheaper": [0.05]},
        {"cheaper": [0.05] * 6, "runs": 1200},  # all exactly at the margin: the worst case
        {"cheaper": [0.05, 0.05, 0.0, 0.0], "order": "true", "runs": 1000},
        pytest.param(
            {"cheaper": [0.05] * 3, "seeds": 3, "seed_sd": 0.02, "runs": 1500},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_the_chosen_rung_keeps_to_the_margin(case):
    wrong, _ = simulate(**({"runs": 2000, "n": 300} | case))
    assert wrong <= 0.05


def test_unadjusted_intervals_would_not_keep_to_it():
    """The reason for the order of tests: six rungs at 2.5 % each err about twice as often."""
    rng = np.random.default_rng(12)
    wrong, runs = 0, 600
    for _ in range(runs):
        best = rng.random(300) < 0.8
        y = np.ones(300, int)
        rows = TestRows(y, np.ones(300, bool), None, 300, 0)
        top = Candidate("best", 9, best.astype(int))
        others = [Candidate(str(i), i, (rng.random(300) < 0.75).astype(int)) for i in range(6)]
        wrong += any(rows.pair(c, top).interval[0] >= -0.05 for c in others)
    assert wrong / runs > 0.05


def test_a_good_rung_after_a_bad_one_can_still_pass():
    """Validation put a bad rung first, which ends the sequence; the widened interval helps."""
    _, chosen = simulate(300, 1500, [0.0, 0.06, 0.1], margin=0.05)
    assert chosen[0] > 0.85


def test_no_signal_is_found_where_none_is():
    """Five systems as good as the majority class: seldom is one said to beat it."""
    rng = np.random.default_rng(13)
    runs, claims = 400, 0
    for _ in range(runs):
        right = rng.random((6, 300)) < 0.6
        rungs = [
            Candidate("majority", 0, right[0].astype(int), is_control=True),
            *[Candidate(f"r{i}", i, right[i].astype(int), 0.5) for i in range(1, 6)],
        ]
        claims += decide(np.ones(300, int), rungs).choose != "majority"
    assert claims / runs <= 0.05
