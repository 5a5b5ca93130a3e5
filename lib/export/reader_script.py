"""What a reader of an exported file is asked and answers, as JSON and arrays in files: it runs in another environment.

    python -m lib.export.reader_llama_cpp arguments.json

Arguments: `file`, `texts` (to tokenize), `prompts` (token ids), `new_tokens` (greedy, after each prompt), `answer` (a
folder). The answer: `answer.json` with `tokens` (ids of each text), `version`, `peak_bytes`, `base_bytes` (before a
runtime was loaded), and by mode `greedy` (ids) and `seconds`; `MODE-N.npy`, the logits of prompt N, float32 [length,
vocabulary]. With `timed`, the name of a mode, the first prompt is read and answered with nothing else kept, and the
answer holds `load`, `prefill` and `decode` instead: seconds, of each new token. `threads`: how many it computes with, 1
by default. Only NumPy is imported here.
"""

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy

KIBI = 1024  # bytes of the unit in which Linux counts resident memory
_CLEAR = Path("/proc/self/clear_refs")  # resets that count
_WARM = 8  # tokens that are read before anything is timed


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

    tokenize: text -> ids. modes: by name, a function that makes a reader: one with `restart()` and `read(ids, start)`,
    the logits [count, vocabulary] of the tokens `ids` that stand at `start` of a text; or a function of all ids of a
    text so far to the logits of all of them.
    """
    asked = arguments()
    folder, answer = Path(asked["answer"]), {"version": version}
    if "timed" in asked:
        answer |= timed(modes[asked["timed"]], asked["prompts"][0], asked["new_tokens"])
        (folder / "answer.json").write_text(json.dumps(answer))
        return
    answer["modes"] = {}
    answer["tokens"] = [[int(token) for token in tokenize(text)] for text in asked["texts"]]
    for mode, make in modes.items():
        forward, start = _whole(make()), time.perf_counter()
        for number, prompt in enumerate(asked["prompts"]):
            numpy.save(folder / f"{mode}-{number}.npy", forward(prompt).astype(numpy.float32), allow_pickle=False)
        prefill, start = time.perf_counter() - start, time.perf_counter()
        greedy = [continued(forward, prompt, asked["new_tokens"]) for prompt in asked["prompts"]]
        seconds = {"prefill": prefill, "greedy": time.perf_counter() - start}
        answer["modes"][mode] = {"greedy": greedy, "seconds": seconds}
    answer |= {"peak_bytes": peak_bytes(), "base_bytes": BASE}
    (folder / "answer.json").write_text(json.dumps(answer))


def main_beside(reader: Callable, settings: dict, version: str) -> None:
    """`main` for a runtime whose file has the model's tokenizer.json beside it.

    reader: makes one of (file, setting, threads). settings: of each mode, by name.
    """
    from tokenizers import Tokenizer  # loads slowly, only in a process that reads

    file = arguments()["file"]
    words = Tokenizer.from_file(str(Path(file).with_name("tokenizer.json")))
    modes = {name: lambda setting=setting: reader(file, setting, threads()) for name, setting in settings.items()}
    main(lambda text: words.encode(text).ids, modes, version)


def continued(forward: Callable, prompt: list[int], count: int) -> list[int]:
    """`count` tokens after `prompt`, each the one with the largest logit; `forward` is given whole texts."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(forward(ids)[-1].argmax()))
    return ids[len(prompt) :]


def timed(make: Callable, prompt: list[int], count: int) -> dict:
    """Seconds of loading, of reading `prompt`, and of each of `count` greedy tokens; the peak of memory meanwhile."""
    start = time.perf_counter()
    reader = make()
    load = time.perf_counter() - start
    reader.restart()
    for place, token in enumerate(prompt[:_WARM]):
        reader.read([token], place)
    with contextlib.suppress(OSError):  # where the kernel can't reset it, the peak is that of loading too
        _CLEAR.write_text("5")
    reader.restart()
    start = time.perf_counter()
    token, tokens, decode = int(reader.read(prompt, 0)[-1].argmax()), [], []
    prefill = time.perf_counter() - start
    for place in range(len(prompt), len(prompt) + count):
        start = time.perf_counter()
        tokens.append(token)
        token = int(reader.read([token], place)[-1].argmax())
        decode.append(time.perf_counter() - start)
    return {"load": load, "prefill": prefill, "decode": decode, "answer": tokens, "peak_bytes": peak_bytes()}


def arguments() -> dict:
    """The arguments of this process."""
    return json.loads(Path(sys.argv[1]).read_text())


def layout(file: Path | str) -> str | None:
    """By whose layout the checkpoint with this config.json is packed: "mlx", or its quant_method; None if plain."""
    config = json.loads(Path(file).read_text())
    return "mlx" if "quantization" in config else (config.get("quantization_config") or {}).get("quant_method")


def threads() -> int:
    """How many threads the reader computes with."""
    return arguments().get("threads", 1)


def _whole(reader) -> Callable:
    """`reader` as a function of all ids of a text; of one that only grew, it reads the new tokens alone."""
    if not hasattr(reader, "read"):
        return reader
    known, rows = [], []

    def forward(ids):
        if not known or ids[: len(known)] != known or len(ids) == len(known):
            reader.restart()
            known.clear()
            rows.clear()
        rows.append(reader.read(ids[len(known) :], len(known)))
        known.extend(ids[len(known) :])
        return numpy.concatenate(rows)

    return forward
