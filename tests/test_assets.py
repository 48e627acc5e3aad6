import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llabel.assets import (
    BUILT_IN,
    asset_status,
    cache_folder,
    is_hub_id,
    resolve_dataset,
    resolve_embeddings,
    resolve_encoder,
    resolve_model,
)
from llabel.assets.resolve import _folder
from llabel.errors import InputError

# --- names ---------------------------------------------------------------------------------------


def make_model(folder: Path, *without: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if name not in without:
            (folder / name).write_text("{}")
    return folder


def test_a_local_model_is_returned_as_it_is(tmp_path, monkeypatch):
    make_model(tmp_path / "org" / "mine")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/mine") == Path("org/mine")
    assert resolve_model(str(tmp_path / "org" / "mine")) == tmp_path / "org" / "mine"


def test_sharded_weights_must_be_complete(tmp_path):
    folder = make_model(tmp_path / "m", "model.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    (folder / "1.safetensors").write_text("")
    with pytest.raises(InputError, match=r"there is no 2\.safetensors, which model\.safetensors"):
        resolve_model(str(folder))
    (folder / "2.safetensors").write_text("")
    assert resolve_model(str(folder)) == folder
    index.write_text("{")
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json cannot be read"):
        resolve_model(str(folder))


@pytest.mark.parametrize(
    ("without", "beside", "message"),
    [
        ("config.json", "x", r"is not a model's folder: there is no config\.json$"),
        ("config.json", "adapter_config.json", r"no config\.json \(it holds an adapter: name the"),
        ("config.json", "run.json", r"no config\.json \(it is the folder of a run: name the"),
        ("model.safetensors", "x", r"there is no model\.safetensors$"),
        ("model.safetensors", "pytorch_model.bin", r"\(pickled \.bin and \.pt weights are never"),
        ("tokenizer.json", "x", r"there is no tokenizer \(tokenizer\.json, tokenizer\.model, "),
    ],
)
def test_a_folder_that_is_no_model_says_what_is_missing(tmp_path, without, beside, message):
    folder = make_model(tmp_path / "m", without)
    (folder / beside).write_text("{}")
    with pytest.raises(InputError, match=message):
        resolve_model(str(folder))


@pytest.mark.parametrize("content", [b"", b'{"hidden_size": 64,', b"[]", b"\xff{}"])
@pytest.mark.parametrize("resolve", [resolve_model, resolve_encoder])
def test_a_damaged_config_is_named(tmp_path, resolve, content):
    folder = make_model(tmp_path / "m")
    (folder / "config.json").write_bytes(content)
    told = rf"is not a model's folder: {re.escape(str(folder))}.config\.json cannot be read \("
    with pytest.raises(InputError, match=told):
        resolve(str(folder))


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "m.gguf").write_text("")
    with pytest.raises(InputError, match=r"m\.gguf: a model is a folder with config\.json"):
        resolve_model(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("resolve", "name", "message"),
    [
        (resolve_model, "smolm2-135m", r"Did you mean smollm2-135m\?$"),
        (resolve_model, "smolm2-135m", r"built in are smollm2-135m, and it is no Hugging"),
        (resolve_model, "./nowhere", r"cannot find a model named './nowhere': there is no such"),
        (resolve_model, "", r"cannot find a model named ''"),
        (resolve_model, "x" * 5000, r"cannot find a model named 'xxx"),
        (
            resolve_model,
            "minilm-l6",
            r"'minilm-l6' is an encoder and cannot be used as a model; built in for that: smollm2",
        ),
        (
            resolve_encoder,
            "smollm2-135m",
            r"'smollm2-135m' is a model and cannot be used as an encoder; .* that: minilm-l6$",
        ),
        (resolve_encoder, "minilm", r"cannot find an encoder named 'minilm': .* minilm-l6\?$"),
        (
            resolve_model,
            "boolq",
            r"'boolq' is data and cannot be used as a model; built in for",
        ),
        (resolve_dataset, "data/train.csv", r"cannot find data named 'data/train\.csv'"),
        (
            resolve_dataset,
            "minilm-l6",
            r"'minilm-l6' is an encoder and cannot be used as data; built",
        ),
        (resolve_dataset, "google/boolq", r"google/boolq is read as a Hugging Face Hub id"),
        (resolve_embeddings, "glove", r"built in are glove-6b-50d$"),
    ],
)
def test_a_name_that_is_nothing_is_answered(resolve, name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        resolve(name)


def test_a_cache_of_a_user_that_there_is_not(monkeypatch):
    monkeypatch.setenv("LLABEL_CACHE", "~nobody-here/cache")
    assert cache_folder() == Path("~nobody-here/cache")


@pytest.mark.parametrize("manifest", ["[]", "3", '{"files": []}'])
def test_a_damaged_asset_is_not_taken_for_a_whole_one(manifest, tmp_path, monkeypatch):
    monkeypatch.setenv("LLABEL_CACHE", str(tmp_path))
    asset = BUILT_IN["boolq"]
    folder = _folder(asset)
    folder.mkdir(parents=True)
    (folder / "asset.json").write_text(manifest)
    assert not asset_status(asset).cached


def test_a_local_data_set_is_returned_as_it_is(tmp_path):
    (tmp_path / "d.csv").write_text("a,b\n")
    assert resolve_dataset(str(tmp_path / "d.csv")) == tmp_path / "d.csv"
    assert resolve_dataset(str(tmp_path)) == tmp_path


def test_a_built_in_name_means_the_same_in_every_folder(boolq, tmp_path, monkeypatch):
    (tmp_path / "boolq").mkdir()  # such as the output folder of an earlier run
    monkeypatch.chdir(tmp_path)
    assert resolve_dataset("boolq") == boolq
    assert resolve_dataset("./boolq") == Path("boolq")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("meta-llama/Llama-3.2-1B", True),
        ("google/boolq", True),
        ("a_b/c.d_e-f", True),
        ("boolq", False),
        ("here/that", False),  # made by the test
        ("data/train.csv", False),
        ("data/train.JSONL.gz", False),
        ("data/train.ndjson", False),
        ("data/train.xls", False),
        ("data/train.ods", False),
        ("../data/set", False),
        ("./set", False),
        ("/abs/path", False),
        ("a/b/c", False),
        ("a/b--c", False),
        ("~/set", False),
        ("", False),
    ],
)
def test_which_names_are_hub_ids(name, expected, tmp_path, monkeypatch):
    (tmp_path / "here" / "that").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(name) is expected


