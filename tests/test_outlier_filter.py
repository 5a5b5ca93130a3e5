"""SignRound's outlier filter at work: the outputs that it leaves in the loss come nearer, on new windows too."""

import pytest
import torch

from lib.models import capture
from lib.models.blocks import blocks
from lib.quantizers import signround
from lib.quantizers.signround import distance
from tests import tiny
from tests.test_signround import random

OUTLIER, SIZE = 5, 100  # the feature that one block writes, and how many times as large its weights are
LEARNED, COUNT = 8, 16  # windows to learn from, and all windows


def test_the_loss_leaves_out_the_largest_squares_and_nothing_else():
    outputs, targets = random(2, 10, 50), random(2, 10, 50, seed=1)
    outputs[0, 3, 7] = 1000
    squares = (outputs - targets).double().square()
    loss, gradient = distance(outputs, targets, 0.01)
    kept = squares.flatten().sort().values[:-10]
    assert loss == pytest.approx(kept.sum().item() / 1000, rel=1e-5)
    assert (gradient == 0).sum() == 10 and gradient[0, 3, 7] == 0
    loss, gradient = distance(outputs, targets, 0.0)
    assert loss == pytest.approx(squares.mean().item(), rel=1e-5)
    assert torch.allclose(gradient, 2 * (outputs - targets) / 1000)
    assert distance(targets, targets, 0.01)[0] == 0


@torch.no_grad()
def errors(block, layers, hidden, targets, call):
    """Mean squared error of the block's outputs: of all other features, and of the outlier."""
    squares = (signround.run(block, layers, hidden, call) - targets).square()
    rest = torch.arange(squares.shape[-1]) != OUTLIER
    return squares[..., rest].mean().item(), squares[..., OUTLIER].mean().item()


@pytest.mark.parametrize("seed", range(3))
def test_the_rest_of_the_outputs_comes_nearer_when_a_planted_outlier_is_left_out(seed):
    model = tiny.llama(seed=seed, num_hidden_layers=1)
    block = blocks(model)[0]
    block.mlp.down_proj.weight.data[OUTLIER] *= SIZE  # its errors are ten thousand times as large when squared
    captured = capture.capture(model, tiny.tokens(COUNT, 32, seed=seed))
    hidden, call = captured.hidden, captured.calls[0]
    with torch.no_grad():
        targets = capture.run_block(block, hidden, call)
    starts = signround.nearest(block, hidden[:4], call, bits=2, group_size=32, symmetric=False, candidates=8)

    def learned(filtered):
        settings = {"steps": 40, "batch": 2, "rate": None, "range_rate": None, "filtered": filtered, "seed": 0}
        learning = signround.settle(LEARNED, **settings)
        layers, _ = signround.reconstruct(block, hidden[:LEARNED], targets[:LEARNED], call, starts, **learning)
        parts = slice(LEARNED), slice(LEARNED, COUNT)
        return [errors(block, layers, hidden[part], targets[part], call) for part in parts]

    # one feature of 64 is 1.6 % of the outputs
    (rest, outlier), (new_rest, _) = learned(filtered=0.02)
    (rest_of_all, outlier_of_all), (new_rest_of_all, _) = learned(filtered=0.0)
    assert rest < 0.8 * rest_of_all and new_rest < 0.97 * new_rest_of_all
    assert outlier > 2 * outlier_of_all  # what it costs: the outlier was what the loss was about
