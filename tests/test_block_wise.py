"""Block-wise training: blocks come nearer to the original's, a killed job resumes, what is refused."""

import copy

import pytest
import torch

from lib.distillation import block_wise
from lib.metrics import divergence
from lib.quantized.linear import QuantLinear
from lib.quantizers import calibrate, signround
from tests import tiny

TOKENS, UNSEEN = tiny.tokens(12, 24), tiny.tokens(16, 24)[12:]
GRID = dict(bits=2, group_size=32, levels="half")


@pytest.fixture(scope="module")
def original():
    return tiny.llama(num_hidden_layers=2)


def apart(model, original):
    return divergence.compare(model, original, UNSEEN).divergence.double().mean().item()


def test_blocks_learn_and_a_killed_job_ends_in_the_same_bytes(original, tmp_path, monkeypatch):
    start, learned, killed = (copy.deepcopy(original) for _ in range(3))

    def nearest(prefix, block, hidden, targets, call):
        return signround.nearest(block, hidden[: signround.SEEN], call, **GRID, candidates=8)

    calibrate.sequential_blocks(start, TOKENS, nearest)
    found = block_wise.quantize_(learned, TOKENS, **GRID, steps=40, code_steps=0.02, state=tmp_path / "é a")
    assert apart(learned, original) < 0.9 * apart(start, original)
    layers = calibrate.layers(learned)
    assert all(isinstance(each, QuantLinear) and each.levels == "half" for each in layers.values())
    moved = [(layers[name].codes != each.codes).float().mean() for name, each in calibrate.layers(start).items()]
    assert 0 < sum(moved) / len(moved) < 0.5
    monkeypatch.setattr(block_wise, "trained", None)  # all blocks are read
    again = block_wise.quantize_(killed, TOKENS, **GRID, steps=40, code_steps=0.02, state=tmp_path / "é a")
    assert again.keys() == found.keys() and all(torch.equal(again[name].codes, found[name].codes) for name in found)
    with pytest.raises(ValueError, match=r"another job \(code_steps=0.02 there, 0.03 here\)"):
        block_wise.quantize_(copy.deepcopy(original), TOKENS, **GRID, steps=40, code_steps=0.03, state=tmp_path / "é a")


def test_what_cannot_be_trained_is_refused_and_nothing_changes(original):
    model = copy.deepcopy(original)
    for wrong in ({"steps": 0}, {"batch": 13}, {"learning_rate": 0}, {"code_steps": float("inf")}):
        with pytest.raises(ValueError, match="change them"):
            block_wise.quantize_(model, TOKENS, **GRID, **wrong)
    with pytest.raises(ValueError, match="is nan at step"):
        block_wise.quantize_(model, TOKENS, **GRID, steps=3, learning_rate=1e30, code_steps=1e30)
    assert all(isinstance(each, torch.nn.Linear) for each in calibrate.layers(model).values())
    assert torch.equal(model(UNSEEN).logits, original(UNSEEN).logits)
