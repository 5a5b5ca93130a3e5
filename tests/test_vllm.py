"""vLLM, in an environment of its own, runs a 4-bit folder of ours, and several workers of it answer as one does.

make vllm        # installs it into THIMBLE_PEERS/vllm, and runs this file
"""

import httpx
import pytest

from lib.decoding.generate import generate
from lib.decoding.sessions import ModelSession
from lib.export import compressed_tensors
from lib.peers import servers
from lib.quantizers import rtn
from lib.sources import models, packaged

pytestmark = pytest.mark.long
PROMPT = "The lighthouse keeper climbed the stairs every evening, and every evening he counted them. There were"
NEW = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The packaged model at 4 bits, its embedding, which is its head too, in 16."""
    model, tokenizer = models.load(packaged.NAME)
    rtn.quantize_(model, bits=4, group_size=64)
    return compressed_tensors.save(model, tokenizer, tmp_path_factory.mktemp("vllm") / "four bits")


def answer(folder, log, **how):
    """A server of vLLM's answer to the prompt: both as one text, and the log-probabilities of its tokens."""
    try:
        command = servers.command("vllm", folder, slots=2, context=256, cache_gib=1, eager=True, **how)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    with servers.running(command, log, seconds=1200) as server:
        body = {"model": server.model, "prompt": PROMPT, "max_tokens": NEW, "temperature": 0, "echo": True}
        body |= {"logprobs": 1, "ignore_eos": True}
        found = httpx.post(f"{server.url}/completions", json=body, timeout=600, trust_env=False)
    found = found.raise_for_status().json()["choices"][0]
    return found["text"], found["logprobs"]["token_logprobs"]


@pytest.fixture(scope="module")
def one(folder, tmp_path_factory):
    return answer(folder, tmp_path_factory.mktemp("logs") / "one.log", dtype="float32")


def test_its_log_probabilities_are_ours(folder, one):
    """Both compute in float32, from the same codes."""
    model, tokenizer = models.load(folder, dtype="float32")
    text, found = one
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids[0]
    own = generate(ModelSession(model), ids, new_tokens=NEW)
    read = [*ids.tolist(), *own.token_ids]
    assert text == PROMPT + tokenizer.decode(own.token_ids) and len(found) == len(read)
    logits = model(ids.new_tensor([read])).logits[0].float().log_softmax(-1)
    wanted = [float(logits[place, token]) for place, token in enumerate(read[1:])]
    assert found[0] is None and found[1:] == pytest.approx(wanted, abs=2e-3)


def test_three_workers_answer_as_one(folder, one, tmp_path):
    """Nine heads and three key heads can be shared by three; the sums of the workers are added in another order."""
    text, found = answer(folder, tmp_path / "three.log", dtype="float32", parallel=3)
    assert text == one[0] and found[1:] == pytest.approx(one[1][1:], abs=2e-3)
