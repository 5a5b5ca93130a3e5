"""Divergence: how far a compressed model's predictions are from the original's, on the same tokens.

Perplexity can stay the same while predictions get better in some places and worse in others. The mean Kullback-Leibler
divergence KL(original || compressed) per token, and the share of tokens on which both models rank the same token first
(top-1 agreement), detect that damage.
"""

from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import nn

from lib.metrics import perplexity
from lib.metrics.score import Score, bootstrap
from lib.models import blocks, logits
from lib.models.reference import Reference


def measure(model: nn.Module, reference, text, **options) -> dict[str, Score]:
    """`kl_divergence` (nats per token, lower is better) and `top1_agreement` (share of tokens, higher is better).

    As `quality`, without the perplexity.
    """
    found = quality(model, reference, text, **options)
    return {name: found[name] for name in ("kl_divergence", "top1_agreement")}


def quality(
    model: nn.Module,
    reference,
    text,
    *,
    windows: int | None = None,
    length: int = 512,
    batch: int | str = "auto",
    bos: bool | None = None,
) -> dict[str, Score]:
    """`perplexity`, `kl_divergence` and `top1_agreement` from one pass of `model` over `text`.

    `reference` is the original model, which is run beside `model`, or the result of `remember`, which costs only its
    head. The perplexity equals `perplexity.measure` on the same text to the last bit. Standard errors come from
    a bootstrap over windows. bos: as for `perplexity.measure`.
    Baselines: the best constant prediction, that is the original's own average distribution for the divergence, and
    the token that it most often puts first for the agreement.
    Raises ValueError for vocabularies or tokens that differ, and for logits that are not finite.
    """
    tokens = perplexity.tokenize(text, model, windows, length, bos)
    return scores(compare(model, reference, tokens, batch=batch), tokens)


def scores(found: "Comparison", tokens: torch.Tensor) -> dict[str, Score]:
    """The scores of `quality`, from an existing comparison on `tokens` [windows, length]."""
    return {
        "perplexity": perplexity.score(found.nll, tokens),
        "kl_divergence": _score(found.divergence, "nats", False, found.constant_divergence),
        "top1_agreement": _score(found.agreement, "share", True, found.constant_agreement),
    }


def gain(before: "Comparison", after: "Comparison") -> Score:
    """How much nearer to the original `after` is than `before`: mean fall of the KL divergence, nats a token.

    Paired: both saw the same windows, so the difficulty of a window cancels in the difference, and its standard error
    (over windows) is far smaller than that of either. Raises ValueError for comparisons on different windows.
    """
    if before.divergence.shape != after.divergence.shape:
        raise ValueError(
            f"comparisons on windows {list(before.divergence.shape)} and {list(after.divergence.shape)}; pairs need "
            "the same ones; compare both models on the same text."
        )
    return _score(before.divergence - after.divergence, "nats", True, 0.0)


@dataclass(frozen=True)
class Comparison:
    """Comparison of two models at each predicted token; all tensors are [windows, length - 1], on the CPU."""

    nll: torch.Tensor  # of the compressed model, nats
    divergence: torch.Tensor  # KL(original || compressed), nats
    agreement: torch.Tensor  # whether both put the same token first
    constant_divergence: float  # mean KL(original || its own average distribution)
    constant_agreement: float  # share of the token that the original most often puts first


def compare(model: nn.Module, reference, tokens: torch.Tensor, *, batch: int | str = "auto") -> Comparison:
    """Compare `model` with `reference` (a model or a `Reference`) token by token on windows [count, length].

    KL(p || q) = Σ p (ln p - ln q) over the vocabulary, with p the original's prediction and q the model's.
    """
    name, vocabulary = type(model).__name__, blocks.head(model).out_features
    _check(vocabulary, reference, tokens)
    nlls, constant = [], _Constant(vocabulary)
    divergences, agreements = [], []
    originals = [reference] if isinstance(reference, nn.Module) else []
    with logits.evaluating(model, *originals):
        run, run_original = logits.forward(model), _runner(reference)
        for start, some in logits.batches(tokens, model, batch, "quality"):
            rows, original, targets = run(some), run_original(start, some), some[:, 1:].flatten()
            for chunk in logits.chunks(len(targets), vocabulary):
                q = logits.log_probabilities(rows, chunk, f"{name} from window {start} on")
                p = logits.log_probabilities(original, chunk, f"the original from window {start} on").to(q.device)
                nlls.append(perplexity.surprise(q, targets[chunk]))
                share = p.exp()
                divergences.append((share * (p - q)).sum(-1).cpu())
                agreements.append((p.argmax(-1) == q.argmax(-1)).cpu())
                constant.add(share, p)
    parts = (torch.cat(values).view(len(tokens), -1) for values in (nlls, divergences, agreements))
    return Comparison(*parts, constant.divergence(), constant.agreement())


