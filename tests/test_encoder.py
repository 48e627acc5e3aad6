import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from llabel.assets import resolve_encoder
from llabel.data import load_task, take
from llabel.engine.batching import collate
from llabel.errors import InputError
from llabel.events import Note
from llabel.ladder import encoder
from llabel.ladder.contract import FitSettings
from llabel.ladder.encoder import EncoderRung
from llabel.ladder.encoder_model import EncoderNetwork, load_encoder
from llabel.ladder.pairs import PairTokeniser
from tiny_encoders import save_bert, save_kin, save_roberta
from tiny_tasks import make_task

TASK = make_task(train=12)
PAIRS = [("is this 3", "it is film"), ("", ""), ("music " * 9, "film"), ("film", "it is " * 40)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_roberta(tmp_path_factory.mktemp("roberta"))


@pytest.fixture(scope="module")
def fitted(bert: Path) -> EncoderRung:
    """For reading only."""
    return EncoderRung(settings(bert)).fit(TASK)


def settings(folder: Path | str, **changes: Any) -> FitSettings:
    return FitSettings(**({"encoder": str(folder), "trials": 1, "device": "cpu"} | changes))


def tokeniser(folder: Path, max_length: int = 24, *, pair: bool = True) -> PairTokeniser:
    return PairTokeniser(AutoTokenizer.from_pretrained(folder), max_length, pair)


# What the encoder reads


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("pair", [True, False])
def test_rows_are_encoded_as_the_tokenizer_itself_would(kind, pair, request):
    ours = tokeniser(request.getfixturevalue(kind), pair=pair)
    texts = PAIRS if pair else [(second,) for _, second in PAIRS]
    examples, truncated = ours.encode(texts, [0, 1, 0, 1])
    columns = [list(column) for column in zip(*texts, strict=True)]
    whole = ours.tokenizer(*columns, verbose=False)["input_ids"]
    assert truncated == sum(len(ids) > 24 for ids in whole) > 0
    assert [row.targets for row in examples] == [(0,), (1,), (0,), (1,)]
    theirs = ours.tokenizer(*columns, truncation=True, max_length=24)
    assert [list(row.input_ids) for row in examples] == theirs["input_ids"]
    if kind == "bert":
        firsts = [types.count(0) for types in theirs["token_type_ids"]]
        assert [row.positions for row in examples] == [(first,) for first in firsts]


@pytest.mark.parametrize("pair", [True, False])
def test_marks_in_a_text_stay_text(bert, pair):
    ours = tokeniser(bert, 64, pair=pair)
    marks = {ours.tokenizer.cls_token_id, ours.tokenizer.sep_token_id}
    text = "it [SEP] is [CLS] this [SEP]"
    plain = tokeniser(bert, 64, pair=pair)
    rows, _ = ours.encode([(text, text)[: 1 + pair], ("it", "is")[: 1 + pair]])
    found = [sum(token in marks for token in row.input_ids) for row in rows]
    assert found == [2 + pair] * 2
    tokens = ours.tokenizer.convert_ids_to_tokens(rows[0].input_ids)
    assert tokens[1:8] == ["it", "[", "sep", "]", "is", "[", "cl"]
    assert plain.encode([(text, text)[: 1 + pair]])[0] == rows[:1]


def test_further_fields_join_the_second(bert):
    ours = tokeniser(bert)
    two, three = ours.encode([("it", "is\nfilm"), ("it", "is", "film")])[0]
    assert two == three


def test_a_very_long_text_is_cut_before_it_is_tokenised(bert):
    ours = tokeniser(bert, 64)
    start = time.process_time()
    (row,), truncated = ours.encode([("it is " * 500_000, "film")])
    assert time.process_time() - start < 1
    assert (len(row.input_ids), truncated) == (64, 1)
    # What is cut off unread counts as cut, even where it was nothing but spaces.
    assert ours.encode([("it" + " " * 5000, "film")])[1] == 1


def test_token_types_and_padding_are_as_transformers_has_them(bert):
    ours = tokeniser(bert, 64)
    rows, _ = ours.encode(PAIRS[:3])
    network = EncoderNetwork(load_encoder(bert), 2).eval()
    theirs = ours.tokenizer(*map(list, zip(*PAIRS[:3], strict=True)), padding=True)
    tensors = {name: torch.tensor(value) for name, value in theirs.items()}
    with torch.no_grad():
        states = network.encoder(**tensors).last_hidden_state
        mask = tensors["attention_mask"].unsqueeze(2)
        expected = network.head((states * mask).sum(1) / mask.sum(1))
        found = network(collate(rows))
        without = network(replace(collate(rows), positions=collate(rows).lengths))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, without, atol=1e-3)  # types matter


