"""One answer by stock llama.cpp under a hard limit of memory; runs in the environment of `reader_llama_cpp`.

    python -m lib.export.phone_script arguments.json

Arguments: `file` (None: load nothing), `prompt` (token ids), `answer` (tokens), `context`, `batch` (tokens read at
once), `limit` (bytes of private memory, RLIMIT_DATA, None for none), `report` (where the numbers go). The weights are
read into private memory, as an app must have them there to read them for each token; a mapped file would not count.
"""

import json
import resource
import sys
import time
from pathlib import Path


def private_bytes() -> int:
    """Private memory that this process has taken, in bytes: what RLIMIT_DATA limits."""
    return _status("VmData")


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024


def main() -> None:
    """Answer, and say what it took."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    import numpy  # noqa: F401  (part of what the runtime takes)
    from cyllama.llama import llama_cpp  # only in its own environment

    base = private_bytes()
    if asked["limit"]:
        resource.setrlimit(resource.RLIMIT_DATA, (asked["limit"], asked["limit"]))
    report = {"base": base, "peak": base}
    if asked["file"]:
        report |= answer(llama_cpp, asked)
    report["peak"] = max(report["peak"], private_bytes())
    report["resident"] = _status("VmHWM")
    Path(asked["report"]).write_text(json.dumps(report))


def answer(llama_cpp, asked: dict) -> dict:
    """{"peak": bytes, "seconds": of the prompt and of a token} of one answer."""
    settings = llama_cpp.LlamaModelParams()
    settings.n_gpu_layers, settings.use_mmap = 0, False
    kind = type("Model", (llama_cpp.LlamaModel,), {"n_vocab": property(lambda self: self.get_vocab().n_vocab)})
    model = kind(asked["file"], settings, verbose=False)
    context = llama_cpp.LlamaContextParams()
    context.n_ctx, context.n_batch, context.n_ubatch = asked["context"], asked["batch"], asked["batch"]
    context.n_threads = context.n_threads_batch = 1
    made, place, peak = llama_cpp.LlamaContext(model, context, verbose=False), 0, private_bytes()

    def read(ids) -> None:
        nonlocal place
        batch = llama_cpp.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        for number, token in enumerate(ids):
            batch.add(token, place + number, [0], number == len(ids) - 1)
        made.decode(batch)
        place += len(ids)

    start = time.perf_counter()
    for first in range(0, len(asked["prompt"]), asked["batch"]):
        read(asked["prompt"][first : first + asked["batch"]])
    prompt, start = time.perf_counter() - start, time.perf_counter()
    for _ in range(asked["answer"]):
        read([asked["prompt"][0]])
    seconds = {"prompt": prompt, "token": (time.perf_counter() - start) / max(1, asked["answer"])}
    return {"peak": max(peak, private_bytes()), "seconds": seconds}


if __name__ == "__main__":
    main()
