"""What keys and values of 8 and 4 bits bring and cost: bytes, tokens a second behind a long context, and nats a token.

    python -m lib.evaluation.cache_cost [MODEL] [--positions 6000] [--texts 1] [--rounds 7] [--bits 16 8 4]

MODEL is rounded to --weight-bits to nearest (0 leaves it as it is, also where it is quantized already). All kinds of
keys read the same text, piece by piece, beside the original in float32, and their logits are compared at every
--every-th position; then they decode in turns (A B C A B C) from the same context, so that a slower phase of the
machine affects all of them.

Two numbers say what fewer bits cost. "nats" is the divergence from the same engine with 16-bit keys. Where activations
are rounded too, as behind 4-bit weights, it says little: whatever moves them moves some of them over an edge between
two codes, and the sum of all these steps is the same for a small cause as for a large one. "growth" is by how much the
divergence from the original grows, position by position on the same text: the price that a user pays.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lib import runtime
from lib.decoding.sessions import ModelSession
from lib.metrics import meanwhile, speed
from lib.metrics.score import Score, bootstrap, from_values
from lib.models import blocks
from lib.quantizers import rtn
from lib.runtime import cache_codes
from lib.runtime.engine import weights_of
from lib.runtime.weights import Weights
from lib.sources import models, packaged, texts

STRETCH = 1024  # positions whose divergences are told together
BLOCK = 64  # positions whose mean is one sample: neighbours share a context
PIECE = 240  # tokens of a text that are read at once: ten times the rows that the kernels take


@dataclass(frozen=True)
class Read:
    """Divergences at some positions of one text, [positions] each.

    places: the positions. engine: {bits: nats} from the engine with 16-bit keys. original: {bits: nats} from the
    original, also for 16 bits; empty where none was given.
    """

    places: np.ndarray
    engine: dict[int, np.ndarray]
    original: dict[int, np.ndarray]

    def nats(self, bits: int) -> Score | None:
        """Mean divergence from the engine with 16-bit keys; None for fewer than two blocks of positions."""
        return self._mean(self.engine[bits])

    def growth(self, bits: int) -> Score | None:
        """By how much the divergence from the original is larger with `bits` than with 16, at the same positions."""
        return self._mean(self.original[bits] - self.original[16]) if self.original else None

    def between(self, low: int, high: int) -> "Read":
        """The positions from `low` to below `high`."""
        kept = (self.places >= low) & (self.places < high)
        parts = ({bits: nats[kept] for bits, nats in each.items()} for each in (self.engine, self.original))
        return Read(self.places[kept], *parts)

    def _mean(self, values: np.ndarray) -> Score | None:
        """A sample is the mean of a block, so that the interval does not take neighbours for independent."""
        step = np.diff(self.places, prepend=-1)
        # texts follow one another: a position that is lower than the one before begins another text
        block = np.cumsum((np.diff(self.places // BLOCK, prepend=0) != 0) | (step < 0))
        block = np.unique(block, return_inverse=True)[1]
        if len(values) == 0 or block.max() == 0:
            return None
        return from_values(np.bincount(block, values) / np.bincount(block), "nats", higher_is_better=False)


def joined(parts: Sequence[Read]) -> Read:
    """Several pieces, or several texts, as one."""
    mixed = ([{bits: np.concatenate([getattr(part, name)[bits] for part in parts]) for bits in getattr(parts[0], name)}
              for name in ("engine", "original")])  # fmt: skip
    return Read(np.concatenate([part.places for part in parts]), *mixed)


def divergence(
    weights: Weights,
    tokens: Sequence[int],
    bits: Sequence[int] = (8, 4),
    *,
    original: nn.Module | None = None,
    every: int = 1,
    piece: int = PIECE,
) -> Read:
    """KL of predictions with 16-bit keys and values, and of the original's, from those with fewer bits.

    tokens: one text, read once by a session of each kind. every: at which positions the logits are compared.
    Raises ValueError for other bits, and for a text that is longer than the context.
    """
    return joined(list(pieces(weights, tokens, bits, original=original, every=every, piece=piece)))


def pieces(
    weights: Weights,
    tokens: Sequence[int],
    bits: Sequence[int],
    *,
    every: int,
    original: nn.Module | None = None,
    piece: int = PIECE,
) -> Iterator[Read]:
    """`divergence` of one piece of the text after the other."""
    sessions = {each: runtime.Session(weights, capacity=len(tokens), cache_bits=each) for each in (16, *bits)}
    exact = None if original is None else ModelSession(original)
    for first in range(0, len(tokens), piece):
        some = torch.as_tensor(tokens[first : first + piece])
        kept = [place for place in range(len(some)) if (first + place) % every == every - 1]
        read = {each: session.extend(some)[kept].double().log_softmax(-1) for each, session in sessions.items()}
        engine = {each: _nats(read[16], read[each]) for each in bits}
        whole = {}
        if exact is not None:
            wanted = exact.extend(some)[kept].double().log_softmax(-1)
            whole = {each: _nats(wanted, found) for each, found in read.items()}
        yield Read(first + np.array(kept, int), engine, whole)


def _nats(wanted: torch.Tensor, found: torch.Tensor) -> np.ndarray:
    return (wanted.exp() * (wanted - found)).sum(-1).clamp(min=0).numpy()


def decoding(
    weights: Weights, tokens: Sequence[int], bits: Sequence[int], *, new_tokens: int = 32, rounds: int = 7
) -> dict[int, list[float]]:
    """{bits: seconds a token, one a round} of greedy decoding behind `tokens`; one round before does not count."""
    room = len(tokens) + new_tokens
    sessions = {each: runtime.Session(weights, capacity=room, cache_bits=each) for each in bits}
    last = {each: session.extend(tokens, last=True) for each, session in sessions.items()}

    def run(each: int) -> None:
        session, logits = sessions[each], last[each]
        session.rewind(len(tokens))
        for _ in range(new_tokens):
            logits = session.extend([int(logits[0].argmax())], last=True)

    taken: dict[int, list[float]] = {each: [] for each in bits}
    for place in range(rounds + 1):
        for each in bits:
            seconds = speed.seconds(run, each, rounds=1, warmups=0).value
            if place:
                taken[each].append(seconds / new_tokens)
    return taken


def ratio(taken: dict[int, list[float]], bits: int, reference: int = 16) -> Score:
    """Tokens a second with `bits` over those with `reference`: the median of the rounds' ratios, above 1 is faster."""
    values = [theirs / ours for ours, theirs in zip(taken[bits], taken[reference])]
    return Score(float(np.median(values)), bootstrap(values, np.median), len(values), "ratio", True, 1.0)