def test_a_pad_token_other_than_0_does_no_harm(roberta):
    task = make_task(train=8)
    rung = EncoderRung(settings(roberta, max_seq_length=40)).fit(task)
    texts = [*task.validation.texts, ("film " * 20, "")]
    together = rung.predict_proba(texts)
    alone = np.concatenate([rung.predict_proba([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


# How long


def test_the_length_is_the_publishers_within_the_context(bert, roberta, tmp_path):
    def length(folder: Path, **changes: Any) -> int:
        rung = EncoderRung(settings(folder, **changes)).prepare(("text",), (0, 1))
        return rung.tokeniser_.max_length

    assert length(bert) == 64
    assert length(roberta) == 62  # two of its positions are for padding
    assert length(bert, max_seq_length=20) == 20
    folder = save_bert(tmp_path)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    assert (length(folder), length(folder, max_seq_length=48)) == (32, 48)


def test_a_length_meant_for_the_llm_is_cut_to_the_encoders_and_told(bert):
    events: list[Any] = []
    asked = settings(bert, max_seq_length=4600)
    rung = EncoderRung(asked).prepare(("a", "b"), (0, 1), events.append)
    assert rung.tokeniser_.max_length == 64
    (note,) = [event.text for event in events if isinstance(event, Note)]
    assert "reads 64 tokens, not 4600" in note


def test_a_length_without_room_for_text_is_refused(bert):
    with pytest.raises(InputError, match=r"--max-seq-length 4 leaves no room .* give at least 5"):
        EncoderRung(settings(bert, max_seq_length=4)).prepare(("a", "b"), (0, 1))


def test_cut_rows_are_counted_and_told(bert):
    events: list[Any] = []
    task = make_task(train=8, words=12)
    rung = EncoderRung(settings(bert, max_seq_length=12)).fit(task, notify=events.append)
    cut = sum(rung.record_.truncated.values())
    assert cut > 0
    assert Note(f"{cut} of 14 rows are longer than the rung reads: their end was cut.") in events


# What it begins with


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama"}, r"is a causal language model \(llama\): give it as --model"),
        ({"model_type": "gpt2"}, r"is a causal language model \(gpt2\)"),
        ({"model_type": "bert", "is_decoder": True}, r"is a causal language model \(bert\)"),
        (
            {"model_type": "bert", "architectures": ["BertLMHeadModel"]},
            r"is a causal language model \(bert\)",
        ),
        (
            {"model_type": "t5"},
            r"is an encoder-decoder model \(t5\).*wants an encoder such as",
        ),
        ({"model_type": "nothing"}, r"transformers does not know this kind of model"),
    ],
)
def test_models_of_another_kind_are_refused_before_their_weights_are_read(
    tmp_path, bert, config, message
):
    for file in bert.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        EncoderRung(settings(tmp_path)).prepare(("text",), (0, 1))


def test_the_built_in_language_model_is_refused():
    with pytest.raises(InputError, match="'smollm2-135m' is a model and cannot be used as an enc"):
        EncoderRung(settings("smollm2-135m")).prepare(("text",), (0, 1))


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    path = save_bert(tmp_path) / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.layer.0.attention.self.query.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights .*layer\.0\.attention\.self\.query"):
        EncoderRung(settings(tmp_path)).fit(TASK)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("fnet", {}, r"--encoder \S+: a model of the kind fnet says .* it minds their padding"),
        ("convbert", {}, r"kind convbert says something else.*wants an encoder such as BERT"),
        (
            "nystromformer",
            {"num_landmarks": 8},
            r"kind nystromformer cannot be used as an encoder here \(shape",
        ),
    ],
)
def test_encoders_that_mind_padding_or_fail_are_refused(tmp_path, kind, changes, message):
    with pytest.raises(InputError, match=message):
        EncoderRung(settings(save_kin(tmp_path, kind, **changes))).fit(TASK)


