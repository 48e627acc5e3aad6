import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import rich_click as click
from click.testing import CliRunner

from llabel.compare.plan import command_line, curve_runs, ladder_runs
from llabel.config import RunConfig
from llabel.options import ONE_RUN, given, settings_options
from llabel.rung_settings import READS, SEEDED
from llabel.settings import (
    CompareSettings,
    DataSettings,
    LLMSettings,
    RungName,
    RunSettings,
    SimplerSettings,
)

PLAIN = RunConfig("t.csv", DataSettings(text=("a",), label="y"), RunSettings(), LLMSettings())
ODD = RunConfig(
    "my data.csv",
    DataSettings(
        text=("a, or b", "c", ' say "hi" '), label="it's", group="g", split_seed=3, test_size=0.25
    ),
    RunSettings(decode="free", no_texts=True, checkpoint_steps=5),
    LLMSettings(
        label_words={"0": "not so good", "1": "a=b"}, r=8, learning_rate=0.00123456789, refit=True,
        patience=3, target_modules=("q_proj", "v_proj"), budget=90.0, seed=7,
    ),
    SimplerSettings(encoder="./my encoder"),
)  # fmt: skip


def typed(line: str) -> dict[str, Any]:
    """What the options of `llabel fit` make of a command line."""
    seen: dict[str, Any] = {}

    @click.command()
    @click.argument("data")
    @click.option("--out")
    @settings_options(*ONE_RUN)
    @click.pass_context
    def fit(ctx: click.Context, data: str, out: str, **_: Any) -> None:
        seen.update(given(ctx) | {"data": data})

    words = shlex.split(line)
    assert words[:2] == ["llabel", "fit"]
    result = CliRunner().invoke(fit, words[2:])
    assert result.exit_code == 0, result.output
    return seen


@pytest.mark.parametrize("rung", get_args(RungName))
@pytest.mark.parametrize("config", [PLAIN, ODD], ids=["plain", "odd"])
def test_a_run_s_command_makes_the_same_run(config: RunConfig, rung: RungName) -> None:
    config = replace(config, run=replace(config.run, rung=rung))
    again = RunConfig.from_flat(typed(command_line(config, Path("runs/x"))))
    assert again.flat() == config.flat()


def test_numbers_in_a_command_are_short_and_exact() -> None:
    llm = LLMSettings(learning_rate=1e-4, lora_alpha=32.0, weight_decay=0.1 + 0.2)
    line = command_line(replace(PLAIN, llm=llm), Path("runs/x"))
    assert "--learning-rate 0.0001 " in line
    assert "--weight-decay 0.30000000000000004 " in line


def test_runs_go_from_cheap_to_dear_whatever_the_order_asked_for(tmp_path: Path) -> None:
    asked = CompareSettings(rungs=("llm-lora", "majority", "encoder", "majority"))
    runs = list(ladder_runs(PLAIN, asked, tmp_path))
    assert [run.rung for run in runs] == ["majority", "encoder", "llm-lora"]
    assert [run.config.run.rung for run in runs] == ["majority", "encoder", "llm-lora"]
    assert runs[1].folder == tmp_path / "rungs" / "encoder"


def test_seeds_share_the_split_and_only_trained_rungs_have_several(tmp_path: Path) -> None:
    config = replace(PLAIN, llm=LLMSettings(seed=5))
    asked = CompareSettings(rungs=get_args(RungName), seeds=3)
    runs = list(ladder_runs(config, asked, tmp_path))
    by_rung = {rung: [run.seed for run in runs if run.rung == rung] for rung in get_args(RungName)}
    for rung, seeds in by_rung.items():
        assert seeds == ([5, 6, 7] if rung in SEEDED else [5])
    assert {run.config.data.split_seed for run in runs} == {5}
    assert {run.config.llm.seed for run in runs} == {5, 6, 7}
    assert len({run.folder for run in runs}) == len(runs)
    assert len({run.label for run in runs}) == len(runs)


def test_the_learning_curve_leaves_the_test_part_unread(tmp_path: Path) -> None:
    asked = CompareSettings(rungs=("majority", "encoder"), curve=(300, 100, 300))
    runs = list(curve_runs(PLAIN, asked, tmp_path))
    sizes = [(run.rung, run.config.data.train_rows) for run in runs]
    assert sizes == [("majority", 100), ("encoder", 100), ("majority", 300), ("encoder", 300)]
    assert all(run.config.run.untested for run in runs)


def test_every_setting_of_the_model_is_read_by_some_rung() -> None:
    rooms = (LLMSettings, SimplerSettings)
    names = {name for room in rooms for name in room.__dataclass_fields__}
    assert frozenset().union(*READS.values()) == names
    assert set(READS) == set(get_args(RungName))
