from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labelled_tables import load, rows_of, splits, texts, write_csv, write_jsonl
from llabel.data import load_labelled
from llabel.errors import InputError


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (["true", "false"], (False, True)),
        (["TRUE", "FALSE"], (False, True)),
        (["10", "9", "-1"], (-1, 9, 10)),
        (["1.0", "0"], (0, 1)),
        (["007", "8"], ("007", "8")),
        (["true", "false", "maybe"], ("false", "maybe", "true")),
        (["b", "B2", "a"], ("B2", "a", "b")),
        (["na", "none"], ("na", "none")),
    ],
)
def test_csv_labels_get_the_type_that_the_whole_column_has(
    tmp_path: Path, cells: list[str], classes: tuple[Any, ...]
) -> None:
    task = load(write_csv(tmp_path / "t.csv", rows_of(30, cells))).task
    assert task.classes == classes
    assert [type(label) for label in task.classes] == [type(label) for label in classes]


@pytest.mark.parametrize(
    ("values", "classes"),
    [([True, False], (False, True)), ([2, 10.0], (2, 10)), (["true", "x"], ("true", "x"))],
)
def test_json_labels_keep_their_type(
    tmp_path: Path, values: list[Any], classes: tuple[Any, ...]
) -> None:
    rows = [{"text": t, "label": y} for t, y in rows_of(30, values)]
    task = load(write_jsonl(tmp_path / "t.jsonl", rows)).task
    assert task.classes == classes
    assert [type(label) for label in task.classes] == [type(label) for label in classes]


def test_whole_decimals_are_whole_numbers(tmp_path: Path) -> None:
    labels = [Decimal(row % 2) for row in range(30)]
    table = pa.table({"text": [f"t{row}" for row in range(30)], "label": labels})
    pq.write_table(table, tmp_path / "t.parquet")
    assert load(str(tmp_path / "t.parquet")).task.classes == (0, 1)
    half = table.set_column(1, "label", [[label + Decimal("0.5") for label in labels]])
    pq.write_table(half, tmp_path / "t.parquet")
    with pytest.raises(InputError, match="a number with a fraction"):
        load(str(tmp_path / "t.parquet"))


