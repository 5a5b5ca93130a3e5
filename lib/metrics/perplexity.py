"""Perplexity: the exponential of a model's mean negative log-likelihood per predicted token.

The text is concatenated, tokenized without special tokens and cut into windows that do not overlap, each begun with
what the model's tokenizer puts before a text (see `sources.texts`). A window of `length` tokens predicts `length - 1`
of them; perplexity is exp of their mean negative log-likelihood. Its standard error comes from a bootstrap over
windows, since tokens of one window are not independent.
"""

import numpy as np
import torch
from torch import nn

from lib.metrics.score import Score, bootstrap
from lib.models import blocks, logits
from lib.sources import texts


def measure(
    model: nn.Module,
    text,
    *,
    windows: int | None = None,
    length: int = 512,
    batch: int | str = "auto",
    bos: bool | None = None,
) -> Score:
    """Perplexity of `text` under `model`; lower is better, `n` counts windows.

    `text` is a `Text`, `Windows`, or token ids [count, length]; `windows` limits how many are used (None: all). Of a
    streamed text about a million tokens are in memory at a time.
    `batch` windows run at once ("auto": one on a CPU, 16384 tokens on an accelerator). bos: False for windows of
    text alone, True for BOS where the tokenizer puts none; None leaves it to the tokenizer.
    The baseline is the best prediction that ignores context, from the frequencies of the predicted tokens.
    Raises ValueError when the text is too short or when the model's logits are not finite.
    """
    tokens = _rows(text, model, windows, length, bos)
    per_window, counts = [], 0
    for some in (tokens,) if isinstance(tokens, torch.Tensor) else tokens.blocks():
        per_window.append(nll(model, some, batch=batch).double().mean(1))
        counts = counts + _counts(some, model.get_input_embeddings().num_embeddings)
    return _score(torch.cat(per_window).numpy(), counts)


def nll(model: nn.Module, tokens: torch.Tensor, *, batch: int | str = "auto") -> torch.Tensor:
    """Negative log-likelihood in nats of every predicted token: float32 [count, length - 1] for [count, length]."""
    parts = []
    with logits.evaluating(model):
        run = logits.forward(model)
        for start, some in logits.batches(tokens, model, batch, "perplexity"):
            rows, targets = run(some), some[:, 1:].flatten()
            for chunk in logits.chunks(len(targets), blocks.head(model).out_features):
                found = logits.log_probabilities(rows, chunk, f"{type(model).__name__} from window {start} on")
                parts.append(surprise(found, targets[chunk]))
    return torch.cat(parts).view(len(tokens), -1)


def surprise(log_probabilities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log p(target), float32 [rows] on the CPU, from log-probabilities [rows, vocabulary]."""
    targets = targets.to(log_probabilities.device)
    return -log_probabilities.gather(-1, targets[:, None]).squeeze(-1).cpu()


def score(values: torch.Tensor, tokens: torch.Tensor) -> Score:
    """Perplexity from the negative log-likelihoods [count, length - 1] of `tokens` [count, length]."""
    return _score(values.double().mean(1).numpy(), _counts(tokens))


def unigram(tokens: torch.Tensor) -> float:
    """Perplexity of the best prediction that ignores context: exp of the entropy of the predicted tokens."""
    return _without_context(_counts(tokens))


def predicted(tokens: torch.Tensor) -> int:
    """How many tokens windows [count, length] predict: all but the first of each."""
    return tokens.shape[0] * (tokens.shape[1] - 1)


def tokenize(text, model: nn.Module, windows: int | None, length: int, bos: bool | None = None) -> torch.Tensor:
    """Token ids [count, length] of `text`: all its windows, or the first `windows` of them."""
    found = _rows(text, model, windows, length, bos)
    return found if isinstance(found, torch.Tensor) else found.tensor()


def _rows(text, model, windows, length, bos):
    """As `tokenize`, but windows of a streamed text stay in their file (`token_windows.Rows`)."""
    if windows is not None and windows < 1:
        raise ValueError(f"windows={windows}; choose a whole number from 1, or None for all.")
    tokens = texts.rows(text, model, count=windows, length=length, bos=bos)
    if tokens.shape[1] < 2:
        raise ValueError(f"windows of {tokens.shape[1]} token predict nothing; give windows of two tokens or more.")
    return tokens


def _counts(tokens: torch.Tensor, vocabulary: int = 0) -> torch.Tensor:
    """How often each token [vocabulary] is predicted in windows [count, length]."""
    return tokens[:, 1:].flatten().bincount(minlength=vocabulary)


def _without_context(counts: torch.Tensor) -> float:
    share = counts[counts > 0].double() / counts.sum()
    return float((-(share * share.log()).sum()).exp())


def _score(per_window: np.ndarray, counts: torch.Tensor) -> Score:
    stderr = bootstrap(per_window, _perplexity)
    return Score(_perplexity(per_window), stderr, len(per_window), "perplexity", False, _without_context(counts))


def _perplexity(per_window: np.ndarray, axis: int | None = None):
    return np.exp(np.mean(per_window, axis=axis))
