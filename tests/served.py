"""A server in this process, on a port of its own, over tiny models; and what it should answer."""

import contextlib
import functools
import json
import time

import httpx
import torch

from lib import runtime
from lib.serving.artifacts import Artifact
from lib.serving.background import Background
from lib.serving.hall import Hall
from lib.serving.limits import Limits
from tests import packed, tiny

LIMITS = Limits(slots=4, queue=32, piece=24)


@functools.cache
def weights(seed=0):
    """A tiny Llama at 4 bits, packed, with its tokenizer; the same object each time."""
    return runtime.pack_(packed.quantize_(tiny.llama(seed=seed), dtype=torch.float32))


def artifact(name="tiny", *, limits=LIMITS, model=None, seed=0):
    """That model as a server has it; model: another one, which transformers runs."""
    if model is not None:
        return Artifact(name, model, model.tokenizer, limits)
    packed_model = weights(seed)
    return Artifact(name, runtime.engine.weights_of(packed_model), packed_model.tokenizer, limits)


class Client(httpx.Client):
    """A client of one server, which also shows the server's inside: `hall`."""

    hall: Hall

    def generate(self, inputs, path="/generate", **parameters):
        """The response of a route of text-generation-inference."""
        return self.post(path, json={"inputs": inputs, "parameters": parameters})


@contextlib.contextmanager
def running(*artifacts, **how):
    """A client of a server that offers these; how: arguments of `background.Background`."""
    how.setdefault("limits", LIMITS)
    with Background(*artifacts, **how) as server, Client(base_url=server.url, timeout=60, verify=False) as client:
        client.hall = server.hall
        yield client


def until(condition, what="it"):
    """Wait until `condition()` holds; no clock decides, but a minute is no test any more."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come about")


def events(response):
    """The JSON events of a streamed response."""
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def logits(prompt, answer, seed=0):
    """The model's logits [len(answer), vocabulary] before each token of `answer`, read in one pass."""
    session = runtime.Session(runtime.engine.weights_of(weights(seed)))
    return session.extend([*prompt, *answer])[len(prompt) - 1 : -1]