def table(weights: Weights, tokens: Sequence[int], bits: Sequence[int] = cache_codes.BITS, **how) -> list[dict]:
    """A row for each kind of keys: bytes a position, tokens a second behind `tokens`, and their ratio to 16 bits.

    how: for `decoding`. `disturbed`: whether others used the machine meanwhile.
    """
    with meanwhile.watched() as found:
        taken = decoding(weights, tokens, sorted({16, *bits}, reverse=True), **how)
    rows = []
    for each in bits:
        row = {"bits": each, "positions": len(tokens)}
        row["bytes a position"] = cache_codes.bytes_a_position(weights.architecture, each)
        row["tokens/s"] = 1 / float(np.median(taken[each]))
        row |= {"times 16 bits": ratio(taken, each).value, "times 16 bits stderr": ratio(taken, each).stderr}
        rows.append(row | {"others": found.others, "disturbed": found.disturbed})
    return rows


def told(
    weights: Weights, tokens: Sequence[Sequence[int]], bits: Sequence[int], every: int, original: nn.Module | None
) -> Iterator[dict]:
    """A line for each stretch of the context, over all texts [texts][positions], and for the whole of it."""
    found = joined([divergence(weights, text, bits, original=original, every=every) for text in tokens])
    length = len(tokens[0])
    ends = [*range(STRETCH, length, STRETCH), length]
    spans = list(zip([0, *ends], ends)) + [(0, length)] * (len(ends) > 1)
    for each, (low, high) in ((each, span) for span in spans for each in bits):
        part = found.between(low, high)
        row = {"bits": each, "from": low, "to": high, "compared": len(part.places)}
        for name, score in (("nats", part.nats(each)), ("growth", part.growth(each))):
            if score is not None:
                row |= {name: score.value, f"{name} interval": score.interval}
        if original is not None:
            row |= {"original to 16 bits": float(part.original[16].mean()) if len(part.places) else None}
        yield row


def prepared(given: argparse.Namespace) -> tuple[Weights, list[list[int]], nn.Module | None]:
    """The packed weights, the texts' tokens [texts][positions], and the original that the command was asked for."""
    model, _ = models.load(given.model)
    original = None
    if given.weight_bits and not any(blocks.is_quantized(layer) for layer in blocks.linears(model).values()):
        rtn.quantize_(model, bits=given.weight_bits, group_size=given.group_size)
        given.original = given.original or given.model
    if given.original and given.every:
        original, _ = models.load(given.original, dtype="float32")
    tokens = texts.tokens(texts.load(given.text), model, count=given.texts, length=given.positions).tolist()
    return weights_of(runtime.pack_(model)), tokens, original


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print a line of JSON for each kind of keys and each stretch of the context."""
    made = argparse.ArgumentParser(prog="python -m lib.evaluation.cache_cost", description=__doc__.splitlines()[0])
    made.add_argument("model", nargs="?", default=packaged.NAME)
    made.add_argument("--weight-bits", type=int, default=4, help="to which weights are rounded; 0 leaves them")
    made.add_argument("--group-size", type=int, default=64)
    made.add_argument("--original", help="what predictions are compared with; by default MODEL, where it is rounded")
    made.add_argument("--bits", type=int, nargs="+", default=list(cache_codes.BITS))
    made.add_argument("--positions", type=int, default=6000)
    made.add_argument("--texts", type=int, default=1, help="of so many positions, one after the other")
    made.add_argument("--new-tokens", type=int, default=32)
    made.add_argument("--rounds", type=int, default=7, help="of decoding; 0 compares predictions alone")
    made.add_argument("--every", type=int, default=4, help="positions whose predictions are compared; 0 compares none")
    made.add_argument("--text", default="packaged", help="packaged, a name, or a file")
    given = made.parse_args(arguments)
    try:
        weights, tokens, original = prepared(given)
        if given.rounds:
            for row in table(weights, tokens[0], given.bits, new_tokens=given.new_tokens, rounds=given.rounds):
                print(json.dumps(row), flush=True)
        less = [each for each in given.bits if each != 16]
        for line in told(weights, tokens, less, given.every, original) if given.every and less else ():
            print(json.dumps(line), flush=True)
    except (ValueError, FileNotFoundError) as error:
        print(f"cache_cost: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
