import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labelled_tables import load, rows_of, splits, texts, write_csv, write_jsonl
from llabel.data import (
    load_labelled,
    load_task,
    read_texts,
    unseen_rows,
)
from llabel.data.sources import open_source
from llabel.errors import InputError

YES_NO = [True, False] * 10
SHARED = Path(os.environ.get("LLABEL_SHARED", Path(__file__).parents[2] / "shared"))


def test_a_single_table_is_cut_in_three(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "reviews.csv", rows_of(200, ["a", "b", "b", "b"]))
    loaded = load(data)
    task = loaded.task
    assert (task.name, task.fields, task.classes) == ("reviews", ("text",), ("a", "b"))
    assert [len(part) for part in splits(task)] == [140, 20, 40]
    assert [int((part.y == 0).sum()) for part in splits(task)] == [35, 5, 10]
    ids = [id for part in splits(task) for id in part.ids]
    assert Counter(ids) == Counter(f"reviews:{row}" for row in range(1, 201))
    assert task.test.ids[0] == f"reviews:{int(texts(task.test)[0].split()[1]) + 1}"
    assert loaded.notes == (
        "40 of 200 rows (20%) are cut from train as the test part: stratified by class, seed 0.",
        "20 of 200 rows (10%) are cut from train as the validation part: stratified by class, "
        "seed 0.",
    )
    assert load(data).task.fingerprint == task.fingerprint
    other = load(data, seed=1).task
    assert other.fingerprint != task.fingerprint
    assert set(other.test.ids) != set(task.test.ids)


