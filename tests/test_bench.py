"""The benchmarks' own machinery: turns, ratios, the record, the count of operations."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench"
TOY = """
import sys, time
from protocol import Link, job, serve
asked, link = job(), Link()
print("what a library prints must not be taken for an answer")
def lap():
    with open(asked["journal"], "a") as journal:
        journal.write(asked["letter"])
    time.sleep(asked["seconds"])
    return {"rows": 10, "tokens": 100}
serve(link, lap, letter=asked["letter"])
"""


@pytest.fixture(autouse=True)
def _bench_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)


def module(name: str) -> ModuleType:
    return __import__(name)


def toys(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str = TOY) -> tuple[Any, Any]:
    """Two contenders that sleep: A for 0.02 s a lap, B for 0.06 s."""
    driver = module("driver")
    monkeypatch.setattr(driver, "LOGS", folder / "logs")
    worker = folder / "toy.py"
    worker.write_text(script, encoding="utf-8")
    journal = str(folder / "journal")
    jobs = (
        {"letter": letter, "seconds": seconds, "journal": journal}
        for letter, seconds in (("A", 0.02), ("B", 0.06))
    )
    first, second = (driver.Contender(job["letter"], str(worker), job) for job in jobs)
    return first, second


def test_laps_take_turns_and_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    a, b = module("driver").measure(toys(tmp_path, monkeypatch), 3, said.append)
    assert (tmp_path / "journal").read_text() == "ABABAB"
    assert [lap["rows"] for lap in a.laps] == [10, 10, 10]
    assert all(lap["seconds"] >= 0.02 for lap in a.laps)
    assert all(lap["seconds"] >= 0.06 for lap in b.laps)
    assert a.facts["letter"] == "A"
    assert all(2**20 < lap["peak_rss"] < 2**30 for lap in (*a.laps, *b.laps))
    assert all(lap["idle_cpu_seconds"] < 1 for lap in a.laps)
    assert all(lap["cpu_seconds"] < 1 and lap["major_faults"] >= 0 for lap in a.laps)
    assert sum("repeat" in line for line in said) == 6


def test_dead_worker_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = module("driver")
    contenders = toys(tmp_path, monkeypatch, "raise ValueError('no such peer here')")
    with pytest.raises(driver.BenchError, match=r"(?s)A ended with exit code 1.*no such peer here"):
        driver.measure(contenders, 1, print)


def test_ratios_are_taken_within_a_repeat() -> None:
    # A machine that halves its speed for the second repeat changes no ratio.
    found = module("driver").ratio([10.0, 5.0, 9.0], [2.0, 1.0, 3.0])
    assert found == {"median": 5.0, "min": 3.0, "max": 5.0, "each": [5.0, 5.0, 3.0]}


def measured(name: str, seconds: float, peak: int) -> Any:
    driver = module("driver")
    lap = {"seconds": seconds, "rows": 10, "tokens": 100, "peak_rss": peak * 2**20}
    return driver.Measured(driver.Contender(name, "x.py"), [], {"ready": True}, [lap, lap])


def test_the_hardest_peer_counts() -> None:
    record, ours = module("record"), measured("ours", 1.0, 100)
    fast, small = measured("fast", 2.0, 900), measured("small", 5.0, 400)
    pairs = [(ours, small), (ours, fast)]
    speed = record.compared("speed", "rows/s", pairs, {"at_least": 3})
    assert (speed["peer"]["name"], speed["ratio"]["median"]) == ("fast", 2.0)
    assert [other["peer"]["name"] for other in speed["others"]] == ["small"]
    assert not record.reached(speed)
    memory = record.compared("memory", "MiB", pairs, {"at_most": 0.5})
    assert (memory["peer"]["name"], memory["ratio"]["median"]) == ("small", 0.25)
    assert record.reached(memory)


def test_the_record_holds_what_a_reader_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, driver = module("record"), module("driver")
    monkeypatch.setattr(sys, "argv", [str(BENCH / "toy.py"), "--quick"])
    around = record.surroundings()
    ours, peer = toys(tmp_path, monkeypatch)
    pairs = driver.measure_pairs(ours, [peer], 2, print)
    result = record.compared("toy", "sleeping", pairs, {"at_least": 2})
    path = record.write(tmp_path / "results", result, around)
    assert [each.name for each in path.parent.iterdir()] == ["toy.json"]  # no half-written one
    whole = json.loads(path.read_text(encoding="utf-8"))
    assert set(whole) >= {"name", "what", "ours", "peer", "ratio", "target", "reached"}
    assert set(whole) >= {"machine", "versions", "commands", "date", "revision"}
    assert whole["ratio"]["min"] <= whole["ratio"]["median"] <= whole["ratio"]["max"]
    seconds = ([lap["seconds"] for lap in whole[side]["laps"]] for side in ("peer", "ours"))
    expected = [peer / ours for peer, ours in zip(*seconds, strict=True)]
    assert whole["ratio"]["each"] == pytest.approx(expected)
    assert whole["commands"] == ["python bench/toy.py --quick"]
    assert len(whole["ours"]["laps"]) == 2
    assert whole["versions"]["torch"]
    assert whole["machine"]["cores"] >= 1
    line = record.table(path.parent).splitlines()[-1]
    assert line.startswith("| toy | ")
    assert line.endswith(f"| ≥ 2 | {'yes' if whole['reached'] else 'no'} |")


def test_records_do_not_tell_where_files_lie() -> None:
    public = module("record")._public
    inside = {"rows": str(BENCH / ".cache" / "rows.jsonl"), "model": [str(Path.home() / "m")]}
    assert public(inside) == {"rows": "bench/.cache/rows.jsonl", "model": ["~/m"]}


def test_switches(capsys: pytest.CaptureFixture[str]) -> None:
    work = module("work")
    plan = work.plan_from("doc", ["--quick", "--set", "compile=true"])
    assert (plan.repeats, plan.steps, plan.quick) == (1, 2, True)
    assert plan.settings == {"precision": "int8", "compile": True}
    assert plan.results.name == "quick"
    whole = work.plan_from("doc", ["--set", "precision=float32"])
    assert whole.settings == {"precision": "float32"}
    assert (whole.repeats, whole.steps * work.BATCH_SIZE) == (5, 208)
    with pytest.raises(SystemExit):
        work.plan_from("doc", ["--set", "precision"])
    assert "write it as NAME=VALUE" in capsys.readouterr().err


def test_step_gate_counts_the_rows_of_each_lap(monkeypatch: pytest.MonkeyPatch) -> None:
    class Heard:
        def __init__(self) -> None:
            self.said: list[dict[str, Any]] = []

        def say(self, **values: Any) -> None:
            self.said.append(values)

        def report(self, seconds: float, **values: Any) -> None:
            self.said.append(values)

        def wait(self) -> None:
            pass

    heard = Heard()
    asked = {"warm": 2, "steps": 3, "batch_size": 2}
    gate = module("protocol").StepGate(heard, list(range(16)), asked)
    for _ in range(8):
        gate.step_done()
    ready, first, second = heard.said
    assert (ready["ready"], ready["warm_steps"]) == (True, 2)
    assert (first["rows"], first["tokens"]) == (6, sum(range(4, 10)))
    assert second["tokens"] == sum(range(10, 16))


@pytest.mark.parametrize(("training", "r"), [(False, 0), (False, 4), (True, 4)])
def test_operations_are_those_that_torch_counts(training: bool, r: int) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn import functional as F
    from torch.utils.flop_counter import FlopCounterMode

    from tiny_models import llama_config, random_model

    operations = module("operations")
    config = llama_config(100, attn_implementation="eager")
    model = random_model(config).requires_grad_(False)
    if r:
        lora = LoraConfig(r=r, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora).get_base_model()
    rows, length, labels = 3, 11, 2
    with FlopCounterMode(display=False) as counter:
        hidden = model.model(input_ids=torch.ones(rows, length, dtype=torch.long), use_cache=False)
        logits = F.linear(hidden.last_hidden_state[:, -1], model.lm_head.weight[:labels])
        if training:
            logits.sum().backward()
    needed = operations.needed(
        operations.Decoder.of(config),
        [length] * rows,
        labels=labels,
        training=training,
        r=r,
        whole=True,
    )
    assert needed == counter.get_total_flops()


def test_least_operations_leave_out_what_nobody_reads() -> None:
    operations = module("operations")
    decoder = operations.Decoder(2, 8, 16, 2, 1, 4)
    lengths = [5, 3]
    whole = operations.needed(decoder, lengths, labels=2, whole=True)
    least = operations.needed(decoder, lengths, labels=2)
    # By hand: 8 tokens, 2 rows; q 8·8, k and v 8·4, o 8·8, gate and up 8·16, down 16·8.
    layer = 64 + 64 + 3 * 128
    first = 2 * 8 * (layer + 64) + 2 * 2 * (15 + 6) * 8
    last = 2 * 2 * layer + 2 * 8 * 64 + 2 * 2 * (5 + 3) * 8
    assert least == first + last + 2 * 2 * 8 * 2
    assert least < whole


def test_our_workers_train_and_predict(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = module("driver")
    monkeypatch.setattr(driver, "LOGS", tmp_path / "logs")
    rows = tmp_path / "rows.jsonl"
    row = {"fields": {"question": "is it", "passage": "it is"}, "label": 1, "tokens": 20}
    rows.write_text(f"{json.dumps(row)}\n{json.dumps(row | {'label': 0})}\n" * 4, encoding="utf-8")
    settings = {"model": str(tiny_llama), "epochs": 1, "device": "cpu"}
    job = {"rows": str(rows), "out": str(tmp_path / "rung"), "settings": settings}
    maker = driver.Contender("make-adapter", "workers/make_adapter.py", job)
    reader = {"rows": str(rows), "folder": str(tmp_path / "rung"), "changes": {}}
    asked = driver.Contender("llabel", "workers/predict_ours.py", reader)
    driver.measure([maker], 0, print)
    (told,) = driver.measure([asked], 1, print)
    assert told.laps[0]["rows"] == 8
    assert told.laps[0]["right"] == 4, "every text is the same"


def test_a_step_is_profiled_kernel_by_kernel(tiny_llama: Path) -> None:
    profile_step, rows = module("profile_step"), []
    for label in (0, 1):
        rows.append({"fields": {"question": "is it", "passage": "it is"}, "label": label})
    settings = {"model": str(tiny_llama), "device": "cpu"}
    step = profile_step.trainer_of("auto", settings, rows)
    spent = profile_step.packed(step, 2)
    assert spent["everything else"] > 0
    if step.rung.engine_ == "packed":
        assert spent["attention"] > 0
    spent = profile_step.plain(profile_step.trainer_of("plain", settings, rows), 2)
    assert spent["float products"] > 0
