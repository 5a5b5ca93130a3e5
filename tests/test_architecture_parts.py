"""Each variant's equation, its controls, its refusals, and the values with which training begins."""

import copy

import pytest
import torch
from torch.nn import functional

from lib import architectures, runtime
from lib.architectures import controls, gates, headwise, initial, talking_heads
from lib.metrics import count
from lib.models import blocks
from tests import tiny
from tests.test_architectures import BLOCKS, HEAD, HEADS, HIDDEN, NAMES, SIZES, made

GROUPS = HEADS // 2


def attention(name, **changes):
    """An attention of the variant in float64, and a normed stream for it."""
    part = made(name, **changes).double().model.layers[0].self_attn
    hidden = torch.randn(2, 9, HIDDEN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return part, hidden


def run(part, hidden):
    cos, sin = torch.ones(1, 9, HEAD).double(), torch.zeros(1, 9, HEAD).double()  # no rotation
    mask = torch.full((9, 9), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    return part(hidden, (cos, sin), mask)[0]


def logits_and_values(part, hidden, query=None):
    query = part.q_proj(hidden) if query is None else query
    split = [
        each.unflatten(-1, (-1, HEAD)).transpose(1, 2) for each in (query, part.k_proj(hidden), part.v_proj(hidden))
    ]
    query, key, value = split[0], *(each.repeat_interleave(GROUPS, 1) for each in split[1:])
    found = query @ key.transpose(2, 3) / HEAD**0.5
    return found, value, torch.full((9, 9), -torch.inf, dtype=torch.float64).triu(1)


def heads_of(part, hidden, query=None):
    logits, value, mask = logits_and_values(part, hidden, query)
    return ((logits + mask).softmax(-1) @ value).transpose(1, 2)


@torch.no_grad()
@pytest.mark.parametrize(
    "name, bend",
    [
        ("headwise", functional.gelu),
        ("headwise_relu", functional.relu),
        ("headwise_silu", functional.silu),
        ("headwise_identity", lambda x: x),
        ("headwise_residual", functional.gelu),
    ],
)
def test_headwise(name, bend):
    part, hidden = attention(name)
    heads = heads_of(part, hidden)
    ours = torch.stack([bend(heads[:, :, h] @ part.head_proj[h].weight.T) for h in range(HEADS)], dim=2)
    expected = part.o_proj((ours + heads if name == "headwise_residual" else ours).flatten(-2))
    torch.testing.assert_close(run(part, hidden), expected)


def test_who_listens_to_the_layer_of_one_head_hears_it():
    part, hidden = attention("headwise")
    alone, layer, heard = run(part, hidden).detach(), part.head_proj[0], []
    for listen in (
        layer.register_forward_hook,
        layer.register_forward_pre_hook,
        layer.register_full_backward_hook,
        layer.register_full_backward_pre_hook,
    ):
        hook = listen(lambda *_: heard.append(1))
        found = run(part, hidden)
        torch.testing.assert_close(found.detach(), alone)
        found.sum().backward()
        hook.remove()
    layer.forward = lambda x: heard.append(1) or type(layer).forward(layer, x)
    torch.testing.assert_close(run(part, hidden).detach(), alone)
    assert len(heard) == 5


@torch.no_grad()
@pytest.mark.parametrize("name", ["head_gate", "element_gate"])
def test_gates(name):
    part, hidden = attention(name)
    gate = torch.sigmoid(hidden @ part.attention_gate.weight.T)
    gate = gate.repeat_interleave(HEAD, -1) if name == "head_gate" else gate
    torch.testing.assert_close(run(part, hidden), part.o_proj(heads_of(part, hidden).flatten(-2) * gate))


@torch.no_grad()
def test_talking_heads():
    part, hidden = attention("talking_heads")
    logits, value, mask = logits_and_values(part, hidden)
    mixed = torch.stack([sum(part.mix_logits[g, h] * logits[:, h] for h in range(HEADS)) for g in range(HEADS)], 1)
    weights = (mixed + mask).softmax(-1).float().double()  # the softmax is in float32, as Llama's
    weights = torch.stack([sum(part.mix_weights[g, h] * weights[:, h] for h in range(HEADS)) for g in range(HEADS)], 1)
    expected = part.o_proj((weights @ value).transpose(1, 2).flatten(-2))
    torch.testing.assert_close(run(part, hidden), expected, rtol=1e-5, atol=1e-6)
    first = architectures.build("talking_heads", SIZES, 0)
    ids = tiny.tokens(1, 12)
    torch.testing.assert_close(first(ids).logits, architectures.build("plain", SIZES, 0)(ids).logits)


@torch.no_grad()
def test_nonlinear_query():
    part, hidden = attention("nonlinear_query")
    rms = hidden * (hidden.square().mean(-1, keepdim=True) + part.query_norm.variance_epsilon).rsqrt()
    inner = functional.gelu((rms.float().double() * part.query_norm.weight) @ part.query_in.weight.T)
    bent = inner @ part.query_out.weight.T
    normed = (bent - bent.mean(-1, keepdim=True)) / (bent.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    query = (hidden + normed * part.query_out_norm.weight) / 2
    expected = part.o_proj(heads_of(part, hidden, query).flatten(-2))
    torch.testing.assert_close(run(part, hidden), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("residual", [False, True])
def test_headwise_without_nonlinearity_folds_into_llama(residual):
    model = made("headwise_identity", head_residual=residual, tie_word_embeddings=residual).double()
    folded, ids = controls.fold(model), tiny.tokens(2, 16)
    assert type(folded).__name__ == "LlamaForCausalLM" and blocks.tied(folded) == residual
    assert count.parameters(model) - count.parameters(folded) == BLOCKS * HEADS * HEAD**2
    # norms and softmax are in float32 in both: their roundings are all that may differ
    torch.testing.assert_close(folded(ids).logits, model(ids).logits, rtol=1e-6, atol=1e-6)
    packed = runtime.Session(runtime.pack_(folded.bfloat16()))
    assert packed.extend(ids[0].tolist()).shape[-1] == 256


@pytest.mark.parametrize("name", ["headwise", "plain"])
def test_what_does_not_fold_is_refused(name):
    with pytest.raises(ValueError, match="only headwise models with 'identity' fold into Llama"):
        controls.fold(made(name))


@pytest.mark.parametrize("name", ["headwise", "head_gate", "element_gate", "talking_heads", "nonlinear_query"])
def test_a_wider_mlp_has_the_weights_or_the_operations_of_a_variant(name):
    sizes, kind, context = {**SIZES, "hidden_size": 128, "intermediate_size": 344}, architectures.by_name(name), 300
    config = architectures.configuration(name, sizes)
    variant, unit = architectures.build(name, sizes, 0), 3 * 128 * BLOCKS
    for made_by, measure in (
        (controls.equal_weights(kind, config), count.parameters),
        (controls.equal_flops(kind, config, context=context), lambda model: count.flops_per_token(model, context) / 2),
    ):
        control = architectures.build("plain", made_by, 0)
        assert type(control).__name__ == "LlamaForCausalLM"
        assert abs(measure(control) - measure(variant)) <= unit / 2
    coarse = controls.equal_weights(kind, config, multiple=8)
    assert coarse.intermediate_size % 8 == 0
    plain = count.parameters(architectures.build("plain", coarse, 0))
    assert abs(plain - count.parameters(variant)) <= 4 * unit


def test_for_headwise_equal_weights_are_equal_operations():
    config = architectures.configuration("headwise", SIZES)
    kind = architectures.by_name("headwise")
    assert controls.equal_weights(kind, config) == controls.equal_flops(kind, config, context=1000)
    assert len(architectures.build("deeper", SIZES, 0).model.layers) == BLOCKS + 1


def test_models_of_one_seed_share_the_values_of_shared_parts():
    plain, before = dict(made_plain().named_parameters()), torch.get_rng_state()
    for name in NAMES:
        found = dict(architectures.build(name, SIZES, 0).named_parameters())
        shared = [each for each in found if each in plain and found[each].shape == plain[each].shape]
        scaled = initial.ADDING if name == "deeper" else ()
        differ = [each for each in shared if not torch.equal(found[each], plain[each])]
        assert all(each.endswith(scaled) for each in differ) if scaled else differ == [], name
        assert len(shared) >= len(plain) - (2 + 4 * (name == "wider")) * BLOCKS
    assert torch.equal(torch.get_rng_state(), before)
    other = dict(architectures.build("plain", SIZES, 1).named_parameters())
    assert not any(torch.equal(other[each], plain[each]) for each in plain if plain[each].ndim > 1)
    again = dict(architectures.build("headwise", SIZES, 0).named_parameters())
    assert all(torch.equal(again[each], plain[each]) for each in plain)


def made_plain():
    return architectures.build("plain", SIZES, 0)


def scales(name, width, depth):
    """Of a model as training begins: the stream behind the last block, and the gradients of every block's matrices."""
    sizes = {**SIZES, "hidden_size": width, "intermediate_size": 8 * width // 3, "num_hidden_layers": depth}
    model, ids = architectures.build(name, sizes, 0), tiny.tokens(4, 32)
    found = []
    model.model.norm.register_forward_hook(lambda module, args, out: found.append(args[0].detach().square().mean()))
    model(ids, labels=ids).loss.backward()
    gradients = [
        torch.stack([layer.weight.grad.norm() for layer in blocks.linears(block).values()]).norm().item()
        for block in model.model.layers
    ]
    return found[0].sqrt().item(), gradients


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("wider", "deeper")])
def test_stream_and_gradients_begin_alike_at_every_depth_and_width(name):
    found = {(width, depth): scales(name, width, depth) for width, depth in ((64, 2), (64, 6), (64, 16), (192, 6))}
    streams = [stream for stream, _ in found.values()]
    assert max(streams) / min(streams) < 1.5 and min(streams) > 0.1
    for _, gradients in found.values():
        assert max(gradients) / min(gradients) < 8  # from the first block to the last
    narrow, wide = (found[width, 6][1] for width in (64, 192))
    assert all(one / other < 3 for one, other in zip(wide, narrow))


@pytest.mark.parametrize(
    "name, changes, said",
    [
        ("headwize", {}, "architecture 'headwize' is unknown; choose one of .*; did you mean 'headwise'"),
        ("headwise", {"num_attention_heads": 5}, "num_attention_heads=5 do not divide hidden_size=64; choose one of"),
        ("plain", {"num_attention_heads": 5}, "num_attention_heads=5 do not divide hidden_size=64; choose one of"),
        ("head_gate", {"num_key_value_heads": 3}, "num_key_value_heads=3 for 4 heads; a divisor is allowed"),
        ("headwise", {"num_attention_heads": 64, "num_key_value_heads": 64}, "heads of size 1; rotary positions"),
        ("headwise", {"head_activation": "gelu2"}, "head_activation='gelu2' is unknown; choose one of identity, relu"),
        ("plain", {"num_hidden_layers": 0}, "num_hidden_layers=0; whole numbers from 1 are allowed"),
        ("plain", {"head_activation": "gelu"}, "head_activation='gelu' is no setting of 'plain'"),
        ("nonlinear_query", {"head_dim": 32}, "4 heads of size 32 make queries of 128 numbers"),
        ("talking_heads", {"hiden_size": 64}, "hiden_size=64 is no setting of 'talking_heads'; .*'hidden_size'"),
    ],
)
def test_what_makes_no_model_is_refused(name, changes, said):
    with pytest.raises(ValueError, match=said):
        architectures.build(name, SIZES | changes, 0)


def test_a_saved_configuration_is_checked_when_it_is_read(tmp_path):
    with pytest.raises(ValueError, match="head_activation='none'"):
        headwise.HeadwiseConfig.from_dict({**SIZES, "head_activation": "none"})
    with pytest.raises(ValueError, match="attention_gate='both' is unknown; choose one of head, element"):
        gates.GatedConfig(**SIZES, attention_gate="both")
    with pytest.raises(ValueError, match="num_attention_heads=5 do not divide"):
        talking_heads.TalkingHeadsConfig(**SIZES | {"num_attention_heads": 5})


def test_a_class_under_the_name_of_another_is_refused(tmp_path):
    kind = copy.copy(architectures.by_name("headwise"))

    class Clashing(headwise.HeadwiseConfig):
        model_type = "llama"

    with pytest.raises(ValueError, match="model_type='llama', which is transformers' own"):
        architectures.register(type("Other", (kind,), {"config_class": Clashing}))