def test_train_rows_leaves_validation_and_test_alone(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", rows_of(200))
    whole, small, tiny = (load(data, train_rows=n).task for n in (None, 50, 10))
    assert small.test.ids == tiny.test.ids == whole.test.ids
    assert small.validation.ids == tiny.validation.ids == whole.validation.ids
    assert (len(small.train), len(tiny.train)) == (50, 10)
    assert set(tiny.train.ids) < set(small.train.ids) < set(whole.train.ids)
    assert list(small.train.ids) == [id for id in whole.train.ids if id in set(small.train.ids)]
    with pytest.raises(InputError, match=r"--train-rows 141: choose from 2 .* to 140"):
        load(data, train_rows=141)


def test_samples_of_train_and_test_are_drawn_as_asked(tmp_path: Path) -> None:
    rows = rows_of(180, ("no",)) + rows_of(20, ("yes",), start=180)
    data = write_csv(tmp_path / "a.csv", rows)
    whole = load(data)
    found = load(data, train_rows=24, test_rows=8, sampling="balanced")
    counts = [[split.y.tolist().count(c) for c in (0, 1)] for split in splits(found.task)]
    assert counts == [[12, 12], [18, 2], [4, 4]]
    for part in ("train", "validation", "test"):
        assert set(getattr(found.task, part).ids) <= set(getattr(whole.task, part).ids)
    assert found.task.validation.ids == whole.task.validation.ids
    assert "24 of 140 train rows are drawn: balanced, seed 0." in found.notes
    assert "8 of 40 test rows are drawn: balanced, seed 0." in found.notes
    assert found.task.fingerprint != whole.task.fingerprint
    again = load(data, train_rows=24, test_rows=8, sampling="balanced")
    assert again.task.fingerprint == found.task.fingerprint
    by_chance = load(data, train_rows=2, sampling="natural", seed=3)
    assert len(by_chance.task.train) == 2
    assert any("the draw from train has no row of" in note for note in by_chance.notes)
    with pytest.raises(InputError, match=r"--test-rows 41: choose from 2 .* in the test part"):
        load(data, test_rows=41)
    with pytest.raises(InputError, match=r"--sampling balanced says how .* neither is given"):
        load(data, sampling="balanced")


def test_groups_stand_on_one_side_of_both_cuts(tmp_path: Path) -> None:
    rows = [(f"text {i}", "ab"[i // 3 % 2], f"g{i // 3}") for i in range(180)]
    data = write_csv(tmp_path / "t.csv", rows, "text,label,author")
    task = load(data, group="author").task
    seen = [set(part.groups or ()) for part in splits(task)]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    assert sum(map(len, splits(task))) == 180


@pytest.mark.parametrize("spellings", [("a", "a "), ("a", "A"), ("\xe9", "e\u0301"), (1, 1.0)])
def test_spellings_of_a_group_are_one(tmp_path: Path, spellings: tuple[Any, Any]) -> None:
    def group(row: int) -> Any:
        spelling = spellings[row % 2]
        return spelling + row // 2 if isinstance(spelling, int | float) else f"{row // 2}{spelling}"

    rows = [{"text": f"t{i}", "label": "ab"[i // 2 % 2], "g": group(i)} for i in range(120)]
    task = load(write_jsonl(tmp_path / "t.jsonl", rows), group="g").task
    sides = [{(int(row.split(":")[1]) - 1) // 2 for row in part.ids} for part in splits(task)]
    assert sum(map(len, sides)) == 60
    assert sum(len(set(part.groups or ())) for part in splits(task)) == 60


def test_given_parts_stay_as_they_are(tmp_path: Path) -> None:
    for part, start, n in (("train", 0, 20), ("dev", 100, 6), ("test", 200, 8)):
        write_csv(tmp_path / "d" / f"{part}.csv", rows_of(n, start=start))
    loaded = load(str(tmp_path / "d"))
    assert [len(part) for part in splits(loaded.task)] == [20, 6, 8]
    assert loaded.task.name == "d"
    assert loaded.task.train.ids[16] == "train:17"
    assert loaded.task.validation.ids[0] == "validation:1"
    assert loaded.notes == ()


def test_without_a_test_part_validation_is_held_as_test(tmp_path: Path) -> None:
    write_csv(tmp_path / "d" / "train.csv", rows_of(40))
    write_jsonl(
        tmp_path / "d" / "val.jsonl", [{"text": t, "label": y} for t, y in rows_of(10, start=90)]
    )
    loaded = load(str(tmp_path / "d"))
    assert texts(loaded.task.test) == [f"text {i}" for i in range(90, 100)]
    assert loaded.task.test.ids[0] == "validation:1"
    assert [len(part) for part in splits(loaded.task)] == [36, 4, 10]
    assert "its validation part is held as the test part" in loaded.notes[0]
    kept = load(
        str(tmp_path / "d" / "train.csv"), validation=str(tmp_path / "d" / "val.jsonl")
    ).task
    assert [len(part) for part in splits(kept)] == [32, 10, 8]
    assert kept.validation.ids[0] == "validation:1"
    assert kept.test.ids[0].startswith("train:")


def test_test_split_chooses_and_unlabelled_test_parts_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "glue"
    write_csv(folder / "train.csv", rows_of(40, [0, 1]))
    write_csv(folder / "validation.csv", rows_of(10, [0, 1]))
    write_csv(folder / "test.csv", rows_of(10, [-1]))
    write_csv(folder / "extra.csv", rows_of(4, [0, 1]))
    with pytest.raises(InputError, match=r"test.csv: the test part has no labels.*-1 in every.*"):
        load(str(folder))
    loaded = load(str(folder), test_split="dev")
    assert [len(part) for part in splits(loaded.task)] == [36, 4, 10]
    assert "parts of glue that are not used: 'test', 'extra'." in loaded.notes
    assert len(load(str(folder), test_split="extra").task.test) == 4
    write_csv(folder / "test.csv", [["a"]], "text")
    with pytest.raises(InputError, match=r"no labels.*Choose --test-split validation"):
        load(str(folder))
    with pytest.raises(InputError, match=r"no column 'lable'.*Did you mean 'label'\?"):
        load(str(folder), label="lable")
    with pytest.raises(InputError, match=r"no such part beside train.*'validation', 'test', 'ext"):
        load(str(folder), test_split="tset")


def test_unlabelled_rows_of_a_split_column_are_told_what_can_be_done(tmp_path: Path) -> None:
    rows = [(*row, "train") for row in rows_of(40)]
    rows += [(f"new {n}", "", "test") for n in range(5)]
    data = write_csv(tmp_path / "t.csv", rows, "text,label,part")
    with pytest.raises(InputError, match=r"the test part has no labels.* Label these rows, or rem"):
        load(data, split_column="part")
    rows += [(f"valid {n}", "yes", "validation") for n in range(5)]
    data = write_csv(tmp_path / "t.csv", rows, "text,label,part")
    with pytest.raises(InputError, match=r"no labels.* Choose --test-split validation"):
        load(data, split_column="part")
    assert len(load(data, split_column="part", test_split="validation").task.test) == 5


@pytest.mark.parametrize("word", ["NA", "NaN", "null", " "])
def test_a_word_for_nothing_in_a_csv_file_is_no_group(tmp_path: Path, word: str) -> None:
    rows = [(*row, f"g{n}") for n, row in enumerate(rows_of(40))]
    data = write_csv(tmp_path / "t.csv", [*rows, ("x", "yes", word)], "text,label,who")
    with pytest.raises(InputError, match=r"row 41 .*'who': there is no group.*Every row needs one"):
        load(data, group="who")
    typed = [dict(zip(("text", "label", "who"), row, strict=True)) for row in rows]
    typed.append({"text": "x", "label": "yes", "who": "NA"})
    assert load(write_jsonl(tmp_path / "t.jsonl", typed), group="who").task


def test_a_json_test_part_without_some_labels_is_not_withheld(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": t, "label": y} for t, y in rows_of(20)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", [{"text": "a"}, *rows[:4]])
    with pytest.raises(InputError, match=r"test.jsonl: column 'label' is empty in row 1"):
        load(str(tmp_path))
    write_jsonl(tmp_path / "test.jsonl", [{"text": "a"}, {"text": "b"}])
    with pytest.raises(InputError, match=r"test.jsonl: the test part has no labels"):
        load(str(tmp_path))


def test_a_json_label_may_come_late(tmp_path: Path) -> None:
    late: list[dict[str, Any]] = [{"text": f"t{i}"} for i in range(1_000)]
    late += [{"text": t, "label": y} for t, y in rows_of(30)]
    write_jsonl(tmp_path / "train.jsonl", late)
    write_jsonl(tmp_path / "test.jsonl", late)
    loaded = load(str(tmp_path), drop_unlabelled=True)
    assert len(loaded.task.test) == 30
    assert any(note.startswith("1,000 of 1,030 rows of the test part") for note in loaded.notes)
    with pytest.raises(InputError, match=r"no column 'lable'. Its columns are 'text'"):
        load(str(tmp_path), label="lable")


def test_a_file_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.csv"
    Path(write_csv(tmp_path / "t.csv", rows_of(20))).rename(os.fsdecode(path))
    with pytest.raises(InputError, match=r"caf\\udce9.csv': the name of this file is not UTF-8"):
        load(os.fsdecode(path))


def test_semicolons_are_read_and_noted(tmp_path: Path) -> None:
    lines = [f'"text {i}, so";"{"ab"[i % 2]}"\n' for i in range(30)]
    (tmp_path / "t.csv").write_text('"text";"label"\n' + "".join(lines))
    loaded = load(str(tmp_path / "t.csv"))
    assert loaded.task.classes == ("a", "b")
    assert f"{tmp_path / 't.csv'}: its cells are separated by ';' and are read so." in loaded.notes
    with pytest.raises(InputError, match=r"no column 'lable'.*'text', 'label'. Did you mean"):
        load(str(tmp_path / "t.csv"), label="lable")
    assert len(load_labelled(str(tmp_path / "t.csv"), ["text"], "label", ("a", "b"))) == 30


def test_a_fault_in_the_first_train_row_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('text,label\n"a" b,c\n')
    with pytest.raises(InputError, match=r"row 1 \(line 2\), column 'text': text follows"):
        load(str(tmp_path / "t.csv"))


def test_texts_that_are_all_empty_are_refused(tmp_path: Path) -> None:
    rows = [(" ", "", "ab"[i % 2]) for i in range(30)]
    data = write_csv(tmp_path / "train.csv", rows, "text,body,label")
    with pytest.raises(InputError, match=r"column 'text' is empty in all 30 rows of the train pa"):
        load(data)
    with pytest.raises(InputError, match=r"'text', 'body' are empty in all .*columns that hold"):
        load(data, text=["text", "body"])
    with pytest.raises(InputError, match=r"train.csv: column 'body' is empty"):
        load_labelled(data, ["body"], "label", ("a", "b"))
    write_csv(tmp_path / "train.csv", rows_of(30))
    write_csv(tmp_path / "test.csv", [("", "no"), ("", "yes")])
    with pytest.raises(InputError, match=r"test.csv: .*all 2 rows of the test part"):
        load(str(tmp_path))


def test_a_part_that_lacks_a_class_is_noted(tmp_path: Path) -> None:
    rows = [(f"text {i}", "ab"[i // 30 % 2], f"g{i // 30}") for i in range(180)]
    data = write_csv(tmp_path / "t.csv", rows, "text,label,author")
    loaded = load(data, group="author")
    assert loaded.cut == ("validation", "test")
    lacking = [
        role
        for role, part in zip(("validation", "test"), splits(loaded.task)[1:], strict=True)
        if len(set(part.y.tolist())) < 2
    ]
    assert lacking
    for role in lacking:
        assert any(
            f"the {role} part has no row of class '" in note and f"a larger --{role}-size" in note
            for note in loaded.notes
        )
    write_csv(tmp_path / "d" / "train.csv", rows_of(30))
    write_csv(tmp_path / "d" / "test.csv", rows_of(5, ["no"]))
    loaded = load(str(tmp_path / "d"))
    assert loaded.cut == ("validation",)
    assert (
        "the test part has no row of class 'yes', so how well it is told is not measured there; "
        "the part is used as given."
    ) in loaded.notes


def test_minus_one_may_be_a_class(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", rows_of(30, [-1, 0, 1]))
    assert load(data).task.classes == (-1, 0, 1)


def test_split_column(tmp_path: Path) -> None:
    parts = ["train"] * 6 + ["valid", "TEST"] * 2
    rows = [(f"text {i}", "ab"[i % 2], part) for i, part in enumerate(parts)]
    rows[7], rows[8] = rows[8], rows[7]
    data = write_csv(tmp_path / "t.csv", rows, "text,label,part")
    task = load(data, split_column="part").task
    assert [len(part) for part in splits(task)] == [6, 2, 2]
    assert task.validation.ids == ("t:7", "t:8")
    write_csv(tmp_path / "t.csv", [*rows, ("x", "a", "holdout")], "text,label,part")
    with pytest.raises(InputError, match=r"row 11 \(line 12\), column 'part': 'holdout' is no pa"):
        load(data, split_column="part")
    write_csv(tmp_path / "t.csv", [("x", "a", "test")], "text,label,part")
    with pytest.raises(InputError, match=r"no train row, only 'test'. Write .*leave --split-colu"):
        load(data, split_column="part")


def test_shards_are_joined_and_a_missing_one_is_told(tmp_path: Path) -> None:
    for number in range(2):
        table = pa.table(
            {"text": [f"s{number} {i}" for i in range(20)], "label": [True, False] * 10}
        )
        pq.write_table(table, tmp_path / f"train-{number:05}-of-00002.parquet")
    task = load(str(tmp_path)).task
    assert sum(map(len, splits(task))) == 40
    everywhere = {
        id: t for part in splits(task) for id, (t,) in zip(part.ids, part.texts, strict=True)
    }
    assert everywhere["train:21"] == "s1 0"
    assert task.classes == (False, True)
    (tmp_path / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(InputError, match=r"1 of 2 files of the train part.*Download"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002.csv", "train-00000-of-00002.tsv"),
        ("train-00000-of-00002.csv", "train-00001-of-00002.jsonl"),
        ("train-00000-of-00002.csv", "train-00000-of-00003.csv"),
    ],
)
def test_shards_that_are_not_of_one_set_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        write_csv(tmp_path / name, rows_of(20))
    with pytest.raises(
        InputError, match=r"train part are not of one set: 'train-00000.*one format"
    ):
        load(str(tmp_path))


def test_shared_groups_and_empty_texts_are_noted(tmp_path: Path) -> None:
    rows = [(f"t{i}", "ab"[i % 2], f"g{i}") for i in range(20)]
    write_csv(tmp_path / "train.csv", [*rows, ("", "a", "g20")], "text,label,g")
    write_csv(tmp_path / "test.csv", [rows[0], ("x", "b", "new")], "text,label,g")
    notes = load(str(tmp_path), group="g").notes
    assert any(note.startswith("column 'text' is empty in some rows: 1 ") for note in notes)
    told = "{0} rows share their 'g' with a {1} row; parts that are given stay as they are."
    shared = [note for note in notes if "share" in note]
    assert shared in (
        [told.format("1 of 2 test", "train")],
        [told.format("1 of 2 test", "validation")],
    )
    new = [("v", "a", "new"), ("w", "b", "other")]
    write_csv(tmp_path / "validation.csv", new, "text,label,g")
    loaded = load(str(tmp_path), group="g")
    assert [note for note in loaded.notes if "share" in note] == [
        told.format("1 of 2 test", "train"),
        told.format("1 of 2 test", "validation"),
    ]


def test_groups_that_a_draw_leaves_out_are_not_shared(tmp_path: Path) -> None:
    rows = [(f"t{i}", "ab"[i % 2], f"g{i}") for i in range(60)]
    for part in ("train", "validation"):
        write_csv(tmp_path / f"{part}.csv", rows, "text,label,g")
    options = {"validation": str(tmp_path / "validation.csv"), "group": "g"}
    loaded = load(str(tmp_path / "train.csv"), **options, train_rows=10)
    test = len(loaded.task.test)
    assert [note.split(" rows share ")[0] for note in loaded.notes if "share" in note] == [
        "10 of 60 validation",
        f"{test} of {test} test",
    ]


def test_rows_that_an_open_quote_may_have_joined_are_noted(tmp_path: Path) -> None:
    rows = "".join(f"text {i}\t{'ab'[i % 2]}\n" for i in range(20))
    joined = '"Wow\ta\nbad\tb\nok "\ta\n'
    (tmp_path / "t.tsv").write_text("text\tlabel\n" + joined + rows)
    (note,) = (note for note in load(str(tmp_path / "t.tsv")).notes if "quote" in note)
    assert note == (
        f"{tmp_path / 't.tsv'}: lines 2 to 4 are one row: a quoted cell reaches over them, though "
        'each could be a row of its own. If they are, a quote is not closed: double it ("") or '
        "remove it."
    )
    notes: list[str] = []
    load_labelled(str(tmp_path / "t.tsv"), ["text"], "label", ("a", "b"), notes=notes)
    assert note in notes
    (tmp_path / "t.tsv").write_text("text\tlabel\n" + joined * 5)
    notes.clear()
    assert len(list(read_texts(str(tmp_path / "t.tsv"), ["text"], notes=notes))) == 5
    (note,) = notes
    assert "lines 2 to 4, 5 to 7, 8 to 10, … (5 such rows in all) are one row each: " in note


# Texts, options and names


def test_texts_from_numbers_and_nothing(tmp_path: Path) -> None:
    values: list[Any] = ["a", 3, 0.5, None, True, float("nan")]
    data = write_jsonl(tmp_path / "t.jsonl", [{"text": value} for value in values])
    assert list(read_texts(data, ["text"])) == [
        (f"t:{n}", (text,)) for n, text in enumerate(["a", "3", "0.5", "", "true", ""], start=1)
    ]
    write_jsonl(tmp_path / "t.jsonl", [{"text": "a"}, {"text": ["b"]}])
    with pytest.raises(InputError, match=r"row 2, column 'text': \['b'\] \(list\) is no text"):
        list(read_texts(data, ["text"]))


def test_read_texts_streams_all_parts_or_one(tmp_path: Path) -> None:
    write_csv(tmp_path / "test.csv", [("c", "1")], "text,other")
    write_csv(tmp_path / "train.csv", [("a", "1"), ("b", "2")], "text,other")
    every = [("train:1", ("a", "1")), ("train:2", ("b", "2")), ("test:1", ("c", "1"))]
    assert list(read_texts(str(tmp_path), ["text", "other"])) == every
    assert list(read_texts(str(tmp_path), ["text", "other"], part="test")) == every[2:]
    with pytest.raises(InputError, match=r"--split tst: .*'train', 'test'. Did you mean 'test'\?"):
        read_texts(str(tmp_path), ["text"], part="tst")


OPTION_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"text": []}, "--text: name at least one"),
    ({"text": ["text", "text"]}, "--text text,text: a column is named twice"),
    ({"text": ["label"]}, "--label label: this column is also a text column"),
    ({"text": ["txt"]}, r"t.csv: there is no column 'txt'.*Did you mean 'text'\?"),
    ({"label": "y"}, "no column 'y'. Its columns are 'text', 'label'"),
    ({"group": "author"}, "no column 'author'"),
    ({"test_size": 0}, "--test-size 0: a share between 0 and 1"),
    ({"validation_size": float("nan")}, "--validation-size nan"),
    ({"test_size": 0.9, "validation_size": 0.1}, "must add up to less than 1"),
    ({"train_rows": 1}, r"--train-rows 1: choose from 2 \(one a class\)"),
    ({"seed": -1}, "--seed -1: a whole number from 0"),
    ({"test_split": "test"}, "--test-split test: t has no such part.*it has train rows only"),
    ({"test_split": "a", "test": "b.csv"}, "Choose one of them"),
    ({"validation": "no.csv"}, "no.csv: there is no such file"),
]


@pytest.mark.parametrize(("options", "told"), OPTION_FAULTS)
def test_option_faults_are_told(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    data = write_csv(tmp_path / "t.csv", rows_of(30))
    with pytest.raises(InputError, match=told):
        load(data, **options)


def test_a_name_that_the_system_refuses_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_csv(tmp_path / "reviews.csv", rows_of(30))
    for options in ({"data": "x" * 300 + ".csv"}, {"data": data, "test": "x" * 300 + ".csv"}):
        with pytest.raises(InputError, match=r"xxx.csv: cannot be read: File name too long"):
            load(**options)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~/reviews.csv").task.name == "reviews"
    with pytest.raises(InputError, match=r"no such file. Did you mean 'reviews.csv'\?"):
        load("~/review.csv")
    with pytest.raises(InputError, match=r"~no-such-user/t.csv: there is no such file"):
        load("~no-such-user/t.csv")


def test_data_that_is_not_there(tmp_path: Path) -> None:
    write_csv(tmp_path / "reviews.csv", rows_of(30))
    with pytest.raises(InputError, match=r"no such file. Did you mean 'reviews.csv'\?"):
        load(str(tmp_path / "review.csv"))
    with pytest.raises(InputError, match=r"'no-such-data'.*built in"):
        load("no-such-data")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no table in this folder. Put train"):
        load(str(tmp_path / "empty"))
    write_csv(tmp_path / "other.csv", rows_of(30))
    with pytest.raises(InputError, match=r"none of its tables \('other.csv', 'reviews.csv'\)"):
        load(str(tmp_path))
    write_csv(tmp_path / "two" / "train.csv", rows_of(30))
    write_csv(tmp_path / "two" / "train.tsv", rows_of(30))
    with pytest.raises(InputError, match="several files could be the train part"):
        load(str(tmp_path / "two"))


def test_a_file_that_plays_two_parts_is_refused(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv", rows_of(30))
    other = write_csv(tmp_path / "validation.csv", rows_of(10, start=50))
    (tmp_path / "link.csv").symlink_to(data)
    again = str(tmp_path / "link.csv")
    for source in (data, str(tmp_path)):
        with pytest.raises(InputError, match=r"--test .*link.csv: .* the train part.*--test-size"):
            load(source, test=again)
        with pytest.raises(InputError, match=r"--validation .* is the train part.*validation-size"):
            load(source, validation=data)
        with pytest.raises(InputError, match=r"is the (test|validation) part, too"):
            load(source, test=other, validation=other)
    with pytest.raises(InputError, match=r"--test .* is the validation part, too"):
        load(str(tmp_path), test=other)
    assert len(load(data, validation=other).task.validation) == 10


# Evaluation rows


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (["True", "false"], (True, False)),
        (["1", "2"], (1, 2)),
        ([1, 2.0], ("1", "2")),
        ([True, False], ("true", "false")),
        (["x", "1"], ("x", "1")),
    ],
)
def test_labels_are_matched_to_known_classes(
    tmp_path: Path, cells: list[Any], classes: tuple[Any, ...]
) -> None:
    rows = [{"text": t, "label": y} for t, y in rows_of(4, cells)]
    split = load_labelled(write_jsonl(tmp_path / "e.jsonl", rows), ["text"], "label", classes)
    assert split.y.tolist() == [0, 1, 0, 1]
    assert split.ids[3] == "e:4"


def test_unknown_labels_and_the_part_to_evaluate(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", rows_of(4))
    write_csv(tmp_path / "dev.csv", [("a", "yes"), ("b", "Yes"), ("c", "no")])
    options = (str(tmp_path), ["text"], "label", ("no", "yes"))
    with pytest.raises(InputError, match=r"dev.csv.*'Yes', in row 2 .*Known are 'no', 'yes'.*mean"):
        load_labelled(*options)
    assert load_labelled(*options, normalise_labels=True).y.tolist() == [1, 1, 0]
    assert len(load_labelled(*options, part="train")) == 4


def test_a_header_with_spaces_behind_its_commas_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "id, text, label\n" + "".join(f"{n},text {n},{'ab'[n % 2]}\n" for n in range(20))
    )
    loaded = load(str(tmp_path / "t.csv"))
    assert loaded.task.fields == ("text",)
    assert loaded.task.classes == ("a", "b")


def test_rows_without_any_label_cannot_be_evaluated(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", rows_of(4))
    write_csv(tmp_path / "test.csv", [("a", ""), ("b", "")])
    alone = write_csv(tmp_path / "apart" / "new.csv", [("a", ""), ("b", "")])
    known = (["text"], "label", ("no", "yes"))
    with pytest.raises(InputError) as error:
        load_labelled(alone, *known)
    assert "no row has a label in column 'label'" in str(error.value)
    assert "--train" not in str(error.value), "evaluate has no such option"
    with pytest.raises(InputError, match=r"another part with --split \('train'\)"):
        load_labelled(str(tmp_path), *known)
    write_csv(tmp_path / "test.csv", [("a",), ("b",)], header="text")
    with pytest.raises(InputError, match=r"test.csv: no row has a label"):
        load_labelled(str(tmp_path), *known)


@pytest.mark.skipif(not (SHARED / "data/boolq").is_dir(), reason="needs the shared data")
def test_boolq_by_passage() -> None:
    fields = ("question", "passage")
    loaded = load_task(
        str(SHARED / "data/boolq"), text=fields, label="answer", group="passage", train_rows=1000
    )
    task = loaded.task
    assert (len(task.train), len(task.test)) == (1000, 3270)
    assert len(task.validation) == 942
    assert not set(task.train.groups or ()) & set(task.validation.groups or ())
    (told, *_) = (note for note in loaded.notes if "share their 'passage' with a train" in note)
    known = set(task.train.groups or ())
    assert told.startswith(f"{sum(one in known for one in task.test.groups or ()):,} of 3,270 test")
    train = load_labelled(str(SHARED / "data/boolq"), fields, "answer", task.classes, part="train")
    assert int(unseen_rows([train], task.test, fields).sum()) == 2318


# Hugging Face data sets


def test_hub_data_give_class_names_and_withheld_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("llabel.assets.is_hub_id", lambda name: True)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    for part, labels in (("train", [0, 1] * 20), ("validation", [1, 0]), ("test", [-1, -1])):
        columns = {"text": [f"{part} {i}" for i in range(len(labels))], "label": labels}
        rows = datasets.Dataset.from_dict(columns, features=features)
        rows.to_parquet(tmp_path / "set" / f"{part}.parquet")
    with pytest.raises(InputError, match="Choose --test-split validation"):
        load(str(tmp_path / "set"))
    task = load(str(tmp_path / "set"), test_split="validation").task
    assert task.classes == ("neg", "pos")
    assert task.test.y.tolist() == [1, 0]
    assert task.test.ids == ("validation:1", "validation:2")
    with pytest.raises(InputError, match=r"(?s)cannot be loaded: .*org/name:config"):
        open_source(str(tmp_path / "set:none"))
    both = datasets.DatasetDict({"train": rows, "dev": rows, "validation": rows})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: both)
    with pytest.raises(InputError, match="both dev and validation could be its validation part"):
        open_source("org/both")
