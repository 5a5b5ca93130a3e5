"""Each family of the packed engine, by both ways in: transformers' logits, batches, texts and answers."""

import functools

import numpy as np
import pytest
import torch

from lib import runtime
from lib.evaluation.local import Local
from lib.evaluation.packed_engine import Packed
from lib.export import compressed_tensors
from lib.models import blocks
from lib.pruners import depth
from lib.quantizers import embedding
from lib.runtime import cpu, engine, fused, pack, torch_kernels
from lib.sources import models
from tests import packed, questions, tiny
from tests.test_cpu_kernels import needs_compiler

NEAR = 0.01  # of the logits' norm: keys and values in bfloat16
SLIDING = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2}
LINEAR = {"rope_type": "linear", "factor": 8.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64, "rope_theta": 10000.0}
CASES = {
    "Llama": tiny.llama,
    "Llama 3.1's rotation": functools.partial(tiny.llama, rope_parameters=LLAMA3),
    "Llama, biases, heads of 32": functools.partial(tiny.llama, attention_bias=True, mlp_bias=True, head_dim=32),
    "Mistral, window": functools.partial(tiny.mistral, sliding_window=12),
    "Mistral, window of one": functools.partial(tiny.mistral, sliding_window=1, tie_word_embeddings=False),
    "Qwen2, window": functools.partial(tiny.qwen2, **SLIDING),
    "Qwen3, window": functools.partial(tiny.qwen3, **SLIDING),
    "Phi-3": tiny.phi3,
    "Phi-3, a part of the head, window": functools.partial(
        tiny.phi3, partial_rotary_factor=0.75, sliding_window=16, num_attention_heads=2, tie_word_embeddings=False
    ),
    "Gemma 3": tiny.gemma3,
    "Gemma 3, one key head of 256, stretched": functools.partial(
        tiny.gemma3, head_dim=256, num_key_value_heads=1, query_pre_attn_scalar=200, rope_scaling=LINEAR,
        hidden_size=96, initializer_range=0.05,
    ),
    "Gemma 3, all global": functools.partial(tiny.gemma3, layer_types=["full_attention"] * 4),
    "a layer on each head": functools.partial(tiny.architecture, "headwise", tie_word_embeddings=False),
    "a layer beside each head of 48": functools.partial(
        tiny.architecture, "headwise_residual", head_activation="silu", hidden_size=96, num_attention_heads=2
    ),
    "a layer on each head, ReLU": functools.partial(tiny.architecture, "headwise_relu"),
    "a layer on each head, none": functools.partial(tiny.architecture, "headwise_identity", num_hidden_layers=1),
    "a gate on each head": functools.partial(tiny.architecture, "head_gate"),
    "a gate on each element, heads of 32": functools.partial(tiny.architecture, "element_gate", head_dim=32),
}  # fmt: skip
TOKENS = tiny.tokens(1, 40)


def made(case):
    """A model whose numbers bfloat16 holds, in float32."""
    model = CASES[case]()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS, use_cache=False).logits[0].float()