# --- Hugging Face Hub ----------------------------------------------------------------------------


def resolve_elsewhere(name: str, home: Path, **environment: str) -> tuple[int, str]:
    """Resolve in a fresh process, since huggingface_hub reads its settings when it is imported."""
    script = f"""
from llabel.assets import resolve_model
from llabel.errors import InputError
try:
    print(resolve_model({name!r}))
except InputError as error:
    raise SystemExit(f"InputError: {{error}}")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"HF_HOME": str(home)} | environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, (done.stderr if done.returncode else done.stdout).strip()


def lay_out_hub_cache(home: Path, *without: str) -> Path:
    repo, commit = home / "hub" / "models--org--name", "0123456789abcdef0123456789abcdef01234567"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    return make_model(repo / "snapshots" / commit, *without)


def test_a_hub_model_comes_from_the_local_hub_cache_when_offline(tmp_path):
    folder = lay_out_hub_cache(tmp_path)
    assert resolve_elsewhere("org/name", tmp_path, HF_HUB_OFFLINE="1") == (0, str(folder))


def test_a_half_cached_hub_model_says_what_is_missing(tmp_path):
    lay_out_hub_cache(tmp_path, "model.safetensors")
    code, said = resolve_elsewhere("org/name", tmp_path, HF_HUB_OFFLINE="1")
    assert code == 1
    assert "InputError: org/name is not a model's folder: there is no model.safetensors" in said


def test_an_uncached_hub_model_when_offline_says_what_to_do(tmp_path):
    code, said = resolve_elsewhere("org/name", tmp_path, HF_HUB_OFFLINE="1")
    assert code == 1
    assert "InputError: org/name: the Hugging Face Hub may not be asked (HF_HUB_OFFLINE is" in said
    assert "Traceback" not in said


@contextlib.contextmanager
def answering(answer) -> Iterator[str]:
    """Serve every GET of a local address by ``answer(request)``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def refuse(status: int, code: str):
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (
            403,
            "GatedRepo",
            r"org/name: its owner asks you to accept a licence: do .*HF_TOKEN",
        ),
        (
            404,
            "RepoNotFound",
            r"org/name: there is no such model on the Hugging Face Hub, or",
        ),
    ],
)
def test_what_the_hub_refuses_is_told_with_what_to_do(tmp_path, status, code, message):
    with answering(refuse(status, code)) as url:
        result, said = resolve_elsewhere(
            "org/name", tmp_path, HF_HUB_OFFLINE="0", HF_ENDPOINT=url, NO_PROXY="127.0.0.1"
        )
    assert result == 1
    assert re.search(f"^InputError: {message}", said), said


