"""A text several times larger than the memory that a process may still take: it is read, calibrated and trained on.

The limit is the kernel's: of what a process has for itself (RLIMIT_DATA, which leaves out files that are mapped), so
many bytes more than it has when the work begins. Blocks and chunks are smaller than by default, as the text is.
"""

import functools
import multiprocessing
import re
import resource
from pathlib import Path

from lib.metrics import bits_per_byte, guards, perplexity
from lib.quantizers import gptq
from lib.sources import chunks, contamination, file_formats, texts, token_windows
from lib.trainers import loop, next_token, top_k, training_data
from tests import tiny

ALLOWED = 3 << 20  # bytes
WORDS = [f"{number:03d}" + "ThirtyTwoLettersMakeOneWord" for number in range(250)]
ROW = " ".join(WORDS)


def tokenizer():
    """Two tokens for each of `WORDS`: its number, and the rest."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = ["<s>", WORDS[0][3:], *(word[:3] for word in WORDS)]
    core = Tokenizer(models.WordLevel({word: place for place, word in enumerate(known)}, unk_token="<s>"))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits()])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", unk_token="<s>")


def model():
    made = tiny.llama(num_hidden_layers=1)
    made.tokenizer = tokenizer()
    return made


def use(path: Path, folder: Path, in_memory: int) -> None:
    """Everything that reads a whole text."""
    text, made = texts.load(str(path), "train", in_memory=in_memory), model()
    windows = text.windows(8, 64, seed=1)
    other = texts.Text("other", "test", [" ".join(reversed(WORDS[:40]))])
    left = contamination.without(text, other)
    assert left.sha256 == text.sha256 and not guards.contamination({"a": other.text}, left.documents).found
    perplexity.measure(made, text, windows=8, length=64)
    bits_per_byte.measure(made, text, length=64, characters=20_000)
    kept = top_k.cache_teacher(made, windows, k=4, folder=folder)
    gptq.quantize_(model(), windows, bits=4, group_size=32)
    loop.train_(made, text, next_token.loss, steps=1, batch=2, learning_rate=1e-3)
    loop.train_(made, windows, kept, steps=1, batch=2, learning_rate=1e-3)
    assert training_data.of(text, made).count == len(texts.rows(text, made)) > 10


def limited(work, said) -> None:
    """Do `work` with `ALLOWED` more bytes than there are; say how it went."""
    status = Path("/proc/self/status").read_text()
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(re.search(r"VmData:\s+(\d+)", status)[1]) + ALLOWED,) * 2)
    try:
        work()
        said.put("done")
    except MemoryError:
        said.put("no memory")
    except BaseException as error:
        said.put(repr(error))
        raise


def test_memory_stays_what_it_is_however_long_the_text(tmp_path, monkeypatch, one_thread):
    import torch

    torch.set_num_threads(1)
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(file_formats, "BLOCK", 1 << 15)
    monkeypatch.setattr(token_windows, "_AT_ONCE", 1 << 13)
    monkeypatch.setattr(chunks, "ids", functools.partial(chunks.ids, chunk=1 << 13, overlap=1 << 11))
    small, large = tmp_path / "train-a.txt", tmp_path / "train-b.txt"
    small.write_text("\n\n".join([ROW] * 30))
    with open(large, "w") as file:
        for number in range(1300):
            file.write(ROW + ("\n\n" if number % 3 else " "))
    assert large.stat().st_size > 3 * ALLOWED
    use(small, tmp_path / "kept", in_memory=0)  # what is made once in a process is there
    processes, found = multiprocessing.get_context("fork"), []
    for in_memory in (0, 1 << 30):
        said = processes.SimpleQueue()
        work = functools.partial(use, large, tmp_path / "kept", in_memory)
        child = processes.Process(target=limited, args=(work, said))
        child.start()
        child.join()
        found.append(said.get() if not said.empty() else f"exit status {child.exitcode}")
    assert found[0] == "done" and found[1] in ("no memory", "exit status -6")  # native code aborts where none is left
