"""What each stage of a curated corpus is worth to a model, and what it costs: from raw to fully curated.

    python -m lib.evaluation.corpus_worth FOLDER --stages exact lines gopher fuzzy --unseen wikitext2 novels_en

After each stage proxies (`mixtures.proxies`) are trained on what is left, on equal tokens, with the same tokenizer,
seeds and order of seeds; they are compared with those of the raw corpus by bits per byte of text kept out, and on
packaged tasks. Paired by seed, Holm's correction over all stages: at this size most differences lie in their intervals,
and are written as none. A smaller corpus is read more often in as many tokens, so `passes` stands beside each result.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lib import files, tasks, timing
from lib.curation import decontaminate, installed, step
from lib.curation.document import Document
from lib.curation.mixtures import domains, proxies, study
from lib.evaluation import run
from lib.sources import texts
from lib.trainers import byte_pairs

RAW = "raw"
STAGES = ("exact", "lines", "gopher", "repetition", "fuzzy")
TASKS = ("packaged_continuation", "packaged_facts")


def measure(
    documents: Iterable[Document],
    stages: Iterable[str | tuple[str, dict]],
    unseen: dict[str, list[str]],
    *,
    steps: int,
    seeds: Iterable[int],
    packaged: Iterable[str] = TASKS,
    samples: int = 20,
    vocabulary: int = 1024,
    length: int = 128,
    batch: int = proxies.BATCH,
    sizes: dict | None = None,
) -> list[dict]:
    """A row for the raw corpus and for each stage.

    Row: stage, documents, characters, passes, seconds_per_gigabyte (processor time of this stage; None for raw), and
    scores {text, `study.MEAN` or task: values by seed}. Paragraphs of `documents` that share 13 words with `unseen` are
    taken out first. Raises ValueError for a stage that leaves too little for a row of `length` tokens.
    """
    documents = list(decontaminate.stage(documents, tests=[text for some in unseen.values() for text in some]))
    tokenizer = byte_pairs.train([each.text for each in documents], vocabulary=vocabulary)
    asked = [tasks.load(name, each=samples) for name in packaged]
    options = {"steps": steps, "batch": batch, "sizes": sizes}
    rows = []
    for name, given in [(RAW, {}), *((each, {}) if isinstance(each, str) else each for each in stages)]:
        seconds, size = None, sum(len(each.text.encode()) for each in documents)
        if name != RAW:
            began = timing.worked()
            documents = list(step.by_name(name).stage(documents, **given))
            seconds = (timing.worked() - began) / max(1, size) * 1e9
        table = domains.rows_of((each.text for each in documents), tokenizer, length)
        if not len(table):
            raise ValueError(
                f"{name} leaves {len(documents)} documents, which fill no row of {length} tokens; a row or more is "
                "needed to train on; give a larger corpus, or milder stages."
            )
        scores = _scores(domains.Domains(tokenizer, {"all": table}, unseen), asked, seeds, samples, options)
        row = {"stage": name, "documents": len(documents), "characters": sum(len(each.text) for each in documents)}
        row |= {"passes": steps * batch * length / table.numel(), "seconds_per_gigabyte": seconds, "scores": scores}
        rows.append(row)
        print(f"{name}: {row['documents']:,} documents, {np.mean(scores[study.MEAN]):.4f} bits per byte", flush=True)
    return rows


def _scores(domain: domains.Domains, asked, seeds, samples: int, options: dict) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for seed in seeds:
        model = proxies.train(domain, [1.0], seed=seed, **options)
        measured = proxies.unseen(model, domain)
        measured |= {study.MEAN: float(np.mean(list(measured.values())))}
        for task in asked:
            scored = run.evaluate(model, task, cache=False)
            measured[task.name] = scored[next(iter(scored))].value
        for of, value in measured.items():
            found.setdefault(of, []).append(value)
    return found


def choose_threshold(documents: Iterable[Document], model, thresholds: Iterable[float], unseen, **options) -> dict:
    """The threshold of p(good) whose corpus made the best proxies: {"threshold": None where none beats raw, "rows"}.

    model: a `QualityModel` or its file. options: those of `measure`. Better than raw is what `against_raw` sees.
    """
    asked = [("quality_model", {"model": model, "threshold": each}) for each in sorted(thresholds)]
    rows = measure(documents, asked, unseen, **options)
    better = [
        (float(np.mean(row["scores"][study.MEAN])), given["threshold"])
        for row, (_, given), told in zip(rows[1:], asked, against_raw(rows).values())
        if told.seen and told.difference < 0
    ]
    return {"threshold": min(better)[1] if better else None, "rows": rows}


def against_raw(rows: list[dict], of: str = study.MEAN) -> dict:
    """{stage: its comparison with the raw corpus}, corrected for as many as there are."""
    named = {f"{place} {row['stage']}": {of: row["scores"][of]} for place, row in enumerate(rows)}
    return study.against(named, next(iter(named)), of)


def main(arguments: list[str] | None = None) -> list[dict]:
    """Measure and print; `--file` keeps rows and comparisons as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpus", nargs="?", default=installed.NAME)
    parser.add_argument("--stages", nargs="+", default=list(STAGES))
    parser.add_argument("--unseen", nargs="+", default=["packaged"], help="texts that are kept out")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=20, help="of each packaged task")
    parser.add_argument("--most", type=int, help="documents that are read")
    parser.add_argument("--file", type=Path)
    given = parser.parse_args(arguments)
    documents = list(installed.load(given.corpus))[: given.most]
    unseen = {name: _unseen(name) for name in given.unseen}
    options = {"steps": given.steps, "seeds": range(given.seeds), "samples": given.samples}
    rows = measure(documents, given.stages, unseen, **options)
    told = {}
    for of in rows[0]["scores"]:
        told[of] = {name: asdict(each) for name, each in against_raw(rows, of).items()}
        for name, each in against_raw(rows, of).items():
            print(f"{of}, {name} against raw: {each}")
    if given.file:
        files.write_text(given.file, json.dumps({"rows": rows, "against raw": told}, indent=1))
    return rows


def _unseen(name: str) -> list[str]:
    """Some documents that nobody trains on: of a text without documents, pieces."""
    try:
        found = list(texts.load(name, "test").documents)
    except FileNotFoundError:  # some have no test split
        found = list(texts.load(name, "valid").documents)
    if len(found) < proxies.UNSEEN:
        whole = "\n\n".join(found)
        found = [whole[start : start + proxies.CHARACTERS] for start in range(0, len(whole), 10 * proxies.CHARACTERS)]
    return found[: proxies.UNSEEN]


if __name__ == "__main__":
    main()
