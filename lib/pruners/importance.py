"""How much a model needs each of its blocks: one score per block, low = remove first.

Every score has the signature `score(model, calibration) -> list[float]`. `calibration` is a `Text`, `Windows`, or
token ids, LongTensor [count, length]; `model` is run in eval mode and left as it was.
"""

import torch
from torch import Tensor, nn

from lib import files, progress
from lib.metrics import logits
from lib.models.blocks import blocks, final_norm, head
from lib.quantizers import inputs

BATCH = 16  # windows that a block sees at once


def leave_one_out(model: nn.Module, calibration) -> list[float]:
    """Rise of the mean negative log-likelihood, in nats a token, when that block alone is left out.

    exp of it is the factor by which the perplexity grows; a negative score means that the model is better without.
    The blocks before the one left out are not run again, so n blocks take about n²/2 block passes and n of the head.
    """
    tokens = _tokens(model, calibration)
    with logits.evaluating(model):
        captured = inputs.capture(model, tokens)
        parts, before = list(zip(blocks(model), captured.calls)), captured.hidden
        without = []
        with progress.bar(total=len(parts) * (len(parts) + 1) // 2, desc="leave one out", unit="block") as bar:
            for index, (block, call) in enumerate(parts):
                without.append(_nll(model, _run(parts[index + 1 :], before, bar), tokens))
                before = _run([(block, call)], before, bar)
        whole = _nll(model, before, tokens)
    return [loss - whole for loss in without]


def block_influence(model: nn.Module, calibration) -> list[float]:
    """1 - mean cosine similarity between the hidden states before and after the block, over all tokens.

    0 for a block that only scales its input. Takes one pass over the blocks and none of the head.
    Source: ShortGPT, Men et al., arXiv 2403.03853, equation 1.
    """
    tokens = _tokens(model, calibration)
    with logits.evaluating(model):
        captured = inputs.capture(model, tokens)
        hidden, scores = captured.hidden, []
        for part in progress.bar(list(zip(blocks(model), captured.calls)), desc="block influence", unit="block"):
            after = _run([part], hidden)
            # BI_i = 1 - E[X_iᵀ X_{i+1} / (‖X_i‖ ‖X_{i+1}‖)]
            similarity = nn.functional.cosine_similarity(hidden.float(), after.float(), dim=-1)
            scores.append(1 - similarity.double().mean().item())
            hidden = after
    return scores


SCORES = {"leave_one_out": leave_one_out, "block_influence": block_influence}
UNITS = {"leave_one_out": "nats a token", "block_influence": "1 - cosine"}


def score(name: str, model: nn.Module, calibration) -> list[float]:
    """The score called `name`, one of `SCORES`; ValueError for another name."""
    if name not in SCORES:
        raise ValueError(f"block importance {name!r} is unknown; {files.choices(name, SCORES)}")
    return SCORES[name](model, calibration)


def _tokens(model, calibration) -> Tensor:
    from lib.sources import texts

    tokens = texts.tokens(calibration, model)
    if tokens.shape[1] < 2:
        raise ValueError(f"windows of {tokens.shape[1]} token predict nothing; give windows of two tokens or more.")
    return tokens


def _run(parts: list, hidden: Tensor, bar=None) -> Tensor:
    """Hidden states [count, length, hidden size] after the blocks of `parts`, pairs of (block, how it is called)."""
    for block, call in parts:
        hidden = torch.cat([inputs.run_block(block, some, call) for some in hidden.split(BATCH)])
        if bar is not None:
            bar.update()
    return hidden


def _nll(model: nn.Module, hidden: Tensor, tokens: Tensor) -> float:
    """Mean negative log-likelihood of `tokens` [count, length] from the hidden states after the last block."""
    from lib.metrics.perplexity import surprise

    norm, project, sums = final_norm(model), logits.Projection.of(model), []
    for states, window in zip(hidden, tokens):
        rows, targets = logits.rows(norm(states[None, :-1]), project), window[1:]
        for chunk in logits.chunks(len(targets), head(model).out_features):
            found = logits.log_probabilities(rows, chunk, f"{type(model).__name__} with a block left out")
            sums.append(surprise(found, targets[chunk]).double().sum())
    return (torch.stack(sums).sum() / tokens[:, 1:].numel()).item()
