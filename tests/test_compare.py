"""Whole comparisons, run after run, in real processes."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

from comparison_runs import (
    CHEAP,
    cheap,
    climb,
    copied,
    in_this_process,
    lasting,
    lines_of,
    named,
    record_of,
    stamps,
    stop,
    when_in,
)
from llabel import run
from llabel.comparison import (
    ComparedCost,
    ComparedData,
    ComparedMetrics,
    ComparedRung,
    ComparedScores,
    CompareRecord,
    ErrorAnalysis,
    PairRecord,
    TrialRecord,
    VerdictRecord,
)
from llabel.config import RunConfig
from llabel.errors import InputError
from llabel.events import Event, RungDone, RungFailed, RungStarted, StageStarted
from llabel.ladder import registry
from llabel.predictions import predict
from llabel.settings import RunSettings
from llabel.statistics.paired import holm
from runs import config, write_weather

Finished = tuple[Path, CompareRecord]
LLMS = ("llm-zero-shot", "llm-zero-shot-calibrated", "llm-few-shot", "llm-lora")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weather(tmp_path_factory.mktemp("data") / "weather.jsonl", 90)


@pytest.fixture(scope="module")
def setup(data: Path) -> RunConfig:
    return cheap(data)


@pytest.fixture(scope="module")
def finished(setup: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The cheap rungs."""
    out = tmp_path_factory.mktemp("cheap") / "ladder"
    return out, climb(setup, out)


@pytest.fixture(scope="module")
def llm_setup(data: Path, tiny_llama: Path) -> RunConfig:
    return config(data, tiny_llama, RunSettings(no_texts=True))


