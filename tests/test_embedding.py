"""QuantEmbedding against nn.Embedding; embedding and head quantized together: codes, ties, resuming, failures."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lib.models import blocks
from lib.quantized.grid import Quantized
from lib.quantized.linear import QuantLinear
from lib.quantized.quant_embedding import QuantEmbedding
from lib.quantizers import embedding, gptq, rtn
from tests import tiny

GRID = {"bits": 4, "group_size": 32}
FAMILIES = [tiny.llama, tiny.qwen2, tiny.qwen3, tiny.mistral, tiny.phi, tiny.gemma2]


def logits(model, ids=None):
    with torch.no_grad():
        return model(tiny.tokens() if ids is None else ids).logits


def matrix(symmetric=False, bits=4):
    weight = torch.randn(20, 32, generator=torch.Generator().manual_seed(1))
    return rtn.rtn(weight, bits=bits, group_size=16, symmetric=symmetric)


def with_codebook():
    return matrix(symmetric=True)._replace(codebook=torch.linspace(-1, 1, 16) ** 3)


def same(first, second):
    pairs = ((getattr(first, part), getattr(second, part)) for part in ("codes", "scale", "zero_point"))
    return all(a is b if a is None else torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("quantized", [matrix(), matrix(True), matrix(bits=3), with_codebook()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_equal_those_of_a_quant_linear_in_the_type(quantized, dtype):
    table = QuantEmbedding(quantized, dtype=dtype)
    ids = torch.tensor([[3, 0, 3], [19, 7, 1]])
    expected = QuantLinear(quantized).quantized.dense(dtype)
    assert torch.equal(table(ids), expected[ids]) and table(ids).dtype == dtype
    assert torch.equal(table.weight, expected) and table(ids[0, 0]).shape == (32,)
    assert (table.num_embeddings, table.embedding_dim, table.padding_idx) == (20, 32, None)
    assert "20, 32, bits=" in repr(table)


@pytest.mark.parametrize("wrong", [-1, 20])
def test_ids_outside_the_vocabulary_are_an_error(wrong):
    with pytest.raises(IndexError):
        QuantEmbedding(matrix())(torch.tensor([0, wrong]))


def test_the_type_of_the_rows_follows_the_model_and_the_grid_keeps_its_own():
    table = QuantEmbedding(matrix()._replace(scale=torch.full((20, 2), 1e-7, dtype=torch.bfloat16)))
    table.half()
    assert table(torch.tensor([1])).dtype == torch.float16
    assert table.scale.dtype == torch.bfloat16 and (table.scale > 0).all()
    for parameter in table.parameters():  # how checkpoints are cast
        parameter.data = parameter.data.to(torch.bfloat16)
    assert table(torch.tensor([1])).dtype == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_the_model_computes_with_the_rounded_values(family, tied):
    """Gemma scales its embeddings, Phi's head has a bias: a plain model with the dequantized matrices says the same."""
    model = family(tie_word_embeddings=tied)
    plain = copy.deepcopy(model)
    done = embedding.quantize_(model, **GRID)
    table, head = blocks.embeddings(model), blocks.head(model)
    assert list(done) == [blocks.path_of(model, table), blocks.path_of(model, head)]
    blocks.embeddings(plain).weight.copy_(table.weight)
    blocks.head(plain).weight.copy_(head.weight)
    assert torch.equal(logits(model), logits(plain))
    assert blocks.tied(model) == tied and (table.codes is head.codes) == tied
    assert same(table, rtn.rtn(blocks.embeddings(family()).weight, **GRID, candidates=8)) or not tied


def test_a_tied_matrix_stays_one_through_casts_copies_loads_and_tying():
    model = tiny.llama()
    embedding.quantize_(model, **GRID)
    expected = logits(model)
    other = copy.deepcopy(model)
    moved = [other.to(torch.float64), other.to("meta")]
    assert all(blocks.tied(each) for each in moved) and blocks.device(other).type == "meta"
    fresh = tiny.llama(seed=1)
    embedding.quantize_(fresh, **GRID)
    fresh.load_state_dict(tiny.llama().state_dict() | model.state_dict(), strict=False)
    assert blocks.tied(fresh) and same(blocks.head(fresh), blocks.head(model))
    head = blocks.head(model)
    head.codes = head.codes.clone()
    assert not blocks.tied(model)
    model.tie_weights()
    assert blocks.tied(model) and torch.equal(logits(model), expected)


