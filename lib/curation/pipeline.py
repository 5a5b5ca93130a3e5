"""Carries stages out over shards, each result in a file, complete or absent; a killed run goes on where it stopped.

    result = pipeline.run("crawl/", ["exact", ("gopher", {}), ("fuzzy", {"threshold": 0.8})], "data/clean")
    result.documents, result.table, result.tallies["gopher"].examples("too few words")

Before the work all shards are read once: what can't be read, an id of two texts, and a disk too small are errors then.
Stages that look at one document at a time go through the shards one by one. Those that compare documents first decide
over all shards, then carry their decision out. Which documents are left, and what they say, depends neither on the
order of shards nor on their number; a killed run ends in the same bytes.
"""

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lib import files, jobs, progress
from lib.curation import shard_file, sources
from lib.curation.document import identity
from lib.curation.sources import Shards
from lib.curation.step import Step, by_name
from lib.curation.tally import Tally

Engine = Callable[[Step, list[int]], None]

_SPARE = 1.1  # how much larger than the documents read what is written may be


@dataclass(frozen=True)
class Result:
    """What a run left. documents: its shards. tallies: by stage (a second of the same name: "exact 2")."""

    documents: Shards
    tallies: dict[str, Tally]
    sha256: str

    @property
    def table(self) -> list[dict]:
        """The rows of all tallies, in the order of the stages."""
        return [row for tally in self.tallies.values() for row in tally.rows()]


def alone(step: Step, numbers: list[int]) -> None:
    """Carry a stage out on some shards, one after the other, in this process."""
    for number in progress.bar(numbers, desc=step.folder.name, unit="shard"):
        step(number)


def run(
    source, stages: Iterable[str | tuple[str, dict]], folder: Path | str, *, seed: int = 0, engine: Engine = alone
) -> Result:
    """Carry `stages` out on `source` (`Shards`, or what they take), blank documents left out first.

    stages: names, or names with options. folder: of what is written: a sub-folder a stage, with a file for each shard
    and what was dropped. engine: who carries a stage out on shards; those of `engines` have many workers, and leave the
    same files. Raises ValueError, before the work, for stages and documents as said above, and for a folder
    that holds the results of other documents, stages or seeds; OSError where the disk is too small.
    """
    shards, folder = source if isinstance(source, Shards) else Shards(source), Path(folder)
    steps = [(name, by_name(name), options) for name, options in _named(stages)]
    found = sources.check(shards)
    hashes = [files.sha256(path) for path in shards.paths]
    left = sum(not (folder / label).is_dir() for label in _labels(steps))
    files.check_writable(folder, int(_SPARE * found.bytes * max(left, 1)))
    job = {"documents": " ".join(hashes), "stages": json.dumps(_named(stages), sort_keys=True), "seed": seed}
    job |= {"code": jobs.code("curation"), "torch": "", "threads": ""}
    job |= {
        f"what {name} reads": module.basis(**options) for name, module, options in steps if hasattr(module, "basis")
    }
    tallies, documents = {}, found.documents
    with jobs.JobState(folder, **job):
        for label, (name, _, options) in zip(_labels(steps), steps):
            step = Step(name, options, folder / label, seed, shards.paths, documents, shards.text, shards.id)
            tallies[label] = _carry_out(step, shards, documents, engine)
            shards = Shards([step.path(number) for number in range(len(step.paths))])
    return Result(shards, tallies, identity(shards))


def _named(stages) -> list[tuple[str, dict]]:
    given = [(each, {}) if isinstance(each, str) else (each[0], dict(each[1])) for each in stages]
    try:
        json.dumps(given)
    except TypeError as error:
        raise ValueError(
            f"an option of a stage is no JSON ({error}); texts, numbers, lists and objects are allowed, so that a run "
            "can go on; give a name or a path."
        ) from None
    return [("blank", {}), *(each for each in given if each != ("blank", {}))]


def _labels(steps) -> list[str]:
    """A name for each stage's folder and tally."""
    names = [Path(name).stem for name, _, _ in steps]
    before = [names[:place].count(name) for place, name in enumerate(names)]
    return [f"{name} {count + 1}" if count else name for name, count in zip(names, before)]


def _carry_out(step: Step, shards: Shards, documents: list[int], engine: Engine) -> Tally:
    """Carry a stage out on the shards that are not there yet; the tallies of all of them, added up."""
    tallies = {number: shard_file.known(step.path(number)) for number in range(len(step.paths))}
    missing = [number for number, tally in tallies.items() if tally is None]
    if missing:
        step.decide(shards)
        engine(step, missing)
    tallies |= {number: shard_file.known(step.path(number)) for number in missing}
    if lost := [step.path(number).name for number, tally in tallies.items() if tally is None]:
        raise RuntimeError(
            f"{step.folder.name} left {len(lost)} of {len(tallies)} shards undone, the first is {lost[0]}; workers "
            f"leave their reports in {step.logs}; read them, and run again: what is done is kept."
        )
    documents[:] = [tallies[number].kept for number in tallies]
    return functools.reduce(Tally.add, tallies.values(), Tally(step.folder.name, seed=step.seed))
