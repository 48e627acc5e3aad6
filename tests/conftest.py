"""Shared fixtures: built-in assets, fetched once into the user's cache, and tiny random models."""

import gc
import os

# Set before huggingface_hub is imported: no test may ask the Hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # several at a time get in each other's way with threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from browser import running_browser
from comparison_runs import in_this_process
from llabel.assets import resolve_dataset, resolve_model
from llabel.settings import LLMSettings
from runs import write_weather
from sweep_runs import Here
from tiny_models import save_llama

hypothesis.settings.register_profile("llabel", deadline=None)  # other work may share the machine
hypothesis.settings.load_profile("llabel")


@pytest.fixture(scope="module", autouse=True)
def collections_of_what_came_since() -> None:
    """The libraries' millions of objects never go: looking through them takes half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer Llama with a tokenizer of 400 tokens; tied head, no BOS."""
    return save_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def tiny_llama_bos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with `<|begin_of_text|>` before every text, as Llama 3 has it, and its own head."""
    return save_llama(tmp_path_factory.mktemp("tiny-llama-bos"), begin=True, tied=False)


@pytest.fixture
def llm_settings(tiny_llama: Path) -> Callable[..., LLMSettings]:
    """Make settings for a short training of the tiny model on the CPU."""

    def make(**changes: Any) -> LLMSettings:
        few = {"r": 4, "lora_alpha": 8, "epochs": 2, "batch_size": 4, "token_budget": 200}
        start = {"model": str(tiny_llama), "learning_rate": 1e-2, "device": "cpu"}
        return LLMSettings(**(start | few | changes))

    return make


@pytest.fixture(scope="session")
def weather(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty rows, `text,note` and `label`, for sweeps of seconds."""
    return write_weather(tmp_path_factory.mktemp("data") / "weather.jsonl", 80)


@pytest.fixture(scope="module")
def runs_here() -> Iterator[None]:
    """Runs of this module's comparisons are made in this process."""
    with in_this_process():
        yield


@pytest.fixture
def cells_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of a sweep are trained in this process, and no page is made."""
    monkeypatch.setattr("llabel.sweep.sweep.ProcessWorker", Here)
    monkeypatch.setattr("llabel.sweep.sweep.render_sweep", lambda record: "")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    with running_browser() as found:
        yield found


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of the real smollm2-135m (about 20 s the first time on a machine, then at once)."""
    return resolve_model("smollm2-135m")


@pytest.fixture(scope="session")
def boolq() -> Path:
    """Folder with the real train.jsonl and validation.jsonl of BoolQ."""
    return resolve_dataset("boolq")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of data sets that are kept beside the project and never in it."""
    beside = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("LLABEL_SHARED", beside)) / "data"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}; set LLABEL_SHARED to the folder that holds data/")
    return folder
