import errno
import json
from pathlib import Path

import numpy as np
import pytest

from llabel.errors import InputError
from llabel.ladder.rung_folder import ARRAYS, RECORD, WORDS, SavedRung, read_rung, write_rung
from small_disk import full_disk


def saved(**changes) -> SavedRung:
    values = {"rung": "memory", "fields": ("text",), "classes": (False, True)}
    return SavedRung(**(values | changes))


def test_all_comes_back_bit_for_bit(tmp_path: Path):
    rng = np.random.default_rng(0)
    arrays = {
        "fortran": np.asfortranarray(rng.normal(size=(3, 4))),
        "sliced": rng.normal(size=(4, 6)).astype(np.float32)[::2, 1::3],
        "number": np.array(0.1),
        "empty": np.zeros((0, 5), dtype=np.int64),
    }
    words = {"terms": ["", "naïve\n", "映画", "half a pair: \ud800"]}
    given = saved(settings={"C": 0.1, "fields": ["text"]}, arrays=arrays, words=words)
    write_rung(tmp_path, given)
    found = read_rung(tmp_path, "memory")
    assert (found.fields, found.classes) == (given.fields, given.classes)
    assert (found.settings, found.words) == (given.settings, words)
    assert set(found.arrays) == set(arrays)
    for name, array in arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


def test_what_is_not_needed_any_more_goes(tmp_path: Path):
    write_rung(tmp_path, saved(arrays={"a": np.ones(2)}, words={"w": ["x"]}))
    assert {path.name for path in tmp_path.iterdir()} == {RECORD, ARRAYS, WORDS}
    write_rung(tmp_path, saved())
    assert {path.name for path in tmp_path.iterdir()} == {RECORD}
    assert read_rung(tmp_path, "memory") == saved()


def test_a_failed_save_leaves_the_old_rung(tmp_path: Path):
    write_rung(tmp_path, saved(settings={"C": 1}))
    with pytest.raises(TypeError):
        write_rung(tmp_path, saved(settings={"C": object()}))
    assert read_rung(tmp_path, "memory").settings == {"C": 1}
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]


def test_a_full_disk_is_an_error_of_the_files(tmp_path: Path):
    write_rung(tmp_path, saved(settings={"C": 1}))
    with full_disk(1000), pytest.raises(OSError, match="too large") as raised:
        write_rung(tmp_path, saved(arrays={"a": np.ones(1000)}))
    assert raised.value.errno == errno.EFBIG
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]
    assert read_rung(tmp_path, "memory").settings == {"C": 1}


def test_no_rung(tmp_path: Path):
    with pytest.raises(InputError, match=r"holds no trained rung \(rung\.json is missing\)"):
        read_rung(tmp_path / "nowhere", "memory")


def test_another_rung(tmp_path: Path):
    write_rung(tmp_path, saved(rung="majority"))
    with pytest.raises(InputError, match="holds the rung majority, not memory"):
        read_rung(tmp_path, "memory")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rung": "memory"}', '{"rung": "memory", '])
def test_damaged_record(tmp_path: Path, content: str):
    (tmp_path / RECORD).write_text(content, encoding="utf-8")
    with pytest.raises(InputError):
        read_rung(tmp_path, "memory")


def test_another_version(tmp_path: Path):
    write_rung(tmp_path, saved())
    record = json.loads((tmp_path / RECORD).read_text(encoding="utf-8"))
    (tmp_path / RECORD).write_text(json.dumps(record | {"schema": 2}), encoding="utf-8")
    with pytest.raises(InputError, match=r"schema 2 where 1 is known.*another version"):
        read_rung(tmp_path, "memory")


def test_files_of_two_rungs_are_not_taken_together(tmp_path: Path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, value in ((old, 1.0), (new, 2.0)):
        write_rung(folder, saved(arrays={"a": np.array([value])}))
    (new / ARRAYS).replace(old / ARRAYS)  # as a process killed before the last rename leaves it
    with pytest.raises(InputError, match=r"arrays\.safetensors does not belong to it"):
        read_rung(old, "memory")


def test_a_lost_file(tmp_path: Path):
    write_rung(tmp_path, saved(words={"w": ["x"]}))
    (tmp_path / WORDS).unlink()
    with pytest.raises(InputError, match="cannot be read \\(FileNotFoundError"):
        read_rung(tmp_path, "memory")
