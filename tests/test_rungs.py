"""One contract, every rung: the same questions to each system of the ladder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llabel.errors import InputError
from llabel.events import RowsDone
from llabel.ladder.contract import FitSettings, Rung
from llabel.ladder.rung_folder import RECORD
from llabel.metrics import log_loss
from llabel.settings import LLMSettings
from llabel.task import Split, Task
from tiny_models import save_llama
from tiny_rungs import BOOL as EIGHT_ROWS
from tiny_tasks import NOUNS, make_task

CLASSES = ("no", "perhaps", "yes")
TASK = make_task(CLASSES, train=18, validation=7)


class Untouchable:
    """A test part that nobody may look at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"the test part was read: {name}")

    def __len__(self) -> int:
        raise AssertionError("the test part was counted")

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("the test part was gone through")


SEALED = replace(TASK, test=Untouchable())  # type: ignore[arg-type]


@dataclass(frozen=True)
class Models:
    """Folders of what the rungs start from, tiny and random."""

    embeddings: Path
    encoder: Path
    llm: Path


@dataclass(frozen=True)
class Entry:
    """A rung of the table.

    Attributes:
        name: as on the ladder.
        path: module and class below `llabel.ladder`.
        learns: whether training fits it to its rows.
        recipe: changes of its module's RECIPE under which eight rows are learnt by heart.
        llm: its settings beyond a tiny model, for rungs that take `LLMSettings`.
        options: further arguments of the class.
    """

    name: str
    path: str
    learns: bool = True
    recipe: dict[str, Any] | None = None
    llm: dict[str, Any] | None = None
    options: dict[str, Any] | None = None

    @property
    def kind(self) -> Any:
        module, name = self.path.split(".")
        return getattr(pytest.importorskip(f"llabel.ladder.{module}"), name)

    def make(self, models: Models, *, trials: int = 1, **changes: Any) -> Rung:
        """A rung not yet fitted."""
        if self.llm is None:
            named = {"embeddings": str(models.embeddings), "encoder": str(models.encoder)}
            settings: Any = FitSettings(trials=trials, device="cpu", **named, **changes)
        else:
            start = {"model": str(models.llm), "device": "cpu", "max_seq_length": 64}
            settings = LLMSettings(trials=trials, **(start | self.llm | changes))
        return self.kind(settings, **(self.options or {}))


LORA = {"r": 4, "lora_alpha": 8, "epochs": 1, "batch_size": 4, "token_budget": 200}
HEART = {"epochs": 40, "patience": 40, "batch_size": 4}
PROMPTED = {"shots": 2, "max_seq_length": 160}

TABLE = [
    Entry("majority", "majority.MajorityRung", learns=False),
    Entry("lookup", "lookup.LookupRung"),
    Entry("bag-of-words", "bag_of_words.BagOfWordsRung"),
    Entry("word-embeddings", "word_embeddings.WordEmbeddingsRung"),
    Entry("rnn", "rnn.RNNRung", recipe=HEART),
    Entry("transformer", "transformer.TransformerRung", recipe=HEART | {"learning_rate": 3e-3}),
    Entry("encoder", "encoder.EncoderRung", recipe=HEART | {"learning_rate": 3e-3}),
    *(
        Entry(
            f"llm-{shots}-shot{'-calibrated' * calibrated}",
            "prompted.PromptedRung",
            learns=False,
            llm=PROMPTED,
            options={"few_shot": shots == "few", "calibrated": calibrated},
        )
        for shots in ("zero", "few")
        for calibrated in (False, True)
    ),
    Entry("llm-lora", "llm.LLMRung", llm=LORA),
    Entry("llm-qlora", "qlora.QLoRARung", llm=LORA),
]
LEARNERS = [entry for entry in TABLE if entry.learns]


def ids(entry: Entry) -> str:
    return entry.name


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    return Models(
        save_embeddings(folder / "embeddings"),
        save_bert(folder / "bert"),
        save_llama(folder / "llama"),
    )


def save_embeddings(folder: Path) -> Path:
    """Random vectors of eight dimensions, laid out as the built-in ones are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    words = [*NOUNS, "is", "it", "this", ".", "?", *map(str, range(30))]
    vectors = np.random.default_rng(0).normal(size=(len(words), 8)).astype(np.float32)
    np.save(folder / "tiny_emb.npy", vectors)
    pq.write_table(pa.table({"index": words}), folder / "tiny_index.parquet")
    return folder


def save_bert(folder: Path) -> Path:
    """A random BERT of two layers; its tokenizer knows the words of `make_task`."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *NOUNS, "is", "it", "this", *map(str, range(30))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=TABLE, ids=ids)
def entry(request: pytest.FixtureRequest) -> Entry:
    return request.param


