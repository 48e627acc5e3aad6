"""What is read, and how it is cut into parts."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from llabel.settings.kinds import Help, Names


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """What is read, and how it is cut into parts."""

    text: Annotated[
        tuple[str, ...],
        Help(
            "Text columns, as A,B, in the prompt's order; "
            "one with a comma in its name as '\"A, or B\",C'."
        ),
    ]
    label: Annotated[
        str,
        Names(),
        Help("Label column: string, bool or int; several as A,B, for one model that answers all."),
    ]
    target: Annotated[
        str | None,
        Help("Of several label columns the one to learn alone; rows and splits stay those of all."),
    ] = None
    group: Annotated[
        str | None, Help("Rows that share this column's value stay on one side of every split.")
    ] = None
    split_column: Annotated[
        str | None, Help("Column that says train, validation or test for each row.")
    ] = None
    validation: Annotated[str | None, Help("A file of validation rows.")] = None
    test: Annotated[str | None, Help("A file of test rows.")] = None
    test_split: Annotated[str | None, Help("Which given part to hold as the test part.")] = None
    validation_size: Annotated[
        float,
        Interval(gt=0, lt=1),
        Help(
            "Share cut off for validation: of the training rows as they were given; of a lone "
            "table, of all its rows."
        ),
    ] = 0.1
    test_size: Annotated[
        float, Interval(gt=0, lt=1), Help("Share of all rows cut off for the test.")
    ] = 0.2
    train_rows: Annotated[
        int | None, Ge(1), Help("Train on a sample of so many rows (see --sampling).")
    ] = None
    test_rows: Annotated[
        int | None, Ge(1), Help("Test on a sample of so many of the rows held out for it.")
    ] = None
    sampling: Annotated[
        Literal["stratified", "natural", "balanced"],
        Help(
            "How both samples are drawn: stratified keeps the shares of the classes, balanced "
            "makes them equal as far as there are rows, natural leaves them to chance."
        ),
    ] = "stratified"
    normalise_labels: Annotated[
        bool, Help("Treat labels that differ only by case or space as one.")
    ] = False
    drop_unlabelled: Annotated[
        bool, Help("Leave out rows without a label, in place of refusing the data.")
    ] = False
    map_labels: Annotated[
        str | None,
        Help(
            "YAML file of lines OLD: NEW that merge labels, or OLD: null that drop a label with "
            "its rows, before anything is cut."
        ),
    ] = None
    split_seed: Annotated[
        int | None,
        Interval(ge=0, lt=2**31),
        Help("Which rows are held out and sampled. Default: --seed."),
    ] = None
