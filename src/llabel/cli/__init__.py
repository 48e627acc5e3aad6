"""The command line: one short function a command; what is heavy is imported inside it."""

import rich_click as click

from llabel import __version__
from llabel.cli.compare_command import compare
from llabel.cli.data_commands import assets, check, prompt
from llabel.cli.merge_command import merge
from llabel.cli.run_commands import evaluate, fit, predict
from llabel.cli.sweep_command import sweep
from llabel.command_group import Commands

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


for command in (check, prompt, fit, evaluate, predict, compare, sweep, merge, assets):
    main.add_command(command)
