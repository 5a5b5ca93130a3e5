"""How far a student is from the original, on texts that nothing was tuned on, rung by rung."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from lib.metrics import divergence, perplexity, verdicts
from lib.metrics.score import Score, bootstrap, from_values
from lib.models.reference import Reference
from lib.sources import texts


@dataclass
class Judge:
    """Measures models against the original on windows of several texts, by text.

    rows: what was measured, in order: rung, text, n (windows), kl and kl_stderr (nats a token), perplexity and its
    stderr, ratio and ratio_stderr (to the original's perplexity), kl_baseline and perplexity_baseline (of what ignores
    the context), divergences, nll and original_nll (nats a token, window by window).
    """

    tokens: dict[str, torch.Tensor]
    references: dict[str, Reference]
    surprise: dict[str, np.ndarray]  # the original's nats a token, window by window
    rows: list[dict] = field(default_factory=list)

    @classmethod
    def of(cls, original: nn.Module, judged: dict[str, str], *, windows: int, length: int) -> "Judge":
        """The first `windows` of each text of `judged`, name -> split, or as many as there are."""
        tokens, references, surprise = {}, {}, {}
        for name, split in judged.items():
            tokens[name] = texts.tokens(texts.load(name, split), original, count=windows, length=length)
            references[name] = divergence.remember(original, tokens[name], keep=True)
            surprise[name] = perplexity.nll(original, tokens[name]).double().mean(1).numpy()
        return cls(tokens, references, surprise)

    def __call__(self, rung: str, model: nn.Module) -> list[dict]:
        """Measure `model` as the `rung` of a ladder; its rows, which are kept in `rows` too."""
        found = []
        for name, tokens in self.tokens.items():
            compared = divergence.compare(model, self.references[name], tokens)
            apart, nll = (each.double().mean(1).numpy() for each in (compared.divergence, compared.nll))
            scores = divergence.scores(compared, tokens)
            kl, perplexities = scores["kl_divergence"], scores["perplexity"]
            change = nll - self.surprise[name]
            found.append({
                "rung": rung, "text": name, "n": len(apart), "kl": kl.value, "kl_stderr": kl.stderr,
                "ratio": float(np.exp(change.mean())),
                "ratio_stderr": bootstrap(change, _ratio),
                "kl_baseline": kl.baseline,
                "perplexity": perplexities.value, "perplexity_stderr": perplexities.stderr,
                "perplexity_baseline": perplexities.baseline,
                "divergences": apart.tolist(), "nll": nll.tolist(), "original_nll": self.surprise[name].tolist(),
            })  # fmt: skip
        self.rows += found
        return found


def gains(rows: Sequence[dict], before: str, after: str) -> dict[str, tuple[Score, verdicts.Verdict]]:
    """text -> by how many nats a token `after` is nearer to the original than `before`, paired by windows; verdict."""
    found = {(row["rung"], row["text"]): np.array(row["divergences"]) for row in rows}
    names = [text for rung, text in found if rung == before and (after, text) in found]
    if not names:
        rungs = ", ".join(dict.fromkeys(row["rung"] for row in rows))
        raise ValueError(f"{before!r} and {after!r} share no text; measured were {rungs}; name two of them.")
    pairs = {text: found[before, text] - found[after, text] for text in names}
    told = verdicts.verdicts(pairs)
    return {
        text: (from_values(each, "nats", higher_is_better=True, baseline=0.0), told[text])
        for text, each in pairs.items()
    }


def _ratio(logarithms, axis=None):
    """The ratio of perplexities from differences in nats."""
    return np.exp(np.mean(logarithms, axis=axis))
