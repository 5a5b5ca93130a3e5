"""How far a reader's logits and greedy answers are from the reference's: the numbers of a certificate."""

import numpy


def logits(found: list[numpy.ndarray], wanted: list[numpy.ndarray]) -> dict:
    """Differences over all positions of all prompts, each array float32 [length, vocabulary].

    {"largest", "mean": of the absolute differences, "kl": mean of KL(reference || reader) in nats a token,
    "same_first": share of positions with the same largest logit, "positions"}
    """
    ours, theirs = (numpy.concatenate(rows).astype(numpy.float64) for rows in (wanted, found))
    apart = numpy.abs(ours - theirs)
    p, q = _log_probabilities(ours), _log_probabilities(theirs)
    return {
        "largest": float(apart.max()),
        "mean": float(apart.mean()),
        "kl": float((numpy.exp(p) * (p - q)).sum(1).mean()),
        "same_first": float((ours.argmax(1) == theirs.argmax(1)).mean()),
        "positions": len(ours),
    }


def normalized(rows: list[numpy.ndarray]) -> list[numpy.ndarray]:
    """The log-probabilities of logits."""
    return [_log_probabilities(each.astype(numpy.float64)) for each in rows]


def greedy(found: list[list[int]], wanted: list[list[int]], gaps: list[list[float]]) -> dict:
    """{"same": share of answers that are the same, "first_divergence": None or where the earliest is}

    gaps: by how much the reference prefers each of its tokens to the second best: where answers part, a small gap means
    that the two were nearly equal, a large one that the reader computes something else.
    """
    parted = [
        {
            "prompt": number,
            "token": place,
            "gap": gaps[number][place],
            "reference": ours[place],
            "reader": theirs[place],
        }
        for number, (theirs, ours) in enumerate(zip(found, wanted, strict=True))
        if (place := next((at for at, pair in enumerate(zip(theirs, ours)) if pair[0] != pair[1]), None)) is not None
    ]
    first = min(parted, key=lambda each: each["token"], default=None)
    return {"same": 1 - len(parted) / len(wanted), "first_divergence": first}


def _log_probabilities(rows: numpy.ndarray) -> numpy.ndarray:
    shifted = rows - rows.max(1, keepdims=True)
    return shifted - numpy.log(numpy.exp(shifted).sum(1, keepdims=True))
