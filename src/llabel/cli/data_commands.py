"""`llabel check`, `llabel prompt`, `llabel assets`: looking before the training."""

from pathlib import Path
from typing import Any

import rich_click as click

from llabel.cli.shared import (
    config_option,
    data_argument,
    fetch_data,
    json_option,
    refuse_unwritable,
    run_config,
)
from llabel.errors import InputError
from llabel.options import PANELS, settings_options

COSTLY = (
    *("r", "lora_dropout", "target_modules", "adapt_layers"),
    *("loss", "epochs", "max_steps", "batch_size", "trials", "refit", "seed"),
    *("precision", "base", "engine", "compile", "device"),
    *("token_budget", "gradient_checkpointing"),
)
ROW = "Which row, counted from 1 (by default the first); as validation:3 of several parts of DATA."


@click.command()
@data_argument
@config_option
@json_option
@settings_options(*PANELS["Data"], *PANELS["Model and prompt"], *COSTLY)
@click.pass_context
def check(
    ctx: click.Context, data: str | None, config: Path | None, json_file: Path | None, **_: Any
) -> None:
    """Look the data over before an hour goes into training on them.

    Class counts, token lengths, rows that will be cut, duplicates, contradictions, overlap
    between train and test in each text column and what looking it up scores, and the time and
    memory of a run on this machine. The model's weights are not loaded.

    \b
    Examples:
      llabel check reviews.csv --text review --label stars
      llabel check boolq --text question,passage --label answer \\
          --group passage --max-seq-length 256 --json boolq.json
    """
    from dataclasses import asdict

    from rich.text import Text

    from llabel import dry_run, run
    from llabel.check import check as look_over
    from llabel.check.view import render
    from llabel.console import fetching, messages, notes, output
    from llabel.data.cells import printable
    from llabel.folder import write_json
    from llabel.quiet import quiet_libraries

    settings = run_config(ctx, data, config)
    refuse_unwritable(
        json_file,
        *(settings.source, settings.data.validation, settings.data.test),
        files=(config, settings.data.map_labels, settings.llm.template),
    )
    fetch_data(settings.source)
    loaded = run.load(settings)
    notes(messages(), loaded.notes)
    with quiet_libraries(), fetching(messages()) as progress:
        rung = dry_run.prepare(settings, loaded.task, progress)
    notes(messages(), ["counting tokens, comparing rows, measuring this machine"])
    with quiet_libraries():
        cost = dry_run.run_cost(rung, loaded.task)
        reports = {
            name: look_over(
                own.task,
                rung.encoder_.lengths,
                max_length=rung.max_length_,
                cost=cost,
                cut=loaded.cut,
                template_length=dry_run.template_length(rung),
            )
            for name, own in (loaded.targets or {"": loaded}).items()
        }
    for name, report in reports.items():
        if name:
            output().rule(Text(f"target {printable(name)}"))
        output().print(render(report))
    if json_file:
        found = {name: asdict(report) for name, report in reports.items()}
        write_json(json_file, found if loaded.targets else found[""])


@click.command()
@data_argument
@config_option
@click.option("--row", metavar="[PART:]N", help=ROW)
@click.option("--all-tokens", is_flag=True, help="Show the middle of long texts, too.")
@settings_options(*PANELS["Data"], *PANELS["Model and prompt"], "loss", "seed")
@click.pass_context
def prompt(
    ctx: click.Context,
    data: str | None,
    config: Path | None,
    row: str | None,
    all_tokens: bool,
    **_: Any,
) -> None:
    """Show one row as the model reads it: as text, and token by token.

    Each token is marked with the column it is from; at the positions that the loss reads stands
    what it compares there. The model's weights are not loaded.

    \b
    Examples:
      llabel prompt boolq --text question,passage --label answer --row 3
      llabel prompt boolq --text question,passage --label answer \\
          --row validation:12 --template alpaca --loss sft
    """
    from llabel import dry_run, prompt_view
    from llabel.console import fetching, messages, output
    from llabel.quiet import quiet_libraries

    settings = run_config(ctx, data, config)
    fetch_data(settings.source)
    task, name, text, label = dry_run.find_row(settings, row)
    with quiet_libraries(), fetching(messages()) as progress:
        rung = dry_run.prepare(settings, task, progress)
    view = prompt_view.render(rung, name, text, label, all_tokens=all_tokens)
    output().print(view, soft_wrap=True)


@click.command()
@click.option(
    "--fetch", "names", multiple=True, metavar="NAME", help="Download it now (repeatable)."
)
def assets(names: tuple[str, ...]) -> None:
    """List the built-in models and data sets, and what of them is on this machine.

    \b
    Examples:
      llabel assets
      llabel assets --fetch smollm2-135m --fetch boolq
    """
    from llabel.assets import BUILT_IN, asset_status, cache_folder, fetch
    from llabel.console import fetching, messages, output
    from llabel.result_view import render_assets

    for name in names:
        if name not in BUILT_IN:
            raise InputError(f"--fetch {name!r}: built in are {', '.join(BUILT_IN)}.")
    with fetching(messages()) as progress:
        for name in names:
            fetch(BUILT_IN[name], progress)
    output().print(render_assets(list(map(asset_status, BUILT_IN.values())), cache_folder()))