def test_csv_and_json_parts_agree_on_types(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", rows_of(20, ["True", "False"]))
    write_jsonl(tmp_path / "test.jsonl", [{"text": "a", "label": True}])
    task = load(str(tmp_path)).task
    assert task.classes == (False, True)
    assert task.test.y.tolist() == [1]


@pytest.mark.parametrize("words", [("1", "2"), ("true", "false")])
def test_csv_labels_are_texts_where_the_typed_parts_have_texts(
    tmp_path: Path, words: tuple[str, str]
) -> None:
    rows = [{"text": t, "label": y} for t, y in rows_of(20, words)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_csv(tmp_path / "test.csv", rows_of(4, words, start=50))
    task = load(str(tmp_path)).task
    assert task.classes == tuple(sorted(words))
    assert [task.classes[index] for index in task.test.y] == [*words, *words]


def test_normalised_labels(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", rows_of(40, ["Sci  Fi", "sci fi ", "Crime", "crime"]))
    with pytest.raises(InputError) as error:
        load(data)
    for words in (
        *("t.csv: column 'label'", "'Sci  Fi' (10 rows) and 'sci fi ' (10 rows)"),
        *("'Crime' (10 rows) and 'crime' (10 rows)", "--normalise-labels"),
    ):
        assert words in str(error.value)
    assert load(data, normalise_labels=True).task.classes == ("crime", "sci fi")


@pytest.mark.parametrize(
    ("cells", "line"),
    [
        (["1", "1.0", "x"], "1.0: 1"),
        (["0", "-0"], "-0: 0"),
        (["+7", "7", "no"], "+7: 7"),
        (["v", "2.50", "2.5"], "2.50: 2.5"),
    ],
)
@pytest.mark.parametrize("normalise", [False, True])
def test_one_number_in_two_spellings_is_refused(
    tmp_path: Path, cells: list[str], line: str, normalise: bool
) -> None:
    data = write_csv(tmp_path / "t.csv", rows_of(60, cells))
    with pytest.raises(InputError, match="how a number is written") as error:
        load(data, normalise_labels=normalise)
    assert f"--map-labels FILE and lines such as `{line}`" in str(error.value)
    (tmp_path / "map.yaml").write_text(f"{line}\n")
    if "x" in cells:
        mapped = load(data, map_labels=str(tmp_path / "map.yaml"), normalise_labels=normalise)
        assert mapped.task.classes == ("1", "x")


def test_a_label_in_another_unicode_form_is_told_as_such(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "e.csv", [("a", "re\u0301sume\u0301"), ("b", "x")])
    told = r"does not know.* differs from the known 'r\xe9sum\xe9' by its Unicode form.*any-nfc"
    with pytest.raises(InputError, match=told):
        load_labelled(data, ["text"], "label", ("r\xe9sum\xe9", "x"))


LABEL_FAULTS: dict[str, tuple[list[Any], list[str]]] = {
    "missing": (
        ["a", "b", None, "b", "a", " "] * 4,
        ["'label' is empty in row 3, row 6, row 9, row 12, row 15, … (8 rows in all)", "Fill in"],
    ),
    "one class": (["a"] * 9, ["one class only: 'a' in all 9 rows", "At least two", "--label"]),
    "rare": (
        [*"ab" * 9, "c", "c", "d"],
        ["at least 3 rows, one each for train, validation, test", "'d' (1), 'c' (2)", "merge"],
    ),
    "fraction": ([0.5, 1] * 9, ["row 1", "'label': 0.5", "number with a fraction", "regression"]),
    "list": ([["a"], "b"] * 9, ["row 1", "['a'] (list) cannot be a label", "keep one"]),
    "mixed": (
        [True, "true"] * 9,
        ["mixes types", "True in", "row 1 (true/false)", "'true' in", "row 2 (text)", "same way"],
    ),
    "bool and int": ([True, 1] * 9, ["mixes types", "(a whole number)"]),
    "ids": ([f"id {i}" for i in range(60)], ["60 different values in 60 rows", "another --label"]),
    "many": ([i % 1001 for i in range(3003)], ["1,001 different values", "At most 1,000"]),
}


@pytest.mark.parametrize(("values", "told"), LABEL_FAULTS.values(), ids=LABEL_FAULTS)
def test_label_faults_are_told(tmp_path: Path, values: list[Any], told: list[str]) -> None:
    rows = [{"text": f"t{i}", "label": value} for i, value in enumerate(values)]
    data = write_jsonl(tmp_path / "t.jsonl", rows)
    with pytest.raises(InputError) as error:
        load(data)
    assert [words for words in told if words not in str(error.value)] == []


@pytest.mark.parametrize("word", ["NA", "NaN", "nan", "N/A", "null", "None", " NA "])
def test_csv_words_for_nothing_are_missing_labels(tmp_path: Path, word: str) -> None:
    with pytest.raises(InputError) as error:
        load(write_csv(tmp_path / "t.csv", rows_of(30, ["0", "1", "0", "1", word])))
    for words in (
        f"t.csv: column 'label' has no label (but {word!r}) in row 5 (line 6), row 10 (line 11)",
        *("Fill in the label, or leave these rows out with --drop-unlabelled", "'not applicable'"),
    ):
        assert words in str(error.value)
    rows = [{"text": t, "label": y} for t, y in rows_of(30, ["yes", word])]
    classes = load(write_jsonl(tmp_path / "t.jsonl", rows)).task.classes
    assert set(classes) == {"yes", word}  # strings of JSON are what they say


def test_rows_without_a_label_can_be_left_out(tmp_path: Path) -> None:
    rows = rows_of(40)
    for row, word in ((3, ""), (7, "N/A"), (8, " ")):
        rows[row] = (rows[row][0], word)
    loaded = load(write_csv(tmp_path / "t.csv", rows), drop_unlabelled=True)
    assert sum(len(part.y) for part in splits(loaded.task)) == 37
    assert loaded.task.classes == ("no", "yes")
    assert any(
        note.startswith("3 of 40 rows of the train part have no label") for note in loaded.notes
    )
    whole = load(write_csv(tmp_path / "w.csv", [row for row in rows if row[1] in ("no", "yes")]))
    assert [texts(part) for part in splits(loaded.task)] == [
        texts(part) for part in splits(whole.task)
    ], "as if they had never been there"
    notes: list[str] = []
    found = load_labelled(
        str(tmp_path / "t.csv"), ["text"], "label", ("no", "yes"), drop_unlabelled=True, notes=notes
    )
    assert (len(found), len(notes)) == (37, 1)
    with pytest.raises(InputError, match=r"t2.csv: column 'label' has no label"):
        load(write_csv(tmp_path / "t2.csv", [("a", "NA"), ("b", "")]), drop_unlabelled=True)


@pytest.mark.parametrize("options", [{}, {"drop_unlabelled": True}])
def test_a_column_without_any_label_is_told_as_such(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    told = r"t.csv: column 'label' is empty in all 20 rows of the train part. Fill .*: --label.$"
    with pytest.raises(InputError, match=told):
        load(write_csv(tmp_path / "t.csv", rows_of(20, [""])), **options)


def test_a_csv_test_part_of_words_for_nothing_is_withheld(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", rows_of(20))
    write_csv(tmp_path / "test.csv", [("a", "NA"), ("b", "")])
    with pytest.raises(InputError, match=r"test.csv: the test part has no labels"):
        load(str(tmp_path))


def test_a_known_class_may_be_called_none(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "e.csv", [("a", "None"), ("b", "mild")])
    assert load_labelled(data, ["text"], "label", ("None", "mild")).y.tolist() == [0, 1]
    alone = write_csv(tmp_path / "alone.csv", [("a", "None")])
    assert load_labelled(alone, ["text"], "label", ("None", "mild")).y.tolist() == [0]
    with pytest.raises(InputError, match=r"no label \(but 'None'\) in row 1"):
        load_labelled(data, ["text"], "label", ("mild", "severe"))


def test_a_known_class_may_be_called_none_in_its_normal_form(tmp_path: Path) -> None:
    known: tuple[Any, ...] = (["text"], "label", ("mild", "none"))
    data = write_csv(tmp_path / "e.csv", [("a", "None"), ("b", "Mild"), ("c", "NA")])
    notes: list[str] = []
    found = load_labelled(data, *known, normalise_labels=True, drop_unlabelled=True, notes=notes)
    assert found.y.tolist() == [1, 0]
    assert notes[0].startswith("1 of 3 rows")
    alone = write_csv(tmp_path / "alone.csv", [("a", "None")])
    assert load_labelled(alone, *known, normalise_labels=True).y.tolist() == [1]


@pytest.mark.parametrize("options", [{}, {"drop_unlabelled": True}, {"normalise_labels": True}])
def test_a_class_called_none_in_json_is_one_in_csv(tmp_path: Path, options: dict[str, Any]) -> None:
    rows = [{"text": t, "label": y} for t, y in rows_of(30, ["None", "Mild"])]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_csv(tmp_path / "test.csv", rows_of(6, ["None", "Mild"], start=50))
    assert load(str(tmp_path), **options).task.test.y.tolist().count(1) == 3
    write_csv(tmp_path / "test.csv", [("a", "None")])
    assert len(load(str(tmp_path), **options).task.test) == 1


def test_whole_numbers_with_a_point_are_known_again(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "e.csv", [("a", "1.0"), ("b", "0.0"), ("c", "1")])
    assert load_labelled(data, ["text"], "label", (0, 1)).y.tolist() == [1, 0, 1]
    with pytest.raises(InputError, match=r"does not know: '1.0', '0.0'"):
        load_labelled(data, ["text"], "label", ("0", "1"))


def test_csv_numbers_with_fractions_are_no_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t.csv: column 'label' holds numbers.*'0.5', '1'.*regr"):
        load(write_csv(tmp_path / "t.csv", rows_of(30, ["0.5", "1"])))


def test_test_labels_that_train_lacks(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", rows_of(20))
    write_csv(tmp_path / "test.csv", [("a", "yes"), ("b", "perhaps")])
    with pytest.raises(InputError) as error:
        load(str(tmp_path))
    for words in ("test.csv", "test part", "'perhaps', in row 2 (line 3)", "Known are 'no', 'yes'"):
        assert words in str(error.value)


def test_rare_groups_are_told(tmp_path: Path) -> None:
    rows = [(f"t{i}", "ab"[i < 9], f"g{i % 9 if i >= 9 else 0}") for i in range(60)]
    data = write_csv(tmp_path / "t.csv", rows, "text,label,g")
    with pytest.raises(InputError, match=r"at least 3 groups, one group each.*'b' \(1\)"):
        load(data, group="g")
    rows[4] = ("t", "b", "")
    write_csv(tmp_path / "t.csv", rows, "text,label,g")
    with pytest.raises(InputError, match=r"row 5 \(line 6\), column 'g': there is no group"):
        load(data, group="g")