@pytest.fixture(scope="module")
def llm_finished(llm_setup: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The LLM's rungs beside two cheap ones, without texts; two of them in their processes."""
    out = tmp_path_factory.mktemp("llm") / "ladder"
    climb(llm_setup, out, rungs=("majority", LLMS[0]))
    with in_this_process():
        return out, climb(llm_setup, out, rungs=("majority", "bag-of-words", *LLMS))


@pytest.fixture(params=["finished", "llm_finished"])
def either(request: pytest.FixtureRequest) -> Finished:
    found: Finished = request.getfixturevalue(request.param)
    return found


def test_the_record_is_written_and_keeps_to_its_schema(either: Finished) -> None:
    out, record = either
    json.dumps(record, allow_nan=False)
    assert json.loads((out / "compare.json").read_text()) == record
    assert set(record) == set(get_type_hints(CompareRecord))
    parts: list[tuple[Any, type]] = [
        (record["data"], ComparedData),
        (record["verdict"], VerdictRecord),
        (record["errors"], ErrorAnalysis),
        *((pair, PairRecord) for pair in record["pairs"]),
    ]
    for rung in record["rungs"]:
        metrics = rung["metrics"]
        assert metrics
        parts += [(rung, ComparedRung), (metrics, ComparedMetrics), (rung["cost"], ComparedCost)]
        parts += [(metrics["test"], ComparedScores), (metrics["validation"], ComparedScores)]
        parts += [(trial, TrialRecord) for trial in rung["trials"]]
    for values, schema in parts:
        assert set(values) == set(get_type_hints(schema)), schema


def test_rungs_stand_in_the_ladder_s_order_with_the_scores_of_their_runs(either: Finished) -> None:
    out, record = either
    names = [rung["name"] for rung in record["rungs"]]
    assert names in (list(CHEAP), ["majority", "bag-of-words", *LLMS])
    for rung in record["rungs"]:
        assert rung["status"] == "done"
        theirs, metrics = record_of(out, rung["name"])["metrics"], rung["metrics"]
        assert metrics
        for part in ("validation", "test"):
            for name in ("rows", "accuracy", "macro_f1", "log_loss", "ece"):
                mine = metrics[part][name]  # type: ignore[literal-required]
                assert mine == pytest.approx(theirs[part][name], abs=1e-5), (rung["name"], name)
        assert rung["seed_accuracies"] == [metrics["test"]["accuracy"]]
        assert np.sum(rung["confusion"]) == metrics["test"]["rows"]


def test_every_pair_is_tested_and_corrected_as_one_family(either: Finished) -> None:
    _, record = either
    names = [rung["name"] for rung in record["rungs"]]
    pairs = record["pairs"]
    assert len(pairs) == len(names) * (len(names) - 1) // 2
    assert len({frozenset((pair["a"], pair["b"])) for pair in pairs}) == len(pairs)
    corrected = holm([pair["p_value"] for pair in pairs])
    assert [pair["p_value_holm"] for pair in pairs] == corrected
    assert {pair["test"] for pair in pairs} == {"mcnemar"}
    best = record["verdict"]["best"]
    others = [name for name in names if name != best]
    raw = [p["p_value"] for name in others for p in pairs if {p["a"], p["b"]} == {name, best}]
    expected = dict(zip(others, holm(raw), strict=True))  # of those compared with the best
    for rung in record["rungs"]:
        assert rung["p_value_vs_best"] == expected.get(rung["name"])


def test_the_best_is_the_best_by_validation(either: Finished) -> None:
    _, record = either
    scores = {
        rung["name"]: (m["validation"]["accuracy"], -m["validation"]["log_loss"])
        for rung in record["rungs"]
        if (m := rung["metrics"]) and not rung["control"]
    }
    assert record["verdict"]["best"] == max(scores, key=scores.__getitem__)


def test_the_page_shows_every_rung_s_accuracy(either: Finished) -> None:
    out, record = either
    page = (out / "report.html").read_text()
    for rung in record["rungs"]:
        assert rung["metrics"]
        assert rung["name"] in page
        assert f"{rung['metrics']['test']['accuracy']:.4f}" in page


def test_each_process_has_a_memory_of_its_own(llm_finished: Finished) -> None:
    out, _ = llm_finished
    small, large = (record_of(out, rung)["cost"]["peak_rss_mb"] for rung in ("majority", LLMS[0]))
    assert small < 0.8 * large, "this process holds torch by now; the majority class needs none"


def test_the_same_command_again_runs_nothing(finished: Finished, setup: RunConfig) -> None:
    out, record = finished
    before, page = stamps(out), (out / "report.html").read_bytes()
    seen: list[Event] = []
    assert climb(setup, out, notify=seen.append) == record
    assert stamps(out) == before
    assert (out / "report.html").read_bytes() == page
    assert not [event for event in seen if isinstance(event, StageStarted)]
    assert [event.rung for event in seen if isinstance(event, RungDone)] == list(CHEAP)


def test_an_interrupted_comparison_goes_on(
    finished: Finished, setup: RunConfig, tmp_path: Path
) -> None:
    reference, record = finished
    out = copied(reference, tmp_path / "ladder", "bag-of-words")
    kept = stamps(out)
    with pytest.raises(KeyboardInterrupt):
        climb(setup, out, notify=when_in("bag-of-words", stop))
    assert not (out / "compare.json").exists()
    assert not list(out.rglob("*.log")), "what the interrupted process printed tells nothing"
    again = climb(setup, out)
    assert lasting(again) == lasting(record)
    assert kept.items() <= stamps(out).items()
    assert len(stamps(out)) == 3


def kill_child() -> None:
    table = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, check=True)
    for line in table.stdout.decode().splitlines():
        if "llabel.worker" in line and line.split()[1] == str(os.getpid()):
            os.kill(int(line.split()[0]), signal.SIGKILL)


