"""Blocks that return tuples: quantizing them works as for those that return tensors."""

import torch
import transformers

from lib.models import capture
from lib.quantizers import calibrate, gptq
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
