import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelled_tables import load, rows_of, splits, write_csv, write_jsonl
from llabel.data import load_labelled, load_task
from llabel.data.label_map import LabelMap, map_labels, read_label_map
from llabel.errors import InputError
from llabel.events import Event, Note
from llabel.run import evaluate, fit
from runs import config, write_weather

NEWS_MAP = Path(__file__).parents[1] / "examples" / "labels" / "news.yaml"


def write_map(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def labels_of(task: Any) -> Counter[Any]:
    return Counter(task.classes[index] for part in splits(task) for index in part.y.tolist())


def test_labels_are_merged_and_dropped_before_the_split(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", rows_of(120, ["a", "b", "c", "d"]))
    merge = write_map(tmp_path / "map.yaml", "a: new\nb: c\nd: null\n")
    loaded = load(data, map_labels=merge)
    assert loaded.task.classes == ("c", "new")
    assert labels_of(loaded.task) == {"c": 60, "new": 30}
    kept = {int(id.split(":")[1]) for part in splits(loaded.task) for id in part.ids}
    assert kept == {row + 1 for row in range(120) if row % 4 != 3}, "ids stay those of the file"
    assert list(loaded.mapped) == [
        {"label": "a", "becomes": "new", "rows": 30},
        {"label": "b", "becomes": "c", "rows": 30},
        {"label": "d", "becomes": None, "rows": 30},
    ]
    assert loaded.notes[0] == (
        f"--map-labels {merge}: 2 labels became 2 (60 rows), 'd' dropped with 30 rows."
    )


def test_the_fingerprint_is_of_the_mapped_labels(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", rows_of(90, ["a", "b", "c"]))
    one = write_map(tmp_path / "one.yaml", "c: a")
    two = write_map(tmp_path / "two.yaml", "c: b")
    prints = [load(data, map_labels=file).task.fingerprint for file in (None, one, two)]
    assert len(set(prints)) == 3
    again = write_csv(tmp_path / "t.csv", rows_of(90, ["a", "b", "a"]))
    assert load(again).task.fingerprint == prints[1], "as if the file said so"


@given(st.data())
def test_no_row_is_lost_but_by_dropping(data: st.DataObject) -> None:
    names = st.sampled_from("abcdef")
    values = data.draw(st.lists(st.lists(names, min_size=1), min_size=1, max_size=3))
    there = sorted({label for part in values for label in part})
    old = data.draw(st.lists(st.sampled_from(there), unique=True, min_size=1))
    targets = [*sorted(set("abcdef") - set(old)), "new", None]
    entries = {name: data.draw(st.sampled_from(targets)) for name in old}
    label_map = LabelMap("m.yaml", entries)
    if len({entries.get(label, label) for label in values[0]} - {None}) < 2:
        with pytest.raises(InputError, match="At least two"):
            map_labels("label", label_map, values)
        return
    found, mapped = map_labels("label", label_map, values)
    assert [len(part) for part in found] == [len(part) for part in values]
    for before, after in zip(values, found, strict=True):
        assert after == [entries.get(label, label) for label in before]
    counts = Counter(label for part in values for label in part)
    assert {entry["label"]: entry["rows"] for entry in mapped} == {n: counts[n] for n in old}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("A: b", r"no row has the label 'A'. Column 'label' holds 'a', 'b', 'c'. Did you mean 'a'"),
        ("a: b\nb: c", "'a' becomes 'b', which the map itself changes into 'c'"),
        ("a: b\nb: a", "'a' becomes 'b', which the map itself changes into 'a'"),
        ("a: b\nb: null", "'a' becomes 'b', which the map itself drops"),
        ("a: null\nb: ~\nc:\n", "leaves no label in the train part"),
        ("a: b\nc: b", "leaves one label only, 'b',"),
        ("a: b\na: c", "'a' stands at line 1 and again at line 2"),
        ("- a\n- b", "there is no map in it. Write one label a line"),
        ("", "there is no map in it"),
        ("a: [b, c]", "line 1: a list or the like is no label"),
        ("b: a\na: ''", "line 2: the new label is empty"),
        ("a: b: c", "is no YAML at line 1"),
    ],
)
def test_faults_of_a_map_are_told(tmp_path: Path, text: str, told: str) -> None:
    data = write_csv(tmp_path / "t.csv", rows_of(60, ["a", "b", "c"]))
    with pytest.raises(InputError, match=told):
        load(data, map_labels=write_map(tmp_path / "map.yaml", text))


def test_a_map_that_is_not_there(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", rows_of(60))
    with pytest.raises(InputError, match=r"--map-labels no.yaml: there is no such file"):
        load(data, map_labels="no.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9t\xe9")
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        read_label_map(str(tmp_path / "latin.yaml"))


def test_a_label_may_stay_itself(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", rows_of(90, ["a", "b", "c"]))
    merge = write_map(tmp_path / "map.yaml", "a: b\nb: b\n")
    assert labels_of(load(data, map_labels=merge).task) == {"b": 60, "c": 30}


@pytest.mark.parametrize(
    ("labels", "text", "classes"),
    [
        # What YAML takes for truth values and numbers are the labels as they are written.
        (("no", "yes", "perhaps"), "perhaps: no", ("no", "yes")),
        (("1", "2", "3"), "3: 2", (1, 2)),
        (("1", "2", "3"), "1: 0\n3: 2", (0, 2)),
        (("1.0", "2.0", "3.0"), "3.0: 2.0", (1, 2)),
        (("1", "2", "3"), "3.0: 2.0", (1, 2)),
        (("1", "2", "3"), "1: 7.0\n3: 2", (2, 7)),
        (("1", "2", "3", "4", "5"), '{"1": "bad", "2": "bad", "3": null, "4": "good", "5": "good"}',
         ("bad", "good")),
        (("true", "false"), "true: pro\nfalse: contra", ("contra", "pro")),
        (("null", "x", "y"), "x: 'null'", None),
    ],
)  # fmt: skip
def test_labels_are_taken_as_they_are_written(
    tmp_path: Path, labels: tuple[str, ...], text: str, classes: Any
) -> None:
    data = write_csv(tmp_path / "t.csv", rows_of(100, labels))
    merge = write_map(tmp_path / "map.yaml", text)
    if classes is None:  # such a word is a missing label in CSV, map or not
        with pytest.raises(InputError, match="has no label"):
            load(data, map_labels=merge)
        return
    found = load(data, map_labels=merge).task.classes
    assert found == classes
    assert [type(label) for label in found] == [type(label) for label in classes]


def test_labels_of_two_types_are_refused(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", rows_of(100, ["1", "2", "3"]))
    with pytest.raises(InputError, match="would be of several types: 1, 'good'"):
        load(data, map_labels=write_map(tmp_path / "map.yaml", "2: good\n3: good"))


def test_spellings_can_be_joined_by_a_map(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", rows_of(90, ["Sport", "sport", "News"]))
    with pytest.raises(InputError, match=r"differ only by case.*--map-labels"):
        load(data)
    merge = write_map(tmp_path / "map.yaml", "Sport: sport")
    assert labels_of(load(data, map_labels=merge).task) == {"sport": 60, "News": 30}
    normalised = load(
        data, normalise_labels=True, map_labels=write_map(tmp_path / "n.yaml", "NEWS: Other")
    )
    assert normalised.task.classes == ("other", "sport")
    twice = write_map(tmp_path / "n.yaml", "News: a\nNEWS: b")
    with pytest.raises(InputError, match="two lines speak of 'news', and differ"):
        load(data, normalise_labels=True, map_labels=twice)


def test_true_in_two_spellings_can_be_joined_by_a_map(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", rows_of(60, ["TRUE", "true", "maybe"]))
    with pytest.raises(InputError, match="--map-labels"):
        load(data)
    loaded = load(data, map_labels=write_map(tmp_path / "map.yaml", "TRUE: true"))
    assert labels_of(loaded.task) == {"true": 40, "maybe": 20}
    assert load(write_csv(tmp_path / "bools.csv", rows_of(60, ["TRUE", "FALSE"])),
                map_labels=write_map(tmp_path / "b.yaml", "true: yes\nfalse: no")
    ).task.classes == ("no", "yes")  # fmt: skip
    mapped: Any = [{"label": "TRUE", "becomes": "yes", "rows": 3}]
    new = write_csv(tmp_path / "new.csv", [("x", "TRUE"), ("y", "true"), ("z", "yes")])
    split = load_labelled(new, ["text"], "label", ("true", "yes"), mapped=mapped)
    assert split.y.tolist() == [1, 0, 1]


def test_a_part_that_loses_all_its_rows_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "d" / "train.csv", rows_of(30, ["a", "b", "c"]))
    write_csv(tmp_path / "d" / "test.csv", [("text x", "c")])
    with pytest.raises(InputError, match="drops every row of the test part"):
        load(str(tmp_path / "d"), map_labels=write_map(tmp_path / "map.yaml", "c: null"))


def test_new_rows_are_mapped_as_the_training_rows_were(tmp_path: Path) -> None:
    mapped: Any = [
        {"label": 1, "becomes": "bad", "rows": 3},
        {"label": 2, "becomes": None, "rows": 3},
    ]
    data = write_csv(tmp_path / "t.csv", [("x", "1.0"), ("y", "2"), ("z", "good"), ("w", "bad")])
    notes: list[str] = []
    split = load_labelled(data, ["text"], "label", ("bad", "good"), mapped=mapped, notes=notes)
    assert (split.y.tolist(), [text for (text,) in split.texts]) == ([0, 1, 0], ["x", "z", "w"])
    assert notes == ["1 of 4 rows have a label that the run's map drops: they are left out."]
    holed = write_jsonl(
        tmp_path / "h.jsonl", [{"text": "x", "label": "good"}, {"text": "y", "label": None}]
    )
    with pytest.raises(InputError, match="'label' is empty in row 2"):
        load_labelled(holed, ["text"], "label", ("bad", "good"), mapped=mapped)
    odd = write_csv(tmp_path / "o.csv", [("x", "1"), ("y", "fine")])
    with pytest.raises(InputError, match="does not know: 'fine'"):
        load_labelled(odd, ["text"], "label", ("bad", "good"), mapped=mapped)


def test_new_rows_that_the_map_drops_are_told_by_the_runs_map(tmp_path: Path) -> None:
    mapped: Any = [{"label": "c", "becomes": None, "rows": 3}]
    data = write_csv(tmp_path / "t.csv", [("x", "c")])
    with pytest.raises(InputError, match="the label map of the run drops every row") as error:
        load_labelled(data, ["text"], "label", ("a", "b"), mapped=mapped)
    assert "--map-labels" not in str(error.value)


def test_a_run_records_its_map_and_evaluates_with_it(tmp_path: Path) -> None:
    data = write_weather(tmp_path / "weather.jsonl", 90)
    lines = [json.loads(line) for line in data.open()]
    for row, line in enumerate(lines):
        line["label"] = "frost" if line["label"] == "ice" and row % 2 else line["label"]
        line["label"] = "fog" if row % 10 == 0 else line["label"]
    write_jsonl(data, lines)
    merge = write_map(tmp_path / "map.yaml", "frost: ice\nfog: null\n")
    settings = config(data, tmp_path)
    settings = replace(
        settings,
        data=replace(settings.data, map_labels=merge),
        run=replace(settings.run, rung="bag-of-words"),
    )
    record = fit(settings, tmp_path / "run", command="")
    assert record["data"]["classes"] == ["ice", "sun"]
    counts = Counter(line["label"] for line in lines)
    assert record["data"]["label_map"] == [
        {"label": "frost", "becomes": "ice", "rows": counts["frost"]},
        {"label": "fog", "becomes": None, "rows": counts["fog"]},
    ]
    assert record["config"]["map_labels"] == merge
    Path(merge).unlink()  # the run keeps what it needs
    seen: list[Event] = []
    found = evaluate(tmp_path / "run", str(data), notify=seen.append)
    assert found["rows"] == 90 - counts["fog"]
    assert any(isinstance(event, Note) and "are left out" in event.text for event in seen)


def test_the_news_map_makes_34_categories_of_42(shared_data: Path) -> None:
    loaded = load_task(
        str(shared_data / "news/news.jsonl.gz"),
        text=("headline", "short_description"),
        label="category",
        map_labels=str(NEWS_MAP),
    )
    assert len(loaded.task.classes) == 34
    assert {"WORLD", "TASTE", "CULTURE & ARTS"} <= set(loaded.task.classes)
    dropped = next(entry for entry in loaded.mapped if entry["becomes"] is None)
    assert sum(map(len, splits(loaded.task))) == 1800 - dropped["rows"]