def test_resizing_is_refused_and_leaves_the_model():
    model = tiny.llama()
    embedding.quantize_(model, **GRID)
    expected = logits(model)
    with pytest.raises(TypeError, match="QuantEmbedding"):
        model.resize_token_embeddings(300)
    assert torch.equal(logits(model), expected) and model.resize_token_embeddings() is blocks.embeddings(model)


def test_generating_with_and_without_cache_agrees():
    model = tiny.gemma2()
    embedding.quantize_(model, bits=8, group_size=64)
    some = {"input_ids": tiny.tokens()[:2, :4], "attention_mask": torch.ones(2, 4), "max_new_tokens": 6}
    first = model.generate(**some, do_sample=False, use_cache=True)
    assert first.shape == (2, 10) and torch.equal(first, model.generate(**some, do_sample=False, use_cache=False))


@torch.no_grad()
def hessian(model):
    """2/n Σ x xᵀ of the head's inputs, by a hook, in float64."""
    seen = []
    handle = blocks.head(model).register_forward_pre_hook(lambda _, args: seen.append(args[0].double().flatten(0, 1)))
    model(tiny.tokens())
    handle.remove()
    return 2 * seen[0].T @ seen[0] / len(seen[0])


@pytest.mark.parametrize("tied", [True, False])
def test_with_calibration_the_heads_codes_come_from_gptq(tied, monkeypatch):
    monkeypatch.setattr(embedding, "ROWS", 100)  # three parts
    model = tiny.llama(tie_word_embeddings=tied)
    moment, weight = hessian(model), blocks.head(model).weight.detach()
    table = blocks.embeddings(model).weight.detach()
    found = embedding.final_moment(model, tiny.tokens())
    assert (found - moment).abs().max() < 1e-5 * moment.abs().max()
    embedding.quantize_(model, tiny.tokens(), **GRID, ridge=0.5)
    if tied:
        moment.diagonal().add_(0.5 * moment.diagonal().mean())
    else:
        assert same(blocks.embeddings(model), rtn.rtn(table, **GRID, candidates=8))
    expected = gptq.gptq(weight, moment.float(), **GRID)
    assert (blocks.head(model).codes != expected.codes).float().mean() < 0.005  # sums that fall on the other side


def test_calibration_moves_the_logits_less_and_ridge_the_rows():
    def distances(**options):
        model = tiny.llama()
        embedding.quantize_(model, bits=3, group_size=32, **options)
        states = hessian_states(tiny.llama())
        change = (blocks.head(model).weight - blocks.head(tiny.llama()).weight).detach()
        return float((states @ change.T).square().mean()), float(change.square().mean())

    plain = distances()
    pure, ridged = (distances(calibration=tiny.tokens(), ridge=ridge) for ridge in (0.0, 3.0))
    assert pure[0] < 0.8 * plain[0] and pure[0] < ridged[0] < plain[0]
    assert plain[1] < ridged[1] < pure[1]


@torch.no_grad()
def hessian_states(model):
    return blocks.decoder(model)(input_ids=tiny.tokens()).last_hidden_state


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([0.0, 1.0, 1e-38, 1e30]), st.integers(2, 8), st.booleans(), st.booleans())
def test_degenerate_tables_give_finite_rows(size, bits, symmetric, calibrated):
    model = tiny.llama(num_hidden_layers=1)
    table = blocks.embeddings(model).weight.data
    table[:4] = torch.randn(4, 64) * size
    table[4:6, :32], table[6] = 0, 1.0  # an all-zero group, a constant row
    embedding.quantize_(model, tiny.tokens() if calibrated else None, bits=bits, group_size=32, symmetric=symmetric)
    assert blocks.embeddings(model)(torch.arange(8)).isfinite().all()
    assert (blocks.embeddings(model)(torch.tensor([4]))[0, :32] == 0).all()


