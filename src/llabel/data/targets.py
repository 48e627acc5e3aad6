"""Several labels a row: one task for each target, on the same rows and splits."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from llabel.data.cells import listed, shown
from llabel.data.classes import (
    MissingLabelError,
    lookalike_form,
    meant,
    normal_form,
    read_labels,
)
from llabel.data.columns import Columns, Table
from llabel.data.cutting import cut_missing, draw, note_missed
from llabel.data.label_map import LabelMap, MappedLabel, key_of_labels, read_label_map
from llabel.data.load import (
    CUT_PARTS,
    LoadedTask,
    check_cuts,
    checked_columns,
    final_labels,
    labelled,
    read_tables,
)
from llabel.data.notes import note_empty_texts, note_lacking_classes, note_shared_groups
from llabel.data.rows import fingerprint
from llabel.data.sources import Source, open_source, with_files
from llabel.data.splitting import Sampling
from llabel.errors import InputError
from llabel.task import ClassIndices, Label, Split, TargetLabel, Task


def load_targets(
    data: str,
    *,
    text: Sequence[str],
    labels: Sequence[str],
    group: str | None = None,
    split_column: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    test_split: str | None = None,
    validation_size: float = 0.1,
    test_size: float = 0.2,
    train_rows: int | None = None,
    test_rows: int | None = None,
    sampling: Sampling = "stratified",
    normalise_labels: bool = False,
    drop_unlabelled: bool = False,
    map_labels: str | None = None,
    seed: int = 0,
) -> LoadedTask:
    """Read a table with several label columns and lock its rows, the same for all of them.

    Cuts and draws are stratified by the labels together; combinations that are too rare for it
    count as the most frequent one with the same first label.

    Args:
        labels: the label columns, two at least.
        map_labels: a file whose lines go to the columns that have such a label. A row that is
            dropped for one target is dropped for all.
        data, text, group, split_column, validation, test, test_split, validation_size, test_size,
            train_rows, test_rows, sampling, normalise_labels, drop_unlabelled, seed: as for
            `load_task`.

    Returns:
        The task of all targets, y (n, n_targets); `targets` holds each one's own.

    Raises:
        InputError: as `load_task`; a row that lacks the label of a target; a target that loses
            a class by the cut.
    """
    check_cuts(validation_size, test_size, seed, test, test_split)
    if twice := [name for name in labels if labels.count(name) > 1]:
        raise InputError(f"--label {','.join(labels)}: {twice[0]} is named twice. Name each once.")
    if "id" in labels:
        raise InputError(
            f"--label {','.join(labels)}: predictions call the row `id` and each target by its "
            "column. Rename the column id."
        )
    label_map = None if map_labels is None else read_label_map(map_labels)
    notes: list[str] = []
    tables = {}
    for name in labels:  # the rows are the same each time, their label is another
        columns = Columns(checked_columns(text, name), name, group, split_column)
        source = with_files(open_source(data), validation, test)
        said: list[str] = []
        tables[name] = read_tables(
            source, columns, test_split, said,
            keep_validation=validation is not None, drop_unlabelled=drop_unlabelled,
            normalise=normalise_labels,
        )  # fmt: skip
        notes += [note for note in said if note not in notes]
    own_notes: dict[str, list[str]] = {name: [] for name in labels}
    found = _labels_of_all(tables, normalise_labels, label_map, own_notes)
    parts = _Parts({
        name: labelled(kept, name, values) for name, (kept, values, _) in found.items()
    })  # fmt: skip
    cut = tuple(role for role in CUT_PARTS if role not in parts.splits)
    sizes = {"test": test_size, "validation": validation_size}
    parts = parts.cut(sizes, seed, notes, group=group)
    parts = parts.drawn({"train": train_rows, "test": test_rows}, sampling, seed, notes)
    note_shared_groups(parts.splits, group, notes)
    tasks = {}
    for name, (classes, splits) in parts.targets.items():
        said = own_notes[name]
        note_lacking_classes(splits, classes, cut, said)
        if name == labels[0]:
            note_empty_texts(splits, tuple(text), notes)
        task = _task(source, tuple(text), classes, splits)
        told = (*notes, *(f"{name}: {note}" for note in said))
        tasks[name] = LoadedTask(task, told, cut, tuple(found[name][2]))
    every = [*notes, *(f"{name}: {note}" for name in labels for note in own_notes[name])]
    whole = joint_task({name: loaded.task for name, loaded in tasks.items()})
    return LoadedTask(whole, tuple(every), cut, targets=tasks)


def joint_task(tasks: Mapping[str, Task]) -> Task:
    """One task of all targets from a task of each on the same rows."""
    first = next(iter(tasks.values()))
    starts = np.cumsum([0, *(len(task.classes) for task in tasks.values())]).tolist()

    def joint(part: str) -> Split:
        each = [getattr(task, part).y for task in tasks.values()]
        y = np.stack([own + start for own, start in zip(each, starts, strict=False)], axis=1)
        split: Split = getattr(first, part)
        return replace(split, y=y)

    digest = hashlib.sha256(b"llabel targets 1")
    for name, task in tasks.items():
        digest.update(f"{len(name)}:{name}{task.fingerprint}".encode())
    return Task(
        name=first.name,
        fields=first.fields,
        classes=tuple(TargetLabel(n, label) for n, task in tasks.items() for label in task.classes),
        train=joint("train"),
        validation=joint("validation"),
        test=joint("test"),
        fingerprint=digest.hexdigest(),
    )


_Labelled = tuple[tuple[Label, ...], dict[str, Split]]  # classes, and the splits by part
_Final = tuple[dict[str, Table], list[list[Label]], list[MappedLabel]]


def _labels_of_all(
    tables: Mapping[str, dict[str, Table]],
    normalise: bool,
    label_map: LabelMap | None,
    notes: Mapping[str, list[str]],
) -> dict[str, _Final]:
    """Rows that keep a label of every target, and these; what the map did to each target."""
    try:
        maps = _maps(tables, label_map, normalise)
        found = {
            name: final_labels(own, name, normalise, maps[name], notes[name])
            for name, own in tables.items()
        }
    except MissingLabelError as error:
        raise InputError(
            f"{_lacking(tables)} With --label {','.join(tables)} every row needs a label for each "
            "of them; rows that have only one can be learned from with that --label alone."
        ) from error
    for number, role in enumerate(next(iter(tables.values()))):
        common = _common(kept[role] for kept, _, _ in found.values())
        if not common and _common(own[role] for own in tables.values()):
            raise InputError(f"--map-labels drops every row of the {role} part. Drop fewer labels.")
        if not common:
            first = next(iter(tables.values()))[role]
            raise InputError(
                f"{first.places[0][0]}: no row of the {role} part has a label in each of the "
                f"columns {listed(tables)}. Fill the labels in, or learn each column from its own "
                "rows, with that --label alone."
            )
        for kept, values, _ in found.values():
            rows = [row for row, one in enumerate(kept[role].ids) if one in common]
            if len(rows) < len(kept[role].ids):
                kept[role] = kept[role].take(rows, role)
                values[number] = [values[number][row] for row in rows]
    return found


def _common(tables: Iterable[Table]) -> set[str]:
    """Ids of the rows that are in all of them."""
    return set.intersection(*(set(table.ids) for table in tables))


def _lacking(tables: Mapping[str, dict[str, Table]]) -> str:
    """What is missing of each target."""
    told = []
    for name, own in tables.items():
        try:
            read_labels(name, [table.label_cells for table in own.values()])
        except MissingLabelError as error:
            told.append(str(error))
    return " ".join(told)


def _maps(
    tables: Mapping[str, dict[str, Table]], label_map: LabelMap | None, normalise: bool
) -> dict[str, LabelMap | None]:
    """The lines of the map that speak of each target's labels."""
    maps: dict[str, LabelMap | None] = dict.fromkeys(tables)
    if label_map is None:
        return maps
    left = dict(label_map.entries)
    labels: dict[str, None] = {}
    for name, own in tables.items():
        cells = [table.label_cells for table in own.values()]
        found = read_labels(name, cells, normalise=normalise)
        there = {label for part in found for label in part}
        key = key_of_labels(there)
        known = {key(label): None for label in there}
        labels |= known
        mine = {
            old: new
            for old, new in label_map.entries.items()
            if (normal_form(old) if normalise else key(old)) in known
        }
        left = {old: new for old, new in left.items() if old not in mine}
        maps[name] = LabelMap(label_map.file, mine) if mine else None
    if left:
        raise InputError(
            f"{label_map.option}: no row has the label {listed(list(left), 5)}: columns "
            f"{' and '.join(map(shown, tables))} hold {listed(sorted(labels))}."
            + meant(next(iter(left)), labels)
        )
    return maps


