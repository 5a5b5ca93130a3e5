"""Keys and values of 8 and 4 bits: what is stored, logits of a reference, and the same bits in any company."""

import dataclasses
import functools

import numpy as np
import psutil
import pytest
import torch

from lib import runtime
from lib.decoding.generation_loop import Loop
from lib.decoding.requests import Request
from lib.evaluation import cache_cost
from lib.quantizers.hadamard import hadamard
from lib.runtime import cache_codes, cpu, engine, torch_kernels
from lib.runtime.slots import Slots
from lib.serving import artifacts
from tests import served, tiny
from tests.test_cpu_kernels import needs_compiler

CASES = {
    "Llama": tiny.llama,
    "heads of 48, biases": functools.partial(tiny.llama, head_dim=48, attention_bias=True),
    "Mistral, window": functools.partial(tiny.mistral, sliding_window=12),
    "Gemma 3": tiny.gemma3,
    "heads of 256": functools.partial(tiny.gemma3, head_dim=256, num_key_value_heads=1, query_pre_attn_scalar=200),
    "a gate on each head": functools.partial(tiny.architecture, "head_gate"),
}
TOKENS = tiny.tokens(1, 40)[0]
BITS = [8, 4]


@functools.cache
def weights(case="Llama", **overrides):
    """Weights of 16 bits, so that nothing but keys and values is rounded."""
    return engine.weights_of(runtime.pack_(CASES[case](**overrides), embedding_bits=None))


