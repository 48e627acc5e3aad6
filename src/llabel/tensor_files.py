"""What cannot be written as safetensors fails as any other file does."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OS_ERROR = re.compile(r"([^:]*?) \(os error (\d+)\)")  # as Rust spells it


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise an `OSError` with its number where safetensors raises an error of its own kind.

    Args:
        path: what is written, for messages; a file, or a folder with such files.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        if (found := _OS_ERROR.search(str(error))) is None:
            raise
        number = int(found[2])
        # The last number is Windows' own, from which it finds errno; elsewhere it is not read.
        raise OSError(number, found[1].strip(), str(path), number) from error
