"""Several label columns on the same rows."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelled_tables import write_csv, write_jsonl
from llabel.data import LoadedTask, load_targets
from llabel.errors import InputError
from llabel.task import Split, TargetLabel
from two_targets import write_letters

LABELS = ("weather", "place")


def load(data: str | Path, **options: Any) -> LoadedTask:
    return load_targets(str(data), **{"text": ["text"], "labels": LABELS, **options})


def parts(loaded: LoadedTask) -> tuple[Split, Split, Split]:
    return loaded.task.train, loaded.task.validation, loaded.task.test


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_letters(tmp_path_factory.mktemp("data") / "letters.jsonl", 60)


def test_every_target_has_the_same_rows_and_labels_of_its_own(letters: Path) -> None:
    loaded = load(letters)
    assert loaded.task.classes == (
        *(TargetLabel("weather", label) for label in ("ice", "sun")),
        *(TargetLabel("place", label) for label in ("hill", "sea", "town")),
    )
    assert [task.task.classes for task in loaded.targets.values()] == [
        ("ice", "sun"), ("hill", "sea", "town")
    ]  # fmt: skip
    for part in ("train", "validation", "test"):
        joint = getattr(loaded.task, part)
        assert joint.y.shape == (len(joint), 2)
        for column, (name, start) in enumerate((("weather", 0), ("place", 2))):
            own = getattr(loaded.targets[name].task, part)
            assert own.ids == joint.ids
            assert own.texts == joint.texts
            assert np.array_equal(own.y + start, joint.y[:, column])
    wants = {"hill": "stone goat path", "sea": "wave ship coast", "town": "street shop tower"}
    for (text,), y in zip(loaded.task.train.texts, loaded.task.train.y[:, 1], strict=True):
        place = loaded.task.classes[y]
        assert isinstance(place, TargetLabel)
        assert set(text.split()) & set(wants[str(place.label)].split())


def test_cuts_are_stratified_by_the_labels_together(letters: Path) -> None:
    for split, each in zip(parts(load(letters, validation_size=0.2)), (6, 2, 2), strict=True):
        _, counts = np.unique(split.y, axis=0, return_counts=True)
        assert counts.tolist() == [each] * 6


def test_groups_stay_together(letters: Path) -> None:
    loaded = load(letters, group="letter")
    groups = [set(split.groups or ()) for split in parts(loaded)]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]


def test_rare_combinations_go_with_the_first_label(tmp_path: Path) -> None:
    rows = [(f"row {n}", "ab"[n % 2], "xy"[n // 2 % 2]) for n in range(40)]
    rows.append(("the only one", "a", "z"))
    rows.append(("and another", "b", "z"))
    rows.append(("and a third", "b", "z"))
    loaded = load(write_csv(tmp_path / "rare.csv", rows, "text,one,two"), labels=("one", "two"))
    assert sum(len(split) for split in parts(loaded)) == 43
    assert loaded.targets["two"].task.classes == ("x", "y", "z")


def test_a_class_that_the_cut_leaves_without_rows_is_an_error(tmp_path: Path) -> None:
    rows = [(f"row {n}", "ab"[n % 2], "xy"[n // 2 % 2]) for n in range(8)]
    rows += [("lone", "a", "z")]
    data = write_csv(tmp_path / "lost.csv", rows, "text,one,two")
    message = "--label two: 'z' has too few rows: none is left to learn from beside valid"
    failed = 0
    for seed in range(12):
        with contextlib.suppress(InputError):
            assert 2 in load(data, labels=("one", "two"), seed=seed).targets["two"].task.train.y
            continue
        failed += 1
        with pytest.raises(InputError, match=message):
            load(data, labels=("one", "two"), seed=seed)
    assert 0 < failed < 12


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_rows_without_one_of_their_labels_are_named(tmp_path: Path, kind: str) -> None:
    rows = [(f"row {n}", "ab"[n % 2], "xy"[n // 2 % 2]) for n in range(16)]
    rows[3], rows[7], rows[9] = ("row 3", "b", ""), ("row 7", "b", ""), ("row 9", "", "x")
    if kind == "csv":
        data = write_csv(tmp_path / "gap.csv", rows, "text,one,two")
    else:
        fields = [dict(zip(("text", "one", "two"), row, strict=True)) for row in rows]
        data = write_jsonl(
            tmp_path / "gap.jsonl",
            [{key: value for key, value in row.items() if value} for row in fields],
        )
    with pytest.raises(InputError) as caught:
        load(data, labels=("one", "two"))
    message = str(caught.value)
    where = "row {} (line {})" if kind == "csv" else "row {}"
    of_two = f"{where.format(4, 5)}, {where.format(8, 9)}"
    assert f"column 'one' is empty in {where.format(10, 11)}. Fill in the label" in message
    assert f"column 'two' is empty in {of_two}. Fill in the label" in message
    assert "With --label one,two every row needs a label for each of them" in message


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("weather", "weather"), "--label weather,weather: weather is named twice"),
        (("weather", "colour"), "'colour'"),
        (("weather", "id"), "Rename the column id"),
        (("weather", "text"), "--label text: this column is also a text column"),
    ],
)
def test_label_columns_that_cannot_be_are_refused(
    letters: Path, labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load(letters, labels=labels)


def test_a_map_goes_to_the_columns_that_have_the_label(letters: Path, tmp_path: Path) -> None:
    label_map = tmp_path / "map.yaml"
    label_map.write_text("hill: land\ntown: land\nsea: sea\n")
    loaded = load(letters, map_labels=str(label_map))
    assert loaded.targets["weather"].task.classes == ("ice", "sun")
    assert loaded.targets["place"].task.classes == ("land", "sea")
    assert loaded.targets["weather"].mapped == ()
    assert [entry["rows"] for entry in loaded.targets["place"].mapped] == [20, 20, 20]


def test_a_row_dropped_for_one_target_is_dropped_for_all(letters: Path, tmp_path: Path) -> None:
    label_map = tmp_path / "map.yaml"
    label_map.write_text("town: null\n")
    loaded = load(letters, map_labels=str(label_map))
    assert sum(len(split) for split in parts(loaded)) == 40
    assert loaded.targets["place"].task.classes == ("hill", "sea")


def test_a_map_tells_spellings_of_texts_apart(tmp_path: Path) -> None:
    labels = [("TRUE", "x"), ("true", "y"), ("maybe", "x")]
    rows = [(f"row {n}", *labels[n % 3]) for n in range(60)]
    data = write_csv(tmp_path / "t.csv", rows, "text,weather,place")
    (tmp_path / "map.yaml").write_text("TRUE: true")
    loaded = load(data, map_labels=str(tmp_path / "map.yaml"))
    assert loaded.targets["weather"].task.classes == ("maybe", "true")


def test_spellings_of_one_group_are_one_where_combinations_are_rare(tmp_path: Path) -> None:
    rows = [(f"row {n}", "ab"[n % 2], "xy"[n // 2 % 2], f"g{n}") for n in range(80)]
    rows += [
        ("rare 1", "a", "z", "Anna"),
        ("rare 2", "a", "z", "anna"),
        ("rare 3", "a", "z", "ANNA"),
    ]
    rows += [(f"rare {n}", "b", "z", f"z{n}") for n in range(4, 14)]
    data = write_csv(tmp_path / "t.csv", rows, "text,weather,place,who")
    assert load(data, group="who").targets["place"].task.classes == ("x", "y", "z")


def test_a_map_names_whole_numbers_with_a_point(tmp_path: Path) -> None:
    rows = [(f"t{n}", f"{n % 3}.0", "xy"[n // 3 % 2]) for n in range(60)]
    data = write_csv(tmp_path / "t.csv", rows, "text,one,two")
    (tmp_path / "map.yaml").write_text("2.0: 1.0\n")
    loaded = load(data, labels=("one", "two"), map_labels=str(tmp_path / "map.yaml"))
    assert loaded.targets["one"].task.classes == (0, 1)


def test_rows_of_which_none_has_all_labels_are_told_as_such(tmp_path: Path) -> None:
    rows = [
        (f"t{i}", "ab"[i % 2] if i < 20 else "", "xy"[i % 2] if i >= 20 else "") for i in range(40)
    ]
    data = write_csv(tmp_path / "t.csv", rows, "text,one,two")
    with pytest.raises(InputError) as error:
        load_targets(data, text=["text"], labels=["one", "two"], drop_unlabelled=True)
    assert "no row of the train part has a label in each of the columns 'one', 'two'" in str(
        error.value
    )
    assert "--map-labels" not in str(error.value)


def test_a_line_of_the_map_that_no_target_has_is_refused(letters: Path, tmp_path: Path) -> None:
    label_map = tmp_path / "map.yaml"
    label_map.write_text("town: null\nSaa: sea\n")
    message = (
        "no row has the label 'Saa': columns 'weather' and 'place' hold 'hill', 'ice', 'sea', "
        r"'sun', 'town'. Did you mean 'sea'\?"
    )
    with pytest.raises(InputError, match=message):
        load(letters, map_labels=str(label_map))


def test_fewer_training_rows_keep_the_test_rows(letters: Path) -> None:
    whole, few = load(letters), load(letters, train_rows=12)
    assert len(few.task.train) == 12
    assert few.task.test.ids == whole.task.test.ids
    assert few.task.fingerprint != whole.task.fingerprint
    assert len(np.unique(few.task.train.y, axis=0)) == 6
    assert len(load(letters, train_rows=3).task.train) == 3  # fewer than combinations


def test_a_draw_that_lacks_a_combination_lacks_no_label(letters: Path) -> None:
    combinations, missed = [], []
    for seed in range(12):
        loaded = load(letters, train_rows=7, sampling="natural", seed=seed)
        counts = [len(set(loaded.task.train.y[:, n].tolist())) for n in (0, 1)]
        combinations.append(len(np.unique(loaded.task.train.y, axis=0)))
        told = [note for note in loaded.notes if "has no row of" in note]
        assert len(told) == (counts[0] < 2) + (counts[1] < 3)
        missed.append(len(told))
    assert min(combinations) < 6, "of which there are six"
    assert 0 in missed


def test_given_parts_stay(tmp_path: Path) -> None:
    for part, rows in (("train", 24), ("validation", 12), ("test", 12)):
        write_letters(tmp_path / f"{part}.jsonl", rows)
    loaded = load(tmp_path)
    assert [len(split) for split in parts(loaded)] == [24, 12, 12]
    assert loaded.cut == ()


def test_labels_of_types_of_their_own(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}", "weather": n % 2 == 0, "place": n % 3} for n in range(60)]
    loaded = load(write_jsonl(tmp_path / "typed.jsonl", rows))
    assert loaded.targets["weather"].task.classes == (False, True)
    assert loaded.targets["place"].task.classes == (0, 1, 2)


def test_a_row_without_one_of_its_labels_can_be_left_out(tmp_path: Path) -> None:
    rows = [(f"row {n}", "ab"[n % 2], "xy"[n // 2 % 2]) for n in range(40)]
    rows[3], rows[6] = ("row 3", "b", ""), ("row 6", "", "y")
    data = write_csv(tmp_path / "gap.csv", rows, "text,one,two")
    loaded = load(data, labels=("one", "two"), drop_unlabelled=True)
    left = {text for part in parts(loaded) for (text,) in part.texts}
    assert left == {f"row {n}" for n in range(40)} - {"row 3", "row 6"}
    assert (
        sum("1 of 40 rows of the train part have no label in column" in n for n in loaded.notes)
        == 2
    )
