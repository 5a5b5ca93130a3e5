"""Small models that stand for a large one: the architectures' Llama, trained by the one loop on a mixture."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lib import architectures
from lib.curation.mixtures.domains import Domains
from lib.metrics import bits_per_byte
from lib.trainers import loop, next_token

SIZES = {
    "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
BATCH, LEARNING_RATE = 16, 4e-3
CHARACTERS = 3000  # of a document that is read to measure, and of `UNSEEN` documents of a domain
UNSEEN = 6


@dataclass(frozen=True)
class Mixture:
    """Weights of domains [domains]: the mean over a training, and after each step [steps, domains]."""

    weights: np.ndarray
    path: np.ndarray


@dataclass(frozen=True)
class Stream:
    """Rows of all steps in their own order, as `loop.train_` reads them: {"input_ids", "domain"}."""

    rows: list[dict]

    def __iter__(self) -> Iterator[dict]:
        return iter(self.rows)


def draw(domains: Domains, weights, *, steps: int, batch: int, seed: int) -> Stream:
    """`batch` rows a step, stratified: of each domain as many as its weight says, what is left over carried on.

    A domain's rows come in an order that the seed draws, all of them before one comes again, so that mixtures with the
    same seed read the same rows of a domain in the same order.
    """
    weights = checked(weights, len(domains.rows))
    tables = list(domains.rows.values())
    generators = [torch.Generator().manual_seed(1_000_003 * seed + place) for place in range(len(tables))]
    queues: list[list[int]] = [[] for _ in tables]
    debt, rows = np.zeros(len(tables)), []
    for _ in range(steps):
        debt += weights * batch
        counts = np.floor(debt + 1e-9).astype(int)
        rest = debt - counts
        for place in np.argsort(-rest, kind="stable")[: batch - counts.sum()]:
            counts[place] += 1
        debt -= counts
        for place, count in enumerate(counts):
            for _ in range(max(0, count)):
                if not queues[place]:
                    queues[place] = torch.randperm(len(tables[place]), generator=generators[place]).tolist()
                rows.append({"input_ids": tables[place][queues[place].pop()], "domain": torch.tensor(place)})
        rows = rows[: len(rows) - len(rows) % batch]
    return Stream(rows)


def checked(weights, count: int) -> np.ndarray:
    """The weights, adding up to 1; ValueError for others than `count` numbers from 0."""
    found = np.asarray(weights, float)
    if found.shape != (count,) or (found < 0).any() or not np.isfinite(found).all() or not found.sum() > 0:
        raise ValueError(
            f"weights={found.tolist()} of {count} domains; a number from 0 for each is needed; give those."
        )
    return found / found.sum()


def build(domains: Domains, seed: int, sizes: dict | None = None) -> nn.Module:
    """A model that begins, with the domains' tokenizer."""
    end, length = domains.tokenizer.eos_token_id, next(iter(domains.rows.values())).shape[1]
    ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    given = SIZES | {"max_position_embeddings": length, "vocab_size": len(domains.tokenizer)} | (sizes or {})
    model = architectures.build("plain", given | ends, seed)
    model.tokenizer = domains.tokenizer
    return model


def train(
    domains: Domains,
    weights,
    *,
    steps: int,
    seed: int = 0,
    batch: int = BATCH,
    loss: Callable[[nn.Module, dict], Tensor] = next_token.loss,
    learning_rate: float = LEARNING_RATE,
    sizes: dict | None = None,
) -> nn.Module:
    """A model trained on the mixture; the seed says with which values it begins and which rows it reads, in order.

    Raises `divergence.Diverged` (a ValueError) for a loss that is not finite, naming the step.
    """
    model = build(domains, seed, sizes)
    rows = draw(domains, weights, steps=steps, batch=batch, seed=seed)
    options = {"steps": steps, "batch": batch, "micro_batch": batch, "learning_rate": learning_rate, "seed": seed}
    loop.train_(model, rows, loss, **options)
    return model


def unseen(model: nn.Module, domains: Domains, documents: int = UNSEEN) -> dict[str, float]:
    """{domain: bits per byte of its text that was kept out}."""
    length = next(iter(domains.rows.values())).shape[1]
    return {
        name: bits_per_byte.measure(model, texts[:documents], length=length, characters=CHARACTERS).value
        for name, texts in domains.unseen.items()
    }


def token_losses(model: nn.Module, batch: dict) -> Tensor:
    """-ln p of each token but the first of each row [rows, length - 1]."""
    found = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1].float()
    targets = batch["input_ids"][:, 1:]
    return nn.functional.cross_entropy(found.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def of_domains(losses: Tensor, batch: dict, count: int) -> Tensor:
    """The mean of token losses over the rows of each domain; 0 for one without rows [domains]."""
    rows = losses.mean(1)
    total = rows.new_zeros(count).index_add(0, batch["domain"], rows)
    return total / torch.bincount(batch["domain"], minlength=count).clamp(min=1)