def test_two_runs_give_the_same_bytes_and_a_killed_job_resumes(tmp_path, monkeypatch):
    models = [tiny.llama(tie_word_embeddings=False) for _ in range(3)]
    for model, state in zip(models, (None, tmp_path, tmp_path)):
        if model is models[2]:
            monkeypatch.setattr(embedding, "rounded", lambda *args, **more: pytest.fail("it was finished"))
        embedding.quantize_(model, tiny.tokens(), **GRID, state=state)
    assert all(same(part(models[0]), part(model)) for model in models for part in (blocks.embeddings, blocks.head))
    with pytest.raises(ValueError, match=r"ridge=0\.1 there, 0\.2 here"):
        embedding.quantize_(tiny.llama(tie_word_embeddings=False), tiny.tokens(), **GRID, ridge=0.2, state=tmp_path)


def test_an_untied_head_may_have_bits_of_its_own_and_a_killed_job_resumes_with_them(tmp_path, monkeypatch):
    alone = {bits: tiny.llama(tie_word_embeddings=False) for bits in (3, 6)}
    for bits, model in alone.items():
        embedding.quantize_(model, tiny.tokens(), bits=bits, group_size=32)
    options = {"bits": 6, "group_size": 32, "state": tmp_path / "own"}
    for _ in range(2):  # the second reads what the first wrote
        model = tiny.llama(tie_word_embeddings=False)
        done = embedding.quantize_(model, tiny.tokens(), head_bits=3, **options)
        assert (done["model.embed_tokens"].bits, done["lm_head"].bits) == (6, 3)
        assert same(blocks.embeddings(model), blocks.embeddings(alone[6]))
        assert same(blocks.head(model), blocks.head(alone[3]))
        monkeypatch.setattr(embedding, "rounded", lambda *args, **more: pytest.fail("it was finished"))
    with pytest.raises(ValueError, match="head_bits=3 there, 4 here"):
        embedding.quantize_(tiny.llama(tie_word_embeddings=False), tiny.tokens(), head_bits=4, **options)
    monkeypatch.undo()
    options["state"] = tmp_path / "same"
    embedding.quantize_(tiny.llama(tie_word_embeddings=False), tiny.tokens(), **options)
    embedding.quantize_(tiny.llama(tie_word_embeddings=False), tiny.tokens(), head_bits=6, **options)  # the same job
    for model, said in (
        (tiny.llama(), "bits=6 and head_bits=3 for one matrix, .* tied; give one"),
        (tiny.llama(tie_word_embeddings=False), "bits=9 for lm_head"),
    ):
        with pytest.raises(ValueError, match=said):
            embedding.quantize_(model, bits=6, head_bits=3 if blocks.tied(model) else 9, group_size=32)
        assert not any(map(blocks.is_quantized, model.modules()))


class Normed(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) / 2


def test_what_does_not_fit_is_refused_before_the_work():
    model = tiny.llama()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"bits=9 for model\.embed_tokens"):
        embedding.quantize_(model, bits=9)
    with pytest.raises(ValueError, match=r"group_size=48 does not divide 64 columns of model\.embed_tokens"):
        embedding.quantize_(model, bits=4, group_size=48)
    odd = tiny.llama()
    odd.model.embed_tokens = Normed(256, 64)
    with pytest.raises(ValueError, match="Normed does more than to look up rows"):
        embedding.quantize_(odd, bits=4)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    embedding.quantize_(model, bits=4)
    with pytest.raises(ValueError, match=r"model\.embed_tokens is a QuantEmbedding; load the original"):
        embedding.quantize_(model, bits=4)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
def test_what_is_no_number_is_named_before_anything_is_computed_or_kept(tmp_path, name):
    model = tiny.llama()
    model.get_parameter(name).data.view(-1)[3] = math.nan
    model.forward = None  # a pass would fail
    with pytest.raises(ValueError, match=rf"{name} holds NaN"):
        embedding.quantize_(model, tiny.tokens(), **GRID, state=tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_quantized_is_the_structure_that_others_read():
    model = tiny.llama()
    done = embedding.quantize_(model, **GRID)
    assert all(isinstance(each, Quantized) for each in done.values()) and done["lm_head"] is done["model.embed_tokens"]
    assert blocks.is_quantized(blocks.embeddings(model)) and not blocks.is_linear(blocks.embeddings(model))
