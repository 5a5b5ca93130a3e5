"""Budgets in bytes on a tied model: `fit` against all plans there are, and the saved folder from the least size on."""

import itertools

import pytest
import torch

from lib.export import compressed_tensors
from lib.metrics import count
from lib.models import blocks
from lib.quantizers import allocate, calibrate
from tests import tiny

WIDTHS, GROUP = (2, 3, 5, 8), 32


def made(count=2, dtype=torch.float32):
    return tiny.llama(num_hidden_layers=count).to(dtype)


def tables(model, seed, together=3):
    """Losses drawn at random, in order or not, of groups of so many layers, and of the tied embedding."""
    draw = torch.Generator().manual_seed(seed)
    names = list(calibrate.layers(model))
    groups = [tuple(names[at : at + together]) for at in range(0, len(names), together)]
    return {
        group: dict(zip(WIDTHS, torch.rand(len(WIDTHS), generator=draw).tolist()))
        for group in [*groups, ("model.embed_tokens", "lm_head")]
    }


def plan_of(losses, widths):
    return {name: bits for names, bits in zip(losses, widths) for name in names}


def bytes_of(model, plan):
    return round(allocate.megabytes(model, plan, group_size=GROUP) * 1e6)


@pytest.mark.parametrize("seed", range(4))
def test_no_plan_that_fits_has_a_smaller_loss(seed):
    model = made(1)
    losses = tables(model, seed)
    sizes = {widths: bytes_of(model, plan_of(losses, widths)) for widths in itertools.product(WIDTHS, repeat=4)}
    loss = {widths: sum(table[b] for table, b in zip(losses.values(), widths)) for widths in sizes}
    least, most = min(sizes.values()), max(sizes.values())
    draw = torch.Generator().manual_seed(seed)
    for budget in [least, least + 1, most, *torch.randint(least, most, (12,), generator=draw).tolist()]:
        plan = allocate.fit(model, losses, megabytes=budget / 1e6, group_size=GROUP)
        assert bytes_of(model, plan) <= budget
        found = sum(table[plan[names[0]]] for names, table in losses.items())
        assert found == pytest.approx(min(loss[widths] for widths in sizes if sizes[widths] <= budget))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_saved_folder_keeps_every_budget_from_the_least_on(tmp_path, dtype):
    original = made(dtype=dtype)
    assert blocks.tied(original)
    losses = tables(original, seed=0, together=1)
    for names, table in losses.items():
        losses[names] = {bits: table[2] / 4**bits for bits in WIDTHS}  # as losses are: more bits, less
    least, most = (bytes_of(original, plan_of(losses, [bits] * len(losses))) for bits in (2, 8))
    with pytest.raises(ValueError, match="too small: with 2 bits everywhere"):
        allocate.fit(original, losses, megabytes=(least - 1) / 1e6, group_size=GROUP)
    sizes = []
    for budget in [least, least + 1, *range(least + 977, most, (most - least) // 5), most, 2 * most]:
        model = made(dtype=dtype)
        options = {"megabytes": budget / 1e6, "group_size": GROUP, "losses": losses}
        done = allocate.quantize_(model, tiny.tokens(2, 16), **options)
        folder = compressed_tensors.save(model, model.tokenizer, tmp_path / str(budget))
        sizes.append(count.artifact_bytes(folder))
        assert sizes[-1] == bytes_of(original, {name: each.bits for name, each in done.items()}) <= budget
    assert sizes == sorted(sizes) and sizes[0] == sizes[1] == least and sizes[-2] == sizes[-1] == most
