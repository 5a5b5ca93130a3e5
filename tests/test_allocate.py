"""Allocation: the knapsack against brute force, the budget against the saved folder, resuming."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.export import compressed_tensors, size
from lib.metrics import count
from lib.models import blocks
from lib.quantizers import allocate, sensitivity
from tests import tiny

WIDTHS = (2, 3, 4, 8)
TABLES = st.lists(
    st.dictionaries(st.sampled_from(WIDTHS), st.tuples(st.integers(1, 60), st.floats(0, 10)), min_size=1),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=200)
@given(TABLES, st.integers(0, 200))
def test_the_best_choice_is_that_of_brute_force(tables, budget):
    costs = [{key: cost for key, (cost, _) in table.items()} for table in tables]
    losses = [{key: loss for key, (_, loss) in table.items()} for table in tables]
    found = allocate.solve(costs, losses, budget)
    fitting = [
        sum(loss[key] for loss, key in zip(losses, keys))
        for keys in itertools.product(*costs)
        if sum(cost[key] for cost, key in zip(costs, keys)) <= budget
    ]
    if not fitting:
        assert found is None
    else:
        assert sum(cost[key] for cost, key in zip(costs, found)) <= budget
        assert sum(loss[key] for loss, key in zip(losses, found)) == pytest.approx(min(fitting))


def test_a_coarse_unit_still_keeps_the_budget(monkeypatch):
    monkeypatch.setattr(allocate, "UNITS", 7)
    generator = torch.Generator().manual_seed(0)
    costs = [{b: int(1000 * b + torch.randint(99, (), generator=generator)) for b in WIDTHS} for _ in range(9)]
    losses = [{b: float(torch.rand((), generator=generator)) / b for b in WIDTHS} for _ in range(9)]
    for budget in (18_900, 25_000, 40_000, 10**6):
        found = allocate.solve(costs, losses, budget)
        assert sum(cost[key] for cost, key in zip(costs, found)) <= budget


@pytest.fixture(scope="module")
def measured():
    model, tokens = tiny.llama(), tiny.tokens(4, 24)
    return model, tokens, sensitivity.measure(model, tokens, widths=WIDTHS, group_size=32, windows=2)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_the_saved_artifact_keeps_the_budget_and_wastes_little(measured, tmp_path, share):
    model, tokens, losses = measured
    sizes = []
    for bits in (2, 8):
        plan = {name: bits for names in losses for name in names}
        sizes.append(size.predict(model, allocate.matrices(model, plan, group_size=32)))
    budget = sizes[0] + share * (sizes[1] - sizes[0])
    small = copy.deepcopy(model)
    done = allocate.quantize_(small, tokens, megabytes=budget / 1e6, group_size=32, losses=losses)
    compressed_tensors.save(small, model.tokenizer, tmp_path / "small")
    found = count.artifact_bytes(tmp_path / "small")
    assert found <= budget and budget - found < 2500  # less than one step of the smallest layer, and headers
    assert {q.bits for q in done.values()} <= set(WIDTHS)
    again, _ = compressed_tensors.load(tmp_path / "small")
    assert torch.equal(again(tokens[:1]).logits, small(tokens[:1]).logits)


def test_more_bytes_never_cost_divergence(measured):
    model, _, losses = measured
    budgets = [0.083, 0.09, 0.1, 0.12, 0.14]
    plans = [allocate.fit(model, losses, megabytes=budget, group_size=32) for budget in budgets]
    totals = [sum(table[plan[names[0]]] for names, table in losses.items()) for plan in plans]
    assert totals == sorted(totals, reverse=True) and totals[0] > totals[-1]


def test_untied_embedding_and_head_get_bits_of_their_own():
    model, tokens = tiny.llama(tie_word_embeddings=False), tiny.tokens(3, 16)
    losses = sensitivity.measure(model, tokens, widths=(2, 4), group_size=32, windows=1)
    assert ("model.embed_tokens",) in losses and ("lm_head",) in losses
    plan = allocate.fit(model, losses, megabytes=0.09, group_size=32)
    done = allocate.apply_(model, tokens, plan, group_size=32)
    assert all(done[name].bits == bits for name, bits in plan.items())
    assert blocks.is_quantized(model.lm_head)


@pytest.fixture(scope="module")
def untied():
    model, tokens = tiny.llama(num_hidden_layers=2, tie_word_embeddings=False), tiny.tokens(4, 24)
    return model, tokens, sensitivity.measure(model, tokens, widths=(2, 3, 4, 6, 8), group_size=32)


@pytest.mark.parametrize("budget", [56_000, 58_000, 60_000, 70_000, 85_000])
def test_the_saved_artifact_keeps_the_budget_where_embedding_and_head_are_two_matrices(untied, tmp_path, budget):
    model, tokens, losses = untied
    plan = allocate.fit(model, losses, megabytes=budget / 1e6, group_size=32)
    small = copy.deepcopy(model)
    done = allocate.quantize_(small, tokens, megabytes=budget / 1e6, group_size=32, losses=losses)
    assert {name: each.bits for name, each in done.items()} == plan
    compressed_tensors.save(small, model.tokenizer, tmp_path / "small")
    found = count.artifact_bytes(tmp_path / "small")
    assert found <= budget and budget - found < 2500  # as above
    again, _ = compressed_tensors.load(tmp_path / "small")
    assert torch.equal(again(tokens[:1]).logits, small(tokens[:1]).logits)


def test_some_budget_gives_embedding_and_head_different_bits(untied):
    """Without one, the test above would say nothing about bits of their own."""
    model, _, losses = untied
    plans = [allocate.fit(model, losses, megabytes=mb, group_size=32) for mb in (0.056, 0.058, 0.06)]
    assert any(plan["model.embed_tokens"] != plan["lm_head"] for plan in plans)


def test_blocks_aim_at_the_answers_of_the_model_with_its_own_embedding(measured, monkeypatch):
    original, tokens, losses = measured
    plan = allocate.fit(original, losses, megabytes=0.085, group_size=32)
    reconstruct, seen = allocate.gptq_signround.signround.reconstruct, []

    def look(block, hidden, targets, *rest, **learning):
        seen.append((hidden, targets))
        return reconstruct(block, hidden, targets, *rest, **learning)

    monkeypatch.setattr(allocate.gptq_signround.signround, "reconstruct", look)
    model = copy.deepcopy(original)
    allocate.apply_(model, tokens, plan, group_size=32, steps=1)
    # every block's answers, of which the last pass through the final norm in transformers' list
    expected = original(tokens, output_hidden_states=True).hidden_states[1:-1]
    assert len(seen) == len(expected) + 1
    assert all(torch.allclose(targets, states, atol=1e-5) for (_, targets), states in zip(seen, expected))
    given = model.get_input_embeddings()(tokens)
    assert torch.equal(seen[0][0], given) and not torch.allclose(given, original.model.embed_tokens(tokens), atol=1e-3)


def test_a_killed_allocation_resumes_to_the_same_bytes(measured, tmp_path, monkeypatch):
    model, tokens, losses = measured
    plan = allocate.fit(model, losses, megabytes=0.09, group_size=32)
    expected = allocate.apply_(copy.deepcopy(model), tokens, plan, group_size=32)
    gptq, calls = allocate.gptq_signround.gptq.gptq, []

    def stops(*args, **options):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return gptq(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(allocate.gptq_signround.gptq, "gptq", stops)
        allocate.apply_(copy.deepcopy(model), tokens, plan, group_size=32, state=tmp_path)
    found = allocate.apply_(copy.deepcopy(model), tokens, plan, group_size=32, state=tmp_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(a, b) for name in found for a, b in zip(found[name][:3], expected[name][:3]))
    with pytest.raises(ValueError, match="another job"):
        allocate.apply_(copy.deepcopy(model), tokens, {name: 4 for name in plan}, group_size=32, state=tmp_path)
