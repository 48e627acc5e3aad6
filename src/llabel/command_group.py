"""How commands end where something went wrong: in a sentence, unless the fault is ours."""

import codecs
import errno
import io
import shlex
import sys
from typing import Any, NoReturn

import rich_click as click
from click.exceptions import Exit

from llabel.errors import InputError

COMMAND_LINE = "llabel.command_line"  # where click's context keeps what the user typed
_RESUMABLE = ("fit", "predict", "compare", "sweep")
_INTERRUPTED = 130  # what shells expect of a process that Ctrl-C ended
_FILES = {
    *("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "ENOTDIR", "EEXIST"),
    *("ENAMETOOLONG", "ELOOP"),
}
# By PyTorch's CPU allocator; by CUDA outside PyTorch's own; by cuBLAS and cuDNN.
_SAID_WITHOUT_MEMORY = ("allocate memory", "error: out of memory", "_STATUS_ALLOC_FAILED")
_OUT_OF_MEMORY = (
    "Out of memory. Try a smaller --token-budget or --max-seq-length, --gradient-checkpointing, "
    "--precision bfloat16 (GPU) or int8 (CPU), or a smaller model; with the same --out, add "
    "--overwrite."
)


class Commands(click.RichGroup):
    """A group whose commands end in sentences where the user can do something about it."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; what it prints may hold characters that the terminal's encoding lacks.

        Ours (–, −, the frames of tables) and those of users' texts: a question mark stands for
        each, in place of an error after the work is done.
        """
        for stream in (sys.stdout, sys.stderr):
            if (
                isinstance(stream, io.TextIOWrapper)
                and codecs.lookup(stream.encoding).name != "utf-8"
            ):
                stream.reconfigure(errors="replace")
        return super().main(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words typed, for the run's record, which is UTF-8."""
        for word in args:
            try:
                word.encode()
            except UnicodeEncodeError:
                _end(
                    f"{word!a} is no text in this system's encoding "
                    f"({sys.getfilesystemencoding()}), and what is typed stands in the run's "
                    "record. Rename the file or folder, or type the text anew.",
                    2,
                )
        ctx.meta[COMMAND_LINE] = shlex.join(["llabel", *args])
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of work, not of the alphabet."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what is no bug of ours ends without a traceback."""
        try:
            return super().invoke(ctx)
        except InputError as error:
            _end(str(error), 2)
        except KeyboardInterrupt:
            again = " The same command goes on from where it was last saved."
            _end("Stopped." + (again if ctx.invoked_subcommand in _RESUMABLE else ""), _INTERRUPTED)
        except FloatingPointError as error:
            _end(f"{error} (--learning-rate; with the same --out, --overwrite).", 1)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            _end(f"{_OUT_OF_MEMORY} {_first_line(error)}", 1)
        except OSError as error:
            if errno.errorcode.get(error.errno or 0) not in _FILES:
                raise
            where = f": {error.filename}" if error.filename else ""
            _end(f"{error.strerror}{where}.", 1)


def _end(message: str, code: int) -> NoReturn:
    """Say why on standard error, and leave."""
    from rich.text import Text

    from llabel.console import messages

    told = Text() if code == _INTERRUPTED else Text("Error: ", style="bold red")
    messages().print(told.append(message, style="default not bold"), soft_wrap=True)
    raise Exit(code)


def _is_out_of_memory(error: Exception) -> bool:
    """Of the GPU, of Python, or of PyTorch's CPU allocator; torch need not be imported for it."""
    names = {kind.__name__ for kind in type(error).__mro__}
    said = any(words in str(error) for words in _SAID_WITHOUT_MEMORY)
    return bool(names & {"OutOfMemoryError", "MemoryError"}) or said


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
