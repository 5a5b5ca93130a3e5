"""Carries stages out over shards, each result in a file, complete or absent; a killed run goes on where it stopped.

    result = pipeline.run("crawl/", ["exact", ("gopher", {}), ("fuzzy", {"threshold": 0.8})], "data/clean")
    result.documents, result.table, result.tallies["gopher"].examples("too few words")

Before the work all shards are read once: what can't be read, an id of two texts, and a disk too small are errors then.
Stages that look at one document at a time go through the shards one by one. Those that compare documents first decide
over all shards, then carry their decision out. Which documents are left, and what they say, depends neither on the
order of shards nor on their number; a killed run ends in the same bytes.
"""

import importlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import safetensors.numpy

from lib import extensions, files, jobs, progress
from lib.curation import shard_file, sources
from lib.curation.decision import Decision
from lib.curation.document import identity
from lib.curation.sources import Shards
from lib.curation.tally import Tally

STAGES = {
    name: f"lib.curation.{name}"
    for name in (
        *("blank", "exact", "lines", "signals", "gopher", "repetition", "c4", "fineweb", "personal", "perplexity"),
        *("quality_model", "fuzzy", "decontaminate", "language"),
    )
}
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


def by_name(name: str) -> ModuleType:
    """The module of a stage: one of `STAGES`, or a Python file of one's own; ValueError for an unknown name."""
    if extensions.is_path(name):
        return extensions.load(name, "stage", "documents", "tally")
    if name not in STAGES:
        raise ValueError(f"stage {name!r} is unknown; {files.choices(name, STAGES)}")
    return importlib.import_module(STAGES[name])


def run(source, stages: Iterable[str | tuple[str, dict]], folder: Path | str, *, seed: int = 0) -> Result:
    """Carry `stages` out on `source` (`Shards`, or what they take), blank documents left out first.

    stages: names, or names with options. folder: of what is written: a sub-folder a stage, with a file for each shard
    and what was dropped. Raises ValueError, before the work, for stages and documents as said above, and for a folder
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
    tallies = {}
    with jobs.JobState(folder, **job):
        for label, (name, module, options) in zip(_labels(steps), steps):
            shards, tallies[label] = _carry_out(shards, name, module, options, folder / label, seed)
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


def _carry_out(shards: Shards, name, module, options, folder: Path, seed: int) -> tuple[Shards, Tally]:
    """The shards that a stage makes of `shards`, and its tally."""
    total, paths, first, decided = Tally(folder.name, seed=seed), [], 0, None
    each = shards.each()
    for number, shard in enumerate(progress.bar(each, desc=folder.name, unit="shard")):
        path = folder / f"{number:05d}.jsonl"
        tally = shard_file.known(path)
        if tally is None:
            if decided is None and hasattr(module, "decide"):
                decided = _decided(module, shards, options, folder, seed)
            tally = Tally(folder.name, seed=seed)
            if decided is None:
                left = module.stage(shard, tally=tally, **options)
            else:
                left = decided.carry_out(shard, tally, first)
            shard_file.write(path, left, tally)
        first += tally.read
        total.add(tally)
        paths.append(path)
    return Shards(paths), total


def _decided(module, shards: Shards, options: dict, folder: Path, seed: int):
    """What a stage decides over all shards; kept in its folder for a run that goes on after a kill."""
    path = folder / "decision.safetensors"
    if not path.exists():
        decided = module.decide(shards, seed=seed, **options)
        files.write_bytes(path, safetensors.numpy.save(decided.arrays()))
        return decided
    return getattr(module, "KIND", Decision).read(safetensors.numpy.load_file(path))
