"""`llabel merge`: a tuned run as a plain Hugging Face model."""

from pathlib import Path
from typing import Any, Literal

import rich_click as click
from click.exceptions import Exit

from llabel.cli.shared import device_option


@click.command()
@click.argument("run_folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="A new or empty folder.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of the weights that are written. float32 loses nothing; the others halve the files.",
)
@click.option(
    "--max-flips",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Largest share of answers that may change; beyond it nothing is written.",
)
@click.option(
    "--data",
    metavar="DATA",
    help="Texts to compare answers on. Default: the run's validation rows.",
)
@click.option(
    "--rows",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Compare answers on so many of them at most.",
)
@device_option
def merge(
    run_folder: Path,
    out: Path,
    dtype: Literal["float32", "bfloat16", "float16"],
    max_flips: float,
    data: str | None,
    rows: int,
    device: str | None,
) -> None:
    """Write the LLM of the finished run at DIR with its adapter merged in: a model like any other.

    MODEL holds safetensors, config and tokenizer, and needs neither PEFT nor bitsandbytes. After
    QLoRA the adapter is merged into the base's 4-bit numbers, unpacked. The written model is then
    asked the run's validation rows: what changes is printed, and above --max-flips the command
    fails (exit code 1) and leaves nothing. It takes 4 bytes of memory a parameter.

    \b
    Examples:
      llabel merge runs/reviews -o models/reviews
      llabel merge runs/reviews -o models/reviews --dtype bfloat16 --data newer.csv
    """
    from llabel.console import listen, messages, notes
    from llabel.merge import merge as write
    from llabel.quiet import quiet_libraries

    keywords: dict[str, Any] = {"data": data, "rows": rows, "device": device}
    with quiet_libraries(), listen(messages()) as notify:
        found = write(run_folder, out, dtype=dtype, max_flips=max_flips, notify=notify, **keywords)
    click.echo(
        f"{found.flips} of {found.rows} answers change ({found.flips / found.rows:.2%}); "
        f"probabilities move by {found.mean_move:.2g} on average, by {found.max_move:.2g} at most."
    )
    if not found.within(max_flips):
        notes(
            messages(),
            [
                f"Error: that is more than --max-flips {max_flips:g} allows, so nothing was "
                "written. --dtype float32 changes least."
            ],
        )
        raise Exit(1)
    click.echo(f"Written to {out}, in {dtype}: use it as --model {out}.")
