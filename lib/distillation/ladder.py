"""What a distillation gave after each rung, kept in its folder."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

from lib import files, timing

FILE = "ladder.json"
NOTED = 10  # seconds between two notes of how long a step has worked, of which a kill loses the last part


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
        """The answer of `work()`; adds its processor seconds to those of `step`, while it works as at its end.

        So a step that was killed and went on counts all that it took, what was done twice included.
        """
        before, began, done = self.kept["seconds"].get(step, 0.0), timing.worked(), threading.Event()

        def note() -> None:
            self.kept["seconds"][step] = before + timing.worked() - began
            self._write()

        def watch() -> None:
            while not done.wait(NOTED):
                note()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            return work()
        finally:
            done.set()
            watcher.join()
            note()

    def measured(self, rung: str, work: Callable[[], list[dict]]) -> None:
        """Add the rows of `work()`, unless those of `rung` are there."""
        if not self.has(rung):
            self.kept["rows"] = self.rows + work()
            self._write()

    def planned(self, arm: str, work: Callable[[], dict]) -> dict:
        """What was decided for an `arm` when it began; `work()` decides where nothing is kept."""
        plans = self.kept.setdefault("plans", {})
        if arm not in plans:
            plans[arm] = work()
            self._write()
        return plans[arm]

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
