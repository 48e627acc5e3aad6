"""What can be told of locked rows: their fingerprint, and which texts a model has seen."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from llabel.data.cells import composed
from llabel.data.classes import lookalike_form
from llabel.task import Label, Split

LONG_TEXT = 100  # characters, median over training: what is shorter may be equal by chance


def fingerprint(
    fields: Sequence[str], classes: Sequence[Label], splits: Mapping[str, Split]
) -> str:
    """SHA-256 (hex) over fields, classes with their types, and every row's texts and label.

    Every string is preceded by its length and every list by its count, so no two different tasks
    give the same bytes. Row ids and groups are left out: they say where a row stood, not what it
    is.
    """
    digest = hashlib.sha256()

    def add(*texts: str) -> None:
        for text in texts:
            encoded = text.encode("utf-8", "surrogatepass")  # a text may hold half a pair
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)

    def count(number: int) -> None:
        digest.update(number.to_bytes(8, "little"))

    add("llabel task 1")
    count(len(fields))
    add(*fields)
    count(len(classes))
    for label in classes:
        add(type(label).__name__, str(label))
    for part, split in sorted(splits.items()):
        add(part)
        count(len(split))
        for texts, index in zip(split.texts, split.y.tolist(), strict=True):
            count(index)
            add(*texts)
    return digest.hexdigest()


def take(split: Split, rows: npt.NDArray[np.int64]) -> Split:
    """Rows of a split by position: (n,) integers, in the order wanted."""
    positions = rows.tolist()
    return Split(
        ids=tuple(split.ids[row] for row in positions),
        texts=tuple(split.texts[row] for row in positions),
        y=split.y[rows],
        groups=None if split.groups is None else tuple(split.groups[row] for row in positions),
    )


def with_groups_joined(splits: Mapping[str, Split]) -> dict[str, Split]:
    """Give groups that a person takes for the same (see `lookalike_form`) the first one's
    spelling.

    Args:
        splits: by role.
    """
    spelling: dict[str, str] = {}
    return {
        role: split
        if split.groups is None
        else replace(
            split,
            groups=tuple(map(spelling.setdefault, map(lookalike_form, split.groups), split.groups)),
        )
        for role, split in splits.items()
    }


def folded(text: str) -> str:
    """Put into Unicode NFC, collapse white space, fold case: what still counts as the same text."""
    return " ".join(composed(text).split()).casefold()


def long_fields(seen: Sequence[Split], fields: Sequence[str]) -> tuple[str, ...]:
    """Name the fields of median length 100 or more over all `seen` rows, else the longest."""
    rows = [texts for split in seen for texts in split.texts]
    medians = [float(np.median([len(texts[i]) for texts in rows])) for i in range(len(fields))]
    least = min(LONG_TEXT, max(medians))
    longest = [name for name, median in zip(fields, medians, strict=True) if median >= least]
    return tuple(longest) if least == LONG_TEXT else tuple(longest[:1])


def unseen_rows(
    seen: Sequence[Split], other: Split, fields: Sequence[str]
) -> npt.NDArray[np.bool_]:
    """Tell which rows share no long text with the rows a model has seen.

    Texts are compared within their field, `folded`; an empty text is shared with nobody. Which
    fields are long: `long_fields`.

    Args:
        seen: the splits that were learned from or chosen on.
        other: the split to judge.
        fields: names of the text fields.

    Returns:
        (n,) True where none of the row's long texts occurs in `seen`.
    """
    unseen = np.ones(len(other), dtype=np.bool_)
    for name in long_fields(seen, fields):
        index = fields.index(name)
        known = {folded(texts[index]) for split in seen for texts in split.texts} - {""}
        unseen &= [folded(texts[index]) not in known for texts in other.texts]
    return unseen