def test_an_encoder_that_calls_its_pooler_can_do_without(tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "RECIPE", replace(encoder.RECIPE, min_steps=0, epochs=1))
    rung = EncoderRung(settings(save_kin(tmp_path / "from", "squeezebert", embedding_size=32)))
    rung.fit(TASK).save(tmp_path / "rung")
    again = EncoderRung.load(tmp_path / "rung", device="cpu")
    found = again.predict_proba(TASK.test.texts)
    np.testing.assert_array_equal(found, rung.predict_proba(TASK.test.texts))


def test_everything_is_trained_and_nothing_idle(bert, fitted):
    before, network = load_encoder(bert).state_dict(), fitted.network_
    assert isinstance(network, EncoderNetwork)
    after = dict(network.encoder.named_parameters())
    assert not any(name.startswith("pooler") for name in after)
    same = [name for name, value in after.items() if torch.equal(value, before[name])]
    assert same == []
    sizes = sum(parameter.numel() for parameter in network.parameters())
    assert fitted.record_.trainable_parameters == fitted.record_.parameters == sizes


# What is kept


def test_the_saved_folder_needs_nothing_else(bert, tmp_path):
    copy = save_bert(tmp_path / "bert")
    rung = EncoderRung(settings(copy)).fit(TASK)
    rung.save(tmp_path / "rung")
    for file in copy.iterdir():
        file.unlink()
    loaded = EncoderRung.load(tmp_path / "rung", device="cpu")
    texts = [*TASK.validation.texts, *PAIRS]
    assert np.array_equal(loaded.predict_proba(texts), rung.predict_proba(texts))
    loaded.save(tmp_path / "again")
    again = EncoderRung.load(tmp_path / "again", device="cpu")
    assert np.array_equal(again.predict_proba(texts), rung.predict_proba(texts))


def test_weights_of_another_training_are_refused(fitted, bert, tmp_path):
    fitted.save(tmp_path / "one")
    EncoderRung(settings(bert, seed=1)).fit(TASK).save(tmp_path / "two")
    weights = tmp_path / "one" / "encoder" / "model.safetensors"
    (tmp_path / "two" / "encoder" / "model.safetensors").replace(weights)
    with pytest.raises(InputError, match=r"missing, damaged, or of another training than"):
        EncoderRung.load(tmp_path / "one")


# The real one


@pytest.fixture(scope="module")
def minilm() -> Path:
    return resolve_encoder("minilm-l6")


@pytest.mark.slow
def test_minilm_learns_topics_from_few_rows(minilm, monkeypatch):
    monkeypatch.setattr(encoder, "RECIPE", replace(encoder.RECIPE, min_steps=0, epochs=3))
    task = load_task("bbc", text=("title",), label="topic", train_rows=160, seed=0).task
    task = replace(task, validation=take(task.validation, np.arange(0, len(task.validation), 4)))
    rung = EncoderRung(settings("minilm-l6", max_seq_length=24)).fit(task)
    test = take(task.test, np.arange(0, len(task.test), 3))
    accuracy = (rung.predict_proba(test.texts).argmax(axis=1) == test.y).mean()
    assert accuracy > 0.8


def test_minilm_reads_as_many_tokens_as_it_was_published_with(minilm):
    rung = EncoderRung(settings("minilm-l6")).prepare(("question", "passage"), (False, True))
    assert rung.tokeniser_.max_length == 256
    assert rung.tokeniser_.room == 253


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(fitted, tmp_path):
    fitted.save(tmp_path)
    on_gpu = EncoderRung.load(tmp_path, device="cuda")
    texts = [*TASK.validation.texts, *PAIRS]
    np.testing.assert_allclose(on_gpu.predict_proba(texts), fitted.predict_proba(texts), atol=1e-4)
