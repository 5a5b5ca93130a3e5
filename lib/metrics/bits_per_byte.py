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

import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from lib import progress, tokenization
from lib.metrics.perplexity import surprise
from lib.metrics.score import Score, bootstrap
from lib.models import blocks, logits
from lib.sources import chunks, streams


def measure(
    model: nn.Module, text, *, length: int = 512, stride: int | None = None, characters: int | None = None
) -> Score:
    """Bits per byte of `text` (a `Text`, a string, or a list of strings) under `model`; lower is better.

    length: tokens of a window; stride: tokens that each window adds (None: all of them). characters: how much of
    each document is read (None: all). `n` counts windows; the error comes from a bootstrap over them. The baseline
    is the best prediction that ignores context, from the frequencies of the same tokens. Of documents in files
    (`streams.Documents`) a few megabytes are in memory at a time. Raises ValueError for windows that the model can't
    read, and for text that is empty.
    """
    stride = length if stride is None else stride
    _check(model, length, stride)
    documents = [text] if isinstance(text, str) else getattr(text, "documents", text)
    first, seen, losses = tokenization.beginning(model.tokenizer), _Seen(), []
    written = model.tokenizer.decode(first, skip_special_tokens=False)  # by a chat template: read, never scored
    if not (streamed := isinstance(documents, streams.Documents)):  # those were checked when they were loaded
        documents = [tokenization.check(document[:characters], "a document") for document in documents]
        if not any(document.removeprefix(written) for document in documents):
            raise ValueError("no text was given; documents with at least one character are needed; give some.")
    with logits.evaluating(model), progress.bar(desc="bits per byte", unit="window") as bar:
        run = logits.forward(model)
        for document in streams.in_pieces(documents):
            own = _tokens(model.tokenizer, seen.read(_after(written, _until(document, characters))), streamed)
            for some, scored in _read(seen.count(own), first, length, stride):
                losses.append((_loss(model, run, some, scored), scored))
                bar.update()
    return _score(losses, seen)


class _Seen:
    """How much text was read: its bytes, and how often each token occurs."""

    def __init__(self):
        self.bytes, self.frequencies = 0, np.zeros(0, np.int64)

    def read(self, pieces: Iterable[str]) -> Iterator[str]:
        """The pieces themselves."""
        for piece in pieces:
            self.bytes += len(piece.encode())
            yield piece

    def count(self, tokens: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The tokens themselves."""
        for some in tokens:
            found = np.bincount(some, minlength=len(self.frequencies))
            found[: len(self.frequencies)] += self.frequencies
            self.frequencies = found
            yield some


def windows(
    count: int, length: int, stride: int, first: int = 1, *, scored: int | None = None
) -> list[tuple[int, int, int]]:
    """(first token read, first token scored, one after the last) of each window over tokens `first` ... count.

    Tokens before `first` begin the document; a window reads at most `length` tokens, without the last scored one.
    scored: the windows from that which scores this token first.
    """
    found, scored = [], first if scored is None else scored
    while scored <= count:
        end = min(scored + (length - first + 1 if scored == first else stride), count + 1)
        found.append((max(end - 1 - length, 0), scored, end))
        scored = end
    return found


def _read(tokens: Iterable[np.ndarray], first: list[int], length: int, stride: int) -> Iterator[tuple[Tensor, int]]:
    """(token ids that a window reads and scores, how many it scores) of each of `windows` over a document's own tokens.

    first: what stands before them. Of the document one array of `tokens` is held, and what a window needs before it.
    """
    held, start, scored = np.array(first, np.int64), 0, len(first)  # the tokens from `start` on
    for some in itertools.chain(tokens, [None]):
        held = held if some is None else np.concatenate([held, some])
        found = windows(start + len(held) - 1, length, stride, len(first), scored=scored)
        for begin, at, end in found if some is None else found[:-1]:  # the last one may become longer
            yield torch.from_numpy(held[begin - start : end - start]), end - at
        if found:
            scored = found[-1][1]
            held, start = held[max(scored - length, 0) - start :], max(scored - length, 0)


def _tokens(tokenizer, pieces: Iterator[str], streamed: bool) -> Iterator[np.ndarray]:
    """A document's own token ids: of a streamed one, a few at a time."""
    if streamed and tokenization.is_written_down(tokenizer):
        yield from (ids for ids, _ in chunks.ids(tokenizer, pieces))
    else:
        yield np.array(tokenizer("".join(pieces), add_special_tokens=False, verbose=False)["input_ids"], np.int64)


def _after(written: str, pieces: Iterator[str]) -> Iterator[str]:
    """A document without what it begins with, where it does."""
    begin = ""
    while len(begin) < len(written) and (piece := next(pieces, None)) is not None:
        begin += piece
    yield begin.removeprefix(written)
    yield from pieces


def _until(pieces: Iterable[str], characters: int | None) -> Iterator[str]:
    """The first `characters` of a document; None: all of it."""
    for piece in pieces:
        if characters is not None and len(piece) >= characters:
            yield piece[:characters]
            return
        yield piece
        characters = None if characters is None else characters - len(piece)


def _check(model, length, stride):
    longest = getattr(blocks.config(model), "max_position_embeddings", None) or length
    if not 1 <= stride <= length <= longest:
        raise ValueError(
            f"stride={stride} and length={length} for a model that reads {longest} tokens; 1 <= stride <= length <= "
            f"{longest} is allowed; choose shorter windows."
        )


def _loss(model, run, some: Tensor, scored: int) -> float:
    """Nats of the last `scored` tokens of a window; `run` gives the logits of its predicted positions."""
    rows, targets = run(some[None]), some[1:]
    skipped, total = len(targets) - scored, 0.0  # the first predictions are of context
    for chunk in logits.chunks(scored, blocks.head(model).out_features):
        chunk = slice(chunk.start + skipped, chunk.stop + skipped)
        found = logits.log_probabilities(rows, chunk, type(model).__name__)
        total += surprise(found, targets[chunk]).double().sum().item()
    return total


def _score(losses: list[tuple[float, int]], seen: _Seen) -> Score:
    """Bits per byte from nats and tokens of each window; the error is that of nats per token."""
    pairs = np.array(losses, dtype=np.float64).reshape(-1, 2)
    scale = int(pairs[:, 1].sum()) / seen.bytes / math.log(2)

    def ratio(samples, axis=0):
        sums = samples.sum(axis)
        return scale * sums[..., 0] / sums[..., 1]

    frequencies = torch.from_numpy(seen.frequencies).double()
    share = frequencies[frequencies > 0] / frequencies.sum()
    baseline = scale * float(-(share * share.log()).sum())
    return Score(float(ratio(pairs)), bootstrap(pairs, ratio), len(pairs), "bits/byte", False, baseline)
