"""vLLM, in an environment of its own, runs a 4-bit folder of ours, and several workers of it answer as one does.

make vllm        # installs it into THIMBLE_PEERS/vllm, and runs this file
"""

import httpx
import numpy as np
import pytest
import torch

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


def answer(folder, log, prompt=PROMPT, new=NEW, **how):
    """A server of vLLM's answer: (prompt and answer as one text, its tokens' log-probabilities, the highest ones)."""
    try:
        command = servers.command("vllm", folder, slots=2, context=256, cache_gib=1, eager=True, **how)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    with servers.running(command, log, seconds=1200) as server:
        body = {"model": server.model, "prompt": prompt, "max_tokens": new, "temperature": 0, "echo": True}
        body |= {"logprobs": 1, "ignore_eos": True}
        found = httpx.post(f"{server.url}/completions", json=body, timeout=600, trust_env=False)
    found = found.raise_for_status().json()["choices"][0]
    told = found["logprobs"]
    return found["text"], told["token_logprobs"], [max((each or {"": 0}).values()) for each in told["top_logprobs"]]


@pytest.fixture(scope="module")
def one(folder, tmp_path_factory):
    return answer(folder, tmp_path_factory.mktemp("logs") / "one.log", dtype="float16")


def test_its_log_probabilities_are_ours(folder, one):
    """From the same codes: as near to ours in float32 as ours in float16 are, its kernels having no more."""
    text, found, _ = one
    wanted, half = (logprobs(folder, text, dtype) for dtype in ("float32", "float16"))
    assert text.startswith(PROMPT) and found[0] is None and len(found) == len(wanted) + 1
    apart = np.abs(np.array(found[1:]) - wanted)
    assert apart.mean() < 2 * np.abs(half - wanted).mean() and apart.max() < 0.1


def logprobs(folder, text, dtype):
    """Log-probability of each token of a text but the first, by our own engine."""
    model, tokenizer = models.load(folder, dtype=dtype)
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].float().log_softmax(-1)
    return logits.gather(-1, ids[0, 1:, None])[:, 0].numpy()


def test_three_workers_answer_as_one(folder, one, tmp_path):
    """Nine heads and three key heads can be shared by three.

    Their sums are added in another order: they read the text that one wrote, and would have written each token of it,
    but for those beside which another one is as likely.
    """
    text, wanted, _ = one
    _, found, best = answer(folder, tmp_path / "three.log", prompt=text, new=1, dtype="float16", parallel=3)
    count = len(wanted)
    assert found[1:count] == pytest.approx(wanted[1:], abs=0.1) and len(found) == count + 1
    assert np.subtract(best[count - NEW : count], found[count - NEW : count]).max() < 0.1
