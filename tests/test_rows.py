import dataclasses

import numpy as np

from llabel.data.rows import fingerprint, folded, long_fields, unseen_rows
from llabel.task import Split


def test_the_fingerprint_tells_every_cell_label_and_part() -> None:
    def split(texts: list[tuple[str, ...]], y: list[int]) -> Split:
        ids = tuple(f"{i}" for i in range(len(y)))
        return Split(ids, tuple(texts), np.array(y, dtype=np.int64))

    a, b = split([("x", "yz"), ("p", "q")], [0, 1]), split([("k", "l")], [1])
    none = split([], [])
    parts = {"train": a, "test": b}
    variants = [
        (("f", "g"), ("0", "1"), parts),
        (("f", "h"), ("0", "1"), parts),
        (("f", "g"), (0, 1), parts),
        (("f", "g"), (False, True), parts),
        (("f", "g"), ("0", "1"), {"train": b, "test": a}),
        (("f", "g"), ("0", "1"), {"train": a, "validation": b}),
        (("f", "g"), ("0", "1"), {"train": split([("xy", "z"), ("p", "q")], [0, 1]), "test": b}),
        (("f", "g"), ("0", "1"), {"train": split([("x", "yz"), ("p", "Q")], [0, 1]), "test": b}),
        (("f", "g"), ("0", "1"), {"train": split([("x", "yz"), ("p", "q")], [0, 0]), "test": b}),
        (("f", "g"), ("0", "1"), {"train": split([("p", "q"), ("x", "yz")], [1, 0]), "test": b}),
        (("f", "g"), ("0", "1"), {"train": a, "test": none}),
    ]
    assert len({fingerprint(*variant) for variant in variants}) == len(variants)
    renamed = dataclasses.replace(a, ids=("r", "s"))
    assert fingerprint(("f", "g"), ("0", "1"), {"test": b, "train": renamed}) == fingerprint(
        *variants[0]
    )


def test_folded_texts_are_the_same_but_for_case_and_spaces() -> None:
    assert folded(" Stra\u00dfe\t 5\n") == folded("STRASSE 5") == "strasse 5"
    assert folded("a b") != folded("ab")


def test_folded_texts_are_the_same_in_every_unicode_form() -> None:
    assert folded("caf\u00e9") == folded("Cafe\u0301")


def test_unseen_rows_share_no_long_text() -> None:
    def split(texts: list[tuple[str, ...]]) -> Split:
        return Split(("",) * len(texts), tuple(texts), np.zeros(len(texts), dtype=np.int64))

    long = "a long passage " * 10
    seen = split([("who?", long), ("what?", "b" * 120), ("when?", "")])
    other = split([("new", long.upper() + "\n"), ("who?", "c" * 120), ("new", ""), ("x", "what?")])
    fields = ("question", "passage")
    assert long_fields([seen], fields) == ("passage",)
    assert unseen_rows([seen], other, fields).tolist() == [False, True, True, True]
    short = split([("who?", "a"), ("what?", "bb")])
    assert long_fields([short], ("question", "passage")) == ("question",)
    assert unseen_rows([short], other, ("question", "passage")).tolist() == [
        True,
        False,
        True,
        True,
    ]


def test_a_text_may_hold_half_a_surrogate_pair() -> None:
    def found(text: str) -> str:
        split = Split(("1",), ((text,),), np.array([0], dtype=np.int64))
        return fingerprint(("f",), ("a", "b"), {"train": split})

    assert len({found(text) for text in ("a", "a\ud83d", "a\ude00", "a\ud83d\ude00", "a😀")}) == 5
    assert found("a😀") == ("c2b187a423c4a8fa2f53e8456c4895d8adca3e43f79ae500f9d032d0e7994c12"), (
        "others stay what they were"
    )
