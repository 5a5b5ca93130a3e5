"""What keys and values of 8 and 4 bits bring and cost: bytes, tokens a second behind a long context, and nats a token.

    python -m lib.evaluation.cache_cost [MODEL] [--positions 6000] [--rounds 7] [--bits 16 8 4]

MODEL is rounded to --weight-bits to nearest (0 leaves it as it is, also where it is quantized already). All kinds of
keys read the same text, piece by piece, and their logits are compared at every --every-th position; then they decode in
turns (A B C A B C) from the same context, so that a slower phase of the machine affects all of them.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from lib import runtime
from lib.metrics import meanwhile, speed
from lib.metrics.score import Score, bootstrap, from_values
from lib.models import blocks
from lib.quantizers import rtn
from lib.runtime import cache_codes
from lib.runtime.engine import weights_of
from lib.runtime.weights import Weights
from lib.sources import models, packaged, texts

STRETCH = 1024  # positions whose divergences are told together
PIECE = 240  # tokens of a text that are read at once: ten times the rows that the kernels take


def divergence(
    weights: Weights, tokens: Sequence[int], bits: Sequence[int] = (8, 4), *, every: int = 1, piece: int = PIECE
) -> dict[int, np.ndarray]:
    """{bits: nats [positions / every]}: KL of the predictions with 16-bit keys and values from those with fewer bits.

    tokens: one text, read once by a session of each kind. every: at which positions the logits are compared.
    Raises ValueError for other bits, and for a text that is longer than the context.
    """
    parts = list(pieces(weights, tokens, bits, every=every, piece=piece))
    return {each: np.concatenate([part[each] for part in parts]) for each in bits}


def pieces(
    weights: Weights, tokens: Sequence[int], bits: Sequence[int], *, every: int, piece: int = PIECE
) -> Iterator[dict[int, np.ndarray]]:
    """`divergence` of one piece of the text after the other."""
    sessions = {each: runtime.Session(weights, capacity=len(tokens), cache_bits=each) for each in {16, *bits}}
    for first in range(0, len(tokens), piece):
        some = tokens[first : first + piece]
        kept = [place for place in range(len(some)) if (first + place) % every == every - 1]
        read = {each: session.extend(some)[kept].double().log_softmax(-1) for each, session in sessions.items()}
        yield {each: (read[16].exp() * (read[16] - read[each])).sum(-1).clamp(min=0).numpy() for each in bits}


def by_context(nats: np.ndarray, every: int, edges: Sequence[int]) -> list[tuple[int, int, Score]]:
    """(from, to, mean nats a token) of the positions between each two `edges`; those without any are left out."""
    positions = (np.arange(len(nats)) + 1) * every - 1
    found = []
    for low, high in pairwise(edges):
        some = nats[(positions >= low) & (positions < high)]
        if len(some) > 1:
            found.append((low, high, from_values(some, "nats", higher_is_better=False)))
    return found


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


def told(weights: Weights, tokens: Sequence[int], bits: Sequence[int], every: int) -> Iterator[dict]:
    """A line for each stretch of the context as soon as it was read, and for the whole of it."""
    seen: dict[int, list] = {each: [] for each in bits}
    ends = [*range(STRETCH, len(tokens), STRETCH), len(tokens)]
    for place, part in enumerate(pieces(weights, tokens, bits, every=every)):
        read = min((place + 1) * PIECE, len(tokens))
        for each in bits:
            seen[each].append(part[each])
        while ends and read >= ends[0]:
            end = ends.pop(0)
            spans = [((end - 1) // STRETCH * STRETCH, end)] + [(0, end)] * (end == len(tokens))
            for each, (low, high) in ((each, span) for span in spans for each in bits):
                for _, _, score in by_context(np.concatenate(seen[each]), every, [low, high]):
                    yield {"bits": each, "from": low, "to": high, "nats": score.value, "stderr": score.stderr}


def prepared(given: argparse.Namespace) -> tuple[Weights, list[int]]:
    """The packed weights and the text's tokens [positions] that the command was asked for."""
    model, _ = models.load(given.model)
    if given.weight_bits and not any(blocks.is_quantized(layer) for layer in blocks.linears(model).values()):
        rtn.quantize_(model, bits=given.weight_bits, group_size=given.group_size)
    tokens = texts.tokens(texts.load(given.text), model, count=1, length=given.positions)[0].tolist()
    return weights_of(runtime.pack_(model)), tokens


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print a line of JSON for each kind of keys and each stretch of the context."""
    made = argparse.ArgumentParser(prog="python -m lib.evaluation.cache_cost", description=__doc__.splitlines()[0])
    made.add_argument("model", nargs="?", default=packaged.NAME)
    made.add_argument("--weight-bits", type=int, default=4, help="to which weights are rounded; 0 leaves them")
    made.add_argument("--group-size", type=int, default=64)
    made.add_argument("--bits", type=int, nargs="+", default=list(cache_codes.BITS))
    made.add_argument("--positions", type=int, default=6000)
    made.add_argument("--new-tokens", type=int, default=32)
    made.add_argument("--rounds", type=int, default=7, help="of decoding; 0 compares predictions alone")
    made.add_argument("--every", type=int, default=4, help="positions whose predictions are compared; 0 compares none")
    made.add_argument("--text", default="packaged", help="packaged, a name, or a file")
    given = made.parse_args(arguments)
    try:
        weights, tokens = prepared(given)
        if given.rounds:
            for row in table(weights, tokens, given.bits, new_tokens=given.new_tokens, rounds=given.rounds):
                print(json.dumps(row), flush=True)
        less = [each for each in given.bits if each != 16]
        for line in told(weights, tokens, less, given.every) if given.every and less else ():
            print(json.dumps(line), flush=True)
    except (ValueError, FileNotFoundError) as error:
        print(f"cache_cost: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
