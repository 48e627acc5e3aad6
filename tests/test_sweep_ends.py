"""Cells that come to nothing, folders of others, rungs beside LoRA: all of it in this process."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from llabel.cli import main
from llabel.errors import InputError
from llabel.events import CellDone, Event
from llabel.ladder.llm import LLMRung
from llabel.sweep.axes import read_axes
from llabel.sweep.cells import grid
from llabel.sweep.choose import choose
from llabel.sweep.folder import SweepFolder
from llabel.sweep.results import _agreed, _beside
from llabel.sweep.rows import Rows, load_all, rows_key
from llabel.sweep.untouched import _name
from runs import write_weather
from sweep_runs import go, read, shared

pytestmark = pytest.mark.usefixtures("cells_here")


def test_a_cell_that_diverges_is_a_row_and_is_not_tried_again(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    values = shared(weather, tiny_llama, learning_rate="3e-3,1e30", epochs="1")
    events: list[Event] = []
    good, bad = go(values, tmp_path / "out", events.append)["cells"]
    assert (good["status"], bad["status"]) == ("done", "failed")
    assert "diverged" in bad["reason"]
    assert "lower the learning rate" in bad["reason"]
    assert bad["metrics"] == {"validation": None}
    assert bad["cost"] is bad["weights"] is bad["perplexity"] is None
    assert bad["curve"], "how it went wrong can be seen"
    told = [event for event in events if isinstance(event, CellDone)]
    assert [event.status for event in told] == ["done", "failed"]
    again: list[Event] = []
    assert go(values, tmp_path / "out", again.append)["cells"][1] == bad
    assert not any(isinstance(event, CellDone) for event in again)


def test_want_of_memory_is_tried_again(
    weather: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, out = shared(weather, tiny_llama, r="2,4", epochs="1"), tmp_path / "out"
    with monkeypatch.context() as patch:
        fit = LLMRung.fit

        def too_large(self: LLMRung, *args: Any, **more: Any) -> LLMRung:
            if self.settings.r == 4:
                raise MemoryError("cannot allocate memory")
            return fit(self, *args, **more)

        patch.setattr(LLMRung, "fit", too_large)
        first = go(values, out)
    assert [cell["status"] for cell in first["cells"]] == ["done", "failed"]
    assert first["cells"][1]["reason"] == "MemoryError: cannot allocate memory"
    assert "too_large" in next(out.rglob("error.txt")).read_text()
    assert first["chosen"]["cell"] == first["cells"][0]["name"]
    stamp = next(out.glob("cells/r2*/cell.json")).stat().st_mtime_ns
    second = go(values, out)
    assert [cell["status"] for cell in second["cells"]] == ["done", "done"]
    assert next(out.glob("cells/r2*/cell.json")).stat().st_mtime_ns == stamp


def test_where_nothing_is_done_nothing_is_chosen(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    values = shared(weather, tiny_llama, r="2,4", learning_rate="1e30", epochs="1")
    record = go(values, tmp_path / "out")
    assert record["chosen"] is record["test"] is None
    assert read(tmp_path / "out")["chosen"] is None


def test_rungs_and_training_sizes_are_axes_too(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    values = shared(weather, tiny_llama, rung="majority,bag-of-words", train_rows="20,40")
    record = go(values, tmp_path / "out")
    assert [cell["name"] for cell in record["cells"]] == [
        "majority-seed0-train-rows-20", "majority-seed0-train-rows-40",
        "bag-of-words-seed0-train-rows-20", "bag-of-words-seed0-train-rows-40",
    ]  # fmt: skip
    assert record["axes"] == {"rung": ["majority", "bag-of-words"], "train_rows": [20, 40]}
    bag = record["cells"][3]
    assert bag["settings"]["rung"] == bag["rung"] == "bag-of-words"
    assert bag["settings"]["r"] is bag["scaling"] is bag["scaling_lr"] is bag["weights"] is None
    assert bag["cost"]["trainable_parameters"] > 0
    assert record["chosen"]["recommended"] in {cell["name"] for cell in record["cells"]}
    assert not any(cell["control"] for cell in record["cells"])


def test_what_cells_share_is_told_of_all_rungs(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    values = shared(weather, tiny_llama, rung="majority,llm-lora", lora_alpha="0", precision="int8")
    out = tmp_path / "out"
    first = go(values, out)
    assert first["config"]["learning_rate"] == 3e-3
    assert "rung" not in first["config"]
    assert first["environment"]["device"] == "cpu"
    assert first["environment"]["precision"] == "float32, int8"
    for path in out.glob("cells/*/cell.json"):
        cell = json.loads(path.read_text())
        del cell["machine"]  # as an older llabel left it
        path.write_text(json.dumps(cell))
    assert go(values, out)["environment"] == first["environment"]
    four_bit = shared(weather, tiny_llama, rung="llm-lora,llm-qlora", r="2,4")
    assert "base" not in _agreed(grid(read_axes(four_bit, searching=False)))


def test_cells_that_an_older_llabel_named_otherwise_are_found(tmp_path: Path) -> None:
    values = shared(tmp_path / "x.csv", tmp_path, r="2,4", max_steps="9")
    first, second = grid(read_axes(values, searching=False))
    old = tmp_path / "out" / "cells" / f"{first.name}-epochs3"
    old.mkdir(parents=True)
    (old / "cell.json").write_text(json.dumps({"config": first.identity}))
    places = SweepFolder(tmp_path / "out").placed([first, second])
    assert [place.name for place in places] == [old.name, second.name]


def test_a_sweep_may_lie_where_the_user_is(
    weather: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    monkeypatch.chdir(mine)
    record = go(shared(weather, tmp_path, rung="majority", train_rows="20,30"), Path())
    assert record["cells"][0]["command"].endswith("--out ../mine-majority-seed0-train-rows-20")
    (mine / "below").mkdir()
    monkeypatch.chdir(mine / "below")
    assert _beside(Path(".."), "a").resolve() == tmp_path / "mine-a"
    assert _beside(Path("runs/mine"), "a") == Path("runs/mine-a")


def test_options_without_effect_are_told(weather: Path, tmp_path: Path) -> None:
    words = [
        "sweep",
        str(weather),
        "--text",
        "text",
        "--label",
        "label",
        "--rung",
        "majority,lookup",
    ]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(
        main, [*words, "--r", "4", "--out", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    assert "Without effect on majority, lookup: --r." in result.output


def test_cells_have_intervals_over_groups(weather: Path, tiny_llama: Path, tmp_path: Path) -> None:
    rows = [json.loads(row) | {"who": f"u{n // 4}"} for n, row in enumerate(weather.open())]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = shared(tmp_path / "rows.jsonl", tiny_llama, rung="bag-of-words,majority", group="who")
    record = go(values, tmp_path / "out")
    assert record["chosen"]
    (cell,) = (one for one in record["cells"] if one["name"] == record["chosen"]["cell"])
    chosen = record["chosen"]["metrics"]["validation"]["accuracy_ci95"]
    assert cell["metrics"]["validation"]["accuracy_ci95"] == chosen


def test_columns_are_an_axis_whose_cells_are_judged_on_the_same_rows(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    values = shared(weather, tiny_llama, rung="bag-of-words", text=("text,note", "note"))
    both, note = go(values, out)["cells"]
    assert (both["settings"]["text"], note["settings"]["text"]) == (("text", "note"), ("note",))
    losses = [cell["metrics"]["validation"]["log_loss"] for cell in (both, note)]
    assert losses[0] < losses[1]
    axes = read_axes(values, searching=False)
    first, second = (cell.config for cell in grid(axes))
    shorter = replace(second, source=str(write_weather(tmp_path / "other.jsonl", 60)))
    rows = Rows({rows_key(first): Rows()(first), rows_key(second): Rows()(shorter)})
    with pytest.raises(InputError, match="judged on different rows"):
        load_all(rows, grid(axes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": "2"}, "--r was 2,4, is 2"),
        ({"r": "2,8"}, "--r was 2,4, is 2,8"),
        ({"epochs": "2"}, "--epochs was 1, is 2"),
        ({"batch_size": "4"}, "--batch-size was 8, is 4"),
        ({"split_seed": "5"}, "--split-seed was None, is 5"),
        ({"lora_alpha": "16,8"}, "--lora-alpha was 32, is 16"),
        ({"use_rslora": "true"}, "--use-rslora was False, is True"),
    ],
    ids=str,
)
def test_another_sweep_s_folder_is_refused(
    weather: Path, tiny_llama: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    values = shared(weather, tiny_llama, r="2,4", epochs="1")
    folder = SweepFolder(tmp_path / "out")
    folder.open(read_axes(values, searching=False), None, {"rows": "abc"})
    other = read_axes(values | {"r": "2,4"} | changes | {"seed": "0,1"}, searching=False)
    with pytest.raises(InputError, match=message) as error:
        folder.open(other, None, {"rows": "abc"})
    assert "A sweep may be given more values" in str(error.value)
    with pytest.raises(InputError, match="--search was over None, is over tpe"):
        folder.open(read_axes(values, searching=True), "tpe", {"rows": "abc"})
    with pytest.raises(InputError, match="the rows of the data have changed"):
        folder.open(read_axes(values, searching=False), None, {"rows": "def"})
    folder.open(read_axes(values, searching=False), None, {"rows": "abc", "more": "ghi"})


def test_a_template_s_file_that_was_edited_is_refused(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("{text} {note}\nAnswer:")
    values = shared(weather, tiny_llama, template=f"qa,{file}")
    folder, axes = SweepFolder(tmp_path / "out"), read_axes(values, searching=False)
    folder.open(axes, None, {"rows": "abc"})
    folder.refuse_changed(str(file))
    names = [_name(grid(axes)[1].config, Rows()(grid(axes)[1].config).task)]
    started = tmp_path / "out" / "started.json"
    file.write_text("{note} {text}\nAnswer:")
    with pytest.raises(InputError, match=r"mine.txt of --template has changed"):
        folder.open(axes, None, {"rows": "abc"})
    with pytest.raises(InputError, match="since the sweep began"):
        folder.refuse_changed(str(file))
    names.append(_name(grid(axes)[1].config, Rows()(grid(axes)[1].config).task))
    assert names[0] != names[1], "what the untouched model said to another prompt"
    known = json.loads(started.read_text())
    assert list(known.pop("templates")) == [str(file)]
    started.write_text(json.dumps(known))  # as an earlier llabel left it
    folder.open(axes, None, {"rows": "abc"})
    assert folder.is_still(axes, None, {"rows": "abc"})


def test_a_model_whose_weights_changed_is_refused(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    values = shared(weather, model, rung="majority", train_rows="20,30")
    go(values, tmp_path / "out")
    weights = load_file(model / "model.safetensors")
    save_file({name: 2 * some for name, some in weights.items()}, model / "model.safetensors")
    with pytest.raises(InputError, match=r"another sweep: the weights in .*model have changed"):
        go(values, tmp_path / "out")


def test_word_vectors_that_changed_are_refused(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("warm 1 0\n")
    values = shared(weather, tiny_llama, rung="rnn,word-embeddings", embeddings=str(vectors))
    folder, axes = SweepFolder(tmp_path / "out"), read_axes(values, searching=False)
    folder.open(axes, None, {"rows": "abc"})
    vectors.write_text("warm 0 1\n")
    with pytest.raises(InputError, match=r"the word vectors in .*vectors.txt have changed"):
        folder.open(axes, None, {"rows": "abc"})


def test_rungs_that_were_half_written_or_removed_are_trained_again(
    weather: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = shared(weather, tiny_llama, rung="majority,bag-of-words", train_rows="20,40")
    out = tmp_path / "out"
    first = go(values, out)["chosen"]["cell"]
    other = next(out.glob("cells/majority*40"))
    assert not (other / "rung").exists()
    (out / "test.json").unlink()
    (out / "cells" / first / "rung" / "rung.json").unlink()  # a kill before the last file

    def cheap(*args: Any) -> Any:
        found = choose(*args)
        return found and found | {"recommended": other.name}

    monkeypatch.setattr("llabel.sweep.sweep.choose", cheap)
    again = go(values, out)
    assert again["test"]["cell"] == first
    kept = {path.parent.parent.name for path in out.glob("cells/*/rung/rung.json")}
    assert kept == {first, other.name}
    assert not [*out.glob("cells/*/.old-rung"), *out.glob("cells/*/checkpoints")]


def test_a_validation_part_of_one_row_is_refused_before_any_work(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    single = str(write_weather(tmp_path / "single.jsonl", 1))
    values = shared(weather, tiny_llama, rung="majority", train_rows="20,40", validation=single)
    with pytest.raises(InputError, match="the validation part has 1 row"):
        go(values, tmp_path / "out")
    assert not (tmp_path / "out" / "cells").exists()


def test_few_shot_cells_are_tested_without_texts_in_the_folder(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    values = shared(weather, tiny_llama, rung="llm-few-shot", shots="1,2", no_texts="true")
    out = tmp_path / "out"
    record = go(values, out)
    assert record["test"]
    assert record["chosen"]
    assert record["test"]["cell"] == record["chosen"]["cell"]
    texts = [json.loads(line)["text"] for line in weather.read_text().splitlines()]
    kept = "".join(path.read_text() for path in out.glob("cells/*/rung/rung.json"))
    assert kept
    assert not any(text in kept for text in texts)


def test_nothing_runs_where_the_folder_is_none(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    values = shared(weather, tiny_llama, r="2,4")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        go(values, tmp_path / "file")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    with pytest.raises(InputError, match="no sweep of llabel's"):
        go(values, mine)
    assert [path.name for path in mine.iterdir() if path.name[0] != "."] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "no-such-model"}, "no-such-model"),
        ({"template": "qa,no-such-template"}, "no-such-template"),
        ({"max_seq_length": "12"}, "--max-seq-length"),
        ({"label": "no-such-column"}, "no-such-column"),
        ({"data": "no-such-file.csv"}, "no-such-file.csv"),
        ({"track": "trackio"}, r"pip install 'llabel\[trackio\]'"),
        ({"adapt_layers": "1,9"}, "--adapt-layers 9: the model has 2 layers"),
        ({"target_modules": ("q_proj", "q_prj")}, "no linear layer 'q_prj'.*q_proj"),
    ],
    ids=str,
)
def test_mistakes_are_told_before_anything_runs(
    weather: Path, tiny_llama: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        go(shared(weather, tiny_llama, r="2,4") | changes, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_texts_that_were_cut_are_those_of_the_chosen_cell(
    weather: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    record = go(shared(weather, tiny_llama, max_seq_length="26,200", epochs="1"), tmp_path / "out")
    cut = {
        cell["name"]: json.loads((tmp_path / "out" / cell["folder"] / "cell.json").read_text())
        for cell in record["cells"]
    }
    short, long = (cell["name"] for cell in record["cells"])
    assert cut[short]["truncated"]["train"] > 0 == cut[long]["truncated"]["train"]
    assert record["data"]["truncated"] == cut[record["chosen"]["cell"]]["truncated"]


def test_cells_of_an_older_llabel_are_read(weather: Path, tiny_llama: Path, tmp_path: Path) -> None:
    values, out = shared(weather, tiny_llama, r="2,4", lora_alpha="0,8", epochs="1"), tmp_path / "o"
    first = go(values, out)
    for path in out.glob("cells/*/cell.json"):
        cell = json.loads(path.read_text())
        for name in ("rows", "tokens"):
            del cell["cost"][name]
        del cell["truncated"]
        path.write_text(json.dumps(cell))
    again = go(values, out)
    assert again["chosen"] == first["chosen"]
    assert first["data"]["truncated"] == {"train": 0, "validation": 0}
    assert again["data"]["truncated"] == {}
    assert not any("tokens" in cell["cost"] for cell in again["cells"])


def test_a_default_that_is_another_now_is_another_sweep(weather: Path, tmp_path: Path) -> None:
    values, out = shared(weather, tmp_path, rung="majority", train_rows="20,30"), tmp_path / "o"
    go(values, out)
    started = json.loads((out / "started.json").read_text())
    started["defaults"]["r"] = 8  # as an older llabel had it
    (out / "started.json").write_text(json.dumps(started))
    with pytest.raises(InputError, match="--r is not given, and its default was 8, is 16"):
        go(values, out)
    del started["defaults"]
    (out / "started.json").write_text(json.dumps(started))
    go(values, out)


def test_a_damaged_cell_is_told(weather: Path, tiny_llama: Path, tmp_path: Path) -> None:
    values, out = shared(weather, tiny_llama, rung="majority", train_rows="20,40"), tmp_path / "out"
    record = go(values, out)
    (out / record["cells"][0]["folder"] / "cell.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        go(values, out)
