"""Windows for distillation from several texts, each with its share: for calibration, for training, and kept unseen.

All three come from the texts' training splits and share no window: what was calibrated on is not trained on again, and
what a training is stopped by it has not seen. A window is drawn once at most. "chats:" before a name stands for the
conversations of that name (`conversations.read`), as the model's chat template writes them, one behind the other. They
are trained on and not calibrated on, where there are other texts: turns begin with tokens whose activations are so
large that other windows count for less (GPTQ with a tenth of chats, 64 windows: KL 0.017 higher on WikiText-2 and 0.046
on C4).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.sources import conversations, texts
from lib.trainers import answer_rows

PARTS = ("calibration", "unseen", "training")
CHATS = "chats:"


@dataclass(frozen=True)
class Windows:
    """Token ids [count, length] of each part, and how many windows each text gave to all of them."""

    calibration: Tensor
    unseen: Tensor
    training: Tensor
    counts: dict[str, int]


def draw(
    model: nn.Module, shares: dict[str, float], read: dict[str, float] | None = None, *,
    calibration: int, unseen: int, training: int, length: int, seed: int,
) -> Windows:  # fmt: skip
    """So many windows of `length` tokens for each part, mixed by the `shares` of the texts, in random order.

    shares: numbers above 0 by the name of a text (`texts.load`), in proportion to each other; read: those of the
    training, where they are others. Raises ValueError, before anything is drawn, for shares and counts out of range,
    and where a text has too few windows.
    """
    wanted, read = dict(zip(PARTS, (calibration, unseen, training))), read or shares
    if not shares or min(*shares.values(), *read.values()) <= 0 or min(wanted.values()) < 1:
        raise ValueError(
            f"shares={shares}, read={read} and {wanted} windows; one text or more with a share above 0 and 1 window "
            "or more of each part are needed; change them."
        )
    texts_alone = {name: share for name, share in shares.items() if not name.startswith(CHATS)} or shares
    of = dict(zip(PARTS, (texts_alone, shares, read)))
    each = {part: dict.fromkeys(shares | read, 0) | counts(of[part], count) for part, count in wanted.items()}
    asked = {name: sum(count[name] for count in each.values()) for name in shares | read}
    found: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    for name, needed in asked.items():
        if not needed:  # so small a share of so few windows
            continue
        if name.startswith(CHATS):
            drawn = chats(model, name.removeprefix(CHATS), needed, length, seed)
        else:
            drawn = texts.tokens(texts.load(name, "train").windows(needed, length, seed=seed), model)
        for part, some in zip(PARTS, drawn.split([each[part][name] for part in PARTS])):
            found[part].append(some)
    generator = torch.Generator().manual_seed(seed)
    mixed = {}
    for part, pieces in found.items():
        whole = torch.cat(pieces)
        mixed[part] = whole[torch.randperm(len(whole), generator=generator)]
    return Windows(**mixed, counts=asked)


def chats(model: nn.Module, source: str, count: int, length: int, seed: int) -> Tensor:
    """`count` windows [count, length] of the conversations of `source`, in the order of `seed`; ValueError if too few.

    Their training split alone is read, in the tokens of the model's own chat template.
    """
    read = conversations.read(source, split="train", broken="skip")
    answer_rows.check(model.tokenizer, length, "all")
    order = torch.randperm(len(read), generator=torch.Generator().manual_seed(seed)).tolist()
    stream, needed, found = [], count * length, 0
    while order and found < needed:
        each = read[order.pop()]
        stream.append(answer_rows.encode(each.turns, model.tokenizer, where=each.where)[0])
        found += len(stream[-1])
    if found < needed:
        raise ValueError(
            f"the conversations of {source!r} fill {found // length} windows of {length} tokens, {count} were asked; "
            "a smaller share of them fits; give more of another text."
        )
    return torch.cat(stream)[:needed].view(count, length)


def counts(shares: dict[str, float], count: int) -> dict[str, int]:
    """`count` divided by `shares` into whole numbers, the largest remainders rounded up."""
    total = sum(shares.values())
    exact = {name: count * share / total for name, share in shares.items()}
    found = {name: int(number) for name, number in exact.items()}
    for name in sorted(exact, key=lambda one: found[one] - exact[one])[: count - sum(found.values())]:
        found[name] += 1
    return found
