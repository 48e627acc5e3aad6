"""What several commands have in common: arguments, options, and how they read settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from llabel.errors import InputError
from llabel.options import given
from llabel.paths import at_home
from llabel.precedence import layered
from llabel.rung_settings import READS
from llabel.settings import LLMSettings, RungName, SimplerSettings

if TYPE_CHECKING:
    from llabel.config import RunConfig

_Command = TypeVar("_Command", bound=Callable[..., Any])

data_argument = click.argument("data", required=False)
_CONFIG = click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="YAML file of settings, of DATA (data) and --out (out); options given here win "
    "(none undoes one that may be left out).",
)
_PRESET = click.option(
    "--preset",
    metavar="NAME",
    help="Settings of a published experiment, alpaca-qlora or boolq-lora, under those of --config "
    "and the command line.",
)


def config_option(command: _Command) -> _Command:
    """`--config` and `--preset`: where settings come from that are not on the command line."""
    return _CONFIG(_PRESET(command))


json_option = click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the findings there, too.",
)


split_option = click.option("--split", metavar="PART", help="Part of DATA, such as test.")
device_option = click.option("--device", help="auto, cpu, cuda or cuda:N.")
abstain_option = click.option(
    "--abstain-below",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Answer `abstain` where no label is at least so probable. Default: as the run was told.",
)
DECODE = click.Choice(["labels", "free"])


out_option = click.option(
    "--out", metavar="FOLDER", help="Folder of the run. Required, here or in --config."
)


def given_values(ctx: click.Context, data: str | None, config: Path | None) -> dict[str, Any]:
    """Settings of --preset, under those of --config, under those of the command line."""
    from llabel.config import load_yaml

    below = (preset_values(ctx), load_yaml(config) if config else {})
    return layered(*below, command_line=given(ctx)) | ({"data": data} if data else {})


def preset_values(ctx: click.Context) -> dict[str, Any]:
    """Settings of --preset, if it was given."""
    from llabel.presets import preset

    name = ctx.params.get("preset")
    return preset(name) if name else {}


def refuse_missing(values: Mapping[str, Any], *names: str) -> None:
    """Name all settings that are needed, or are among `names`, and not given.

    Where the columns are among them, those of the data are told.

    Raises:
        InputError: something is missing.
    """
    from llabel import config

    try:
        config.refuse_missing(values, [*config.required(), *names])
    except InputError as error:
        raise InputError(f"{error}{_columns_of(values)}") from error


def out_folder(values: dict[str, Any]) -> Path:
    """Take --out out of the settings, of which none that is needed may be missing.

    Raises:
        InputError: as `refuse_missing`, or --out is no text.
    """
    from llabel.config import checked

    refuse_missing(values, "out")
    return at_home(checked({"out": values.pop("out")})["out"])


def _columns_of(values: Mapping[str, Any]) -> str:
    """What columns there are to name, if some are missing and the data lie here."""
    from llabel.data.cells import listed
    from llabel.data.sources import open_source

    data = values.get("data")
    if not data or not at_home(str(data)).exists() or {"text", "label"} <= values.keys():
        return ""
    try:
        return f"\nColumns of {data}: {listed(open_source(str(data)).parts['train'].columns(()))}."
    except (InputError, KeyError):  # what is wrong with the data is said once they are read
        return ""


def note_unread(ctx: click.Context, rungs: Sequence[RungName]) -> None:
    """Say which options of the command line none of the rungs reads."""
    from llabel.config import option
    from llabel.console import messages, notes

    known = {setting.name for room in (LLMSettings, SimplerSettings) for setting in fields(room)}
    read = frozenset().union(*(READS[rung] for rung in rungs))
    if unread := [option(name) for name in given(ctx) if name in known - read]:
        notes(messages(), [f"Without effect on {', '.join(rungs)}: {', '.join(unread)}."])


def run_config(ctx: click.Context, data: str | None, config: Path | None) -> "RunConfig":
    """The same, checked and whole, for commands that write no run folder."""
    from llabel.config import RunConfig

    values = given_values(ctx, data, config)
    values.pop("out", None)
    refuse_missing(values)
    return RunConfig.from_flat(values)


def fetch_data(data: str) -> None:
    """A built-in data set that is not on this machine yet comes with a bar."""
    from llabel.assets import BUILT_IN, fetch
    from llabel.console import fetching, messages

    asset = BUILT_IN.get(data)
    if asset and asset.kind == "data":  # what else it may name is left to the reading of it
        with fetching(messages()) as progress:
            fetch(asset, progress)


def refuse_unwritable(
    path: Path | None, *sources: str | None, files: Sequence[str | Path | None] = ()
) -> None:
    """Before the work that would be lost, or what is read that would be replaced.

    Args:
        path: of --json.
        sources: the data; of a folder, all that lies in it.
        files: that settings are read from, if they are files.

    Raises:
        InputError: it cannot be written there.
    """
    from llabel.folder import refuse_data

    if path is None:
        return
    if str(path) == "-":
        raise InputError("--json -: standard output has the tables. Name a file.")
    if not path.parent.is_dir():
        raise InputError(f"--json {path}: the folder {path.parent} does not exist.")
    refuse_data(path, f"--json {path}", *sources)
    for file in (at_home(name) for name in files if name):
        if path.exists() and file.exists() and path.samefile(file):
            raise InputError(f"--json {path} would overwrite {file}, which is read. Name another.")
