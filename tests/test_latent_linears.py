"""Layers of published recipes: values and gradients by their formulas, students that learn and are saved as trained."""

import copy

import pytest
import torch

from lib.distillation import quantization_aware
from lib.distillation.bitdistiller_linear import BitDistillerLinear
from lib.distillation.lsq_linear import LSQLinear
from lib.quantized.linear import QuantLinear
from lib.quantizers import codebook, rtn
from lib.trainers import distill
from tests import tiny
from tests.test_quantization_aware import UNSEEN, WINDOWS, original, remembered  # noqa: F401

X = torch.randn(7, 64, generator=torch.Generator().manual_seed(2))
WEIGHT = torch.randn(5, 64, generator=torch.Generator().manual_seed(3))
GRIDS = {
    "whole codes": lambda: rtn.rtn(WEIGHT, bits=3, group_size=32, candidates=8),
    "symmetric": lambda: rtn.rtn(WEIGHT, bits=4, group_size=32, symmetric=True),
    "halves": lambda: rtn.rtn(WEIGHT, bits=2, group_size=32, levels="half", candidates=8),
    "balanced": lambda: rtn.rtn(WEIGHT, bits=2, group_size=32, levels="balanced", candidates=8),
    "NF3": lambda: codebook.codebook(WEIGHT, bits=3, group_size=32),
}


def moved(kind, grid, **options):
    """A layer whose latents have moved by up to two thirds of a step, some beyond the clip, and its start."""
    start = GRIDS[grid]()
    part = kind(QuantLinear(start, None), torch.float32, code_rate=2.0, original=WEIGHT, **options)
    with torch.no_grad():
        part.gamma.normal_(std=0.3, generator=torch.Generator().manual_seed(4))
        if hasattr(part, "delta"):
            part.delta.uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(5))
    return part, start


@pytest.mark.parametrize("grid", ["whole codes", "symmetric", "halves", "balanced"])
def test_learned_step_sizes_by_their_formulas(grid):
    part, start = moved(LSQLinear, grid)
    s = (start.scale.float() * (1 + part.delta.detach()))[..., None]
    V = WEIGHT.view(5, 2, 32) + 2 * start.scale.float()[..., None] * part.gamma.detach()
    top = 2**start.bits - 1
    z = 2 ** (start.bits - 1) if start.zero_point is None else start.zero_point.float()[..., None]
    q = (V / s + z).round().clamp(0, top)
    found = part(X)
    torch.testing.assert_close(found, X @ ((q - z) * s).flatten(1).T)
    weighs = torch.arange(35.0).view(7, 5)
    of_gamma, of_delta = torch.autograd.grad((found * weighs).sum(), [part.gamma, part.delta])
    G = (weighs.T @ X).view(5, 2, 32)  # by the rounded weight
    inside = (V / s + z > -0.5) & (V / s + z < top + 0.5)
    assert 0.01 < 1 - inside.float().mean() < 0.9
    torch.testing.assert_close(of_gamma, G * inside * 2 * start.scale.float()[..., None], rtol=1e-4, atol=1e-4)
    of_s = (G * torch.where(inside, (q - z) - V / s, q - z)).sum(-1)
    torch.testing.assert_close(of_delta, of_s * start.scale.float(), rtol=1e-3, atol=1e-3)
    part.settle_()
    torch.testing.assert_close(part.layer(X), found.detach(), rtol=0.02, atol=0.1)  # scales are stored in bfloat16


@pytest.mark.parametrize("grid", ["whole codes", "symmetric", "halves", "NF3"])
def test_grids_follow_their_latents_in_bitdistillers_layers(grid):
    part, start = moved(BitDistillerLinear, grid)
    V = part.latent().detach().flatten(1)
    if grid == "NF3":
        wanted = codebook.codebook(V, bits=3, group_size=32)
    else:
        zeros = {"symmetric": True} if grid == "symmetric" else {"levels": start.levels}
        wanted = rtn.rtn(V, bits=start.bits, group_size=32, **zeros)
    found = part(X)
    torch.testing.assert_close(found, X @ wanted.dense().T, rtol=1e-4, atol=1e-4)
    weighs = torch.arange(35.0).view(7, 5)
    (of_gamma,) = torch.autograd.grad((found * weighs).sum(), [part.gamma])
    torch.testing.assert_close(of_gamma, (weighs.T @ X).view(5, 2, 32) * part.unit, rtol=1e-4, atol=1e-4)
    part.settle_()
    assert torch.equal(part.layer.codes, wanted.codes) and torch.equal(part.layer.scale, wanted.scale)
    assert wanted.zero_point is None or torch.equal(part.layer.zero_point, wanted.zero_point)


def test_latents_begin_at_the_clipped_weights():
    part, start = moved(BitDistillerLinear, "whole codes")
    low = -start.zero_point.float() * start.scale.float()
    clipped = WEIGHT.view(5, 2, 32).maximum(low[..., None])
    assert torch.equal(part.first.amin(-1), clipped.amin(-1)) and (WEIGHT.view(5, 2, 32) < low[..., None]).any()


@pytest.mark.parametrize(
    "linear, grid", [("lsq", {"levels": "balanced"}), ("bitdistiller", {}), ("bitdistiller", None)]
)
def test_students_learn_in_the_published_ways(linear, grid, original):  # noqa: F811
    student = copy.deepcopy(original)
    if grid is None:
        codebook.quantize_(student, bits=3, group_size=32)
    else:
        rtn.quantize_(student, bits=2, group_size=32, candidates=8, **grid)
    weights = {name: original.get_submodule(name).weight for name, each in student.named_modules()
               if isinstance(each, QuantLinear)}  # fmt: skip
    options = dict(steps=6, batch=16, micro_batch=16, learning_rate=0.02, every=3, held_out=remembered(original))
    loss = distill.Distillation(original)
    found = quantization_aware.train_(
        student, WINDOWS, loss, linear=linear, code_steps=0.01, originals=weights, **options
    )
    assert found.moved > 0 and found.divergences[found.best] < found.divergences[0] and UNSEEN is not None
    with pytest.raises(ValueError, match="'lsqq' is no way for codes to move"):
        quantization_aware.train_(student, WINDOWS, loss, linear="lsqq", code_steps=0.05, **options)


def test_codes_that_do_not_fit_are_refused_before_the_work(original, monkeypatch):  # noqa: F811
    student = copy.deepcopy(original)
    rtn.quantize_(student, bits=2, group_size=32)
    monkeypatch.setattr(quantization_aware, "LATENT", 1 << 40)
    with pytest.raises(MemoryError, match=r"codes that move need about .* scales alone \(code_steps=0\) need"):
        quantization_aware.train_(student, tiny.tokens(4, 8), distill.Distillation(original), steps=1, code_steps=0.1)
