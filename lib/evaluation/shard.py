"""One evaluation, several processes or machines: each answers a part of the samples, and all see the same scores.

A part is a stretch of the samples sorted by their text, so that what begins alike stays together. Since the plan of
passes is made from all requests and each answer has the same bits wherever it is computed, the number of parts
changes nothing but the time. Two ways:

- `accelerate launch` or `torchrun` set RANK and WORLD_SIZE: the parts are exchanged at the end, over the network;
- `part=(2, 4)`, the third of four, say as a notebook parameter of a sweep: parts meet in a shared cache folder.
"""

import os

from lib.tasks.task import Likelihood, Sample


def own_part(part: tuple[int, int] | None) -> tuple[int, int]:
    """(index, number of parts): as given, else from RANK and WORLD_SIZE, else (0, 1).

    Raises ValueError for an index outside 0 to number - 1.
    """
    if part is None:
        part = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    index, number = part
    if not 0 <= index < number:
        raise ValueError(f"part={part}; (index, number) with 0 <= index < number is allowed, (0, 1) being the whole.")
    return index, number


def split(samples: list[Sample], index: int, number: int) -> set[int]:
    """The places in `samples` that part `index` of `number` answers: parts are disjoint, and together they are all.

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
    import torch.distributed as distributed

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
