"""One system of a speed measurement in a process of its own: load, warm up, time prefill and decoding, report the peak.

`fresh.measure` runs this file by its path, with the interpreter that the system needs: llama.cpp's has neither torch
nor this project's requirements, so nothing but the standard library is imported before a system asks for more.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path


def transformers(job: dict):
    """A folder or packaged name through `sources.models.load`, decoded by plain transformers.

    Like all kinds, returns a function to run it, and one from positions in the cache to the bytes that a step reads.
    """
    import torch  # the packed engine is timed without torch

    from lib.metrics import count, speed  # needs torch
    from lib.sources import models  # `load` needs torch

    model, _ = models.load(job["model"], dtype=job.get("dtype"))
    return lambda tokens, new: speed.run(model, torch.tensor([tokens]), new), partial(count.bytes_per_token, model)


def packed(job: dict):
    """A folder through `runtime.load`, decoded by the packed engine."""
    from lib import runtime  # llama.cpp's interpreter has no torch and none of our packages

    weights = runtime.load(job["model"], **_embedding(job))
    batch = runtime.Batch(weights, 1)
    run = _run(lambda ids: batch.extend({0: ids})[0], lambda: batch.lengths.__setitem__(0, 0))
    return run, weights.bytes_per_token


def _embedding(job: dict) -> dict:
    """How the embedding is kept, None for as it is stored."""
    return {"embedding_bits": job["embedding_bits"]} if "embedding_bits" in job else {}


def session(job: dict):
    """A packed folder in the decoding loop, which needs torch; with `lookup` it drafts from the text so far."""
    import torch  # the other systems are timed without torch

    from lib import runtime  # llama.cpp's interpreter has no torch and none of our packages
    from lib.decoding import draft_controller, generate, lookup  # needs torch

    running, given = runtime.Session(runtime.load(job["model"], **_embedding(job))), {}
    if job.get("lookup"):
        drafter = lookup.Lookup(max_ngram=3, draft_length=8)
        costs = draft_controller.step_costs(running, drafter, lengths=(0, 1, 4, 8))
        given = {"drafter": drafter, "controller": draft_controller.DraftController(costs)}

    def run(tokens, new):
        answer = generate.generate(running, torch.tensor(tokens), new_tokens=new, plain=True, **given)
        first, *others = answer.steps
        count = sum(step.produced for step in others)
        further = sum(step.seconds for step in others) / count if count else first.seconds
        return answer.prefill_seconds + first.seconds, further

    return run, running.weights.bytes_per_token


def llama_cpp(job: dict):
    """A gguf file through llama-cpp-python."""
    import llama_cpp as library  # only its own interpreter has it
    import numpy as np  # comes with llama_cpp

    threads = job["threads"]
    model = library.Llama(
        job["model"], n_ctx=1024, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def step(ids):
        model.eval(ids)
        pointer = library.llama_get_logits_ith(model.ctx, -1)
        return np.ctypeslib.as_array(pointer, (model.n_vocab(),))

    return _run(step, model.reset), partial(_gguf_bytes, Path(job["model"]), model.metadata)


def _gguf_bytes(path: Path, told: dict, context: int) -> int:
    """The whole file, as its embedding is the head too, and 16-bit keys and values of `context` positions."""
    kind = told["general.architecture"]
    layers, width, heads, key_heads = (
        int(told[f"{kind}.{name}"])
        for name in ("block_count", "embedding_length", "attention.head_count", "attention.head_count_kv")
    )
    return path.stat().st_size + 4 * layers * key_heads * (width // heads) * context


KINDS = {"transformers": transformers, "packed": packed, "session": session, "llama.cpp": llama_cpp}


def _run(step, forget):
    """A function (tokens, new tokens) -> (seconds to the first token, seconds per further token), as `speed.run`."""

    def run(tokens, new):
        forget()
        start = time.perf_counter()
        chosen = int(step(tokens).argmax())
        first = time.perf_counter()
        for _ in range(new - 1):
            chosen = int(step([chosen]).argmax())
        return first - start, (time.perf_counter() - first) / max(1, new - 1)

    return run


def peak() -> int | None:
    """Highest resident memory of this process in bytes, None where the system does not tell."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def main() -> None:
    """Read a job (JSON in the first argument) and print its times as the last line, JSON."""
    job = json.loads(sys.argv[1])
    sys.path[0] = job["root"]  # in the place of this file's folder
    (run, read), tokens = KINDS[job["kind"]](job), job["tokens"]
    run(tokens[:8], 8)
    prefill, _ = run(tokens, 2)
    first, further = run(tokens[: job["prompt"]], job["new_tokens"])
    found = {"prefill": len(tokens) / prefill, "ttft": first, "tpot": further, "peak": peak()}
    print(json.dumps(found | {"read": read(job["prompt"] + job["new_tokens"] // 2)}))


if __name__ == "__main__":
    main()
