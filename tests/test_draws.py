"""Several draws of the rows as one comparison."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from statistics import mean
from typing import Any, get_type_hints

import numpy as np
import pytest
from rich.console import Console

from comparison_runs import CHEAP, cheap, climb, copied, lasting, lines_of, named, stop, when_in
from llabel import run
from llabel.compare.draws import same_test_rows
from llabel.compare_view import render_comparison
from llabel.comparison import CompareRecord, Draw
from llabel.config import RunConfig
from llabel.errors import InputError
from llabel.events import Event, Note, RungStarted
from llabel.metrics import NOT_ASKED, wilson_interval
from llabel.settings import CompareSettings
from llabel.statistics.intervals import bootstrap_scores
from llabel.statistics.paired import compare_pair, rows_needed
from llabel.verdict import decide
from llabel.verdict.candidates import Candidate, TestRows
from runs import write_weather

Finished = tuple[Path, CompareRecord]
pytestmark = pytest.mark.usefixtures("runs_here")


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return cheap(write_weather(tmp_path_factory.mktemp("data") / "weather.jsonl", 90))


@pytest.fixture(scope="module")
def finished(
    runs_here: None, setup: RunConfig, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    out = tmp_path_factory.mktemp("draws") / "out"
    return out, climb(setup, out, draws=2)


def read(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "compare.json").read_text())
    return values


def test_its_rungs_are_named_where_one_is_needed(finished: Finished) -> None:
    out, _ = finished
    (out / "draws" / "1" / "rungs" / "majority.lock").touch()
    with pytest.raises(InputError) as error:
        run.evaluate(out, "weather.jsonl")
    assert "draws/1/rungs/bag-of-words, draws/1/rungs/lookup" in str(error.value)
    assert "lock" not in str(error.value)


def test_scores_are_the_means_of_the_draws_own_comparisons(finished: Finished) -> None:
    out, record = finished
    each = [read(out / draw["folder"]) for draw in record["draws"]]
    assert len(each) == 2
    for rung in record["rungs"]:
        theirs = [named(one, rung["name"])["metrics"] for one in each]  # type: ignore[arg-type]
        assert rung["metrics"]
        for part in ("validation", "test"):
            for name in ("accuracy", "macro_f1", "log_loss", "ece"):
                mine = rung["metrics"][part][name]  # type: ignore[literal-required]
                assert mine == pytest.approx(mean(one[part][name] for one in theirs))
        assert rung["seed_accuracies"] == [one["test"]["accuracy"] for one in theirs]
        assert rung["metrics"]["test"]["rows"] == sum(one["test"]["rows"] for one in theirs)
    for pair in record["pairs"]:
        a, b = (named(record, pair[side])["seed_accuracies"] for side in ("a", "b"))  # type: ignore[literal-required]
        assert pair["difference"] == pytest.approx(mean(a) - mean(b))
        assert pair["ci95"][0] <= pair["difference"] <= pair["ci95"][1]


def test_all_answers_are_counted_once(finished: Finished) -> None:
    out, record = finished
    each = [read(out / draw["folder"]) for draw in record["draws"]]
    for rung in record["rungs"]:
        theirs = [named(one, rung["name"]) for one in each]  # type: ignore[arg-type]
        assert rung["confusion"] == np.sum([one["confusion"] for one in theirs], axis=0).tolist()
        rows = sum(place["rows"] for place in rung["reliability"])
        assert rows == record["data"]["rows"]["test"] == 36
        (accuracy,) = (row for row in rung["report"] if row["kind"] == "accuracy")
        assert accuracy["f1"] == pytest.approx(mean(rung["seed_accuracies"]))
    unseen = sum(one["data"]["unseen_test_rows"] for one in each)
    assert record["data"]["unseen_test_rows"] == unseen
    majority = [one["baselines"]["majority"]["accuracy"] for one in each]
    found = record["baselines"]["majority"]
    assert found["accuracy"] == pytest.approx(mean(majority))
    ids = {
        line["id"]
        for draw in record["draws"]
        for line in lines_of(out / draw["folder"] / "rungs/majority", "test")
    }
    of_ids = wilson_interval(round(mean(majority) * len(ids)), len(ids))
    assert len(ids) < 36, "some rows are drawn twice"
    assert found["accuracy_ci95"] == pytest.approx(of_ids)


def test_each_draw_has_rows_and_seeds_of_its_own(finished: Finished) -> None:
    out, record = finished
    assert set(record) == set(get_type_hints(CompareRecord))
    assert read(out) == record
    for number, draw in enumerate(record["draws"]):
        assert set(draw) == set(get_type_hints(Draw))
        assert (draw["split_seed"], draw["seed"]) == (number, number)
        rung = json.loads((out / draw["folder"] / "rungs/bag-of-words/run.json").read_text())
        assert rung["data"]["fingerprint"] == draw["fingerprint"]
        assert rung["seed"] == number
        assert rung["config"]["split_seed"] == number
    assert len({draw["fingerprint"] for draw in record["draws"]}) == 2
    page = (out / "report.html").read_text()
    assert "36 test rows in 2 random draws" in page
    assert "means over 2 random draws of training, validation and test rows" in page


def test_the_table_tells_the_spread(finished: Finished) -> None:
    out, record = finished
    console = Console(width=150, file=StringIO())
    console.print(render_comparison(record, out))
    table = console.file.getvalue()  # type: ignore[attr-defined]
    assert "means over 2 random draws" in " ".join(table.split())
    sd = np.std(named(record, "bag-of-words")["seed_accuracies"], ddof=1)
    assert f"{sd:.4f}" in table


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_with_its_second_draw(
    finished: Finished, setup: RunConfig, tmp_path: Path
) -> None:
    reference, record = finished
    out = copied(reference, tmp_path / "out", "2")
    with pytest.raises(KeyboardInterrupt):
        climb(setup, out, draws=2, notify=when_in("draw 2, majority", stop))
    assert not (out / "compare.json").exists()
    seen: list[Event] = []
    assert lasting(climb(setup, out, draws=2, notify=seen.append)) == lasting(record)
    started = [event.rung for event in seen if isinstance(event, RungStarted)]
    assert started == [f"draw {number}, {rung}" for number in (1, 2) for rung in CHEAP]
    notes = [event.text for event in seen if isinstance(event, Note)]
    told = run.load(setup).notes
    assert [notes.count(text) for text in told] == [1] * len(told)


def test_what_fails_in_one_draw_is_no_row_of_all(
    finished: Finished, setup: RunConfig, tmp_path: Path
) -> None:
    out = copied(finished[0], tmp_path / "out")
    place = out / "draws/2/rungs/bag-of-words"
    (place / "run.json").unlink()
    (place / "started.json").write_text("{")
    record = climb(setup, out, draws=2)
    row = named(record, "bag-of-words")
    assert row["status"] == "failed"
    assert row["reason"].startswith("draw 2, bag-of-words: ")
    assert named(record, "majority")["status"] == "done"
    assert {pair[side] for pair in record["pairs"] for side in ("a", "b")} == {"majority", "lookup"}  # type: ignore[literal-required]


def test_intervals_are_over_groups_everywhere(setup: RunConfig, tmp_path: Path) -> None:
    """Eight rows a user, all alike: run.json, card, references and table say the same of them."""
    rows = write_weather(tmp_path / "weather.jsonl", 40).read_text().splitlines()
    repeated = [json.loads(row) | {"who": f"u{n}"} for n, row in enumerate(rows) for _ in range(8)]
    (tmp_path / "weather.jsonl").write_text("".join(json.dumps(row) + "\n" for row in repeated))
    config = replace(
        setup,
        source=str(tmp_path / "weather.jsonl"),
        data=replace(setup.data, group="who"),
    )
    out = tmp_path / "out"
    record = climb(config, out, rungs=("majority", "bag-of-words"), draws=2)
    for draw in record["draws"]:
        one = read(out / draw["folder"])
        for rung in one["rungs"]:
            folder = out / draw["folder"] / rung["folder"]
            alone = json.loads((folder / "run.json").read_text())
            for part in ("validation", "test", "test_unseen"):
                interval = alone["metrics"][part]["accuracy_ci95"]
                assert interval == rung["metrics"][part]["accuracy_ci95"]
            assert alone["baselines"]["majority"] == one["baselines"]["majority"]
            assert (
                "Wilson's at the effective number of rows, as rows that share their who"
                in (folder / "README.md").read_text()
            )
        majority = named(one, "majority")["metrics"]["test"]["accuracy_ci95"]  # type: ignore[arg-type,index]
        assert one["baselines"]["majority"]["accuracy_ci95"] == majority
    of_all = named(record, "majority")["metrics"]
    assert of_all
    expected = pytest.approx(of_all["test"]["accuracy_ci95"])
    assert record["baselines"]["majority"]["accuracy_ci95"] == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"draws": 2, "seeds": 2}, "--draws and --seeds cannot be given together"),
        ({"draws": 2, "curve": (20,)}, "--draws and --curve cannot be given together"),
        ({"draws": 2, "reuse": ("x",)}, "--draws and --reuse cannot be given together"),
    ],
)
def test_what_draws_cannot_have(
    setup: RunConfig, tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        climb(setup, tmp_path / "out", **asked)


def test_one_draw_and_several_do_not_share_a_folder(
    finished: Finished, setup: RunConfig, tmp_path: Path
) -> None:
    out, _ = finished
    with pytest.raises(InputError, match="holds a comparison on several draws of the rows"):
        climb(setup, out)
    climb(setup, tmp_path / "one", rungs=("majority",))
    with pytest.raises(InputError, match="holds a comparison on one draw of the rows"):
        climb(setup, tmp_path / "one", draws=2)


# The statistics


def blocks(rng: np.random.Generator, right: Any) -> Any:
    """(draws, n) answers of trainings, each on rows of its own, as answers on all rows."""
    draws, n = right.shape
    out = np.full((draws, draws * n), NOT_ASKED)
    for draw in range(draws):
        out[draw, draw * n : (draw + 1) * n] = right[draw]
    return out


def test_rows_that_were_not_asked_change_nothing() -> None:
    """A training asked all rows equals one among rows that nobody was asked."""
    rng = np.random.default_rng(3)
    a, b = (rng.random((3, 120)) < share for share in (0.8, 0.7))
    wide = [np.concatenate([x.astype(int), np.full((3, 30), NOT_ASKED)], axis=1) for x in (a, b)]
    names = np.arange(120) // 2
    short = compare_pair(np.ones(120, int), a.astype(int), b.astype(int), groups=names)
    long = compare_pair(np.ones(150, int), *wide, groups=np.append(names, np.zeros(30, int)))
    assert long.difference == short.difference
    np.testing.assert_allclose(long.interval, short.interval, atol=0.004)
    proba = rng.dirichlet(np.ones(2), (3, 150))
    few = bootstrap_scores(np.ones(120, int), proba[:, :120], a.astype(int), groups=names)
    all_ = bootstrap_scores(
        np.ones(150, int), proba, wide[0], groups=np.append(names, np.zeros(30, int))
    )
    for name, interval in few.items():
        np.testing.assert_allclose(all_[name], interval, atol=1e-12)  # type: ignore[literal-required]


def test_draws_with_unequal_test_parts_count_alike() -> None:
    """Pair and verdict have the mean over draws, as the table; a draw without rows has no say."""
    y, sizes = np.ones(300, int), (60, 240)
    a, b = (np.full((3, 300), NOT_ASKED) for _ in range(2))
    for draw, own in enumerate((slice(0, 60), slice(60, 300))):
        a[draw, own] = np.arange(sizes[draw]) < (54, 120)[draw]
        b[draw, own] = np.arange(sizes[draw]) < (24, 120)[draw]
    groups = np.arange(300)
    pair = compare_pair(y, a, b, groups=groups, resamples=500)
    assert pair.difference == pytest.approx((0.9 - 0.4) / 2)
    assert pair.interval[0] < pair.difference < pair.interval[1]
    assert pair == compare_pair(y, a[:2], b[:2], groups=groups, resamples=500)
    rows = TestRows(y, np.ones(300, bool), groups, 500, 0)
    assert rows.accuracy(Candidate("encoder", 0, a)) == pytest.approx((0.9 + 0.5) / 2)
    with pytest.raises(ValueError, match="a was asked none of the 300 rows"):
        compare_pair(y, np.full(300, NOT_ASKED), b)


def test_a_row_of_several_draws_counts_once_in_the_verdict() -> None:
    """Three draws of the same 90 rows are 90 rows: too few unseen ones, a third of those needed."""
    y, ids = np.ones(270, int), np.tile(np.arange(90), 3)
    a, b = (np.tile(np.arange(90) < right, (3, 1)).astype(int) for right in (60, 58))
    rng = np.random.default_rng(0)
    rungs = [
        Candidate(name, rank, blocks(rng, right), validation_accuracy=rank / 10)
        for rank, (name, right) in enumerate((("bag-of-words", b), ("encoder", a)))
    ]
    asked: dict[str, Any] = {"unseen": np.arange(270) < 120, "groups": ids, "resamples": 500}
    told, stacked = decide(y, rungs, ids=ids, **asked), decide(y, rungs, **asked)
    assert (told.basis, stacked.basis) == ("all", "unseen")
    assert "; 90 test rows)" in told.reason
    one, three = TestRows(y, y > 0, ids, 500, 0, ids), TestRows(y, y > 0, ids, 500, 0)
    pair, long = one.pair(*rungs), three.pair(*rungs)
    assert (pair.rows, long.rows) == (90, 270)
    assert replace(pair, rows=270) == long
    needed, too_many = rows_needed(pair, 0.03).rows, rows_needed(long, 0.03).rows
    assert needed
    assert too_many == pytest.approx(3 * needed, abs=3)


def test_a_test_part_that_is_given_is_told_to_stay(setup: RunConfig, tmp_path: Path) -> None:
    given = write_weather(tmp_path / "test.jsonl", 20, seed=1)
    config = replace(setup, data=replace(setup.data, test=str(given)))
    seen: list[Event] = []
    climb(config, tmp_path / "out", rungs=("majority",), draws=2, notify=seen.append)
    (note,) = (event.text for event in seen if isinstance(event, Note) and "--draws" in event.text)
    assert note == (
        "--draws 2: all draws test the same 20 rows, as the test part is given; only training and "
        "validation rows are drawn anew."
    )
    whole = run.load(config)
    asked = CompareSettings(draws=2)
    (note,) = same_test_rows(asked, [whole, whole])
    assert note.endswith("nor do they learn from others. Only the seeds differ, as with --seeds 2.")
    assert not list(same_test_rows(asked, [run.load(setup), whole]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("of_each", [2, 3])
def test_a_resample_may_miss_the_few_groups_of_a_draw(of_each: int) -> None:
    rng = np.random.default_rng(0)
    rows = 30 * of_each
    a, b = (blocks(rng, rng.random((3, rows)) < share) for share in (0.8, 0.75))
    groups = np.arange(3 * rows) // 30
    pair = compare_pair(np.ones(3 * rows, int), a, b, groups=groups)
    assert pair.interval[0] < pair.difference < pair.interval[1]
    assert pair.p_value > 0.05


@pytest.mark.parametrize(
    ("draws", "sd", "most"), [(3, 0.0, 0.99), (3, 0.15, 0.99), (5, 0.15, 0.98)]
)
def test_null_pairs_hold_their_level(draws: int, sd: float, most: float) -> None:
    """Two systems that are equally good, trained anew on each draw, which shifts each by chance."""
    rng, runs, n = np.random.default_rng(20), 800, 100
    held = rejected = 0
    for _ in range(runs):
        row = rng.normal(0, 1, (draws, n))
        a, b = (
            0.8 + row + rng.normal(0, sd, (draws, 1)) + rng.normal(0, 0.7, (draws, n)) > 0
            for _ in range(2)
        )
        pair = compare_pair(
            np.ones(draws * n, int),
            blocks(rng, a.astype(int)),
            blocks(rng, b.astype(int)),
            groups=np.arange(draws * n),
            resamples=300,
        )
        held += pair.interval[0] <= 0 <= pair.interval[1]
        rejected += pair.p_value <= 0.05
    assert 0.93 <= held / runs <= most
    assert rejected / runs <= 0.07