class _Parts:
    """The parts of all targets, cut together.

    Args:
        targets: for each target its classes, and its splits of the same rows.
    """

    def __init__(self, targets: dict[str, _Labelled]) -> None:
        self.targets = targets
        _, self.splits = next(iter(targets.values()))

    def cut(
        self, sizes: Mapping[str, float], seed: int, notes: list[str], *, group: str | None
    ) -> "_Parts":
        """See `cut_missing`."""
        missing = [role for role in CUT_PARTS if role not in self.splits]
        names, splits = self._together(least=1 + len(missing))
        done = self._like(cut_missing(splits, sizes, names, seed, notes, group=group))
        for target, (classes, own) in done.targets.items():
            lost = np.setdiff1d(np.arange(len(classes)), own["train"].y)
            if len(lost):
                raise InputError(
                    f"--label {target}: {shown(classes[lost[0]])} has too few rows: none is left "
                    f"to learn from beside {' and '.join(missing)}. Add rows, merge the label "
                    "with another (--map-labels), or choose another --split-seed."
                )
        return done

    def drawn(
        self,
        counts: Mapping[str, int | None],
        sampling: Sampling,
        seed: int,
        notes: list[str],
    ) -> "_Parts":
        """See `draw`."""
        names, splits = self._together(least=1)
        fewest = min((count for count in counts.values() if count), default=len(names))
        if fewest < len(names):  # a row of each combination is more than is asked for
            names, splits = next(iter(self.targets.values()))
        drawn = self._like(draw(splits, counts, sampling, names, seed, notes))
        for target, (classes, own) in drawn.targets.items():
            note_missed(self.targets[target][1]["train"], own["train"], classes, notes, of=target)
        return drawn

    def _together(self, least: int) -> tuple[tuple[Label, ...], dict[str, Split]]:
        """The splits with the labels of all targets as one.

        Combinations with fewer than `least` rows (or groups) in train count as the most frequent
        one with the same first label.
        """
        each = {
            role: np.stack([own[role].y for _, own in self.targets.values()], axis=1)
            for role in self.splits
        }
        combinations, codes = np.unique(
            np.concatenate(list(each.values())), axis=0, return_inverse=True
        )
        ends = np.cumsum([len(y) for y in each.values()])[:-1]
        by_role = dict(zip(each, np.split(codes.reshape(-1).astype(np.int64), ends), strict=True))
        counts = _counts(by_role["train"], self.splits["train"].groups, len(combinations))
        kept, renumbered = _merged(combinations, counts, least)
        classes = [classes for classes, _ in self.targets.values()]
        names = tuple(
            " + ".join(str(own[n]) for own, n in zip(classes, combinations[code], strict=True))
            for code in kept
        )
        return names, {
            role: replace(split, y=renumbered[by_role[role]].astype(np.int64))
            for role, split in self.splits.items()
        }

    def _like(self, splits: Mapping[str, Split]) -> "_Parts":
        """Each target's labels of the rows of `splits`."""
        targets = {}
        for name, (classes, own) in self.targets.items():
            y = {
                one: index
                for split in own.values()
                for one, index in zip(split.ids, split.y.tolist(), strict=True)
            }
            targets[name] = (
                classes,
                {
                    role: replace(split, y=np.array([y[one] for one in split.ids], dtype=np.int64))
                    for role, split in splits.items()
                },
            )
        return _Parts(targets)