def remember(
    original: nn.Module,
    text,
    *,
    windows: int | None = None,
    length: int = 512,
    batch: int | str = "auto",
    keep: bool = False,
    bos: bool | None = None,
) -> Reference:
    """Run `original` once over `text` and keep its last hidden states and a copy of its head.

    The reference stays valid when the model is then compressed in place. With `keep` it is also written to the cache
    folder, under the fingerprint of the weights and the hash of the tokens, and read back by the next process.
    Raises ValueError for models whose logits are not decoder plus head: pass such a model itself as reference.
    MemoryError says, before the work, how many windows fit into memory.
    """
    tokens = perplexity.tokenize(text, original, windows, length, bos)
    _check_memory(original, tokens)
    path = Reference.path(original, tokens) if keep else None
    if path is not None and path.exists():
        return Reference.load(path, original)
    with logits.evaluating(original):
        if not logits.projects(original):
            raise ValueError(
                f"{type(original).__name__} computes its logits from more than hidden states and head; "
                "pass a copy of the original model as reference instead of remembering it."
            )
        states = [
            logits.hidden_states(original, some)[:, :-1].cpu()
            for _, some in logits.batches(tokens, original, batch, "original")
        ]
    made = Reference.of(original, tokens, torch.cat(states))
    if path is not None:
        made.save(path)
    return made


def _check_memory(original: nn.Module, tokens: torch.Tensor) -> None:
    """Raise MemoryError where the states of `tokens`, batch by batch and then as one, do not fit into memory."""
    needed = 2 * tokens.numel() * blocks.config(original).hidden_size * original.dtype.itemsize
    free = psutil.virtual_memory().available
    if needed > free:
        raise MemoryError(
            f"a reference of {len(tokens)} windows of {tokens.shape[1]} tokens needs about {needed / 1e9:.1f} GB and "
            f"{free / 1e9:.1f} GB are free; use about {max(1, int(len(tokens) * free / needed))} windows or fewer, or "
            "give the original itself as reference, which is run anew each time."
        )


class _Constant:
    """The best constant prediction, computed from the original's log-probabilities batch by batch."""

    def __init__(self, vocabulary: int):
        self.total = torch.zeros(vocabulary, dtype=torch.float64)
        self.first = torch.zeros(vocabulary, dtype=torch.long)
        self.negative_entropy, self.count = 0.0, 0

    def add(self, share: torch.Tensor, p: torch.Tensor) -> None:
        """Add probabilities and their logarithms [rows, vocabulary]."""
        self.total += share.sum(0).double().cpu()
        self.negative_entropy += float((share * p).sum(-1).double().sum())
        self.first += p.argmax(-1).cpu().bincount(minlength=len(self.first))
        self.count += len(p)

    def divergence(self) -> float:
        """Mean KL from each distribution to their average: entropy of the average less the average entropy."""
        average = (self.total / self.count).clamp_min(1e-300)
        return float(-(average * average.log()).sum() + self.negative_entropy / self.count)

    def agreement(self) -> float:
        """Share of rows that put the most frequent first token first."""
        return int(self.first.max()) / self.count


def _score(values: torch.Tensor, unit: str, higher_is_better: bool, baseline: float) -> Score:
    """Mean over tokens [windows, length - 1], with a standard error that treats a window as one sample."""
    per_window = values.double().mean(1).numpy()
    return Score(per_window.mean(), bootstrap(per_window, np.mean), len(per_window), unit, higher_is_better, baseline)


def _runner(reference):
    """A function (start, windows) -> `Rows` of the original's logits."""
    if isinstance(reference, Reference):
        return lambda start, some: reference.rows(start, len(some))
    run = logits.forward(reference)
    return lambda start, some: run(some)


def _check(vocabulary: int, reference, tokens: torch.Tensor) -> None:
    if isinstance(reference, Reference):
        theirs = reference.projection.vocabulary
        reference.check(tokens)
    elif isinstance(reference, nn.Module):
        theirs = blocks.head(reference).out_features
    else:
        raise TypeError(
            f"reference is a {type(reference).__name__}; give the original model or what remember returned."
        )
    if theirs != vocabulary:
        raise ValueError(
            f"the model predicts {vocabulary} tokens and the reference {theirs}; "
            "compare models that share a vocabulary."
        )
