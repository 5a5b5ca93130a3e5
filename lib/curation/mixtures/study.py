"""Mixtures against each other: a model for each and each seed, on equal tokens, by bits per byte of text kept out.

Paired by seed: models of a seed begin with the same values and read a domain's rows in the same order. Natural and
uniform mixtures belong among the arms: none of the learned ones beats them consistently (Aioli, arXiv 2411.05735).
"""

from collections.abc import Callable, Iterable

import numpy as np

from lib.curation.document import Document
from lib.curation.mixtures import in_context, proxies
from lib.curation.mixtures.domains import Domains, rows_of
from lib.metrics import paired_tests

MEAN = "mean of domains"


def compare(
    domains: Domains, arms: dict[str, np.ndarray], seeds: Iterable[int], *, steps: int, **options
) -> dict[str, dict[str, list[float]]]:
    """{arm: {domain, or `MEAN`: bits per byte by seed}}. options: those of `proxies.train`."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, weights in arms.items():
        for seed in seeds:
            model = proxies.train(domains, weights, steps=steps, seed=seed, **options)
            measured = proxies.unseen(model, domains)
            measured |= {MEAN: float(np.mean(list(measured.values())))}
            for of, value in measured.items():
                found.setdefault(name, {}).setdefault(of, []).append(value)
    return found


def against(found: dict, reference: str, of: str = MEAN) -> dict[str, paired_tests.Comparison]:
    """Each other arm against the one called `reference`, paired by seed, Holm's correction over all."""
    others = [name for name in found if name != reference]
    return paired_tests.holm({name: paired_tests.paired(found[reference][of], found[name][of]) for name in others})


def related_against_shuffled(
    domains: Domains, documents: list[Document], seeds: Iterable[int], *, steps: int, kind: str = "tfidf", **options
) -> dict[str, dict[str, list[float]]]:
    """As `compare`, of rows cut from the same documents in the order of `in_context`, and shuffled by each seed."""
    length = next(iter(domains.rows.values())).shape[1]
    seeds, found = list(seeds), {}
    related = in_context.order(documents, kind=kind)
    for seed in seeds:
        for name, order in (("related", related), ("shuffled", in_context.shuffled(len(documents), seed))):
            rows = rows_of([documents[place].text for place in order], domains.tokenizer, length)
            one = Domains(domains.tokenizer, {"all": rows}, domains.unseen)
            part = compare(one, {name: np.ones(1)}, [seed], steps=steps, **options)
            for of, values in part[name].items():
                found.setdefault(name, {}).setdefault(of, []).extend(values)
    return found


def stability(find: Callable, domains: Domains, seeds: Iterable[int], **options) -> np.ndarray:
    """The weights that `doremi.find` or `doge.find` gives by seed [seeds, domains]."""
    return np.array([find(domains, seed=seed, **options).weights for seed in seeds])