def test_a_killed_rung_is_a_failed_row_and_tried_again(
    finished: Finished, setup: RunConfig, tmp_path: Path
) -> None:
    reference, record = finished
    out = copied(reference, tmp_path / "ladder", "bag-of-words")
    seen: list[Event] = []
    strike = when_in("bag-of-words", kill_child)

    def listen(event: Event) -> None:
        seen.append(event)
        strike(event)

    broken = climb(setup, out, notify=listen)
    (failure,) = (event for event in seen if isinstance(event, RungFailed))
    assert "its process was killed, probably for want of memory" in failure.reason
    row = named(broken, "bag-of-words")
    assert (row["status"], row["reason"]) == ("failed", failure.reason)
    assert (row["metrics"], row["cost"]) == (None, None)
    assert set(row) == set(get_type_hints(ComparedRung))
    assert [rung["status"] for rung in broken["rungs"]] == ["done", "done", "failed"]
    assert [(pair["a"], pair["b"]) for pair in broken["pairs"]] == [("majority", "lookup")]
    assert "bag-of-words" not in (broken["verdict"]["best"], broken["verdict"]["choose"])
    assert "killed" in (out / "report.html").read_text()
    assert lasting(climb(setup, out)) == lasting(record)
    assert not list(out.rglob("*.log"))


