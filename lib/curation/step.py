"""One stage as it is carried out on one shard after another, by one process or by workers of many machines."""

import functools
import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import safetensors.numpy

from lib import extensions, files
from lib.curation import shard_file
from lib.curation.decision import Decision
from lib.curation.sources import Shards
from lib.curation.tally import Tally

STAGES = {
    name: f"lib.curation.{name}"
    for name in (
        *("blank", "exact", "lines", "signals", "gopher", "repetition", "c4", "fineweb", "personal", "perplexity"),
        *("quality_model", "fuzzy", "decontaminate", "language", "semdedup", "prototypes", "d4", "passages"),
    )
}


def by_name(name: str) -> ModuleType:
    """The module of a stage: one of `STAGES`, or a Python file of one's own; ValueError for an unknown name."""
    if extensions.is_path(name):
        return extensions.load(name, "stage", "documents", "tally")
    if name not in STAGES:
        raise ValueError(f"stage {name!r} is unknown; {files.choices(name, STAGES)}")
    return importlib.import_module(STAGES[name])


@dataclass(frozen=True)
class Step:
    """All that a worker needs to carry a stage out on the shard with a given number.

    paths: the shards that are read; documents: how many each has; text, id: their fields. folder: of what is written.
    """

    name: str
    options: dict
    folder: Path
    seed: int
    paths: list[Path]
    documents: list[int]
    text: str | None
    id: str

    @property
    def logs(self) -> Path:
        """Where workers say what they did."""
        return self.folder.parent / "logs" / self.folder.name

    def path(self, number: int) -> Path:
        """The shard that is written."""
        return self.folder / f"{number:05d}.jsonl"

    def decide(self, shards: Shards) -> None:
        """Let a stage that compares documents look at all of them; kept in its folder, also for a later run."""
        module, path = by_name(self.name), self._decision
        if hasattr(module, "decide") and not path.exists():
            decided = module.decide(shards, seed=self.seed, **self.options)
            files.write_bytes(path, safetensors.numpy.save(decided.arrays()))

    def __call__(self, number: int) -> None:
        """Carry the stage out on a shard, unless that was done; what is written is complete or absent."""
        if shard_file.known(self.path(number)) is not None:
            return
        shard = Shards([self.paths[number]], text=self.text, id=self.id)
        tally = Tally(self.folder.name, seed=self.seed)
        if self._decided is not None:
            left = self._decided.carry_out(shard, tally, sum(self.documents[:number]))
        else:
            left = by_name(self.name).stage(shard, tally=tally, **self.options)
        shard_file.write(self.path(number), left, tally)

    @property
    def _decision(self) -> Path:
        return self.folder / "decision.safetensors"

    @functools.cached_property
    def _decided(self):
        module = by_name(self.name)
        if not hasattr(module, "decide"):
            return None
        return getattr(module, "KIND", Decision).read(safetensors.numpy.load_file(self._decision))
