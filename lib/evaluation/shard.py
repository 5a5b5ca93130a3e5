"""Splits one evaluation over several processes or machines; all of them end with the same scores.

A part is a range of the samples sorted by their text, so that samples with a common prefix stay together. Likelihood
passes are planned from all requests, so on equal machines their bits do not depend on the number of parts. Texts are
generated in batches of the part's own rows; where two tokens are nearly equally likely, another batch may round to the
other one. The tests see no text that differs in float32 or bfloat16, but this is not guaranteed. Three ways:

- `accelerate launch` or `torchrun` set RANK and WORLD_SIZE: the parts are exchanged at the end, over the network;
- THIMBLE_PART=2/4, the third of four, in the environment of notebooks or sweeps: the parts meet in the folder that
  THIMBLE_ANSWERS names (data/cache/evaluation unless it does), and each waits for the others;
- `part=(2, 4)`: the same without waiting.
"""

import os
import time
from collections.abc import Callable

import torch.distributed as distributed

from lib.tasks.task import Likelihood, Sample

PATIENCE, POLL = 600, 2.0  # seconds without an answer of any other part, and between two checks
clock, sleep = time.monotonic, time.sleep  # replaced in tests


def own_part(part: tuple[int, int] | None) -> tuple[int, int]:
    """(index, number of parts): the argument, else RANK and WORLD_SIZE, else THIMBLE_PART, else (0, 1).

    Raises ValueError for an index outside 0 to number - 1.
    """
    if part is None and not launched():
        part = _named(os.environ.get("THIMBLE_PART") or "0/1")
    elif part is None:
        part = int(os.environ.get("RANK", 0)), int(os.environ["WORLD_SIZE"])
    index, number = part
    if not 0 <= index < number:
        raise ValueError(f"part={part}; (index, number) with 0 <= index < number is allowed, (0, 1) being the whole.")
    return index, number


def _named(part: str) -> tuple[int, int]:
    index, _, number = part.partition("/")
    if not (index.isdecimal() and number.isdecimal()):
        raise ValueError(f"THIMBLE_PART={part!r}; index/number from 0/1 is allowed, such as 0/2 and 1/2 for halves.")
    return int(index), int(number)


def awaited(load: Callable[[], dict], wanted: set[str]) -> dict:
    """The result of `load()`, as soon as it has all of `wanted`, the ids of the samples.

    Raises TimeoutError when the other parts have written nothing for `PATIENCE` seconds.
    """
    found, news = load(), clock()
    while missing := wanted - found.keys():
        if clock() - news > PATIENCE:
            raise TimeoutError(
                f"{len(missing)} of {len(wanted)} samples lack, and no other part has written for {PATIENCE} s; start "
                "the other parts with the same THIMBLE_ANSWERS, or unset THIMBLE_PART, then repeat the call."
            )
        sleep(POLL)
        before, found = len(found), load()
        news = clock() if len(found) > before else news
    return found


def split(samples: list[Sample], index: int, number: int) -> set[int]:
    """The indices in `samples` that part `index` of `number` answers; the parts are a partition.

    Each part has about the same number of characters.
    """
    order = sorted(range(len(samples)), key=lambda place: (_text(samples[place]), place))
    lengths = [len(_text(samples[place])) + 1 for place in order]
    total, before, found = sum(lengths), 0, set()
    for place, length in zip(order, lengths):
        if before * number // max(1, total) == index:
            found.add(place)
        before += length
    return found


def _text(sample: Sample) -> str:
    first = sample.requests[0]
    return first.context if isinstance(first, Likelihood) else first.prompt


def launched() -> bool:
    """Whether a launcher started several processes that can exchange their answers."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def exchange(answers: dict) -> dict:
    """The answers of all launched processes, in each of them."""
    opened = not distributed.is_initialized()
    if opened:
        distributed.init_process_group("gloo")
    try:
        parts = [None] * distributed.get_world_size()
        distributed.all_gather_object(parts, answers)
    finally:
        if opened:
            distributed.destroy_process_group()
    return {sample: each for part in parts for sample, each in part.items()}