@pytest.fixture(scope="module")
def rung(entry: Entry, models: Models) -> Rung:
    """Fitted once for all questions; no test may change it."""
    return entry.make(models).fit(SEALED)


@pytest.fixture(scope="module")
def loaded(entry: Entry, rung: Rung, tmp_path_factory: pytest.TempPathFactory) -> Rung:
    folder = tmp_path_factory.mktemp("saved")
    rung.save(folder)
    assert (folder / RECORD).is_file()
    assert not list(folder.glob(".*"))  # nothing half-written
    return entry.kind.load(folder, device="cpu")


def assert_proba(proba: np.ndarray, n: int, n_classes: int = len(CLASSES)) -> None:
    assert proba.shape == (n, n_classes)
    assert proba.dtype == np.float64
    assert np.isfinite(proba).all()
    assert (proba >= 0).all()
    assert np.abs(proba.sum(axis=1) - 1).max(initial=0) < 1e-6


def test_fitting_leaves_the_test_part_alone_and_tells_what_it_did(entry: Entry, rung: Rung):
    assert entry.name.startswith(rung.name) or rung.name == entry.name
    assert (rung.fields_, rung.classes_) == (TASK.fields, CLASSES)
    assert_proba(rung.validation_proba_, len(TASK.validation))
    record = rung.record_
    assert set(record.truncated) == {"train", "validation"}
    assert record.refit is None
    assert (record.chosen is None) == (not record.trials)
    if record.chosen is not None:
        chosen = record.trials[record.chosen]
        assert chosen.settings.items() <= record.settings.items()
        loss = log_loss(TASK.validation.y, rung.validation_proba_)
        assert chosen.validation_loss == pytest.approx(loss, abs=1e-6)
        assert 0 < record.trainable_parameters <= record.parameters


def test_validation_probabilities_are_those_it_predicts(rung: Rung):
    again = rung.predict_proba(TASK.validation.texts)
    np.testing.assert_allclose(again, rung.validation_proba_, rtol=0, atol=1e-5)


def test_rows_told_sum_to_the_rows_given(rung: Rung):
    told: list[int] = []
    rung.predict_proba(TASK.train.texts, lambda e: told.append(getattr(e, "rows", 0)))
    assert sum(told) == len(TASK.train)
    events: list[Any] = []
    assert rung.predict_proba([], events.append).shape == (0, len(CLASSES))
    assert not [event for event in events if isinstance(event, RowsDone) and event.rows]


def test_batches_and_single_rows_agree(rung: Rung):
    texts = [*TASK.validation.texts, ("", ""), ("it is film " * 9, "music")]
    together = rung.predict_proba(texts)
    alone = np.concatenate([rung.predict_proba([text]) for text in texts])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(("zyzzyva qwxv", "xqj-vbn 9871"), id="unseen-words"),
        pytest.param(("これは映画ですか", "да, это музыка 🎬"), id="other-scripts"),
        pytest.param(("", ""), id="empty"),
        pytest.param((" \n\t", "\u200b\ufeff\0"), id="blank"),
        pytest.param(("is this music", "it is film " * 16_667), id="50,000-words"),
        pytest.param(("a" * 50_000, "n't" * 10_000), id="long-words"),
        pytest.param(("<s>[CLS]</s>", "### Answer: yes<|im_end|>\n{}%s"), id="marks"),
    ],
)
def test_any_text_has_an_answer(rung: Rung, text: tuple[str, str]):
    assert_proba(rung.predict_proba([text, TASK.train.texts[0]]), 2)


def test_a_loaded_rung_predicts_bit_for_bit(rung: Rung, loaded: Rung):
    assert (loaded.fields_, loaded.classes_) == (rung.fields_, rung.classes_)
    texts = [*TASK.test.texts, *TASK.train.texts, ("unheard of", "")]
    np.testing.assert_array_equal(loaded.predict_proba(texts), rung.predict_proba(texts))


def test_a_folder_without_the_rung_is_refused(entry: Entry, tmp_path: Path):
    with pytest.raises(InputError, match=r"holds no trained rung \(rung\.json is missing\)"):
        entry.kind.load(tmp_path)


def test_same_seed_same_rung(entry: Entry, rung: Rung, models: Models):
    again = entry.make(models).fit(SEALED)
    np.testing.assert_array_equal(again.validation_proba_, rung.validation_proba_)
    texts = TASK.test.texts
    np.testing.assert_array_equal(again.predict_proba(texts), rung.predict_proba(texts))


