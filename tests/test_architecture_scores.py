"""Scores of small models of a study: last words, quantized, fine-tuned; one file a model, resumed."""

import dataclasses
import json
import types

import pytest
import torch

from lib import architectures
from lib.evaluation import architecture_scores as scores
from lib.evaluation import last_word
from lib.export import plain
from lib.tasks.task import Outcome
from lib.trainers import architecture_study as study
from lib.trainers import from_scratch, presets
from lib.trainers.minibatch import IGNORED
from tests import tiny

TEXT = "The old man walked to the sea. He sat down. It was late, and nobody came to the shore that evening! " * 9
PLAN = scores.Plan(
    rows=4,
    trace=(),
    packaged=("packaged_continuation",),
    calibration=4,
    samples=2,
    passages=3,
    new_tokens=4,
    steps=2,
    batch=2,
)


def test_passages_end_in_their_last_word():
    found = last_word.task([TEXT, TEXT], 4, words=12)
    assert [sample.group for sample in found.samples] == ["0", "0", "1", "1"]
    one = found.samples[0]
    assert one.requests[0].continuation == " evening" and one.target == "evening"
    assert one.requests[0].context.startswith("The old man") and one.requests[0].context.endswith("to the shore that")
    assert found.score(one, [Outcome(-1.5, True, 1)]) == {"last_word": 1.0, "logprob": -1.5}
    assert 0 < found.constant["last_word"] <= 1
    with pytest.raises(ValueError, match="count=99 passages of a text that has 18 of 12 words or more"):
        last_word.task([TEXT, TEXT], 99, words=12)


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "vocab_size": 256, "max_position_embeddings": 256, "tie_word_embeddings": True}


def build(arm="headwise", seed=0):
    made = architectures.build(arm, SIZES, seed)
    made.tokenizer = tiny.tokenizer()
    return made


def test_an_answer_is_learned_and_a_long_prompt_is_cut_at_its_beginning():
    model = build()
    row = scores._row(model, {"prompt": "word " * 200, "answer": "B and more words"}, PLAN)
    learned = row["labels"] != IGNORED
    end = model.tokenizer.eos_token_id
    assert row["labels"][learned][-1] == end and learned.sum() <= PLAN.new_tokens and len(row["input_ids"]) <= 256
    expected = model.tokenizer("B and more words", add_special_tokens=False)["input_ids"][: PLAN.new_tokens - 1]
    assert row["labels"][learned].tolist() == [*expected, end]
    whole = model.tokenizer("word " * 200, add_special_tokens=False)["input_ids"]
    assert row["input_ids"][~learned].tolist() == whole[-252:]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A study of two trained (here: random) models and one that diverged, with little text."""
    preset = dataclasses.replace(
        presets.by_name("quick"), rates=(1e-3,), blocks=(1,), seeds=(0, 1, 2), batch=2, length=32, text=str(tmp_path)
    )
    for split in ("train", "valid"):
        (tmp_path / f"{split}.txt").write_text(TEXT)
    rows = torch.randint(1, 256, (8, 32), generator=torch.Generator().manual_seed(0))
    corpus = from_scratch.Corpus(preset, tiny.tokenizer(), types.SimpleNamespace(ids=rows), rows[:4])
    monkeypatch.setattr(from_scratch, "corpus", lambda given: corpus)
    monkeypatch.setattr(presets, "by_name", lambda name: preset)
    monkeypatch.setattr(last_word, "LEAST", 12)
    for arm, bits in (("plain", 2.0), ("headwise", 2.1)):
        record = {"arm": arm, "blocks": 1, "seed": 0, "rate": 1e-3, "bits_per_byte": bits, "loss": 2 * bits}
        (tmp_path / "records").mkdir(exist_ok=True)
        (tmp_path / "records" / f"{study.name(record)}.json").write_text(json.dumps(record))
        plain.save(build(arm), tiny.tokenizer(), study.model_folder(tmp_path, record))
    lost = record | {"seed": 1, "bits_per_byte": None}
    (tmp_path / "records" / f"{study.name(lost)}.json").write_text(json.dumps(lost))
    return tmp_path


def test_each_part_of_a_model_is_scored_once_and_a_killed_call_goes_on(folder, monkeypatch):
    inner, calls = scores.scores, []

    def counted(model, corpus, asked, plan, part):
        calls.append((type(model).__name__, part))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inner(model, corpus, asked, plan, part)

    monkeypatch.setattr(scores, "scores", counted)
    first = dataclasses.replace(PLAN, packaged=(), passages=0)
    with pytest.raises(KeyboardInterrupt):
        scores.score("quick", folder, PLAN)
    assert [set(each) & {"quantized", "tasks"} for each in scores.scored(folder)] == [{"quantized"}]
    with pytest.raises(ValueError, match=r"passages=3 there, 0 here"):
        scores.score("quick", folder, first)
    found = scores.score("quick", folder, PLAN)
    variant, llama = "HeadwiseForCausalLM", "LlamaForCausalLM"
    expected = [(variant, "quantized"), (variant, "tasks"), (variant, "tasks"), (llama, "quantized"), (llama, "tasks")]
    assert calls == expected and scores.score("quick", folder, PLAN) == found and calls == expected
    one = next(each for each in found if each["arm"] == "headwise")
    four, two = (one["quantized"][bits] for bits in ("4", "2"))
    assert 0 < four["kl"] < two["kl"] and abs(four["loss"]) < 1
    value, _, n, beside = one["tasks"]["packaged_continuation acc"]
    assert (n, beside is not None) == (2, True) and 0 <= value <= 1 and len(found) == 2
    assert one["tasks"]["last_word last_word"][2] == 3 and "trace" not in one
    more = dataclasses.replace(PLAN, packaged=("packaged_continuation", "packaged_facts"))
    scores.score("quick", folder, more)
    assert calls[5:] == [(variant, "tasks"), (llama, "tasks")]


def test_times_are_of_one_model_an_arm_and_depth(folder):
    found = scores.times("quick", folder, prompt=4, rounds=2)
    assert {"plain 1", "plain 1 packed", "headwise 1"} <= set(found) and len(found["plain 1"]["tpot"]) == 2
    assert json.loads((folder / "speed.json").read_text()) == found
