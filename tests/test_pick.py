"""Layers chosen by what they do, whatever a family calls them and in whatever order it holds them."""

import pytest

from lib.models import blocks, pick
from tests import families


@pytest.mark.parametrize("family", families.FAMILIES)
def test_layers_read_and_write_what_their_kind_says(family):
    model = families.build(family)
    width, config = model.config.hidden_size, model.config
    heads = config.num_attention_heads * (getattr(config, "head_dim", None) or width // config.num_attention_heads)
    found = {kind: model.get_submodule(pick.linear(model, kind, 1.0)) for kind in pick.KINDS}
    assert len(set(found.values())) == 4 and found["query"].in_features == found["up"].in_features == width
    assert (found["output"].in_features, found["output"].out_features) == (heads, width)
    assert found["query"].out_features >= heads and found["down"].out_features == width
    last = len(blocks.blocks(model)) - 1
    assert {pick.block_of(model, pick.linear(model, kind, 1.0)) for kind in pick.KINDS} == {last}
    with pytest.raises(ValueError, match="kind='keys'"):
        pick.linear(model, "keys")
