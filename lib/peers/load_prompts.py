"""What clients of a load ask: texts of one length, or the prompts of a task's data as they are."""

from collections.abc import Sequence

from lib import checkpoints, tasks, tokenization
from lib.sources import models, texts


def of_length(text: str, tokenizer: str, count: int, length: int) -> list[str]:
    """`count` prompts of `length` tokens of one tokenizer, as text, which every server cuts by its own.

    Raises ValueError for a text that is too short.
    """
    words = checkpoints.tokenizer(models.find(tokenizer)[0])
    ids = tokenization.ids(words, [texts.load(text, split="test").text], bos=False)[0]
    if len(ids) < length:
        raise ValueError(f"{text} has {len(ids)} tokens, and {length} were asked of each prompt; ask shorter ones.")
    step = max(1, (len(ids) - length) // max(1, count - 1)) if count > 1 else 1
    begins = [min(place * step, len(ids) - length) for place in range(count)]
    return [words.decode(ids[begin : begin + length]) for begin in begins]


def shares(prompts: Sequence[str], sizes: Sequence[int]) -> list[list[str]]:
    """The prompts of loads of so many requests each, one load after the other.

    None is asked twice while there are enough: servers keep what they have read, and would seem quick to begin.
    """
    found, begin = [], 0
    for size in sizes:
        found.append([prompts[place % len(prompts)] for place in range(begin, begin + size)])
        begin += size
    return found


def of_task(task: str, tokenizer: str, count: int, most: int, *, seed: int = 0) -> list[str]:
    """The prompts of up to `count` samples of a task, so long as its users' are, up to `most` tokens of a tokenizer.

    Longer ones are left out. Raises ValueError for an unknown task, and where no prompt is short enough.
    """
    words = checkpoints.tokenizer(models.find(tokenizer)[0])
    first = [sample.requests[0] for sample in tasks.load(task, count=count, seed=seed).samples]
    found = list(dict.fromkeys(getattr(each, "prompt", "") or getattr(each, "context", "") for each in first))
    lengths = [len(ids) for ids in tokenization.ids(words, found, bos=False)]
    short = [each for each, length in zip(found, lengths) if 0 < length <= most]
    if not short:
        raise ValueError(
            f"the prompts of {task} have {min(lengths)} tokens or more, and at most {most} were allowed; allow more."
        )
    return short
