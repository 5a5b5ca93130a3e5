"""The whole step against transformers with the dequantized weights, and sessions: forward, back, in batches."""

import numpy as np
import pytest
import torch

from lib import runtime
from lib.models import blocks
from lib.pruners import depth
from lib.quantizers import embedding
from lib.runtime import engine, modules, torch_kernels
from tests import packed, tiny

NEAR = 0.05  # of the logits' norm: what int8 activations and bfloat16 keys cost tiny random models, which are sharp


def both(make=tiny.llama, bits=4, symmetric=False, **overrides):
    """(logits [40, vocabulary] of the unpacked model in float32, the packed model, tokens [40])."""
    model = make(**overrides)
    if bits < 16:
        packed.quantize_(model, lambda name: (bits, 32, symmetric), dtype=torch.float32)
    tokens = tiny.tokens(1, 40, vocab=overrides.get("vocab_size", 256))
    with torch.no_grad():
        wanted = model(input_ids=tokens).logits[0]
    return wanted, runtime.pack_(model), tokens[0]


def near(found, wanted, share=NEAR):
    return (found - wanted).norm() < share * wanted.norm()


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_logits_are_those_of_the_dequantized_model(bits):
    wanted, model, tokens = both(bits=bits)
    assert near(runtime.Session(model).extend(tokens), wanted)


