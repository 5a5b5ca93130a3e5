"""What a distillation gave after each rung, kept in its folder."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from lib import files

FILE = "ladder.json"


class Ladder:
    """What was measured after each rung and the processor seconds of each step, kept in `folder`."""

    def __init__(self, folder: Path):
        self.path = folder / FILE
        self.kept = json.loads(self.path.read_text()) if self.path.exists() else {"rows": [], "seconds": {}}

    @property
    def rows(self) -> list[dict]:
        """What was measured so far."""
        return self.kept["rows"]

    @property
    def finished(self) -> bool:
        """Whether the last rung is there."""
        return "moved" in self.kept

    def has(self, rung: str) -> bool:
        """Whether `rung` was measured."""
        return any(row["rung"] == rung for row in self.rows)

    def timed(self, step: str, work: Callable):
        """The answer of `work()`; notes its processor seconds under `step`."""
        began = time.process_time()
        found = work()
        self.kept["seconds"].setdefault(step, time.process_time() - began)
        self._write()
        return found

    def measured(self, rung: str, work: Callable[[], list[dict]]) -> None:
        """Add the rows of `work()`, unless those of `rung` are there."""
        if not self.has(rung):
            self.kept["rows"] = self.rows + work()
            self._write()

    def finish(self, **found) -> None:
        """Note what else is known at the end."""
        self.kept |= found
        self._write()

    def _write(self) -> None:
        files.write_text(self.path, json.dumps(self.kept))

    def __str__(self) -> str:
        lines = [
            f"{row['rung']:10} {row['text']:12} KL {row['kl']:.4f} ± {row['kl_stderr'] or 0:.4f} nats a token, "
            f"perplexity {row['ratio']:.3f} times the original's, {row['n']} windows"
            for row in self.rows
        ]
        minutes = ", ".join(f"{step} {seconds / 60:.1f}" for step, seconds in self.kept["seconds"].items())
        return "\n".join([*lines, f"processor minutes: {minutes}"])