def strata(y: ClassIndices, least: int) -> ClassIndices:
    """(n, n_targets) class indices → (n,) one index for the labels together.

    Combinations with fewer than `least` rows count as the most frequent one with the same first
    label.
    """
    combinations, codes, counts = np.unique(y, axis=0, return_inverse=True, return_counts=True)
    _, renumbered = _merged(combinations, counts, least)
    return renumbered[codes.reshape(-1)].astype(np.int64)


def _merged(
    combinations: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], least: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which combinations stay, and the place among them that each one gets."""
    becomes = np.arange(len(combinations))
    for code in np.flatnonzero(counts < least):
        alike = np.flatnonzero(combinations[:, 0] == combinations[code, 0])
        becomes[code] = alike[np.argmax(counts[alike])]
    kept, renumbered = np.unique(becomes, return_inverse=True)
    return kept, renumbered


def _counts(codes: ClassIndices, groups: Sequence[str] | None, size: int) -> npt.NDArray[np.int64]:
    """(size,) rows, or groups, of each code; spellings of one group count once, as in a cut."""
    if groups is not None:
        pairs = set(zip(codes.tolist(), map(lookalike_form, groups), strict=True))
        codes = np.array([code for code, _ in pairs], dtype=np.int64)
    return np.bincount(codes, minlength=size)


def _task(
    source: Source, fields: tuple[str, ...], classes: tuple[Label, ...], splits: dict[str, Split]
) -> Task:
    return Task(
        name=source.name,
        fields=fields,
        classes=classes,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        fingerprint=fingerprint(fields, classes, splits),
    )
