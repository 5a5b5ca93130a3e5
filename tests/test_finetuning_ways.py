"""Which weights each way trains, that codes stay codes, and what the adapters compute, against formulas and peft."""

import pytest
import torch

from lib.finetuning import loftq, ways
from lib.models import blocks
from lib.quantized.linear import QuantLinear, sparing
from lib.quantizers import rtn
from lib.trainers import loop, low_rank, next_token
from tests import tiny

OPTIONS = {"steps": 3, "learning_rate": 1e-2, "batch": 2}
NAME = "model.layers.2.mlp.up_proj"


def quantized(bits=4, family=tiny.llama, **options):
    model = family(**options)
    rtn.quantize_(model, bits=bits, group_size=32)
    return model


def snapshot(model):
    return {name: each.clone() for name, each in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gradients_flow_through_codes_to_the_adapters_and_the_codes_stay(bits):
    model, tokens = quantized(bits), tiny.tokens(4, 24)
    before = snapshot(model)
    logits = model(input_ids=tokens).logits
    with ways.trained_(model, "qlora", rank=4) as adapters:
        assert torch.equal(model(input_ids=tokens).logits, logits)  # B starts at zero
        next_token.loss(model, {"input_ids": tokens}).backward()
        layer = model.get_submodule(NAME)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert not a.grad.any() and b.grad.any()  # of A it is Bᵀ…, and B is zero
        codes = layer.base_layer.codes
        found = torch.autograd.grad(next_token.loss(model, {"input_ids": tokens}), b)[0]
        for part in (each for each in model.modules() if isinstance(each, QuantLinear)):
            part.sparing = False  # autograd's own product with the dense matrix
        wanted = torch.autograd.grad(next_token.loss(model, {"input_ids": tokens}), b)[0]
        torch.testing.assert_close(found, wanted)
        model.zero_grad()
        loop.train_(model, tokens, next_token.loss, **OPTIONS)
        assert codes.dtype == torch.uint8
    assert len(adapters.parts) == 28 and all(part.b.any() for part in adapters.parts.values())
    assert same(snapshot(model), before) and torch.equal(model(input_ids=tokens).logits, logits)


def test_a_sparing_product_is_the_usual_one_and_keeps_no_matrix():
    layer = quantized().get_submodule(NAME)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
        wanted = layer(inputs)
        (of_wanted,) = torch.autograd.grad(wanted.square().sum(), inputs)
        with sparing(layer):
            found = layer(inputs)
            assert layer._dense is None
            (of_found,) = torch.autograd.grad(found.square().sum(), inputs)
        assert torch.equal(found, wanted) and torch.equal(of_found, of_wanted) and not layer.sparing


@pytest.mark.parametrize(("make", "kind"), [(tiny.qwen2, "lora"), (quantized, "rslora")])
def test_the_product_of_a_layer_and_its_adapter_is_that_of_peft(make, kind):
    layer_name, inputs = "model.layers.2.self_attn.q_proj", torch.randn(2, 3, 64, requires_grad=True)
    model = make()
    with low_rank.attached_(model, kind=kind, rank=4):
        layer = model.get_submodule(layer_name)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        torch.nn.init.normal_(b)
        ours, theirs = layer(inputs), type(layer).forward(layer, inputs)
        assert "LowRankProduct" in ours.grad_fn.next_functions[0][0].name() + ours.grad_fn.name()
        torch.testing.assert_close(ours, theirs)
        found, wanted = (torch.autograd.grad(each.square().sum(), (inputs, a, b)) for each in (ours, theirs))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(layer(inputs), theirs)  # by peft's own


@pytest.mark.parametrize("kind", low_rank.KINDS)
@pytest.mark.parametrize("make", [tiny.llama, quantized])
def test_each_kind_computes_what_its_paper_writes(kind, make):
    model, tokens = make(), tiny.tokens(2, 16)
    start = model(input_ids=tokens).logits
    weight = model.get_submodule(NAME).weight.detach().clone()
    with low_rank.attached_(model, kind=kind, rank=4, alpha=8) as adapters:
        torch.testing.assert_close(model(input_ids=tokens).logits, start)
        loop.train_(model, tokens, next_token.loss, **OPTIONS)
        inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
        found = model.get_submodule(NAME)(inputs)
    part = adapters.parts[NAME]
    assert part.scaling == (4 if kind == "rslora" else 2)
    whole = weight + part.scaling * part.b @ part.a
    if kind == "dora":
        assert not torch.equal(part.magnitude, weight.norm(dim=1))
        whole = whole * (part.magnitude / whole.norm(dim=1))[:, None]
    torch.testing.assert_close(found, inputs @ whole.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(part.merged(weight), whole)


def test_bfloat16_models_start_unchanged_with_adapters_of_their_own_type():
    for kind in low_rank.KINDS:
        model, tokens = quantized().to(torch.bfloat16), tiny.tokens(2, 16)
        start = model(input_ids=tokens).logits
        with low_rank.attached_(model, kind=kind, rank=4):
            assert {each.dtype for name, each in model.named_parameters() if each.requires_grad} == {torch.bfloat16}
            torch.testing.assert_close(model(input_ids=tokens).logits, start)


def test_only_the_scales_learn_and_the_model_stays_on_its_grid():
    model, tokens = quantized(2), tiny.tokens(4, 24)
    before = snapshot(model)
    with ways.trained_(model, "scales") as adapters:
        rate = ways.learning_rate(quantized(2), "scales")
        history = loop.train_(model, tokens, next_token.loss, **OPTIONS | {"learning_rate": rate, "steps": 20})
    assert adapters is None and sum(history.losses[-4:]) < sum(history.losses[:4])
    changed = {name.rpartition(".")[2] for name, each in snapshot(model).items() if not torch.equal(each, before[name])}
    assert changed == {"scale"}
    assert sum(each.nbytes for each in model.buffers()) == sum(each.nbytes for each in quantized(2).buffers())
    with pytest.raises(RuntimeError, match="stop"), ways.trained_(model, "scales"):
        next(each for name, each in model.named_parameters() if name.endswith("delta")).data.fill_(0.5)
        raise RuntimeError("stop")
    assert same(snapshot(model), {**before, **{k: v for k, v in snapshot(model).items() if k.endswith("scale")}})


@pytest.mark.parametrize(("way", "bits"), [("full", None), ("head", None), ("head", 4), ("lora", None), ("qlora", 4)])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_way_trains_and_gives_the_model_back(way, bits, recompute):
    model, tokens = tiny.llama() if bits is None else quantized(bits), tiny.tokens(4, 24)
    modules, config = [name for name, _ in model.named_modules()], model.config.to_dict()
    with ways.trained_(model, way, recompute=recompute):
        losses = loop.train_(model, tokens, next_token.loss, **OPTIONS).losses
    assert losses[-1] != losses[0] and [name for name, _ in model.named_modules()] == modules
    assert not hasattr(model, "peft_config") and model.config.to_dict() == config  # `use_cache` too


def test_adapters_that_begin_with_the_error_hold_it_as_far_as_their_rank_goes():
    model, tokens = tiny.llama(), tiny.tokens(2, 16)
    originals, wanted = loftq.weights(model), model(input_ids=tokens).logits
    rtn.quantize_(model, bits=2, group_size=32)
    errors, shares = [], []
    for rank in (1, 16, 64):
        start = loftq.start(model, originals, rank=rank)
        with low_rank.attached_(model, rank=rank, start=start) as adapters:
            errors.append((model(input_ids=tokens).logits - wanted).norm().item())
        shares.append(loftq.kept(model, originals, start))
        a, b = start[NAME]
        exact = torch.linalg.svdvals(originals[NAME] - model.get_submodule(NAME).weight)
        left = (originals[NAME] - model.get_submodule(NAME).weight - b @ a).square().sum()
        assert left <= 1.05 * exact[rank:].square().sum() + 1e-6  # Eckart and Young
        part = adapters.parts[NAME]
        torch.testing.assert_close(part.scaling * part.b @ part.a, b @ a)
    assert errors[2] < 1e-2 < errors[1] < errors[0] and shares[0] < shares[1] < shares[2]
    codes = model.get_submodule(NAME).codes.clone()
    again = loftq.start(model, originals, rank=16, rounds=5)
    assert loftq.kept(model, originals, again) > 0 and not torch.equal(model.get_submodule(NAME).codes, codes)
    before = quantized(2)
    once = loftq.start(before, originals, rank=16)
    assert left_over(model, originals, again) < left_over(before, originals, once)


def left_over(model, originals, start):
    errors = (originals[name] - model.get_submodule(name).weight - b @ a for name, (a, b) in start.items())
    return sum(each.square().sum() for each in errors)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ways.trained_(tiny.llama(), "qlora"), "'qlora' is for models with quantized .* has none; full, head"),
        (
            lambda: ways.trained_(quantized(), "lora"),
            "'lora' is for models without .*has quantized layers; head, rslora",
        ),
        (lambda: ways.trained_(tiny.llama(), "scale"), "'scale' to fine-tune is unknown; .*did you mean 'scales'"),
        (lambda: ways.trained_(quantized(), "qlora", rank=0), "rank=0"),
        (lambda: ways.trained_(quantized(), "qlora", first=4), "first=4 of 4"),
        (lambda: low_rank.attached_(tiny.llama(), kind="vera"), "kind 'vera' are unknown"),
    ],
)
def test_what_a_model_can_not_is_refused(call, said):
    with pytest.raises(ValueError, match=f"(?s){said}"), call():
        pass


def test_loftq_refuses_other_originals_and_plain_models():
    model = quantized()
    with pytest.raises(ValueError, match="0 quantized layers"):
        loftq.start(tiny.llama(), {}, rank=2)
    with pytest.raises(ValueError, match=r"no weight of the shape of model\.layers\.0"):
        loftq.start(model, {}, rank=2)
    with pytest.raises(ValueError, match="rank=0"):
        loftq.start(model, loftq.weights(tiny.llama()), rank=0)


def test_peft_alone_would_lose_the_adapter_and_is_stopped():
    model = quantized()
    attached = low_rank.wrapped_(model, kind="lora", rank=2, alpha=4, first=0, seed=0)
    with attached as wrapped, pytest.raises(ValueError, match="can't be added to codes"):
        wrapped.merge_adapter()
    assert blocks.linears(blocks.blocks(model)) and not any("lora" in name for name, _ in model.named_modules())