def distance(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers_by_both_ways_in(case, tmp_path):
    model = made(case)
    wanted = logits(model)
    loaded = runtime.load(tiny.save(tmp_path / "plain", model), embedding_bits=None)
    packed_ = runtime.pack_(model, embedding_bits=None)
    found = runtime.Session(packed_).extend(TOKENS[0])
    assert distance(found, wanted) < NEAR
    assert distance(runtime.Session(loaded).extend(TOKENS[0]), found) < 1e-3  # frequencies may differ in a last bit
    assert loaded.architecture == engine.weights_of(packed_).architecture


@pytest.mark.parametrize("case", CASES)
def test_a_packed_folder_gives_what_the_quantized_model_gives(case, tmp_path):
    model = packed.quantize_(made(case), lambda name: (8, 32, False))
    embedding.quantize_(model, bits=8, group_size=32)
    wanted = logits(model.float())
    compressed_tensors.save(model.bfloat16(), model.tokenizer, tmp_path / "saved")
    loaded = runtime.load(tmp_path / "saved")
    found = runtime.Session(loaded).extend(TOKENS[0])
    assert distance(found, wanted) < 0.05  # activations of 8 bits
    ours = engine.weights_of(runtime.pack_(models.load(tmp_path / "saved")[0]))
    assert loaded.embedding_scale == ours.embedding_scale and loaded.architecture == ours.architecture
    for one, other in zip(loaded.matrices(), ours.matrices(), strict=True):
        assert one[1:] == other[1:] and np.array_equal(one.data, other.data)
    assert distance(runtime.Session(ours).extend(TOKENS[0]), found) < 0.02


@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_alone_in_pieces_and_beside_others(case):
    model = packed.quantize_(made(case), lambda name: (4, 32, False), dtype=torch.float32)
    runtime.pack_(model)
    whole = runtime.Session(model).extend(TOKENS[0])
    session = runtime.Session(model, capacity=16)
    pieces = [session.extend(part) for part in TOKENS[0].split([1, 1, 15, 20, 3])]
    assert torch.equal(torch.cat(pieces), whole)
    session.rewind(9)
    assert torch.equal(session.extend(TOKENS[0][9:]), whole[9:])
    batch = runtime.Batch(model, 3)
    found = batch.extend({2: TOKENS[0][:30].tolist(), 0: TOKENS[0][:7].tolist(), 1: [5]})
    assert np.array_equal(found[:2], whole[[29, 6]].numpy())
    assert np.array_equal(batch.extend({0: [int(TOKENS[0][7])], 2: [int(TOKENS[0][30])]}), whole[[7, 30]].numpy())


@pytest.mark.parametrize("case", CASES)
def test_plain_torch_takes_the_same_step(case):
    model = runtime.pack_(made(case), embedding_bits=None)
    compiled = runtime.Session(model)
    plain = runtime.Session(model, backend=torch_kernels.Reference(compiled.weights))
    for part in TOKENS[0].split([25, 1, 14]):
        assert distance(plain.extend(part), compiled.extend(part)) < 0.005


@needs_compiler
@pytest.mark.parametrize("path", cpu.PATHS)
@pytest.mark.parametrize("case", ["Mistral, window", "Gemma 3", "a layer on each head", "a gate on each head"])
def test_every_instruction_set_takes_the_same_step(case, path):
    if cpu.PATHS[path][1] - cpu.cpu_flags():
        pytest.skip(f"this CPU lacks what {path} needs")
    weights = engine.weights_of(runtime.pack_(made(case), embedding_bits=None))
    session = runtime.Session(weights, backend=engine.Native(weights, path))
    for part in TOKENS[0].split([25, 1, 14]):
        found = session.extend(part)
    assert distance(found, runtime.Session(weights).extend(TOKENS[0])[26:]) < 0.005


@pytest.mark.parametrize(
    "case", ["Mistral, window", "Phi-3, a part of the head, window", "Gemma 3", "a layer on each head"]
)
def test_texts_and_answers_are_those_of_transformers(case):
    model = made(case)
    own = model.generate(TOKENS[:, :20], max_new_tokens=16, do_sample=False, eos_token_id=None)[0, 20:].tolist()
    some = questions.likelihoods(6)
    wanted = Local(model, model.tokenizer).loglikelihoods(some)
    runtime.pack_(model, embedding_bits=None)
    ours = runtime.generate(model, [TOKENS[0, :20], TOKENS[0, :5]], new_tokens=16, eos=())[0].token_ids
    same = int((torch.tensor(ours) == torch.tensor(own)).int().cumprod(0).sum())
    assert same >= 8
    for found, one in zip(Packed(model).loglikelihoods(some), wanted):
        assert found.logprob == pytest.approx(one.logprob, rel=0.02, abs=0.05) and found.tokens == one.tokens


@pytest.mark.parametrize("case", ["Qwen3, window", "Phi-3", "Gemma 3", "a layer on each head"])
def test_pruned_models_keep_their_windows_and_rotations(case, tmp_path):
    model = made(case)
    depth.drop_blocks_(model, [1])
    wanted = logits(model)
    loaded = runtime.load(tiny.save(tmp_path / "plain", model), embedding_bits=None)
    assert len(loaded.layers) == 3 == len(loaded.architecture.windows)
    assert distance(runtime.Session(loaded).extend(TOKENS[0]), wanted) < NEAR
    assert distance(runtime.Session(runtime.pack_(model, embedding_bits=None)).extend(TOKENS[0]), wanted) < NEAR


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("stated", [True, False])
def test_the_scale_of_gemmas_embedding_is_rounded_as_transformers_rounds_it(dtype, stated, tmp_path):
    model = tiny.gemma3(hidden_size=80)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    folder = tiny.save(tmp_path / "plain", model)
    if not stated:
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace('"dtype"', '"_name_or_path"', 1))
    theirs, _ = models.load(folder)
    table = blocks.embeddings(theirs)
    wanted = float(table.embed_scale.to(table.weight.dtype))
    assert runtime.load(folder).embedding_scale == wanted and theirs.dtype == dtype
    assert engine.weights_of(runtime.pack_(theirs)).embedding_scale == wanted


def test_bytes_of_windows_end_with_them():
    weights = engine.weights_of(runtime.pack_(tiny.gemma3()))
    one = 2 * 2 * 2 * 16  # keys and values, 2 bytes, 2 heads of 16
    assert weights.bytes_per_token(10) - weights.bytes_per_token(0) == 4 * one * 10
    assert weights.bytes_per_token(40) - weights.bytes_per_token(0) == 2 * one * (40 + 12)


def test_parts_of_a_matrix_begin_with_a_tile():
    matrix = pack.pack_plain(torch.arange(96 * 32).reshape(96, 32).float())
    for first, count in (0, 96), (16, 20), (48, 48), (80, 3):
        part = pack.unpack_plain(fused.rows(matrix, first, count))
        assert torch.equal(part, pack.unpack_plain(matrix)[first : first + count])
    for first, count in (8, 16), (80, 17):
        with pytest.raises(ValueError, match="a part begins at a multiple of 16"):
            fused.rows(matrix, first, count)


def test_parts_that_do_not_begin_with_a_tile_are_refused(tmp_path):
    folder = tiny.save(tmp_path / "plain", tiny.phi3(intermediate_size=120))
    with pytest.raises(ValueError, match="an intermediate size of 120, no multiple of 16, in a fused layer"):
        runtime.load(folder)
