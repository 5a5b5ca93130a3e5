"""What a reader of an exported file is asked and answers, as JSON and arrays in files: it runs in another environment.

    python -m lib.export.reader_llama_cpp arguments.json

Arguments: `file`, `texts` (to tokenize), `prompts` (token ids), `new_tokens` (greedy, after each prompt), `answer` (a
folder). The answer: `answer.json` with `tokens` (ids of each text), `version`, `peak_bytes`, `base_bytes` (before a
runtime was loaded), and by mode `greedy` (ids) and `seconds`; `MODE-N.npy`, the logits of prompt N, float32 [length,
vocabulary]. Only NumPy is imported here.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy

KIBI = 1024  # bytes of the unit in which Linux counts resident memory


def peak_bytes() -> int:
    """The most resident memory that this program had; the counter of `getrusage` begins with its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if found:
            return int(found[0]) * KIBI
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBI


BASE = peak_bytes()  # before a runtime is loaded


def main(tokenize: Callable, modes: dict[str, Callable], version: str) -> None:
    """Answer the arguments that the command line names.

    tokenize: text -> ids. modes: by name, a function that makes `forward`, which maps all ids of a text so far to
    logits float32 [length, vocabulary].
    """
    asked = json.loads(Path(sys.argv[1]).read_text())
    folder, answer = Path(asked["answer"]), {"version": version, "modes": {}}
    answer["tokens"] = [[int(token) for token in tokenize(text)] for text in asked["texts"]]
    for mode, make in modes.items():
        forward, start = make(), time.perf_counter()
        for number, prompt in enumerate(asked["prompts"]):
            numpy.save(folder / f"{mode}-{number}.npy", forward(prompt).astype(numpy.float32), allow_pickle=False)
        prefill, start = time.perf_counter() - start, time.perf_counter()
        greedy = [continued(forward, prompt, asked["new_tokens"]) for prompt in asked["prompts"]]
        seconds = {"prefill": prefill, "greedy": time.perf_counter() - start}
        answer["modes"][mode] = {"greedy": greedy, "seconds": seconds}
    answer |= {"peak_bytes": peak_bytes(), "base_bytes": BASE}
    (folder / "answer.json").write_text(json.dumps(answer))


def continued(forward: Callable, prompt: list[int], count: int) -> list[int]:
    """`count` tokens after `prompt`, each the one with the largest logit; whole texts are read again each time."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(forward(ids)[-1].argmax()))
    return ids[len(prompt) :]


def arguments() -> dict:
    """The arguments of this process."""
    return json.loads(Path(sys.argv[1]).read_text())
