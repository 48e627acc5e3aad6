"""`llabel sweep`: many settings on the same rows, and what they do."""

from pathlib import Path
from typing import Any

import rich_click as click

from llabel.cli.shared import (
    config_option,
    data_argument,
    fetch_data,
    note_unread,
    out_folder,
    out_option,
    preset_values,
)
from llabel.command_group import COMMAND_LINE
from llabel.options import given, sweep_options
from llabel.precedence import layered


@click.command()
@data_argument
@out_option
@config_option
@sweep_options
@click.pass_context
def sweep(
    ctx: click.Context, data: str | None, out: str | None, config: Path | None, **_: Any
) -> None:
    """Train with many settings on the same rows; show what each of them does, and choose.

    VALUES are one or several, as 1,16,128; every combination is a cell. Values that are lists
    themselves are given one an option: --target-modules q_proj,v_proj --target-modules all-linear.
    lora-alpha 0 is the untouched model: read once, as the control of the others. With --search,
    numbers may be ranges, as 1e-5..1e-2 (logarithmic for rates, ranks and alphas; :linear or :log
    behind it says otherwise), and trainings that fall behind are given up.

    The choice is made on the validation rows; the test part is read once, for the chosen cell.

    The same command goes on where an interrupted one stopped, and with more values adds cells to
    those that are there (a search may be given more --trials, but no other values). Several may
    work in the same --out at once. Cells that fail are rows with their reason, and the exit code
    is 1.

    \b
    Examples:
      llabel sweep reviews.csv --text review --label stars --out runs/sweep \\
          --r 1,16,128 --lora-alpha 0,16,128 --lr 1e-4,1e-3 --seeds 2
      llabel sweep reviews.csv --text review --label stars --out runs/search \\
          --search tpe --trials 40 --lr 1e-5..1e-2 --r 1..256 --lora-alpha 16,32 --jobs 2
      llabel sweep boolq --text question,passage --label answer --group passage \\
          --rung bag-of-words,encoder,llm-lora --train-rows 300,1000,3000 --out runs/rungs
    """
    from llabel.config import read_yaml, sweep_settings
    from llabel.console import messages, output
    from llabel.quiet import quiet_libraries
    from llabel.sweep.axes import read_axes
    from llabel.sweep.sweep import sweep as carry_out
    from llabel.sweep_progress import listen
    from llabel.sweep_view import render_sweep

    file = read_yaml(config) if config else {}
    values = layered(preset_values(ctx), file, command_line=given(ctx))
    values |= {"data": data} if data else {}
    values |= {"out": out} if out else {}
    folder = out_folder(values)
    asked, rest = sweep_settings(values)
    axes = read_axes(rest, searching=asked.search is not None, seeds=asked.seeds)
    note_unread(ctx, axes.rungs)
    fetch_data(str(rest["data"]))
    command = ctx.meta[COMMAND_LINE]
    with quiet_libraries(), listen(messages()) as notify:
        record = carry_out(rest, asked, folder, command=command, notify=notify)
    output().print(render_sweep(record, folder))
    if any(cell["status"] == "failed" for cell in record["cells"]):
        ctx.exit(1)
