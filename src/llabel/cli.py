"""The command line: one short function a command; what is heavy is imported inside it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import rich_click as click

from llabel import __version__
from llabel.command_group import COMMAND_LINE, Commands
from llabel.errors import InputError
from llabel.options import PANELS, given, settings_options

if TYPE_CHECKING:
    from llabel.config import RunConfig

_COSTLY = ("loss", "epochs", "refit", "token_budget", "precision", "compile", "device", "seed")
_ROW = "Which row, counted from 1; as validation:3 where DATA has several parts."
_HELP = {
    "options_table_column_types": ["opt_primary", "metavar", "help"],
    "text_paragraph_linebreaks": "\n\n",
}


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "rich_help_config": _HELP},
)
@click.version_option(__version__, prog_name="llabel")
def main() -> None:
    """Turn a labelled table into an LLM text classifier, scored on rows it never saw.

    Beside its scores stand those of answering without an LLM: with the majority class, and with
    a look-up of texts that are known from training.

    DATA is a table (.csv, .tsv, .jsonl, .parquet, each also .gz), a folder with train, validation
    and test tables, a built-in name (llabel assets), or a Hugging Face Hub id (org/name).

    \b
    Examples:
      llabel check reviews.csv --text review --label stars
      llabel fit reviews.csv --text review --label stars --out runs/reviews
      llabel evaluate runs/reviews other-shop.csv
      llabel predict runs/reviews new.csv -o answers.csv
    """


_data = click.argument("data", required=False)
_config = click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="YAML file of settings, of DATA (data) and --out (out); options given here win "
    "(none undoes one that may be left out).",
)
_json = click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the findings there, too.",
)


_split = click.option("--split", metavar="PART", help="Part of DATA, such as test.")
_device = click.option("--device", help="auto, cpu, cuda or cuda:N.")
_DECODE = click.Choice(["labels", "free"])


@main.command()
@_data
@_config
@_json
@settings_options(*PANELS["Data"], *PANELS["Model and prompt"], *_COSTLY)
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

    from llabel import dry_run, run
    from llabel.check import check as look_over
    from llabel.check.view import render
    from llabel.console import fetching, messages, notes, output
    from llabel.folder import write_json
    from llabel.quiet import quiet_libraries

    _refuse_unwritable(json_file)
    settings = _settings(ctx, data, config)
    _fetch(settings.source)
    loaded = run.load(settings)
    notes(messages(), loaded.notes)
    with quiet_libraries(), fetching(messages()) as progress:
        rung = dry_run.prepare(settings, loaded.task, progress)
    notes(messages(), ["counting tokens, comparing rows, measuring this machine"])
    with quiet_libraries():
        report = look_over(
            loaded.task,
            rung.encoder_.lengths,
            max_length=rung.max_length_,
            cost=dry_run.run_cost(rung, loaded.task),
            cut=loaded.cut,
        )
    output().print(render(report))
    if json_file:
        write_json(json_file, asdict(report))


@main.command()
@_data
@_config
@click.option("--row", default="1", show_default=True, metavar="[PART:]N", help=_ROW)
@click.option("--all-tokens", is_flag=True, help="Show the middle of long texts, too.")
@settings_options(*PANELS["Data"], *PANELS["Model and prompt"], "loss", "seed")
@click.pass_context
def prompt(
    ctx: click.Context,
    data: str | None,
    config: Path | None,
    row: str,
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

    settings = _settings(ctx, data, config)
    _fetch(settings.source)
    task, name, text, label = dry_run.find_row(settings, row)
    with quiet_libraries(), fetching(messages()) as progress:
        rung = dry_run.prepare(settings, task, progress)
    view = prompt_view.render(rung, name, text, label, all_tokens=all_tokens)
    output().print(view, soft_wrap=True)


@main.command()
@_data
@click.option("--out", metavar="FOLDER", help="Folder of the run. Required, here or in --config.")
@_config
@click.option("--overwrite", is_flag=True, help="Throw away what --out holds of another run.")
@settings_options()
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
    from llabel.config import RunConfig, refuse_missing, required
    from llabel.console import listen, messages, output
    from llabel.quiet import quiet_libraries
    from llabel.result_view import render_run

    values = _values(ctx, data, config) | ({"out": out} if out else {})
    refuse_missing(values, [*required(), "out"])
    folder = Path(values.pop("out"))
    settings = RunConfig.from_flat(values)
    _fetch(settings.source)
    command = ctx.meta[COMMAND_LINE]
    with quiet_libraries(), listen(messages()) as notify:
        record = run.fit(settings, folder, command=command, overwrite=overwrite, notify=notify)
    output().print(render_run(record, folder))


@main.command()
@click.argument("run_folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("data")
@click.option("--label", help="Label column. Default: the one the run was trained on.")
@_split
@_device
@click.option(
    "--decode", type=_DECODE, help="How rows are answered (see fit). Default: as the run did."
)
@_json
def evaluate(
    run_folder: Path,
    data: str,
    label: str | None,
    split: str | None,
    device: str | None,
    decode: str | None,
    json_file: Path | None,
) -> None:
    """Score the finished run at DIR on labelled rows: DATA's test part, or all its rows.

    \b
    Examples:
      llabel evaluate runs/boolq boolq --split validation
      llabel evaluate runs/reviews other-shop.csv --label rating --json found.json
    """
    from llabel import run
    from llabel.console import listen, messages, output
    from llabel.folder import write_json
    from llabel.quiet import quiet_libraries
    from llabel.result_view import render_evaluation

    _refuse_unwritable(json_file)
    _fetch(data)
    with quiet_libraries(), listen(messages()) as notify:
        found = run.evaluate(
            run_folder,
            data,
            label=label,
            part=split,
            decode=decode,
            device=device,
            notify=notify,
        )
    output().print(render_evaluation(f"{run_folder} on {data}", found["metrics"], found["report"]))
    if json_file:
        write_json(json_file, found)


@main.command()
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
@_split
@_device
@click.option(
    "--decode",
    type=_DECODE,
    default="labels",
    show_default=True,
    help="How rows are answered (see fit); probabilities are given either way.",
)
def predict(
    run_folder: Path,
    data: str,
    out: Path,
    split: str | None,
    device: str | None,
    decode: Literal["labels", "free"],
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

    _fetch(data)
    with quiet_libraries(), listen(messages()) as notify:
        rows = label_rows(
            run_folder, data, out, part=split, decode=decode, device=device, notify=notify
        )
    click.echo(f"{rows:,} rows labelled in {out}")


@main.command()
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


def _values(ctx: click.Context, data: str | None, config: Path | None) -> dict[str, Any]:
    """Settings of --config, under those of the command line."""
    from llabel.config import load_yaml

    values = load_yaml(config) if config else {}
    return values | given(ctx) | ({"data": data} if data else {})


def _settings(ctx: click.Context, data: str | None, config: Path | None) -> "RunConfig":
    """The same, checked and whole, for commands that write no run folder."""
    from llabel.config import RunConfig

    values = _values(ctx, data, config)
    values.pop("out", None)
    return RunConfig.from_flat(values)


def _fetch(data: str) -> None:
    """A built-in data set that is not on this machine yet comes with a bar."""
    from llabel.console import fetching, messages
    from llabel.dry_run import fetch_data

    with fetching(messages()) as progress:
        fetch_data(data, progress)


def _refuse_unwritable(path: Path | None) -> None:
    """Before the work that would be lost."""
    if path and not path.parent.is_dir():
        raise InputError(f"--json {path}: the folder {path.parent} does not exist.")
