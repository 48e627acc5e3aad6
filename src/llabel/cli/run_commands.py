"""`llabel fit`, `llabel evaluate`, `llabel predict`: one run and its use."""

from pathlib import Path
from typing import Any, Literal

import rich_click as click

from llabel.cli.shared import (
    DECODE,
    abstain_option,
    config_option,
    data_argument,
    device_option,
    fetch_data,
    given_values,
    json_option,
    note_unread,
    out_folder,
    out_option,
    refuse_unwritable,
    split_option,
)
from llabel.command_group import COMMAND_LINE
from llabel.options import ONE_RUN, settings_options


@click.command()
@data_argument
@out_option
@config_option
@click.option("--overwrite", is_flag=True, help="Throw away what --out holds of another run.")
@settings_options(*ONE_RUN)
@click.pass_context
def fit(
    ctx: click.Context,
    data: str | None,
    out: str | None,
    config: Path | None,
    overwrite: bool,
    **_: Any,
) -> None:
    """Fine-tune a model on DATA, test it, and leave everything about the run in --out.

    The same command goes on where an interrupted one stopped.

    \b
    Examples:
      llabel fit reviews.csv --text review --label stars --out runs/reviews
      llabel fit boolq --text question,passage --label answer --group passage \\
          --r 16 --lora-alpha 32 --lr 8e-4 --epochs 2 --out runs/boolq
      llabel fit --config run.yaml --seed 1 --out runs/seed-1
    """
    from llabel import run
    from llabel.config import RunConfig
    from llabel.console import listen, messages, output
    from llabel.quiet import quiet_libraries
    from llabel.result_view import render_run

    values = given_values(ctx, data, config) | ({"out": out} if out else {})
    folder = out_folder(values)
    settings = RunConfig.from_flat(values)
    note_unread(ctx, [settings.run.rung])
    fetch_data(settings.source)
    command = ctx.meta[COMMAND_LINE]
    with quiet_libraries(), listen(messages()) as notify:
        record = run.fit(settings, folder, command=command, overwrite=overwrite, notify=notify)
    output().print(render_run(record, folder))


@click.command()
@click.argument("run_folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("data")
@click.option("--label", help="Label column(s). Default: as the run was trained on.")
@split_option
@device_option
@click.option(
    "--decode", type=DECODE, help="How rows are answered (see fit). Default: as the run did."
)
@abstain_option
@click.option("--drop-unlabelled", is_flag=True, help="Leave out rows without a label.")
@json_option
def evaluate(
    run_folder: Path,
    data: str,
    label: str | None,
    split: str | None,
    device: str | None,
    decode: str | None,
    abstain_below: float | None,
    drop_unlabelled: bool,
    json_file: Path | None,
) -> None:
    """Score the finished run at DIR on labelled rows: DATA's test part, or all of a single table.

    \b
    Examples:
      llabel evaluate runs/boolq boolq --split validation
      llabel evaluate runs/reviews other-shop.csv --label rating --json found.json
    """
    from llabel import run
    from llabel.console import listen, messages, output
    from llabel.folder import refuse_own_file, write_json
    from llabel.quiet import quiet_libraries
    from llabel.result_view import render_evaluation

    refuse_unwritable(json_file, data)
    if json_file:
        refuse_own_file(run_folder, json_file, f"--json {json_file}")
    fetch_data(data)
    with quiet_libraries(), listen(messages()) as notify:
        found = run.evaluate(
            run_folder,
            data,
            label=label,
            part=split,
            decode=decode,
            abstain_below=abstain_below,
            drop_unlabelled=drop_unlabelled,
            device=device,
            notify=notify,
        )
    for name, own in found.get("targets", {"": found}).items():
        output().print(
            render_evaluation(
                f"{run_folder} on {data}" + (f": {name}" if name else ""),
                own["metrics"],
                own["report"],
                own["free_answers"],
                own["answered"],
            )
        )
    if json_file:
        write_json(json_file, found)


@click.command()
@click.argument("run_folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("data")
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A .csv, .jsonl or .parquet file: label and the probability of each label.",
)
@split_option
@device_option
@click.option(
    "--decode",
    type=DECODE,
    default="labels",
    show_default=True,
    help="How rows are answered (see fit); probabilities are given either way.",
)
@abstain_option
def predict(
    run_folder: Path,
    data: str,
    out: Path,
    split: str | None,
    device: str | None,
    decode: Literal["labels", "free"],
    abstain_below: float | None,
) -> None:
    """Label every row of DATA with the finished run at DIR.

    Rows stream through, a million of them need no more memory than a thousand. The same command
    goes on where an interrupted one stopped.

    \b
    Examples:
      llabel predict runs/reviews new.csv -o answers.csv
      llabel predict runs/boolq boolq --split validation -o answers.parquet
    """
    from llabel.console import listen, messages
    from llabel.predictions import predict as label_rows
    from llabel.quiet import quiet_libraries

    fetch_data(data)
    with quiet_libraries(), listen(messages()) as notify:
        rows = label_rows(
            run_folder,
            data,
            out,
            part=split,
            decode=decode,
            abstain_below=abstain_below,
            device=device,
            notify=notify,
        )
    click.echo(f"{rows:,} rows labelled in {out}")