def distance(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def reference(session, tokens, first=0):
    """Logits of plain torch on the very codes that a session has stored."""
    plain = runtime.Session(
        session.weights, backend=torch_kernels.Reference(session.weights), cache_bits=session.cache.bits
    )
    plain.cache, plain.lengths = session.cache, [first]
    stored, plain.cache.put = plain.cache.put, lambda *given: None
    try:
        return plain.extend(tokens[first:])
    finally:
        plain.cache.put = stored


@needs_compiler
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_plain_torch_with_the_same_codes(case, bits):
    session = runtime.Session(weights(case), cache_bits=bits)
    found = session.extend(TOKENS)
    assert distance(found, reference(session, TOKENS)) < 2e-4  # queries have 15 bits
    own = runtime.Session(session.weights, backend=torch_kernels.Reference(session.weights), cache_bits=bits)
    own.extend(TOKENS[:1])
    for ours, theirs in zip(session.cache.get(0, 0, 1), own.cache.get(0, 0, 1)):
        assert distance(ours, theirs) < (0.01 if bits == 8 else 0.1)  # the same but for codes between two
    assert distance(found, runtime.Session(session.weights).extend(TOKENS)) < (0.03 if bits == 8 else 0.4)


@needs_compiler
@pytest.mark.parametrize("path", cpu.PATHS)
@pytest.mark.parametrize("bits", BITS)
def test_every_instruction_set_reads_the_same_codes(bits, path):
    if cpu.PATHS[path][1] - cpu.cpu_flags():
        pytest.skip(f"this CPU lacks what {path} needs")
    session = runtime.Session(weights(), backend=engine.Native(weights(), path), cache_bits=bits)
    assert distance(session.extend(TOKENS), reference(session, TOKENS)) < 2e-4


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_at_most_half_a_step_from_the_numbers(bits):
    draw = np.random.default_rng(0)
    x = (draw.normal(size=(50, 2, 48)) * draw.lognormal(size=(50, 2, 1)) + draw.normal(size=(50, 2, 1))).astype(
        np.float32
    )
    x[0], x[1] = 0, 3.25
    codes, scale, least = cache_codes.codes(x, bits)
    scale, least = cache_codes.floats(scale)[..., None], cache_codes.floats(least)[..., None]
    assert np.all(np.abs(codes * scale + least - x) <= scale / 2 * 1.001) and codes.max() == 2**bits - 1
    assert np.all(least <= x.min(-1, keepdims=True)) and np.all(
        least + scale * (2**bits - 1) >= x.max(-1, keepdims=True)
    )
    for half in (4, 16):
        assert np.array_equal(cache_codes.unfolded(cache_codes.folded(codes, bits, half), bits, half)[..., :48], codes)


@pytest.mark.parametrize("size", [16, 48, 64, 80, 256])
def test_turning_is_hadamards_matrix(size):
    x = np.random.default_rng(1).normal(size=(3, size)).astype(np.float32)
    assert np.allclose(cache_codes.turned(x), x @ hadamard(size).numpy(), atol=1e-5)
    assert np.allclose(cache_codes.turned(cache_codes.turned(x)), x, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_what_torch_stores_comes_back(bits):
    cache = engine.Cache(weights(), 2, 32, bits)
    keys, values = torch.randn(2, 3, 2, 16, generator=torch.Generator().manual_seed(0))
    cache.put(1, np.array([0, 1, 1]), np.array([4, 17, 16]), keys, values)
    for (slot, position), key, value in zip([(0, 4), (1, 17), (1, 16)], keys, values):
        found_keys, found_values = cache.get(1, slot, position + 1)
        key = torch.from_numpy(cache_codes.turned(key.numpy())) if bits == 4 else key
        for found, wanted in ((found_keys[:, position], key), (found_values[:, position], value)):
            step = (wanted.amax(-1) - wanted.amin(-1)) / (2**bits - 1)
            assert ((found - wanted).abs().amax(-1) <= 0.55 * step).all()
    assert not cache.get(1, 0, 4)[0].any()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("case", ["Llama", "heads of 48, biases", "Mistral, window"])
def test_the_same_bits_alone_in_pieces_and_beside_others(case, bits):
    whole = runtime.Session(weights(case), cache_bits=bits).extend(TOKENS)
    session = runtime.Session(weights(case), capacity=16, cache_bits=bits)  # grows
    assert torch.equal(torch.cat([session.extend(part) for part in TOKENS.split([1, 1, 15, 20, 3])]), whole)
    session.rewind(9)
    assert torch.equal(session.extend(TOKENS[9:]), whole[9:])
    batch = runtime.Batch(weights(case), 3, cache_bits=bits)
    found = batch.extend({2: TOKENS[:30].tolist(), 0: TOKENS[:7].tolist(), 1: [5]})
    assert np.array_equal(found[:2], whole[[29, 6]].numpy())
    assert np.array_equal(batch.extend({0: [int(TOKENS[7])], 2: [int(TOKENS[30])]}), whole[[7, 30]].numpy())


@needs_compiler
@pytest.mark.parametrize("window", [None, 1100])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_contexts_of_several_parts(bits, window):
    """Parts are threads' to share for one row, and one thread's for many; the sums are the same, and right."""
    case = "Mistral, window" if window else "Llama"
    given = {"sliding_window": window} if window else {}
    long = weights(case, num_hidden_layers=1, max_position_embeddings=2400, **given)
    tokens = tiny.tokens(1, 2200)[0]
    session = runtime.Session(long, backend=engine.Native(long, threads=1), cache_bits=bits)
    whole = session.extend(tokens)[-4:]
    assert distance(whole, reference(session, tokens, 2196)) < 2e-4
    three = runtime.Session(long, backend=engine.Native(long, threads=3), cache_bits=bits)
    three.extend(tokens[:2196], last=True)
    assert torch.equal(torch.cat([three.extend(token[None]) for token in tokens[2196:]]), whole)


@pytest.mark.parametrize("bits", BITS)
def test_answers_are_the_same_in_pieces_with_shared_prefixes_and_with_drafts(bits):
    packed = engine.weights_of(served.weights())
    begin = tiny.tokens(1, 50)[0].tolist()
    given = [
        [*begin[:cut], *tiny.tokens(1, more, seed=cut)[0].tolist()]
        for cut, more in ((50, 3), (33, 9), (0, 20), (50, 1))
    ]
    wanted = [Request(each, 8) for each in given]
    for each in wanted:
        Loop(Slots(packed, 1, cache_bits=bits), [each]).run()
    found = [Request(each, 8) for each in given * 2]
    backend = Slots(packed, 3, piece=16, positions=300, cache_bits=bits)
    Loop(backend, found).run()
    assert [each.answer.token_ids for each in found] == [each.answer.token_ids for each in wanted] * 2
    assert (
        runtime.generate(packed, given, new_tokens=8, eos=(), plain=True, cache_bits=bits)[1].token_ids
        == wanted[1].answer.token_ids
    )


@pytest.mark.parametrize("bits, share", [(16, 1), (8, (16 + 4) / 32), (4, (8 + 16 + 8) / 64)])
def test_memory_is_what_is_said(bits, share):
    cache, a = engine.Cache(weights(), 3, 48, bits), weights().architecture
    assert cache.nbytes == cache_codes.bytes_a_position(a, bits) * 3 * 48
    assert cache_codes.bytes_a_position(a, bits) == share * cache_codes.bytes_a_position(a)
    assert all(part.ctypes.data % 64 == 0 for part in cache.parts if part.size)
    read = weights().bytes_per_token(10, bits) - weights().bytes_per_token(0, bits)
    assert read == 10 * cache_codes.bytes_a_position(a, bits)
    limits = dataclasses.replace(served.LIMITS, cache_bytes=100 * cache_codes.bytes_a_position(a))
    served_model = dataclasses.replace(served.artifact(limits=limits), cache_bits=bits)
    assert served_model.limit == min(int(100 / share), 512) and served_model.loop.backend.batch.cache.bits == bits


def test_a_short_sequence_in_many_long_slots_takes_little_memory():
    """Pages of 2 MiB would be taken for each head of each layer, nearly all of them empty."""
    process, cache = psutil.Process(), engine.Cache(weights(), 64, 16384)
    before = process.memory_info().rss
    for part in cache.parts:
        part[:, 3, :, :64] = 1
    assert cache.nbytes > 200 << 20 and process.memory_info().rss - before < 4 << 20


def test_divergences_are_those_of_the_logits():
    """From the engine with 16-bit keys, and, position by position, by how much those from the original grow."""
    model = CASES["Llama"]().float()
    given = {"every": 3, "piece": 11, "original": model}
    read = cache_cost.divergence(weights(), TOKENS.tolist(), (16, 8, 4), **given)
    assert read.places.tolist() == list(range(2, 40, 3)) and not read.engine[16].any()
    assert 0 < read.engine[8].mean() < read.engine[4].mean() / 10
    wanted = model(TOKENS[None]).logits[0].log_softmax(-1)
    for bits in (16, 8, 4):
        found = runtime.Session(weights(), cache_bits=bits).extend(TOKENS).log_softmax(-1)
        nats = torch.nn.functional.kl_div(found, wanted, log_target=True, reduction="none").sum(-1)[2::3]
        assert read.original[bits] == pytest.approx(nats.detach().numpy(), abs=2e-6)
    assert read.growth(4) is None and read.nats(4) is None  # one block of positions has no interval
    two = cache_cost.joined([read, read]).between(12, 40)
    assert two.places.tolist() == [14, 17, 20, 23, 26, 29, 32, 35, 38] * 2
    assert two.growth(4).n == 2 and two.growth(4).value == pytest.approx(
        float((read.original[4] - read.original[16])[4:].mean())
    )


def test_the_command(tmp_path, capsys):
    tiny.save(tmp_path / "model")
    given = [
        str(tmp_path / "model"),
        "--positions",
        "60",
        "--texts",
        "2",
        "--new-tokens",
        "3",
        "--rounds",
        "2",
        "--group-size",
        "32",
    ]
    assert cache_cost.main(given) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert len(rows) == 3 + 2 and '"times 16 bits": 1.0' in rows[0] and '"growth"' in rows[-1]
    assert cache_cost.main([*given, "--bits", "5"]) == 2 and "16, 8 or 4" in capsys.readouterr().err


@pytest.mark.parametrize("bits", [0, 3, 5, 32, True, None])
def test_other_bits_are_refused(bits):
    for refused in (runtime.Session, functools.partial(runtime.generate, prompts=[[1, 2]])):
        with pytest.raises(ValueError, match="keys and values have 16, 8 or 4 bits"):
            refused(weights(), cache_bits=bits)
    with pytest.raises(ValueError, match="only the packed engine keeps"):
        artifacts.Artifact("plain", tiny.gemma2(), tiny.gemma2().tokenizer, served.LIMITS, cache_bits=8)