def test_a_process_that_dies_at_its_start_is_a_failed_row(
    finished: Finished, setup: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copied(finished[0], tmp_path / "ladder", "bag-of-words")
    no_workers(tmp_path / "site", monkeypatch)
    row = named(climb(setup, out), "bag-of-words")
    assert row["status"] == "failed"
    log = out / "rungs" / "bag-of-words.log"
    assert row["reason"] == f"its process ended (3) ({log} has the details)"
    assert "no luck" in log.read_text()


def no_workers(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every worker process die before it begins."""
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'llabel.worker' in sys.orig_argv:\n"
        "    print('no luck', file=sys.stderr, flush=True); os._exit(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site))


def test_where_every_rung_fails_nothing_is_chosen(
    setup: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_workers(tmp_path / "site", monkeypatch)
    record = climb(setup, tmp_path / "out", rungs=("majority",))
    assert record["verdict"]["kind"] == "failed"
    assert record["verdict"]["choose"] is record["verdict"]["best"] is record["errors"] is None
    assert "Every rung failed" in (tmp_path / "out" / "report.html").read_text()


def test_a_diverging_training_does_not_lose_the_others(
    llm_finished: Finished, llm_setup: RunConfig, tmp_path: Path
) -> None:
    out = copied(llm_finished[0], tmp_path / "ladder", "llm-lora")
    hot = replace(llm_setup, llm=replace(llm_setup.llm, learning_rate=1e30))
    record = climb(hot, out, rungs=("majority", "llm-zero-shot", "llm-lora"))
    row = named(record, "llm-lora")
    assert row["status"] == "failed"
    assert "give a lower --learning-rate" in row["reason"]
    assert "llm-lora.log" not in row["reason"], "a sentence is enough"
    assert record["verdict"]["best"] == "llm-zero-shot"


def test_seeds_repeat_the_trained_rungs_on_the_same_split(
    llm_finished: Finished, llm_setup: RunConfig, tmp_path: Path
) -> None:
    out = copied(llm_finished[0], tmp_path / "ladder", "llm-few-shot", "*zero-shot*")
    before = stamps(out)
    with in_this_process():
        record = climb(llm_setup, out, rungs=("majority", "bag-of-words", "llm-lora"), seeds=2)
    assert set(stamps(out)) - set(before) == {"llm-lora-seed-1"}
    assert before.items() <= stamps(out).items()
    seeds = {rung["name"]: rung["seeds"] for rung in record["rungs"]}
    assert seeds == {"majority": [0], "bag-of-words": [0], "llm-lora": [0, 1]}
    row = named(record, "llm-lora")
    runs = [record_of(out, f"llm-lora{suffix}") for suffix in ("", "-seed-1")]
    assert row["seed_accuracies"] == [r["metrics"]["test"]["accuracy"] for r in runs]
    assert row["metrics"]
    for name in ("accuracy", "macro_f1", "log_loss", "ece"):
        mean = np.mean([r["metrics"]["test"][name] for r in runs])
        assert row["metrics"]["test"][name] == pytest.approx(mean, abs=1e-5)  # type: ignore[literal-required]
    tests = {frozenset((p["a"], p["b"])): p["test"] for p in record["pairs"]}
    assert tests.pop(frozenset(("majority", "bag-of-words"))) == "mcnemar"
    assert set(tests.values()) == {"bootstrap"}
    ids = [[line["id"] for line in lines_of(out / "rungs" / name, "test")] for name in stamps(out)]
    assert all(other == ids[0] for other in ids)


def test_a_seed_that_failed_is_told_in_the_rung_s_row(
    llm_finished: Finished,
    llm_setup: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = copied(llm_finished[0], tmp_path / "ladder", "llm-few-shot", "*zero-shot*")
    no_workers(tmp_path / "site", monkeypatch)
    row = named(climb(llm_setup, out, rungs=("majority", "llm-lora"), seeds=2), "llm-lora")
    assert (row["status"], row["seeds"]) == ("done", [0])
    assert "llm-lora, seed 1 failed: its process ended (3)" in row["note"]


def test_the_learning_curve_leaves_the_test_part_alone(
    finished: Finished, setup: RunConfig, tmp_path: Path
) -> None:
    reference, record = finished
    out = copied(reference, tmp_path / "ladder")
    whole = record["data"]["rows"]["train"]
    rungs = ("majority", "bag-of-words")
    with in_this_process():
        curve = climb(setup, out, rungs=rungs, curve=(whole, 30, 15, 30))["curve"]
    for name in rungs:
        points = [point for point in curve if point["rung"] == name]
        assert [point["train_rows"] for point in points] == [15, 30, whole]
        table = named(record, name)["metrics"]
        assert table
        assert points[-1]["accuracy"] == table["validation"]["accuracy"]
        for rows in (15, 30):
            folder = out / "curve" / str(rows) / name
            values = json.loads((folder / "run.json").read_text())
            assert values["metrics"]["test"] is values["metrics"]["test_unseen"] is None
            assert values["data"]["rows"]["train"] == rows
            assert not lines_of(folder, "test")
            assert len(lines_of(folder, "validation")) == record["data"]["rows"]["validation"]
    with pytest.raises(InputError, match=rf"--curve {whole + 1}: there are {whole} training rows"):
        climb(setup, out, curve=(10, whole + 1))
    with pytest.raises(InputError, match=r"--curve 1, a run with --train-rows 1: choose from 2 "):
        climb(setup, out, curve=(1, 15))


def test_a_calibrated_rung_is_what_it_is_when_fitted_alone(
    llm_finished: Finished, llm_setup: RunConfig, data: Path, tmp_path: Path
) -> None:
    out, _ = llm_finished
    name = "llm-zero-shot-calibrated"
    alone = replace(llm_setup, run=replace(llm_setup.run, rung=name))
    record = run.fit(alone, tmp_path / "alone", command="")
    derived = record_of(out, name)
    for part in ("validation", "test"):
        theirs, mine = lines_of(tmp_path / "alone", part), lines_of(out / "rungs" / name, part)
        for a, b in zip(theirs, mine, strict=True):
            assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-6)
            assert a["prediction"] == b["prediction"]
        scores: Any = record["metrics"][part]  # type: ignore[literal-required]
        assert scores["accuracy"] == derived["metrics"][part]["accuracy"]
        assert scores["log_loss"] == pytest.approx(derived["metrics"][part]["log_loss"], abs=1e-5)
    assert derived["config"]["rung"] == derived["rung"] == name
    answers = tmp_path / "answers.jsonl"
    assert predict(out / "rungs" / name, str(data), answers) == 90
    answered = [json.loads(line)["label"] for line in answers.read_text().splitlines()]
    for line in lines_of(out / "rungs" / name, "test"):
        number = int(line["id"].rpartition(":")[2])
        assert answered[number - 1] == line["prediction"]


def test_a_calibrated_rung_fails_with_the_one_it_corrects(
    llm_finished: Finished,
    llm_setup: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = copied(llm_finished[0], tmp_path / "ladder", "*zero-shot*")
    no_workers(tmp_path / "site", monkeypatch)
    record = climb(llm_setup, out, rungs=("majority", *LLMS[:2]))
    reason = named(record, "llm-zero-shot-calibrated")["reason"]
    assert reason == "it corrects the answers of llm-zero-shot, which has none."


def test_no_text_of_a_row_stays_behind_without_texts(llm_finished: Finished, data: Path) -> None:
    out, record = llm_finished
    texts = [json.loads(line)["text"].encode() for line in data.read_text().splitlines()]
    for path in filter(Path.is_file, out.rglob("*")):
        content = path.read_bytes()
        assert not [text for text in texts if text in content], path
    assert record["errors"]
    assert all(row["text"] is None for row in record["errors"]["most_confident"])
    with pytest.raises(InputError, match="without the texts of its examples"):
        registry.load(out / "rungs" / "llm-few-shot")


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_part_of_one_row_is_refused_before_any_work(part: str, tmp_path: Path) -> None:
    told = cheap(write_weather(tmp_path / "weather.jsonl", 40))
    single = str(write_weather(tmp_path / "single.jsonl", 1))
    out = tmp_path / "out"
    with pytest.raises(InputError, match=f"the {part} part has 1 row.*--{part} FILE with more"):
        climb(replace(told, data=replace(told.data, **{part: single})), out)
    assert not [*out.glob("rungs/*")]


def test_other_settings_are_refused_before_any_work(
    finished: Finished, setup: RunConfig, tmp_path: Path
) -> None:
    out = copied(finished[0], tmp_path / "ladder")
    seen: list[Event] = []
    more = replace(setup, llm=replace(setup.llm, trials=2))
    with pytest.raises(InputError, match=r"--trials was 1, is 2.*--overwrite"):
        climb(more, out, notify=seen.append)
    assert not [event for event in seen if isinstance(event, RungStarted)]
    before = stamps(out)
    record = climb(more, out, overwrite=True)
    bag_of_words = record_of(out, "bag-of-words")
    assert named(record, "bag-of-words")["status"] == "done"
    assert bag_of_words["config"]["trials"] == 2
    changed = {name for name, when in stamps(out).items() if when != before[name]}
    assert changed == {"bag-of-words"}, "the others have no trials"


def test_half_done_runs_with_other_settings_are_refused_too(
    finished: Finished, setup: RunConfig, tmp_path: Path
) -> None:
    out = copied(finished[0], tmp_path / "ladder")
    folder = out / "rungs" / "bag-of-words"
    (folder / "run.json").unlink()
    (folder / "checkpoints").mkdir()
    with pytest.raises(InputError, match="--trials was 1, is 2"):
        climb(replace(setup, llm=replace(setup.llm, trials=2)), out)


def test_texts_may_hold_what_ends_a_line_elsewhere(tmp_path: Path) -> None:
    data = write_weather(tmp_path / "weather.jsonl", 90, note="one\u2028two\u2029three\x85four")
    out = tmp_path / "again"
    reused = (str(tmp_path / "first/rungs/bag-of-words"),)
    with in_this_process():
        first = climb(cheap(data), tmp_path / "first")
        again = climb(cheap(data, RunSettings(no_texts=True)), out, reuse=reused)
    for record in (first, again):
        assert named(record, "bag-of-words")["metrics"]["test"]["rows"] == 18
    assert all("text" not in line for line in lines_of(out / "rungs/bag-of-words", "test"))


def test_damaged_answers_are_named(finished: Finished, setup: RunConfig, tmp_path: Path) -> None:
    out = copied(finished[0], tmp_path / "ladder")
    path = out / "rungs" / "lookup" / "predictions.jsonl"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(InputError, match=r"lookup/predictions.jsonl cannot be used.*Remove"):
        climb(setup, out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: out.write_text("x"), "is a file. Name a folder"),
        (lambda out: (out.mkdir(), (out / "a").touch()), "no comparison of llabel's"),
    ],
)
def test_a_place_of_others_is_left_alone(
    setup: RunConfig, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    change(tmp_path / "out")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=message):
            climb(setup, tmp_path / "out", overwrite=overwrite)


def test_a_comparison_reads_the_test_part(setup: RunConfig, tmp_path: Path) -> None:
    unread = replace(setup, run=RunSettings(untested=True))
    with pytest.raises(InputError, match="untested: known to `llabel fit` only"):
        climb(unread, tmp_path / "out")
