"""Sensitivities: losses against a direct count, falling with bits, the work counted, killed jobs, finite numbers."""

import copy

import pytest
import torch

from lib.metrics import divergence
from lib.models import blocks
from lib.quantized import grid
from lib.quantizers import calibrate, rtn, sensitivity
from tests import tiny

WIDTHS = (2, 3, 4, 8)


@pytest.fixture(scope="module")
def measured():
    model, tokens = tiny.llama(), tiny.tokens(4, 24)
    return model, tokens, sensitivity.measure(model, tokens, widths=WIDTHS, group_size=32, windows=2)


def test_losses_cover_every_matrix_once_and_fall_with_bits(measured):
    model, _, losses = measured
    both = ("model.embed_tokens", "lm_head")
    named = [name for names in losses for name in names]
    assert sorted(named) == sorted([*calibrate.layers(model), *both]) and both in losses
    assert (
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.k_proj",
        "model.layers.0.self_attn.v_proj",
    ) in losses
    for table in losses.values():
        values = [table[bits] for bits in WIDTHS]
        assert all(value > 0 for value in values) and values == sorted(values, reverse=True)


def test_a_loss_is_the_divergence_of_the_model_with_that_group_alone_changed(measured):
    model, tokens, losses = measured
    names, seen = ("model.layers.2.mlp.down_proj",), {}
    calibrate.sequential(model, tokens, lambda n, weight, hessian: seen.update({tuple(n): (weight.clone(), hessian)}))
    weight, hessian = seen[names]
    other = copy.deepcopy(model)
    share, errors = hessian.diagonal(), {}
    for bits in WIDTHS:
        scale, zero = grid.choose(weight, bits=bits, group_size=32, importance=share, candidates=4)
        values = grid.dequantize(grid.quantize(weight, scale, zero, bits=bits), scale, zero, bits=bits)
        errors[bits] = ((values - weight).double().square() * share.double()).sum().item()
        if bits == sensitivity.PROBE:
            other.get_submodule(names[0]).weight.data.copy_(values)
    expected = divergence.measure(other, model, tokens[:2])["kl_divergence"].value
    for bits in WIDTHS:
        carried = expected * errors[bits] / errors[sensitivity.PROBE]
        assert losses[names][bits] == pytest.approx(carried, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_lies_on_the_probes_grid_is_measured_at_the_fewest_bits(dtype):
    """It was saved at 3 bits, and is compressed again: errors at 3 bits, which all others were divided by, are none."""
    model, tokens = tiny.llama().to(dtype), tiny.tokens(4, 24)
    for layer in calibrate.layers(model).values():
        layer.weight.data.copy_(rtn.rtn(layer.weight, bits=3, group_size=32).dense(dtype))
    losses = sensitivity.measure(model, tokens, widths=WIDTHS, group_size=32, windows=2)
    for names, table in losses.items():
        values = [table[bits] for bits in WIDTHS]
        assert values == sorted(values, reverse=True), names
        if "lm_head" not in names:
            assert 0 <= values[1] < 0.02 * values[0], names

    names, seen = ("model.layers.2.mlp.down_proj",), {}
    calibrate.sequential(model, tokens, lambda n, weight, hessian: seen.update({tuple(n): (weight.clone(), hessian)}))
    weight, hessian = seen[names]
    share = hessian.diagonal()
    scale, zero = grid.choose(weight, bits=2, group_size=32, importance=share, candidates=4)
    other = copy.deepcopy(model)
    values = grid.dequantize(grid.quantize(weight, scale, zero, bits=2), scale, zero, bits=2)
    other.get_submodule(names[0]).weight.data.copy_(values)
    expected = divergence.measure(other, model, tokens[:2])["kl_divergence"].value
    assert expected > 0 and losses[names][2] == pytest.approx(expected, rel=1e-3 if dtype == torch.float32 else 0.05)


def test_layers_without_any_error_cost_nothing_at_any_bits():
    model, tokens = tiny.llama(), tiny.tokens(2, 16)
    layer = model.model.layers[1].mlp.down_proj
    layer.weight.data.zero_()
    losses = sensitivity.measure(model, tokens, widths=WIDTHS, group_size=32)
    assert set(losses[("model.layers.1.mlp.down_proj",)].values()) == {0.0}


def test_measuring_takes_a_pass_for_each_group_and_block_behind_it(monkeypatch):
    """4 groups in a block, B (B + 1) / 2 blocks behind all of them; the rest of the work is linear in B."""
    run, model = sensitivity._run, tiny.llama()
    kind = type(blocks.blocks(model)[0])
    forward, behind, all_ = kind.forward, [], []
    monkeypatch.setattr(kind, "forward", lambda *args, **named: all_.append(1) or forward(*args, **named))
    monkeypatch.setattr(sensitivity, "_run", lambda parts, hidden: behind.append(len(parts)) or run(parts, hidden))
    counts, widths, rest = (1, 2, 4, 8), (2, 4), []
    for count_ in counts:
        for _ in range(2):  # the second time without what a process tries once of each configuration
            behind.clear(), all_.clear()
            sensitivity.measure(tiny.llama(num_hidden_layers=count_), tiny.tokens(3, 8), widths=widths, group_size=32)
        assert sum(behind) == 4 * count_ * (count_ + 1) // 2 + len(widths) * count_  # and the embedding, at each width
        rest.append(len(all_) - sum(behind))
    assert rest[3] - rest[2] == 2 * (rest[2] - rest[1]) == 4 * (rest[1] - rest[0]) > 0


def test_a_killed_measurement_resumes_to_the_same_losses_and_refuses_other_arguments(measured, tmp_path, monkeypatch):
    model, tokens, losses = measured
    options = {"widths": WIDTHS, "group_size": 32, "windows": 2, "state": tmp_path}
    diverge, calls = sensitivity._divergence, []

    def stops(*args):
        calls.append(1)
        if len(calls) == 10:  # the second group of the third block
            raise KeyboardInterrupt
        return diverge(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sensitivity, "_divergence", stops)
        sensitivity.measure(model, tokens, **options)
    assert sorted(path.name for path in tmp_path.glob("losses-*")) == ["losses-0000.json", "losses-0001.json"]
    calls.clear()
    monkeypatch.setattr(sensitivity, "_divergence", lambda *args: calls.append(1) or diverge(*args))
    assert sensitivity.measure(model, tokens, **options) == losses
    assert len(calls) == 2 * 4 + len(WIDTHS)  # the blocks that were not finished, and the embedding
    assert sensitivity.measure(model, tokens, **options) == losses and len(calls) == 2 * 4 + len(WIDTHS)
    for change, said in (
        ({"widths": (2, 3)}, r"widths=\(2, 3, 4, 8\) there, \(2, 3\) here"),
        ({"group_size": 16}, "group_size=32 there, 16 here"),
        ({"windows": 1}, "windows=2 there, 1 here"),
    ):
        with pytest.raises(ValueError, match=said):
            sensitivity.measure(model, tokens, **(options | change))
    with pytest.raises(ValueError, match="calibration="):
        sensitivity.measure(model, tokens.flip(0), **options)
    with pytest.raises(ValueError, match="model="):
        sensitivity.measure(tiny.llama(seed=1), tokens, **options)


def test_measuring_changes_nothing(measured):
    model, tokens, losses = measured
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    again = sensitivity.measure(model, tokens, widths=WIDTHS, group_size=32, windows=2)
    assert again == losses
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_divergence_that_is_not_finite_stops_the_measurement(measured, monkeypatch):
    model, tokens, _ = measured
    monkeypatch.setattr(sensitivity, "_divergence", lambda *_: float("nan"))
    with pytest.raises(
        ValueError, match=r"layers\.0\.self_attn\.q_proj, .*v_proj would cost nan nats a token at 2 bits"
    ):
        sensitivity.measure(model, tokens, widths=WIDTHS, group_size=32, windows=2)


def test_large_weights_have_finite_losses_that_stay_the_same_where_the_model_does(measured):
    """Queries 2^100 times as large and keys as many times smaller: the same model, and the same losses."""
    model, tokens, losses = measured
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for block in blocks.blocks(scaled):
            block.self_attn.q_proj.weight.mul_(2.0**100)
            block.self_attn.k_proj.weight.mul_(2.0**-100)
    found = sensitivity.measure(scaled, tokens, widths=WIDTHS, group_size=32, windows=2)
    for names, table in found.items():
        values = [table[bits] for bits in WIDTHS]
        assert all(0 < value < 10 for value in values) and values == sorted(values, reverse=True), names
        if "self_attn.q_proj" not in names[0]:
            assert values == pytest.approx([losses[names][bits] for bits in WIDTHS], rel=1e-2)
