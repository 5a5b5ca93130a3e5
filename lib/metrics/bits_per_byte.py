"""Bits per byte: how many bits a model needs to encode a byte of text, comparable between tokenizers.

bits = -sum_i log2 p(x_i | x_<i) / bytes, over the tokens x_i of whole documents and their UTF-8 bytes (Gao et al. 2020,
The Pile, arXiv 2101.00027, section 3.1). A document begins with what the tokenizer puts before a text (else
BOS or EOS), so that all its own tokens are predicted, and nothing else is. Windows hold `length` tokens; each scores
`stride` new ones, and what comes before them is context. With stride = length the windows do not overlap; a smaller
stride gives every token more context, at length / stride times the cost.

lm-evaluation-harness 0.4.13's rolling log-likelihood scores the same windows. Where a tokenizer puts no token before a
text, its numbers are these. Where one does (Llama's and Gemma's), the harness lets that token count as the document's
first: it predicts it from another of its kind, adds that surprise, and every window after the first lies one token
earlier. The token is no part of the document's bytes, so here it is read and never scored.
"""

import math

import numpy as np
import torch
from torch import nn

from lib import progress, tokenization
from lib.metrics.perplexity import surprise
from lib.metrics.score import Score, bootstrap
from lib.models import blocks, logits


def measure(
    model: nn.Module, text, *, length: int = 512, stride: int | None = None, characters: int | None = None
) -> Score:
    """Bits per byte of `text` (a `Text`, a string, or a list of strings) under `model`; lower is better.

    length: tokens of a window; stride: tokens that each window adds (None: all of them). characters: how much of
    each document is read (None: all). `n` counts windows; the error comes from a bootstrap over them. The baseline
    is the best prediction that ignores context, from the frequencies of the same tokens. Raises ValueError for windows
    that the model can't read, and for text that is empty.
    """
    stride = length if stride is None else stride
    _check(model, length, stride)
    documents = [text] if isinstance(text, str) else getattr(text, "documents", text)
    first = tokenization.beginning(model.tokenizer)
    written = model.tokenizer.decode(first, skip_special_tokens=False)  # by a chat template: read, never scored
    documents = [document[:characters].removeprefix(written) for document in documents]
    tokenized = [_tokenize(model, first, document) for document in documents if document]
    if not tokenized:
        raise ValueError("no text was given; documents with at least one character are needed; give some.")
    spans = [(ids, span) for ids in tokenized for span in windows(len(ids) - 1, length, stride, len(first))]
    with logits.evaluating(model):
        run = logits.forward(model)
        bar = progress.bar(spans, desc="bits per byte", unit="window")
        losses = [_loss(model, run, ids, span) for ids, span in bar]
    size = sum(len(document.encode()) for document in documents)
    count = sum(end - begin for _, (_, begin, end) in spans)
    own = [ids[len(first) - 1 :] for ids in tokenized]
    return _score(losses, [end - begin for _, (_, begin, end) in spans], count / size, own)


def windows(count: int, length: int, stride: int, first: int = 1) -> list[tuple[int, int, int]]:
    """(first token read, first token scored, one after the last) of each window over tokens `first` ... count.

    Tokens before `first` begin the document; a window reads at most `length` tokens, without the last scored one.
    """
    found, scored = [], first
    while scored <= count:
        end = min(scored + (length - first + 1 if scored == first else stride), count + 1)
        found.append((max(end - 1 - length, 0), scored, end))
        scored = end
    return found


def _check(model, length, stride):
    longest = getattr(blocks.config(model), "max_position_embeddings", None) or length
    if not 1 <= stride <= length <= longest:
        raise ValueError(
            f"stride={stride} and length={length} for a model that reads {longest} tokens; 1 <= stride <= length <= "
            f"{longest} is allowed; choose shorter windows."
        )


def _tokenize(model, first: list[int], document) -> torch.Tensor:
    """Token ids: what a text begins with, then the document's own."""
    tokenization.check(document, "a document")
    return torch.tensor([*first, *model.tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]])


def _loss(model, run, ids, span) -> float:
    """Nats of the tokens that one window scores; `run` gives the logits of a window's predicted positions."""
    start, begin, end = span
    some = ids[None, start:end]
    rows, targets = run(some), some[0, 1:]
    skipped, total = begin - 1 - start, 0.0  # the first predictions are of context
    for chunk in logits.chunks(end - begin, blocks.head(model).out_features):
        chunk = slice(chunk.start + skipped, chunk.stop + skipped)
        found = logits.log_probabilities(rows, chunk, type(model).__name__)
        total += surprise(found, targets[chunk]).double().sum().item()
    return total


def _score(losses, counts, tokens_per_byte, tokenized) -> Score:
    """Bits per byte from nats and tokens of each window; the error is that of nats per token."""
    pairs = np.array([losses, counts], dtype=np.float64).T
    scale = tokens_per_byte / math.log(2)

    def ratio(samples, axis=0):
        sums = samples.sum(axis)
        return scale * sums[..., 0] / sums[..., 1]

    frequencies = torch.cat([ids[1:] for ids in tokenized]).bincount().double()
    share = frequencies[frequencies > 0] / frequencies.sum()
    baseline = scale * float(-(share * share.log()).sum())
    return Score(float(ratio(pairs)), bootstrap(pairs, ratio), len(pairs), "bits/byte", False, baseline)