@pytest.mark.parametrize(
    "make, overrides",
    [
        (tiny.llama, {"tie_word_embeddings": False}),
        (tiny.llama, {"attention_bias": True, "mlp_bias": True}),
        (tiny.llama, {"num_key_value_heads": 4}),
        (tiny.llama, {"num_key_value_heads": 1}),
        (tiny.llama, {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
        (tiny.llama, {"vocab_size": 250, "hidden_size": 96, "intermediate_size": 160, "head_dim": 16}),
        (tiny.qwen2, {}),
        (tiny.qwen3, {}),
        (tiny.mistral, {"sliding_window": None}),
    ],
)
def test_families_and_shapes(make, overrides):
    wanted, model, tokens = both(make, **overrides)
    assert near(runtime.Session(model).extend(tokens), wanted)


def test_pruned_depth_and_quantized_embedding():
    model = tiny.llama()
    depth.drop_blocks_(model, [1])
    packed.quantize_(model, lambda name: (3, 64, False), dtype=torch.float32)
    embedding.quantize_(model, bits=4, group_size=32)
    tokens = tiny.tokens(1, 20)
    with torch.no_grad():
        wanted = model(input_ids=tokens).logits[0]
    runtime.pack_(model)
    weights = engine.weights_of(model)
    assert len(weights.layers) == 3 and weights.tied and weights.head.bits == 4
    assert near(runtime.Session(model).extend(tokens[0]), wanted)


@pytest.mark.parametrize("make", [tiny.llama, tiny.qwen3])
def test_plain_torch_takes_the_same_step(make):
    _, model, tokens = both(make, bits=3)
    compiled = runtime.Session(model)
    plain = runtime.Session(model, backend=torch_kernels.Reference(compiled.weights))
    first = compiled.extend(tokens[:20])
    # codes of activations at the middle between two may round the other way, and that spreads
    assert near(plain.extend(tokens[:20]), first, 0.03)
    assert near(plain.extend(tokens[20:]), compiled.extend(tokens[20:]), 0.03)


def test_tokens_one_by_one_in_one_go_or_beside_others_give_the_same_bits():
    _, model, tokens = both()
    whole = runtime.Session(model).extend(tokens)
    single = runtime.Session(model)
    assert torch.equal(torch.cat([single.extend(token[None]) for token in tokens]), whole)
    session = runtime.Session(model, capacity=16)  # grows
    assert torch.equal(torch.cat([session.extend(tokens[:3]), session.extend(tokens[3:29])]), whole[:29])
    session.rewind(11)
    session.extend(torch.tensor([1, 2, 3]))
    session.rewind(11)
    assert session.length == 11
    assert torch.equal(session.extend(tokens[11:]), whole[11:]) and session.length == 40
    batch = runtime.Batch(model, 3)
    found = batch.extend({2: tokens[:30].tolist(), 0: tokens[:7].tolist(), 1: [5]})
    assert np.array_equal(found[:2], whole[[29, 6]].numpy())
    found = batch.extend({0: [int(tokens[7])], 2: [int(tokens[30])]})
    assert np.array_equal(found, whole[[7, 30]].numpy()) and batch.lengths == [8, 1, 31]


def test_a_prompt_longer_than_one_call_takes():
    _, model, _ = both(max_position_embeddings=700)
    tokens = tiny.tokens(1, 600)[0]
    session = runtime.Session(model)
    last = session.extend(tokens, last=True)
    session.rewind(599)
    assert last.shape == (1, 256) and torch.equal(session.extend(tokens[599:]), last)


def test_the_models_own_generate_still_works():
    _, model, tokens = both(bits=8)
    prompt = tokens[:8]
    own = model.generate(prompt[None], max_new_tokens=12, do_sample=False, eos_token_id=None)[0, 8:]
    ours = torch.tensor(runtime.generate(model, [prompt], new_tokens=12, eos=())[0].token_ids)
    same = int((ours == own).cumprod(0).sum())
    assert same >= 4
    if same < 12:  # keys and values in bfloat16: the two tokens were as good as equal
        logits = runtime.Session(model).extend(torch.cat([prompt, ours[:same]]), last=True)[0]
        assert logits[ours[same]] - logits[own[same]] < 0.02 * logits.abs().max()


def test_more_threads_and_no_threads_agree():
    _, model, tokens = both()
    weights = engine.weights_of(model)
    one, three = (runtime.Session(model, backend=engine.Native(weights, threads=n)) for n in (1, 3))
    assert torch.equal(one.extend(tokens), three.extend(tokens))
    one.backend.profile(True)
    one.extend(tokens[:1])
    phases = one.backend.profile(False)
    assert phases["head"] > 0 and set(phases) == {*engine.cpu.PHASES, "waiting"}


def test_what_a_session_cannot_do_is_refused_with_nothing_changed():
    _, model, tokens = both(max_position_embeddings=48)
    session = runtime.Session(model)
    session.extend(tokens)
    with pytest.raises(ValueError, match="9 tokens after 40; the context ends at 48"):
        session.extend(tokens[:9])
    with pytest.raises(ValueError, match="no tokens were given"):
        session.extend(tokens[:0])
    with pytest.raises(ValueError, match="from 0 to 256; the vocabulary has 0 to 255"):
        session.extend(torch.tensor([0, 256]))
    with pytest.raises(ValueError, match="length=41; the session has 40"):
        session.rewind(41)
    assert session.length == 40
    with pytest.raises(ValueError, match="slots=0"):
        runtime.Batch(model, 0)


@pytest.mark.parametrize(
    "make, overrides, part",
    [
        (tiny.gemma2, {}, "model type 'gemma2'"),
        (tiny.phi, {}, "model type 'phi'"),
        (tiny.gemma3, {"final_logit_softcapping": 5.0}, "final_logit_softcapping=5.0"),
        (tiny.llama, {"hidden_act": "gelu"}, "activation hidden_act='gelu'"),
        (tiny.llama, {"head_dim": 24}, "heads of size 24"),
    ],
)
def test_an_unsupported_part_is_named_and_the_model_runs_without_the_engine(make, overrides, part, capsys):
    wanted, model, tokens = both(make, bits=8, **overrides)
    assert part in capsys.readouterr().out
    with torch.no_grad():
        assert near(model(input_ids=tokens[None]).logits[0], wanted)
    with pytest.raises(ValueError, match=f"has {part}.*run this model with its own generate"):
        runtime.Session(model)


def test_layers_that_the_layout_cannot_hold_stay_as_they_are(capsys):
    model = tiny.llama()
    packed.quantize_(model, lambda name: (4, 16 if name == "1.mlp.up_proj" else 32, False), dtype=torch.float32)
    runtime.pack_(model)
    assert "1 layers stay unpacked, model.layers.1.mlp.up_proj first: group_size=16" in capsys.readouterr().out
    assert not isinstance(blocks.blocks(model)[1].mlp.up_proj, modules.PackedLinear)
    with pytest.raises(ValueError, match=r"mlp\.up_proj of block 1, which is not packed"):
        runtime.Session(model)


def test_packing_is_checked_before_the_work():
    model = tiny.llama()
    with pytest.raises(ValueError, match="embedding_bits=9; choose 2 to 8"):
        runtime.pack_(model, embedding_bits=9)
    assert "PackedLinear" not in str(model)
    runtime.pack_(model, embedding_bits=None)
    with pytest.raises(ValueError, match="save it before pack_"):
        model.save_pretrained("anywhere")


def test_bytes_per_token_add_up():
    _, model, _ = both(bits=2)
    weights = engine.weights_of(model)
    assert weights.bytes_per_token() == weights.nbytes
    assert (
        weights.bytes_per_token(10) - weights.nbytes == 2 * 2 * 4 * 2 * 16 * 10
    )  # k and v, 2 bytes, 4 blocks, 2 heads
    with pytest.raises(AttributeError, match="has no attribute 'sesion'"):
        runtime.sesion  # noqa: B018
