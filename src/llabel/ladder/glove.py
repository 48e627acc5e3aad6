"""Pre-trained word vectors."""

import codecs
import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llabel.assets import BUILT_IN, Progress, cache_folder, resolve_embeddings
from llabel.errors import InputError
from llabel.events import Fetching, Listener, ignore
from llabel.ladder.word_cutting import form_of
from llabel.paths import at_home
from llabel.tensor_files import writing


@dataclass(frozen=True, slots=True)
class Glove:
    """Word vectors.

    Attributes:
        words: word → row of `vectors`.
        vectors: (n_words, dimensions) float32.
    """

    words: dict[str, int]
    vectors: npt.NDArray[np.float32]

    def rows(self, words: Iterable[str]) -> list[int]:
        """Rows of the words that are known, in order; of an unknown compound those of its parts.

        Words are looked up as they are written, then in lower case.
        """
        known, found = self.words, []
        for word in words:
            row = known.get(form_of(word, known))
            if row is not None:
                found.append(row)
            elif "-" in word:
                forms = (form_of(part, known) for part in word.split("-"))
                found += [known[form] for form in forms if form in known]
        return found

    def digests(self) -> dict[str, str]:
        """Tell these vectors and their words from others: hexadecimal hashes for `rung.json`."""
        words = "\n".join(f"{word}\t{row}" for word, row in self.words.items())
        return {
            "digest": _hash(self.vectors.data),
            "words_digest": _hash(words.encode("utf-8", "surrogatepass")),
        }

    def check(self, settings: Mapping[str, Any], folder: Path, name: str) -> None:
        """Compare with the `digests` of the vectors that a rung was trained with.

        Args:
            settings: of the saved rung; where it is old, it lacks the digest of the words.
            folder: it lies there.
            name: of these vectors.

        Raises:
            InputError: they are others.
        """
        if any(settings.get(key, found) != found for key, found in self.digests().items()):
            raise InputError(
                f"{folder}: the word vectors {name} are not those it was trained with. Put the "
                "old ones back, or train the rung again."
            )


def _hash(data: bytes | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def load_glove(name_or_path: str, notify: Listener = ignore) -> Glove:
    """Read word vectors.

    Args:
        name_or_path: a built-in name, a folder laid out like it, or a text file in GloVe's or
            word2vec's format: a word and its numbers on each line, parted by spaces.
        notify: told of a download by `Fetching`.

    Raises:
        InputError: there are no such vectors, or they cannot be read.
    """
    path = resolve_embeddings(name_or_path, progress=_progress(notify))
    if name_or_path not in BUILT_IN and path.is_file():
        return _load_text(path)
    return _load_folder(path)


def fetch_glove(name_or_path: str, notify: Listener = ignore) -> Path:
    """Fetch word vectors if need be, without reading them; returns their file or folder.

    Raises:
        InputError: there are none of that name.
    """
    return resolve_embeddings(name_or_path, progress=_progress(notify))


def lasting_name(name_or_path: str) -> str:
    """The same vectors' name from whatever folder it is asked for later."""
    if name_or_path in BUILT_IN:
        return name_or_path
    return str(at_home(name_or_path).resolve())


def _progress(notify: Listener) -> Progress:
    return lambda what, share: notify(Fetching(what, share))


def _load_folder(folder: Path) -> Glove:
    import pyarrow.parquet as pq

    try:
        vectors = np.load(next(folder.glob("*_emb.npy")), allow_pickle=False)
        table = pq.read_table(next(folder.glob("*_index.parquet")), columns=["index"])
    except (StopIteration, KeyError, ValueError, OSError) as error:
        raise InputError(
            f"{folder} holds no word vectors that can be read ({error or type(error).__name__}): "
            "they are in a *_emb.npy file with the words in column `index` of a *_index.parquet "
            "file beside it. Give such a folder, a GloVe text file, or the name glove-6b-50d."
        ) from error
    words = table.column("index").to_pylist()
    if vectors.ndim != 2 or len(words) != len(vectors):
        raise InputError(
            f"{folder}: {len(words)} words do not fit vectors of shape {vectors.shape}; "
            "there must be a row for each word."
        )
    return Glove(_numbered(words), np.ascontiguousarray(vectors, dtype=np.float32))


def _load_text(path: Path) -> Glove:
    """Read a text file, or what was made of it when it was read before."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    stat = path.stat()
    key = f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}"
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    kept = cache_folder() / "embeddings" / f"{name}.safetensors"
    try:
        found = load_file(kept)
        words = bytes(found["words"]).decode("utf-8").split("\n")
        return Glove(_numbered(words), found["vectors"])
    except (OSError, SafetensorError, KeyError, ValueError):
        words, vectors = _parse(path)
        _keep(kept, words, vectors)
        return Glove(_numbered(words), vectors)


def _numbered(words: list[str]) -> dict[str, int]:
    # Backwards, so that the first of equal words counts: it is the more frequent one.
    return {words[row]: row for row in range(len(words) - 1, -1, -1)}


def _parse(path: Path) -> tuple[list[str], npt.NDArray[np.float32]]:
    words: list[str] = []
    rows: list[npt.NDArray[np.float32]] = []
    width = promised = 0
    with path.open("rb") as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        for number, line in enumerate(file, start=1):
            parts = line.rstrip().split(b" ")
            if parts == [b""]:
                continue
            if number == 1 and len(parts) == 2 and all(map(bytes.isdigit, parts)):
                promised = int(parts[0])  # word2vec begins with how many rows and columns
                continue
            width = width or len(parts) - 1
            try:
                vector = np.array(parts[-width:], dtype=np.float32)
                if width < 2 or len(parts) <= width or not np.isfinite(vector).all():
                    raise ValueError("numbers are missing or not finite")
                words.append(b" ".join(parts[:-width]).decode("utf-8"))
            except ValueError as error:
                raise InputError(
                    f"{path}, line {number}: not a word and {width or 'its'} numbers parted by "
                    f"single spaces ({error}). Give a text file of GloVe's or word2vec's format, "
                    "unpacked, in UTF-8, or the name glove-6b-50d."
                ) from error
            rows.append(vector)
    if not rows:
        raise InputError(f"{path} holds no word vectors: it is empty.")
    if len(rows) < promised:
        raise InputError(
            f"{path} holds {len(rows):,} word vectors where its first line promises "
            f"{promised:,}: it was cut off. Fetch it again."
        )
    return words, np.stack(rows)


def _keep(target: Path, words: list[str], vectors: npt.NDArray[np.float32]) -> None:
    """Keep what was read for the next time; where the cache cannot be written, do without."""
    from safetensors.numpy import save_file

    text = np.frombuffer("\n".join(words).encode("utf-8"), dtype=np.uint8)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with writing(temporary):
            save_file({"words": text, "vectors": vectors}, temporary)
        temporary.replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
