"""`llabel compare`: every rung on the same rows, and a verdict."""

from pathlib import Path
from typing import Any

import rich_click as click

from llabel.cli.shared import (
    config_option,
    data_argument,
    fetch_data,
    given_values,
    note_unread,
    out_folder,
    out_option,
)
from llabel.command_group import COMMAND_LINE
from llabel.options import COMPARISON, settings_options

TRIALS = 3  # learning rates (or C) that each rung may try, unless said otherwise


@click.command()
@data_argument
@out_option
@config_option
@click.option(
    "--overwrite",
    is_flag=True,
    help="Throw away runs that --out holds with other settings or rows.",
)
@settings_options(*COMPARISON, trials=TRIALS)
@click.pass_context
def compare(
    ctx: click.Context,
    data: str | None,
    out: str | None,
    config: Path | None,
    overwrite: bool,
    **_: Any,
) -> None:
    """Train and test every rung of the ladder on the same rows; say which one to use.

    From the majority class over bag of words and a pre-trained encoder to the fine-tuned LLM: one
    split, the same number of trials for each, paired tests, costs, a verdict with its reason, and
    a page (report.html) with all of it. The same command goes on where an interrupted one stopped.

    A rung that fails is a row with its reason; the others are compared, and the exit code is 1.

    \b
    Examples:
      llabel compare reviews.csv --text review --label stars --out runs/ladder
      llabel compare reviews.csv --text review --label stars --out runs/quick \\
          --rungs majority,bag-of-words,encoder,llm-lora --trials 1 --budget 10m
      llabel compare --config run.yaml --seeds 3 --curve 100,300 --out runs/full
      llabel compare letters.csv --text text --label author,language \\
          --out runs/letters
    """
    from llabel.compare.compare import compare_each
    from llabel.compare_view import render_comparison
    from llabel.config import RunConfig, compare_settings
    from llabel.console import listen, messages, output
    from llabel.quiet import quiet_libraries

    values = {"trials": TRIALS} | given_values(ctx, data, config) | ({"out": out} if out else {})
    folder = out_folder(values)
    asked, rest = compare_settings(values)
    settings = RunConfig.from_flat(rest)
    note_unread(ctx, asked.rungs)
    fetch_data(settings.source)
    command = ctx.meta[COMMAND_LINE]
    with quiet_libraries(), listen(messages()) as notify:
        found = compare_each(
            settings, asked, folder, command=command, overwrite=overwrite, notify=notify
        )
    for own, record in found.values():
        output().print(render_comparison(record, own))
    if any(rung["status"] == "failed" for _, record in found.values() for rung in record["rungs"]):
        ctx.exit(1)
