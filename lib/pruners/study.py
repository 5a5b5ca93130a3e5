"""Experiments of the pruning notebooks: one choice of blocks at several depths, pruning with quantizing."""

import hashlib
from collections.abc import Sequence

from torch import Tensor, nn

from lib import files, quantizers
from lib.jobs import environment_fingerprint, fingerprint
from lib.pruners import depth, importance


def named(choice: str) -> tuple[str, str]:
    """(way, score) of a choice written as "score", which is one shot, or as "way score"; ValueError for another."""
    way, _, score = choice.rpartition(" ")
    way = way or "one_shot"
    importance.by_name(score)
    if way not in depth.WAYS:
        raise ValueError(f"way {way!r} of {choice!r} is unknown; {files.choices(way, depth.WAYS)}")
    return way, score


def plans(
    model: nn.Module, tokens: Tensor, removed: Sequence[int], choice: str, *, scores: Sequence[float] | None = None
) -> dict[int, list[int]]:
    """{number of blocks removed: which ones} of a `choice` at each depth of `removed`, without scoring twice.

    scores: of the whole model by the choice's score, where they are known. Greedy steps are kept in the cache folder,
    under the hash of model and text: a killed run resumes.
    """
    way, score = named(choice)
    if way == "one_shot":
        scores = importance.score(score, model, tokens) if scores is None else scores
        return {count: depth.lowest(scores, count) for count in removed}
    options = {"way": way, "score": score}
    if way == "contiguous":
        return {count: depth.choose(model, tokens, blocks=count, **options) for count in removed}
    order = depth.choose(model, tokens, blocks=max(removed), state=_folder(model, tokens, choice), **options)
    return {count: order[:count] for count in removed}


def both_orders_(
    models: Sequence[nn.Module],
    tokens: Tensor,
    *,
    score: str,
    blocks: int,
    method: str,
    bits: int,
    group_size: int = 64,
) -> dict[str, list[int]]:
    """Prune and quantize two copies of a model, in place, in opposite order; {order: which blocks went}.

    The first is pruned, then quantized; the second quantized, then scored and pruned as it is. What differs: the
    quantizer of the first sees the inputs that the pruned model really has, and the score of the second sees blocks
    that already have errors. Raises ValueError for anything but two models that share no weights.
    """
    addresses = [{part.data_ptr() for part in model.parameters()} for model in models]
    if len(models) != 2 or addresses[0] & addresses[1]:
        raise ValueError(f"{len(models)} models; two that share no weights are needed; load the model twice.")
    first, second = models
    quantize_ = quantizers.by_name(method)
    options = {"bits": bits, "group_size": group_size}
    before = depth.prune_(first, tokens, score=score, blocks=blocks)
    quantize_(first, tokens, **options)
    quantize_(second, tokens, **options)
    after = depth.prune_(second, tokens, score=score, blocks=blocks)
    return {"pruned, then quantized": before, "quantized, then pruned": after}


def _folder(model: nn.Module, tokens: Tensor, choice: str):
    job = [*(fingerprint(model, tokens) | environment_fingerprint("pruners")).values(), choice]
    return files.cache() / "pruning" / hashlib.sha256(" ".join(job).encode()).hexdigest()[:16]
