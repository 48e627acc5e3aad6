"""What the user should know of data that are used all the same, one sentence each."""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations

from llabel.data.cells import listed, shown
from llabel.data.columns import Columns
from llabel.data.sources import ROLES, Part
from llabel.task import Label, Split


def note_shared_groups(splits: Mapping[str, Split], group: str | None, notes: list[str]) -> None:
    """Rows whose group also stands in a part before theirs, of the rows that are used at last.

    Only parts that were given can share one.
    """
    for before, role in combinations(ROLES, 2):
        known = set(splits[before].groups or ())
        shared = sum(value in known for value in splits[role].groups or ())
        if shared:
            notes.append(
                f"{shared:,} of {len(splits[role]):,} {role} rows share their {shown(group)} with "
                f"a {before} row; parts that are given stay as they are."
            )


def note_separator(part: Part, columns: Columns, notes: list[str]) -> None:
    """A table whose cells are separated otherwise than its name says."""
    found = part.separator(columns.wanted)
    if found is not None:
        notes.append(f"{part.origin}: its cells are separated by {found!r} and are read so.")


def note_lacking_classes(
    splits: Mapping[str, Split], classes: Sequence[Label], cut: Collection[str], notes: list[str]
) -> None:
    """Classes of which a held part has no row."""
    for role in ("validation", "test"):
        there = set(splits[role].y.tolist())
        lacking = [label for index, label in enumerate(classes) if index not in there]
        if lacking:
            remedy = (
                f"; choose a larger --{role}-size, another --seed or other groups."
                if role in cut
                else "; the part is used as given."
            )
            notes.append(
                f"the {role} part has no row of {'class' if len(lacking) == 1 else 'classes'} "
                f"{listed(lacking, 5)}, so how well {'it is' if len(lacking) == 1 else 'they are'} "
                f"told is not measured there{remedy}"
            )


def note_empty_texts(splits: Mapping[str, Split], fields: Sequence[str], notes: list[str]) -> None:
    """Columns that are empty in some rows."""
    for index, name in enumerate(fields):
        counts = {
            role: sum(not texts[index].strip() for texts in splits[role].texts) for role in ROLES
        }
        if any(counts.values()):
            told = ", ".join(f"{count:,} {role}" for role, count in counts.items() if count)
            notes.append(f"column {shown(name)} is empty in some rows: {told}.")
