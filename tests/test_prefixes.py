"""The tree of shared beginnings, the plan of passes over it, and what a pass sees."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.evaluation import local, prefixes
from lib.models import logits
from lib.tasks.task import Likelihood
from tests import tiny

sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), min_size=1, max_size=12)
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "phi", "gemma2")


@settings(max_examples=60, deadline=None)
@given(sequences)
def test_the_tree_holds_each_beginning_once(some):
    root = prefixes.tree(some)
    beginnings = {each[:length] for each in some for length in range(1, len(each) + 1)}
    assert root.size == len(beginnings)
    for each in some:
        chain = prefixes.find(root, each).above()
        assert tuple(token for node in chain for token in node.tokens) == each
        assert all(len(node.tokens) for node in chain)


@settings(max_examples=60, deadline=None)
@given(sequences, st.integers(1, 12))
def test_every_sequence_runs_in_one_piece_behind_its_station(some, budget):
    root = prefixes.tree(some)
    ends = {prefixes.find(root, each) for each in some}
    passes = prefixes.plan(root, ends, budget)
    assert len({id(each) for each in passes}) == len(passes)
    for end in ends:
        owners = {node.owner for node in end.above()}
        assert None not in owners
        last = end.owner
        covered = [node for cached in last.cached_prefixes() for node in cached.nodes] + last.nodes
        assert set(end.above()) <= set(covered)
        before = [passes.index(cached) for cached in last.cached_prefixes()]
        assert before == sorted(before) and all(place < passes.index(last) for place in before)


def test_a_long_beginning_is_kept_and_a_short_one_is_repeated():
    long = [tuple(range(60)) + (number,) * 8 for number in range(100, 120)]
    root = prefixes.tree(long)
    passes = prefixes.plan(root, {prefixes.find(root, each) for each in long}, 16)
    assert [each.keep for each in passes] == [True] + [False] * 10
    assert sum(each.count for each in passes) == root.size
    short = [(1, 2, *(number,) * 8) for number in range(100, 104)]
    root = prefixes.tree(short)
    passes = prefixes.plan(root, {prefixes.find(root, each) for each in short}, 18)
    assert [each.keep for each in passes] == [False, False]
    assert [each.count for each in passes] == [18, 18]  # both begin with the two shared tokens


@settings(max_examples=60, deadline=None)
@given(sequences)
def test_a_token_sees_its_own_beginning_alone(some):
    root = prefixes.tree(some)
    (only,) = prefixes.plan(root, {prefixes.find(root, each) for each in some}, 1000)
    seen, tokens = prefixes.visible(only), [token for node in only.nodes for token in node.tokens]
    positions = [place for node in only.nodes for place in range(node.start, node.end)]
    read = {tuple(tokens[place] for place in row.nonzero().flatten().tolist()) for row in seen}
    assert read == {each[:length] for each in some for length in range(1, len(each) + 1)}
    assert seen.sum(1).tolist() == [position + 1 for position in positions]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [6, 20, 500])
def test_hidden_states_are_those_of_each_sequence_alone(family, budget):
    model = getattr(tiny, family)(**({"sliding_window": 20} if family in ("mistral", "gemma2") else {}))
    begin = tiny.tokens(1, 30)[0].tolist()
    some = [tuple(begin + tiny.tokens(1, 6, seed=seed)[0].tolist()) for seed in range(1, 8)]
    some += [some[0][:34], (*some[1][:33], 5, 5, 5), tuple(begin[:12])]
    root = prefixes.tree(some)
    passes = prefixes.plan(root, {prefixes.find(root, each) for each in some}, budget)
    runner, found = prefixes.Runner(model), {}
    with logits.evaluating(model):
        for each in passes:
            for done, hidden in runner(each):
                begin_row = 0
                for node in done.nodes:
                    found[node] = hidden[begin_row : begin_row + len(node.tokens)]
                    begin_row += len(node.tokens)
        for each in some:
            alone = logits.hidden_states(model, torch.tensor([each]))[0]
            shared = torch.cat([found[node] for node in prefixes.find(root, each).above()])
            torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-5)


def test_a_part_of_the_passes_gives_the_bits_of_the_whole():
    model = tiny.llama()
    begin = tiny.tokens(1, 30)[0].tolist()
    some = [tuple(begin + tiny.tokens(1, 9, seed=seed)[0].tolist()) for seed in range(1, 12)]
    root = prefixes.tree(some)
    passes = prefixes.plan(root, {prefixes.find(root, each) for each in some}, 20)
    with logits.evaluating(model):
        runner = prefixes.Runner(model)
        whole = {done: hidden for each in passes for done, hidden in runner(each)}
        runner = prefixes.Runner(model)
        part = {done: hidden for each in passes[-2:] for done, hidden in runner(each)}
    assert set(part) == {passes[0], *passes[-2:]}
    assert all(torch.equal(part[done], whole[done]) for done in part)


def test_sharing_is_tried_again_when_the_layers_change(monkeypatch):
    model, tried = tiny.llama(), []
    monkeypatch.setattr(local, "shares_prefixes", lambda model: tried.append(model) or True)
    engine = local.Local(model)
    assert engine.shares and engine.shares and len(tried) == 1
    model.config.rms_norm_eps = 0.3
    assert engine.shares and len(tried) == 2
    model.set_attn_implementation("eager")
    assert engine.shares and len(tried) == 3
    engine.shares = False
    assert not engine.shares and len(tried) == 3


def test_a_model_that_ignores_its_mask_is_found_out():
    model = tiny.llama()
    assert local.Local(model).shares
    inner, whole = model.model.forward, {}
    model.model.forward = lambda *args, **options: inner(*args, **{**options, "attention_mask": whole.get("mask")})
    assert not local.Local(model).shares


@pytest.mark.parametrize(("family", "shares"), [("GPTNeo", False), ("Mistral", True), ("Llama4", False)])
def test_windows_wider_than_a_trial_are_those_of_each_sequence_alone(family, shares):
    """GPT-Neo's window counts the columns of a pass, in which packed sequences lie side by side."""
    import transformers

    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 128}
    sizes |= {"initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    sizes |= {
        "GPTNeo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 24},
        "Mistral": {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 24},
        "Llama4": {
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "attention_chunk_size": 24, "intermediate_size_mlp": 96, "num_local_experts": 2,
        },
    }[family]  # fmt: skip
    config = getattr(transformers, "Llama4TextConfig" if family == "Llama4" else f"{family}Config")(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    begin, ends = tiny.tokens(1, 40)[0].tolist(), tiny.tokens(3, 12, seed=1).tolist()
    context = tiny.tokenizer().decode([65 + token % 26 for token in begin])
    requests = [Likelihood(context, tiny.tokenizer().decode([97 + token % 26 for token in end])) for end in ends]
    engine = local.Local(model, tiny.tokenizer())
    assert engine.shares == shares
    for request, found in zip(requests, engine.loglikelihoods(requests)):
        whole = torch.tensor([list((request.context + request.continuation).encode())])
        with torch.no_grad():
            expected = model(input_ids=whole[:, :-1], use_cache=False).logits[0, 39:].log_softmax(-1)
        expected = expected.gather(-1, whole[0, 40:, None]).sum().item()
        assert found.logprob == pytest.approx(expected, abs=1e-3)