def blob_id(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def hub_of(files: dict[str, bytes], asked: list[tuple[str, str | None]]):
    """Answer as the Hub does for one model ``org/name``; note the paths and tokens of requests."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    tree = [
        {"type": "file", "path": name, "size": len(content), "oid": blob_id(content)}
        for name, content in files.items()
    ]
    info = {"id": "org/name", "sha": commit, "siblings": [{"rfilename": name} for name in files]}

    def answer(request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        asked.append((path, request.headers.get("Authorization")))
        name = path.partition(f"/resolve/{commit}/")[2]
        if path.startswith("/api/"):
            body = json.dumps(tree if "/tree/" in path else info).encode()
        else:
            body = files[name]
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("X-Repo-Commit", commit)
        request.send_header("ETag", f'"{blob_id(body)}"')
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    return answer


def test_a_hub_model_is_downloaded_without_pickles_and_other_frameworks(tmp_path):
    wanted = ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"]
    unwanted = ["pytorch_model.bin", "onnx/config.json", "consolidated.safetensors"]
    asked: list[tuple[str, str | None]] = []
    with answering(hub_of(dict.fromkeys(wanted + unwanted, b"{}"), asked)) as url:
        code, said = resolve_elsewhere(
            "org/name", tmp_path, HF_HUB_OFFLINE="0", HF_ENDPOINT=url, HF_TOKEN="hf_test"
        )
    assert code == 0, said
    folder = Path(said)
    assert folder.is_relative_to(tmp_path)
    assert {path.name for path in folder.iterdir()} == set(wanted)
    assert {token for path, token in asked if "org/name" in path} == {"Bearer hf_test"}
    # And what was downloaded is there when offline.
    assert resolve_elsewhere("org/name", tmp_path, HF_HUB_OFFLINE="1") == (0, str(folder))


def test_an_unreachable_hub_is_told_with_what_to_do(tmp_path):
    code, said = resolve_elsewhere(
        "org/name", tmp_path, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9"
    )
    assert code == 1
    assert re.match(r"InputError: org/name: the Hugging Face Hub cannot be reached \(", said), said


# --- the catalogue -------------------------------------------------------------------------------


@pytest.mark.parametrize("asset", BUILT_IN.values(), ids=lambda asset: asset.name)
def test_built_in_assets_are_pinned_and_say_where_they_come_from(asset):
    assert BUILT_IN[asset.name] is asset
    pins = [asset.sha256, *(member.sha256 for member in asset.members), *asset.outputs.values()]
    assert all(re.fullmatch("[0-9a-f]{64}", pin) for pin in pins)
    assert asset.licence
    assert asset.source.startswith("http")
    assert asset.download_bytes > 1_000_000


def test_the_packagers_rounding_is_told():
    assert "4 bits (Q4_1" in BUILT_IN["smollm2-135m"].note


def test_a_resolved_model_is_at_hand_at_once(smollm2):
    begin = time.process_time()
    assert resolve_model("smollm2-135m") == smollm2
    assert time.process_time() - begin < 0.5


@pytest.mark.slow
def test_the_sentence_encoder_and_the_word_vectors_are_what_they_are_said_to_be():
    import numpy as np
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = resolve_encoder("minilm-l6")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    texts = ["A cat sleeps.", "A kitten is napping.", "Shares fell in London."]
    with torch.inference_mode():
        hidden = model(**tokenizer(texts, padding=True, return_tensors="pt")).last_hidden_state
    a, b, c = torch.nn.functional.normalize(hidden.mean(1), dim=-1)
    assert a @ b > 0.5
    assert a @ c < 0.3

    folder = resolve_embeddings("glove-6b-50d")
    vectors = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r")
    words = pq.read_table(folder / "glove_6B_index.parquet")["index"].to_pylist()
    assert vectors.shape == (400_000, 50) == (len(words), 50)
    assert words[:2] == ["the", ","]