def test_refit_learns_from_validation_and_keeps_what_it_said_before(
    entry: Entry, rung: Rung, models: Models
):
    refitted = entry.make(models, refit=True).fit(SEALED)
    np.testing.assert_allclose(
        refitted.validation_proba_, rung.validation_proba_, rtol=0, atol=1e-6
    )
    if entry.name.startswith("llm-") and not entry.learns:
        return  # nothing is trained, nothing to train anew
    assert refitted.record_.refit is not None
    assert refitted.record_.refit.validation_loss is None
    after = refitted.predict_proba(TASK.validation.texts)
    assert np.abs(after - refitted.validation_proba_).max() > 1e-4


@pytest.mark.parametrize("classes", [(False, True), (1, 2), ("a", "b")], ids=["bool", "int", "str"])
def test_labels_keep_type_and_order(entry: Entry, models: Models, tmp_path: Path, classes: Any):
    rung = entry.make(models).fit(make_task(classes, train=8, validation=4))
    rung.save(tmp_path)
    for each in (rung, entry.kind.load(tmp_path)):
        assert each.classes_ == classes
        assert [type(label) for label in each.classes_] == [type(label) for label in classes]


def test_a_class_that_training_lacks_is_possible(entry: Entry, models: Models):
    train = without(TASK.train, 1)
    rung = entry.make(models).fit(replace(TASK, train=train))
    assert_proba(rung.predict_proba(TASK.test.texts), 4)
    if entry.llm is None:
        assert log_loss(TASK.validation.y, rung.validation_proba_) < 10
    assert (rung.validation_proba_[:, 1] > 0).all()


def without(split: Split, label: int) -> Split:
    kept = [row for row, y in enumerate(split.y.tolist()) if y != label]
    return Split(
        tuple(split.ids[row] for row in kept),
        tuple(split.texts[row] for row in kept),
        split.y[kept],
    )


def test_training_on_one_class_only(entry: Entry, models: Models):
    train = without(without(TASK.train, 1), 2)
    rung = entry.make(models).fit(replace(TASK, train=train))
    assert_proba(rung.predict_proba(TASK.test.texts), 4)
    if entry.llm is None and entry.recipe is None:  # a network has made too few steps
        assert (rung.predict_proba(TASK.train.texts).argmax(axis=1) == 0).all()


@pytest.mark.parametrize("fields", [1, 3])
def test_one_field_and_three(entry: Entry, models: Models, fields: int, tmp_path: Path):
    task = with_fields(TASK, fields)
    rung = entry.make(models).fit(task)
    rung.save(tmp_path)
    again = entry.kind.load(tmp_path).predict_proba(task.test.texts)
    assert_proba(again, 4)
    np.testing.assert_array_equal(again, rung.predict_proba(task.test.texts))


def with_fields(task: Task, n: int) -> Task:
    def cut(split: Split) -> Split:
        texts = tuple((passage, question, question)[:n] for question, passage in split.texts)
        return replace(split, texts=texts)

    names = ("passage", "question", "more")[:n]
    parts = (cut(split) for split in (task.train, task.validation, task.test))
    return replace(
        task, fields=names, **dict(zip(("train", "validation", "test"), parts, strict=True))
    )


@pytest.fixture
def by_heart(monkeypatch: pytest.MonkeyPatch) -> Callable[[Entry], None]:
    """Let a network train long enough to learn a handful of rows."""

    def change(entry: Entry) -> None:
        if entry.recipe is not None:
            entry.kind  # noqa: B018  skips where the rung is not there
            module = import_module(f"llabel.ladder.{entry.path.split('.')[0]}")
            monkeypatch.setattr(module, "RECIPE", replace(module.RECIPE, **entry.recipe))

    return change


@pytest.mark.parametrize("entry", LEARNERS, ids=ids)
def test_eight_rows_are_learnt_by_heart(
    entry: Entry, models: Models, by_heart: Callable[[Entry], None]
):
    by_heart(entry)
    more = {"epochs": 20, "learning_rate": 1e-2} if entry.llm else {}
    rung = entry.make(models, **more).fit(EIGHT_ROWS)
    predicted = rung.predict_proba(EIGHT_ROWS.train.texts).argmax(axis=1)
    assert predicted.tolist() == EIGHT_ROWS.train.y.tolist()


@pytest.mark.parametrize("entry", [e for e in LEARNERS if e.name != "lookup"], ids=ids)
def test_the_trial_with_the_lowest_validation_loss_is_kept(entry: Entry, models: Models):
    record = entry.make(models, trials=2).fit(SEALED).record_
    losses = [trial.validation_loss for trial in record.trials]
    assert len(losses) == 2 or record.trials[0].settings.keys() == {"C"}  # C is searched further
    assert None not in losses
    assert record.chosen == int(np.argmin(losses))
    (searched,) = record.trials[0].settings
    values = [trial.settings[searched] for trial in record.trials]
    assert values[1] == pytest.approx(values[0] / 3)
    assert record.settings[searched] == values[record.chosen]
