"""What can't be allotted is refused before the work: budgets, widths, plans, losses; nothing is changed or written."""

import copy

import pytest
import torch

from lib.metrics import divergence
from lib.models import blocks, capture
from lib.quantizers import allocate, calibrate, embedding, sensitivity
from tests import tiny

WIDTHS = (2, 3, 4, 8)


@pytest.fixture(scope="module")
def measured():
    model, tokens = tiny.llama(), tiny.tokens(4, 24)
    return model, tokens, sensitivity.measure(model, tokens, widths=WIDTHS, group_size=32, windows=2)


@pytest.fixture
def idle(monkeypatch):
    """Nothing may run: what is refused, is refused before the work."""
    monkeypatch.setattr(capture, "capture", lambda *_, **__: pytest.fail("the work had begun"))
    monkeypatch.setattr(divergence, "remember", lambda *_, **__: pytest.fail("the work had begun"))
    monkeypatch.setattr(embedding, "final_moment", lambda *_, **__: pytest.fail("the work had begun"))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"megabytes": float("nan")}, "megabytes=nan; a budget is a positive number"),
        ({"megabytes": float("inf")}, "megabytes=inf; a budget is a positive number"),
        ({"megabytes": -1}, "megabytes=-1; a budget is a positive number"),
        ({"megabytes": 0.001}, r"megabytes=0\.001 is too small: with 2 bits everywhere"),
        ({"megabytes": 0.07, "widths": (4, 8)}, r"megabytes=0\.07 is too small: with 4 bits everywhere"),
        ({"widths": ()}, "widths are empty; .* leave them out"),
        ({"widths": (2, 9)}, r"bits=9 for model\.embed_tokens; .* choose one of"),
        ({"windows": 0}, "windows=0; .* 1 or more"),
        ({"group_size": 48}, "group_size=48 does not divide 64 columns"),
    ],
)
def test_what_cannot_be_allotted_is_refused_before_the_work(idle, tmp_path, change, said):
    model, tokens = tiny.llama(), tiny.tokens(4, 24)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=said):
        options = {"megabytes": 0.09, "group_size": 32, "state": tmp_path} | change
        allocate.quantize_(model, tokens, **options)
    found = model.state_dict()
    assert found.keys() == before.keys() and all(torch.equal(found[name], before[name]) for name in before)
    assert not any(tmp_path.iterdir())


class Doubled(torch.nn.Embedding):
    def forward(self, ids):
        return 2 * super().forward(ids)


def test_an_embedding_that_takes_no_grid_is_refused_before_the_sensitivities(idle):
    model, tokens = tiny.llama(), tiny.tokens(4, 24)
    model.model.embed_tokens = Doubled(256, 64)
    for work in (allocate.quantize_, lambda *args, megabytes, **options: sensitivity.measure(*args, **options)):
        with pytest.raises(ValueError, match="Doubled does more than to look up rows"):
            work(model, tokens, megabytes=0.09, group_size=32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0, -2.5])
def test_a_budget_that_is_no_size_is_refused_by_fit(measured, bad):
    model, _, losses = measured
    with pytest.raises(ValueError, match=f"megabytes={bad}; a budget is a positive number"):
        allocate.fit(model, losses, megabytes=bad, group_size=32)


def test_losses_that_lack_a_matrix_or_all_bits_are_refused(measured):
    model, _, losses = measured
    names = ("model.layers.2.mlp.down_proj",)
    for tables, said in (
        ({key: table for key, table in losses.items() if key != names}, "lacks 1 of 29 matrices, model.layers.2.mlp"),
        ({}, r"lacks 29 of 29 matrices, model\.embed_tokens first"),
        (losses | {names: {}}, r"model\.layers\.2\.mlp\.down_proj have no losses"),
    ):
        with pytest.raises(ValueError, match=said):
            allocate.fit(model, tables, megabytes=0.09, group_size=32)


def test_losses_that_are_not_finite_are_refused_with_the_layers_name(measured):
    model, _, losses = measured
    names = ("model.layers.2.mlp.down_proj",)
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"layers\.2\.mlp\.down_proj would cost (nan|inf) nats a token at 2 bits"):
            allocate.fit(model, losses | {names: losses[names] | {2: value}}, megabytes=0.09, group_size=32)


@pytest.mark.parametrize("tied", [True, False])
def test_a_plan_that_cannot_be_made_is_refused_before_the_work(idle, tmp_path, tied):
    model, tokens = tiny.llama(tie_word_embeddings=tied), tiny.tokens(4, 24)
    last = "model.layers.3.mlp.down_proj"
    plan = dict.fromkeys(["model.embed_tokens", "lm_head", *calibrate.layers(model)], 3)
    lacking = {
        "model.embed_tokens": r"the plan lacks 1 of \d+ matrices, model\.embed_tokens first",
        last: rf"the plan lacks 1 of \d+ matrices, {last} first",
    }
    wrong = {"model.embed_tokens": r"bits=9 for model\.embed_tokens", last: f"bits=9 for {last}"}
    if tied:
        wrong["lm_head"] = "bits=9 for lm_head"
        with pytest.raises(ValueError, match="bits=3 and head_bits=4 for one matrix"):
            allocate.apply_(model, tokens, plan | {"lm_head": 4}, group_size=32, state=tmp_path)
    else:
        lacking["lm_head"] = r"the plan lacks 1 of 30 matrices, lm_head first"
    cases = [({key: bits for key, bits in plan.items() if key != name}, said) for name, said in lacking.items()]
    cases += [(plan | {name: 9}, said) for name, said in wrong.items()]
    cases += [({}, r"the plan lacks (29 of 29|30 of 30) matrices")]
    for wanted, said in cases:
        with pytest.raises(ValueError, match=said):
            allocate.apply_(model, tokens, wanted, group_size=32, state=tmp_path)
    with pytest.raises(ValueError, match="batch=0"):
        allocate.apply_(model, tokens, plan, group_size=32, state=tmp_path, steps=3, batch=0)
    assert not any(map(blocks.is_quantized, model.modules())) and not any(tmp_path.iterdir())


def test_a_budget_too_small_is_refused_with_the_least_size(measured):
    model, tokens, losses = measured
    with pytest.raises(ValueError, match=r"megabytes=0.01 is too small: with 2 bits everywhere .* 0\.0\d+ MB"):
        allocate.quantize_(copy.deepcopy(model), tokens, megabytes=0.01, group_size=32, losses=losses)
