"""Blocks that return tuples are quantized as those that return tensors; blocks that don't run alone are refused."""

import pytest
import torch
import transformers

from lib.models import capture
from lib.quantizers import calibrate, clip, gptq, rtn
from tests import tiny


def test_a_family_whose_blocks_return_tuples_is_captured_and_quantized():
    sizes = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = transformers.FalconForCausalLM(transformers.FalconConfig(**sizes, alibi=False)).eval()
    tokens = tiny.tokens(2, 16)
    seen = []
    block = calibrate.blocks(model)[0]
    block.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args or (kwargs["hidden_states"],))[0]), with_kwargs=True
    )
    with torch.no_grad():
        model(input_ids=tokens)
    captured = capture.capture(model, tokens)
    assert torch.equal(captured.hidden, seen[0]) and len(captured.calls) == 2
    done = gptq.quantize_(model, tokens, bits=4, group_size=32)
    assert done.keys() == calibrate.layers(model).keys()
    assert model(input_ids=tokens).logits.isfinite().all()


OTHERS = {
    "Bloom": {"n_head": 4, "n_layer": 2},  # ALiBi for each text and head
    "XGLM": {"d_model": 64, "attention_heads": 4, "num_layers": 2, "ffn_dim": 96},  # a mask for each text
}


@pytest.mark.parametrize("family", OTHERS)
def test_blocks_that_do_not_run_by_themselves_are_refused_by_name(family):
    kind = getattr(transformers, f"{family}ForCausalLM")
    torch.manual_seed(0)
    model = kind(kind.config_class(vocab_size=256, hidden_size=64, **OTHERS[family])).eval()
    tokens = tiny.tokens(2, 16)
    before = {name: part.clone() for name, part in model.state_dict().items()}
    for method in (gptq, clip):
        with pytest.raises(ValueError, match=rf"{family}ForCausalLM has blocks that do not run .* such as rtn or hqq"):
            method.quantize_(model, tokens, bits=8, group_size=-1)
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
    with torch.no_grad():
        original = model(input_ids=tokens).logits
        rtn.quantize_(model, bits=8, group_size=-1)
        assert (model(input_ids=tokens).logits - original).norm() < 0.05 * original.norm()
