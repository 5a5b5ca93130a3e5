"""Every family that lost a block learns again, one step in every way, from the loss that plain transformers has."""

import pytest
import torch

from lib.export import plain
from lib.pruners import depth, heal
from tests import families, tiny
from tests.supported import attempt

TEXT = tiny.tokens(4, 16, seed=3)
DEEP = [family for family in families.FAMILIES if family != "llama_one_block"]
# two of the five ways on each family, all of them by turns; with `make checks` the others too
PAIRS = [
    pytest.param(family, way, marks=() if (row + column) % len(heal.WAYS) in (0, 2) else pytest.mark.long)
    for row, family in enumerate(DEEP)
    for column, way in enumerate(heal.WAYS)
]


@pytest.mark.parametrize(("family", "way"), PAIRS)
def test_healed(family, way, tmp_path):
    teacher = families.build(family)
    model = depth.drop_blocks_(families.build(family), [2])
    before = families.logits(model, TEXT)
    q, p = (found[:, :-1].log_softmax(-1) for found in (before, families.logits(teacher, TEXT)))
    wanted = (p.exp() * (p - q)).sum(-1).mean()  # KL(p ‖ q)
    if not heal.WAYS[way].teacher:
        wanted = -q.gather(-1, TEXT[:, 1:, None]).mean()
    with attempt(family, "heal"):
        history = heal.heal_(model, TEXT, way=way, teacher=teacher, first=2, steps=1)
        assert history.losses == pytest.approx([float(wanted)], rel=1e-4)
        after = families.logits(model, TEXT)
        assert after.isfinite().all() and not torch.equal(after, before)
        plain.save(model, model.tokenizer, tmp_path / "it")
        assert families.distance(families.logits(families.reloaded(tmp_path / "it"), TEXT), after) < 1e-6
