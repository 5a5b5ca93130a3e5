"""What a block computes, part by part, against transformers' own outputs and the formulas."""

import copy
import math

import pytest
import torch

from lib.analysis import block_parts
from tests import tiny

TOKENS = tiny.tokens(2, 12)
MODELS = {
    "llama": tiny.llama,
    "qwen3": tiny.qwen3,
    "phi3": tiny.phi3,
    "headwise": lambda: tiny.architecture("headwise_residual"),
    "gate": lambda: tiny.architecture("element_gate"),
    "mixed": lambda: tiny.architecture("talking_heads"),
}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_the_parts_are_those_of_the_model(name):
    model = MODELS[name]()
    before, alone = model.config._attn_implementation, copy.deepcopy(model)
    found = block_parts.measure(model, TOKENS)
    assert model.config._attn_implementation == before and [*found] == [0, 1, 2, 3]
    alone.set_attn_implementation("eager")
    wanted = alone(TOKENS, output_hidden_states=True, output_attentions=True)
    for place, (block, parts) in enumerate(zip(model.model.layers, found.values())):
        torch.testing.assert_close(parts.stream, wanted.hidden_states[place])
        torch.testing.assert_close(parts.weights, wanted.attentions[place])
        torch.testing.assert_close(parts.attended, block.self_attn.o_proj(parts.given.flatten(-2)))
        torch.testing.assert_close(parts.after, parts.stream + parts.attended + parts.fed)
        normed = block.input_layernorm(parts.stream)
        values = block.self_attn.qkv_proj(normed)[..., -32:] if name == "phi3" else block.self_attn.v_proj(normed)
        values = values.unflatten(-1, (2, 16)).repeat_interleave(2, 2)  # two queries share a head of values
        torch.testing.assert_close(parts.read, torch.einsum("bhts,bshd->bthd", parts.weights, values))
        after = getattr(block.self_attn, "after", lambda heads, hidden: heads)
        torch.testing.assert_close(parts.given, after(parts.read, normed))
        assert torch.equal(parts.read, parts.given) == (name not in ("headwise", "gate"))
        hooked = [part for part in block.modules() if part._forward_hooks or part._forward_pre_hooks]
        assert "after" not in vars(block.self_attn) and hooked == []
    assert [*block_parts.measure(model, TOKENS, [2])] == [2]
    with pytest.raises(ValueError, match="place 4; the model has the blocks 0 to 3"):
        block_parts.measure(model, TOKENS, [4])


def test_effective_rank():
    assert block_parts.effective_rank(torch.eye(7)) == pytest.approx(7)
    assert block_parts.effective_rank(torch.ones(9, 4)) == pytest.approx(1, abs=1e-5)
    turned = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double())[0]
    shares = (0.5, 0.25, 0.25)
    wanted = math.exp(-sum(share * math.log(share) for share in shares))
    assert block_parts.effective_rank(turned[:, :3] * torch.tensor([4.0, 2.0, 2.0])) == pytest.approx(wanted)


def test_what_no_matrix_makes():
    draws = torch.Generator().manual_seed(0)
    read = torch.randn(2, 50, 3, 4, generator=draws)
    read = torch.cat([read, -read])  # so that |x| has nothing in common with x
    turn = torch.randn(4, 4, generator=draws)
    given = torch.stack([read[:, :, 0] @ turn, read[:, :, 1].abs(), 3 * read[:, :, 2] + 4 * read[:, :, 2].abs()], 2)
    found = block_parts.not_linear(read, given)
    assert found[:2] == pytest.approx([0, 1], abs=1e-9) and found[2] == pytest.approx(16 / 25)
    narrow = torch.cat([read[..., :2], read[..., :2]], -1)  # heads that use two of their four directions
    assert block_parts.not_linear(narrow, 2 * narrow) == pytest.approx([0, 0, 0], abs=1e-9)
    with pytest.raises(ValueError, match="4 tokens for heads of size 4; a fit needs more"):
        block_parts.not_linear(read[:1, :4], given[:1, :4])
