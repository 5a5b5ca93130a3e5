"""Outcomes of the runs of a batch: progress lines while they run, and a summary at the end."""

import collections
import sys
from dataclasses import dataclass

from lib.batches import batch


@dataclass
class Outcome:
    """How a run ended: status is "finished", "unchanged", "failed", "interrupted" or "not run"."""

    run: batch.Run
    status: str = "not run"
    seconds: float = 0.0
    reason: str = ""
    error: str = ""


class Progress:
    """A bar on a terminal, a line per run elsewhere."""

    def __init__(self, total: int, workers: int):
        """`total` runs, `workers` at once; with one, a line begins when its run does."""
        from tqdm.auto import tqdm  # only a terminal shows the bar

        self.total, self.workers = total, workers
        self.bar = tqdm(total=total, unit="run", dynamic_ncols=True) if sys.stderr.isatty() else None

    def started(self, number: int, outcome: Outcome):
        """Run `number` (from 0) has a worker now."""
        if self.bar is None and self.workers == 1:
            print(self._head(number, outcome), end=" ", flush=True)

    def ended(self, number: int, outcome: Outcome):
        """Run `number` has ended as `outcome` says, or never began."""
        took = f"{outcome.seconds:.0f} s"
        tail = {"finished": took, "unchanged": "unchanged"}.get(outcome.status, f"FAILED after {took}: {outcome.error}")
        if self.bar is not None:
            self.bar.write(f"{self._head(number, outcome)} {tail}")
            self.bar.update()
        elif self.workers == 1 and outcome.reason:
            print(tail, flush=True)  # the line that `started` has begun
        else:
            print(self._head(number, outcome), tail, flush=True)

    def show(self, running: list[str]):
        """Show the running notebooks in front of the bar."""
        if self.bar is not None:
            self.bar.set_description_str(" | ".join(running))

    def close(self):
        """Close the bar and leave it visible."""
        if self.bar is not None:
            self.bar.close()

    def _head(self, number: int, outcome: Outcome) -> str:
        return f"[{number + 1}/{self.total}] {outcome.run.label} ..."


def summary(outcomes: list[Outcome]) -> str:
    """A table of run, status, seconds and the error's last line, and a count of each status."""
    width = max(len(outcome.run.label) for outcome in outcomes)
    lines = [f"{'run':{width}}  {'status':11}  seconds  error or reason to run"]
    for o in outcomes:
        lines.append(f"{o.run.label:{width}}  {o.status:11}  {o.seconds:7.1f}  {o.error or o.reason}".rstrip())
    counts = collections.Counter(outcome.status for outcome in outcomes)
    longest = max(outcomes, key=lambda outcome: outcome.seconds)
    if longest.seconds:
        total = sum(outcome.seconds for outcome in outcomes)
        lines.append(
            f"{total / 60:.1f} minutes in all; the longest is {longest.run.label} with {longest.seconds:.0f} s"
        )
    return "\n".join([*lines, ", ".join(f"{count} {status}" for status, count in counts.items())])
