"""Pairs of weights with a codebook: their codes, GPTQ and SignRound on them, files, engines, refusals."""

import copy

import numpy as np
import pytest
import torch

from lib import quantizers, runtime
from lib.distillation import code_linear
from lib.export import compressed_tensors, gguf_blocks, packing, size
from lib.metrics import count
from lib.models import blocks
from lib.quantized import pairs
from lib.quantized.grid import Quantized
from lib.quantized.linear import QuantLinear
from lib.quantizers import calibrate, gptq, gptq_pairs, learnable_scale
from lib.quantizers.signround_pairs import RANGES_SLOWER, SignRoundPairs, nearest, spacing
from lib.runtime import cpu, pack, torch_kernels
from lib.sources import models
from tests import tiny
from tests.test_cpu_kernels import PATHS, formula, needs_compiler


def random(rows, columns, group, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda most, *shape: torch.randint(most, shape, generator=generator).to(torch.uint8)  # noqa: E731
    book = torch.randint(-127, 128, pairs.SHAPE, generator=generator).to(torch.int8)
    scale = (torch.rand(rows, columns // group, generator=generator) / 100).to(torch.bfloat16)
    codes, number = draw(4, rows, columns), draw(4, rows, columns // group)
    return Quantized(codes, scale, number, 2, group, book, pairs.LEVELS)


def test_two_codes_four_columns_apart_name_an_entry():
    matrix = random(3, 32, 16)
    codes, values = matrix.codes.long(), matrix.dense()
    for row, column in ((0, 1), (2, 27), (1, 19)):  # the first of a pair
        book = matrix.codebook[int(matrix.zero_point[row, column // 16])].float()
        entry = book[codes[row, column] + 4 * codes[row, column + 4]] * matrix.scale[row, column // 16].float()
        assert values[row, [column, column + 4]].tolist() == entry.tolist()
    assert torch.equal(pairs.codes(pairs.entries(matrix.codes)), matrix.codes)
    assert torch.equal(pairs.apart(*pairs.together(values)), values)


def plain(weight, hessian, books, scale, number, size):
    """GPTQ on pairs from the definition: after each pair H⁻¹ loses both columns, by elimination in float64."""
    rest, inverse = weight.double().clone(), torch.linalg.inv(hessian.double())
    left, entries = gptq_pairs.paired_order(hessian.diagonal()).tolist(), {}
    while left:
        pair, left = left[:2], left[2:]
        block = inverse[pair][:, pair]
        group = pair[0] // size
        values = books.double()[number[:, group]] * scale.double()[:, group, None, None]
        error = rest[:, None, pair] - values
        cost = (error @ torch.linalg.inv(block) * error).sum(-1)
        best = cost.argmin(1)
        chosen = error[torch.arange(len(best)), best]
        rest[:, left] -= chosen @ torch.linalg.inv(block) @ inverse[pair][:, left]
        inverse = inverse - inverse[:, pair] @ torch.linalg.inv(block) @ inverse[pair]
        entries[pair[0]] = best
    return torch.stack([entries[each] for each in sorted(entries)], 1)


def test_gptq_takes_the_entries_of_its_definition():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(24, 64, generator=generator)
    inputs = torch.randn(400, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    hessian = inputs.T @ inputs / 400
    found = gptq.gptq(weight, hessian, bits=2, group_size=32, levels="pairs")
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(64)
    wanted = plain(weight, damped, found.codebook, found.scale, found.zero_point.long(), 32)
    assert (pairs.entries(found.codes) == wanted).float().mean() > 0.995  # float32 against float64
    lost = {}
    for levels in ("pairs", "half", "integer"):
        error = gptq.gptq(weight, hessian, bits=2, group_size=32, levels=levels).dense() - weight
        lost[levels] = ((error @ hessian) * error).sum().item()
    assert lost["pairs"] < 0.95 * lost["half"] < 0.95 * lost["integer"]


def test_gaussian_pairs_err_less_than_single_weights_by_what_a_search_finds():
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(2))
    groups = torch.stack(pairs.together(weight), -1).view(-1, 32, 2)
    book = gptq_pairs.learn(groups, torch.ones_like(groups)).float()
    assert book.abs().amax((1, 2)).tolist() == [127] * 4
    scale, number = gptq_pairs._fitted(groups, torch.ones_like(groups), book)
    moved = groups / scale[:, None, None]
    taken = nearest(moved.permute(2, 0, 1)[:, :, None], book, number[:, None])[:, 0].long()
    wanted = torch.cdist(moved, book[number]).argmin(2)
    assert (taken == wanted).float().mean() > 0.999
    error = (book[number[:, None], taken] * scale[:, None, None] - groups).square().mean()
    assert 0.08 < error < 0.1  # of halves 0.108, of one book without limit 0.105 (`vector_codes`)


def test_signround_begins_at_the_codes_and_moves_what_its_gradients_say():
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(16, 64, generator=generator)
    start = gptq.gptq(weight, torch.eye(64), bits=2, group_size=32, levels="pairs")
    far = start._replace(codes=torch.randint(4, (16, 64), generator=generator).to(torch.uint8))
    for given in (start, far):  # codes far from their weights too
        layer = SignRoundPairs(weight, given)
        assert blocks.equal(layer.quantized(), given) and torch.equal(layer.dense, given.dense())
    layer, gradient = SignRoundPairs(weight, start), torch.randn(16, 64, generator=generator)
    inside, of_alpha = layer.gradients(gradient)
    scale, own = start.scale.float().repeat_interleave(32, 1), pairs.apart(*layer.weight).flatten(1)
    assert ((own - weight).abs() > 1e-6).float().mean() < 0.1  # those that stood at the edge of what rounds to an entry
    entry = start.dense() / scale
    off = (own / scale - entry).abs()
    held = off > spacing(start.codebook.float())[start.zero_point.long()].repeat_interleave(32, 1) / 2
    assert 0.01 < held.float().mean() < 0.5
    wanted = gradient * torch.where(held, entry, entry - own / scale)
    wanted = wanted.view(16, 2, 32).sum(2) * start.scale.float()
    torch.testing.assert_close(of_alpha, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(pairs.apart(*inside).flatten(1) == 0, held | (gradient == 0))
    layer.step_(gradient, 0.5, 0.0)
    change = layer.dense.detach() - start.dense()
    assert (change != 0).float().mean() > 0.2 and (change * gradient).sum() < 0  # downhill
    layer.step_(gradient, 0.0, 0.25)
    assert torch.equal(layer.quantized().scale, (start.scale.float() * layer.alpha).to(torch.bfloat16))
    moved = (layer.alpha - 1).abs()
    assert ((moved - 0.25 * RANGES_SLOWER).abs() < 1e-6).float().mean() > 0.9


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    model, tokens = tiny.llama(num_hidden_layers=2, max_position_embeddings=64), tiny.tokens(3, 24)
    folder = tmp_path_factory.mktemp("é pairs")
    options = {"bits": 2, "group_size": 32, "levels": "pairs", "steps": 2}
    done = quantizers.by_name("gptq_signround")(model, tokens, **options, state=folder / "state")
    again = tiny.llama(num_hidden_layers=2, max_position_embeddings=64)
    resumed = quantizers.by_name("gptq_signround")(again, tokens, **options, state=folder / "state")
    assert done.keys() == resumed.keys() and all(blocks.equal(done[name], resumed[name]) for name in done)
    compressed_tensors.save(model, tiny.tokenizer(), folder / "saved")
    return model, done, folder / "saved"


def test_what_is_saved_has_the_same_values_in_every_engine(quantized):
    model, done, folder = quantized
    assert count.artifact_bytes(folder) == size.predict(model)
    back, _ = models.load(str(folder))
    layers = calibrate.layers(back)
    assert all(blocks.equal(layers[name].quantized, done[name]) for name in done)
    tokens = tiny.tokens(1, 12)
    assert torch.equal(back(tokens).logits, model(tokens).logits)
    weights = runtime.load(folder, embedding_bits=None)
    wanted = runtime.Session(runtime.pack_(copy.deepcopy(back), embedding_bits=None)).extend(tokens[0].tolist())
    found = runtime.Session(weights).extend(tokens[0].tolist())
    assert np.array_equal(found, wanted)
    near = model(tokens).logits[0].detach().float().numpy()
    assert np.linalg.norm(np.asarray(found) - near) < 0.03 * np.linalg.norm(near)  # activations of 8 bits


def test_scales_are_learned_on_them_and_codes_that_move_are_refused(quantized):
    matrix = next(iter(quantized[1].values()))
    layer = learnable_scale.LearnableScaleLinear(QuantLinear(matrix), torch.float32)
    inputs = torch.randn(5, matrix.codes.shape[1], generator=torch.Generator().manual_seed(4))
    outputs = layer(inputs)
    torch.testing.assert_close(outputs, inputs @ matrix.dense().T)
    outputs.square().sum().backward()
    levels = matrix.dense().view(*matrix.scale.shape, -1)  # ∂(s (1 + δ) e)/∂δ
    of_weight = (2 * outputs.detach().T @ inputs).view_as(levels)
    torch.testing.assert_close(layer.delta.grad, (of_weight * levels).sum(-1), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="come from a codebook"):
        code_linear.CodeLinear(QuantLinear(matrix), torch.float32, code_rate=1.0)
    assert "a codebook" in gguf_blocks.levels(matrix)


@pytest.mark.parametrize("change", ["kind", "shape", "absent"])
def test_a_damaged_codebook_is_named(quantized, change):
    matrix = next(iter(quantized[1].values()))
    damaged = {"kind": matrix.codebook.float(), "shape": matrix.codebook[:3], "absent": None}[change]
    with pytest.raises(ValueError, match=r"the codebook of pairs of it is .*int8 \[4, 16, 2\] is needed"):
        pairs.check_book(damaged, "it")


def test_grids_without_pairs_are_refused_before_the_work():
    tokens = tiny.tokens(1, 8)
    for options, said in (({"bits": 3, "group_size": 32}, "bits=3"), ({"bits": 2, "group_size": 4}, "groups of 4")):
        with pytest.raises(ValueError, match=rf"levels='pairs' with .*{said}.*pairs have 2 bits and groups of a"):
            quantizers.by_name("gptq")(tiny.llama(num_hidden_layers=1), tokens, **options, levels="pairs")
        with pytest.raises(ValueError, match="pairs have 2 bits"):
            packing.planned(8, 64, **options, levels="pairs")
    for method in ("rtn", "signround", "awq"):
        with pytest.raises(ValueError, match=r"levels='pairs' of a grid; allowed are 'integer'"):
            options = {"bits": 2, "group_size": 32, "levels": "pairs"}
            quantizers.by_name(method)(tiny.llama(num_hidden_layers=1), tokens, **options)


@needs_compiler
@pytest.mark.parametrize("path", PATHS)
def test_products_equal_the_formula_and_plain_torch(path):
    generator = torch.Generator().manual_seed(5)
    for rows, columns, group in ((17, 64, 64), (33, 192, 96), (40, 128, 32), (20, 192, 192)):
        matrix = random(rows, columns, group, rows)
        packed, x = pack.pack(matrix), torch.randn(29, columns, generator=generator)
        assert blocks.equal(pack.unpack(packed), matrix)
        wanted, found = formula(matrix, x, packed.block), cpu.product(packed, x.numpy(), path=path)
        torch.testing.assert_close(torch.from_numpy(found).double(), wanted, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(torch_kernels.product(packed, x).double(), wanted, rtol=1e-5, atol=1e-3)
        for rows_at_once in (1, 2, 3, 7, 13, 24):  # the same bits whatever else is in the batch
            some = cpu.product(packed, x[:rows_at_once].numpy(), path=path)
            assert np.array_equal(some, found[:rows_at_once])
        assert np.array_equal(cpu.rows(packed, 0, rows, path=path), matrix.dense().numpy())


@pytest.mark.long
@needs_compiler
@pytest.mark.skipif("avx512" not in PATHS, reason="needs a CPU with AVX-512")
def test_entries_are_found_without_the_instruction_that_finds_them_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(cpu, "BESIDE", {})
    for cached in (cpu._library, cpu.team):
        cached.cache_clear()
    test_products_equal_the_formula_and_plain_torch("avx512")
    for cached in (cpu._library, cpu.team):
        cached.cache_clear()
