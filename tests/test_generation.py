"""Text from packed models: batches, stops, streams and sampling, and folders that are loaded without torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from lib import files, runtime
from lib.decoding.sampling import Sampling
from lib.export import compressed_tensors
from lib.quantizers import embedding
from lib.runtime import checkpoint, engine
from tests import packed, tiny


@pytest.fixture(scope="module")
def model():
    made = packed.quantize_(tiny.llama(), lambda name: (4, 32, False), dtype=torch.float32)
    return runtime.pack_(made)


def prompts():
    return [row[:length] for row, length in zip(tiny.tokens(3, 20, seed=5), (3, 20, 11))]


def test_a_batch_of_unequal_prompts_gives_what_each_gives_alone(model):
    together = runtime.generate(model, prompts(), new_tokens=15, eos=())
    for prompt, answer in zip(prompts(), together):
        alone = runtime.generate(model, [prompt], new_tokens=15, eos=())[0]
        assert answer == alone and len(alone.token_ids) == 15 and alone.reason == "length"
    end = together[1].token_ids[4]
    cut = runtime.generate(model, prompts(), new_tokens=15, eos=[end])
    assert cut[1].reason == "eos" and cut[1].token_ids[-1] == end and len(cut[1].token_ids) <= 5
    for whole, part in zip(together, cut):
        assert part.token_ids == whole.token_ids[: len(part.token_ids)]


def test_stop_strings_and_the_stream(model):
    prompt = tiny.tokens(1, 9, seed=2)[0]
    whole = runtime.generate(model, [prompt], new_tokens=20, eos=())[0]
    stop = model.tokenizer.decode(whole.token_ids[6:8])
    seen = []
    answer = runtime.generate(
        model, [prompt], new_tokens=20, eos=(), stop=stop, stream=lambda slot, token: seen.append((slot, token))
    )[0]
    assert answer.reason == "stop" and stop not in answer.text and whole.text.startswith(answer.text)
    assert seen == [(0, token) for token in answer.token_ids] and len(seen) <= 8


def test_sampling_draws_what_transformers_draws(model):
    prompt, settings = (
        tiny.tokens(1, 9, seed=3),
        {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.3},
    )
    ours = runtime.generate(model, prompt, new_tokens=20, eos=(), sampling=Sampling(seed=7, **settings))[0].token_ids
    batch = runtime.Batch(model, 1)

    def forward(input_ids, **kwargs):  # the engine's logits where transformers' `generate` expects the model's
        logits = batch.extend({0: input_ids[0, batch.lengths[0] :].tolist()})
        return type(output)(logits=torch.from_numpy(logits)[None])

    with torch.no_grad():
        output = model(prompt)
    own, model.forward = model.forward, forward
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            theirs = model.generate(
                prompt, max_new_tokens=20, do_sample=True, use_cache=False, eos_token_id=None, **settings
            )
    finally:
        model.forward = own
    assert ours == theirs[0, 9:].tolist()
    again = runtime.generate(model, prompt, new_tokens=20, eos=(), sampling=Sampling(seed=7, **settings))[0].token_ids
    assert ours == again


def test_a_text_is_a_prompt(model):
    ids = model.tokenizer.encode("abc")
    assert runtime.generate(model, "abc", new_tokens=4) == runtime.generate(model, [ids], new_tokens=4)


def test_what_cannot_be_generated_is_refused(model):
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        runtime.generate(model, [[1], []])
    with pytest.raises(ValueError, match="no prompts"):
        runtime.generate(model, [])
    with pytest.raises(ValueError, match="prompt 0 of 500 tokens and 13 new ones exceed the context of 512"):
        runtime.generate(model, [[1] * 500], new_tokens=13)
    with pytest.raises(ValueError, match="new_tokens=0"):
        runtime.generate(model, [[1]], new_tokens=0)


def test_a_model_that_the_engine_does_not_compute_generates_through_transformers(capsys):
    model = runtime.pack_(tiny.gemma2())
    answers = runtime.generate(model, prompts()[:2], new_tokens=5, eos=())
    assert "model type 'gemma2'" in capsys.readouterr().out
    for prompt, answer in zip(prompts(), answers):
        wanted = model.generate(prompt[None], max_new_tokens=5, do_sample=False, eos_token_id=None)
        assert answer.token_ids == wanted[0, len(prompt) :].tolist()


@pytest.mark.parametrize("bits, symmetric, ends", [(2, False, None), (3, False, 4), (4, True, None), (8, False, 3)])
def test_a_folder_gives_the_bytes_that_packing_the_model_gives(bits, symmetric, ends, tmp_path):
    model = packed.quantize_(tiny.llama(), lambda name: (bits, 32, symmetric))
    if ends:
        embedding.quantize_(model, bits=ends, group_size=32)
    compressed_tensors.save(model, model.tokenizer, tmp_path / "saved")
    loaded = runtime.load(tmp_path / "saved")
    ours = engine.weights_of(runtime.pack_(model))
    for found, wanted in zip(loaded.matrices(), ours.matrices(), strict=True):
        assert found[1:] == wanted[1:] and np.array_equal(found.data, wanted.data)
    tokens = tiny.tokens(1, 12)[0]
    assert torch.equal(runtime.Session(loaded).extend(tokens), runtime.Session(model).extend(tokens))
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("abc")) == "abc"
    assert loaded.stops == ours.stops and loaded.limit == 512


def test_plain_folders_with_biases_load_too(tmp_path):
    model = tiny.qwen2(tie_word_embeddings=False)
    for parameter in model.parameters():  # .to(dtype) would round the rotary frequencies too
        parameter.data = parameter.data.to(torch.bfloat16)
    tiny.save(tmp_path / "plain", model)
    loaded, tokens = runtime.load(tmp_path / "plain", embedding_bits=None), tiny.tokens(1, 12)[0]
    runtime.pack_(model, embedding_bits=None)
    assert torch.equal(runtime.Session(loaded).extend(tokens), runtime.Session(model).extend(tokens))


def test_folders_that_cannot_run_packed_are_refused(tmp_path):
    tiny.save(tmp_path / "gemma", tiny.gemma2())
    with pytest.raises(ValueError, match="model type 'gemma2'"):
        runtime.load(tmp_path / "gemma")
    with pytest.raises(ValueError, match=r"no model\.embed_tokens\.weight"):
        checkpoint.Tensors([]).matrix("model.embed_tokens", (256, 64))
    rope = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}
    tiny.save(tmp_path / "scaled", tiny.llama(rope_parameters=rope))
    with pytest.raises(ValueError, match=r"scaled rotary embedding .*pack_"):
        runtime.load(tmp_path / "scaled")


def test_a_process_that_only_generates_needs_no_torch(tmp_path):
    model = packed.quantize_(tiny.llama(), lambda name: (4, 32, False))
    compressed_tensors.save(model, model.tokenizer, tmp_path / "saved")
    wanted = runtime.generate(runtime.load(tmp_path / "saved"), [[5, 6, 7]], new_tokens=6, eos=())[0].token_ids
    code = (
        "import sys; from lib import runtime; weights = runtime.load(sys.argv[1]); "
        "print(runtime.generate(weights, [[5, 6, 7]], new_tokens=6, eos=(), stop='never')[0].token_ids); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "saved")]
    done = subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    if engine.cpu.library() is not None:
        assert done.stdout.split("\n")[-2] == str(wanted)
