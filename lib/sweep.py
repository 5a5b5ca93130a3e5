"""Run a batch of notebooks through papermill: `python -m lib.sweep notebooks/batches/report.yaml`.

`lib/batches/batch.py` describes the batch file. `--workers N` runs N notebooks at once (speeds are measured with one),
`--fresh` runs finished ones again, `--model FOLDER` gives every notebook that model. Executed notebooks go to
data/report/notebooks/<run>.ipynb, one that failed to <run>.failed.ipynb with the error in the cell it stopped at; the
others go on. A sweep that was killed resumes when it is started again. Exit status: 0 all well, 1 a notebook failed,
2 nothing was run, 130 interrupted.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from lib import claims, files, machine, results
from lib.batches import batch, finished, outputs
from lib.batches.outcomes import Outcome, Progress, summary
from lib.batches.worker import Worker

_POLL = 0.1  # seconds between checks of the workers
_ROOM = 4 << 20  # bytes that an executed notebook, its record and its state may take


@dataclass
class _Active:
    """A run that has a worker."""

    number: int
    outcome: Outcome
    parts: dict
    part_file: Path
    worker: Worker
    log: object
    began: float = field(default_factory=time.monotonic)


def sweep(path: Path | str, *, workers: int = 1, fresh: bool = False, model: str | None = None) -> list[Outcome]:
    """Run the batch file at `path`; returns an outcome per run, in the batch's order.

    Raises before anything runs: ValueError or FileNotFoundError for a wrong batch, PermissionError or OSError where
    outputs can't be written or the disk is full, BlockingIOError while another sweep of this batch runs.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}; 1 or more is allowed; speeds are measured with 1.")
    runs = batch.read(path, model)
    folder = files.cache() / "sweep" / Path(path).stem
    for target in (files.report() / "notebooks" / "x", files.results() / "x", folder / "x"):
        files.check_writable(target, bytes_needed=_ROOM * len(runs))
    with _lock(folder / "lock", Path(path).name):
        for run in runs:
            outputs.discard_halves(run)
        return _Scheduler(runs, folder / "jupyter", workers, fresh).run()


class _Scheduler:
    """Starts ready runs and ends finished ones, in one thread."""

    def __init__(self, runs: list[batch.Run], kernels: Path, workers: int, fresh: bool):
        self.outcomes = [Outcome(run) for run in runs]
        self.waiting = list(range(len(runs)))
        self.active: list[_Active] = []
        self.kernels, self.workers, self.fresh = kernels, workers, fresh
        self.threads = max(1, machine.cores() // workers) if workers > 1 else None
        self.hashes: dict = {}  # input files already read
        self.progress = Progress(len(runs), workers)

    def run(self) -> list[Outcome]:
        try:
            while self.waiting or self.active:
                self._start_some()
                for active in [a for a in self.active if self._has_ended(a)]:
                    self._end(active)
                self.progress.show([a.outcome.run.label for a in self.active])
                if self.active:
                    time.sleep(_POLL)
        except KeyboardInterrupt:
            for active in self.active:
                active.outcome.status = "interrupted"
                active.outcome.seconds = time.monotonic() - active.began
        finally:
            for active in self.active:
                active.worker.stop()
                results.close(active.outcome.run.name, "failed")
                active.part_file.unlink(missing_ok=True)
            self.progress.close()
        return self.outcomes

    def _start_some(self):
        for number in list(self.waiting):
            if len(self.active) == self.workers:
                return
            if self._must_wait(number):
                continue
            self.waiting.remove(number)
            outcome = self.outcomes[number]
            try:
                self._start(number, outcome)
            except (OSError, ValueError) as error:  # a notebook changed or a disk filled up since the check
                outcome.status, outcome.error = "failed", f"{type(error).__name__}: {error}"
                with contextlib.suppress(OSError):
                    outputs.discard_results(outcome.run)
                    outputs.keep_failure(outcome.run, (type(error).__name__, str(error)))
            if outcome.status != "not run":
                self.progress.ended(number, outcome)

    def _must_wait(self, number: int) -> bool:
        unfinished = [*self.waiting, *(a.number for a in self.active)]
        return any(other < self.outcomes[number].run.waits_for for other in unfinished)

    def _start(self, number: int, outcome: Outcome):
        run = outcome.run
        parts = finished.parts(run)
        reason = finished.reason(run, parts, self.hashes)
        if reason is None and not self.fresh:
            outcome.status = "unchanged"
            return
        outcome.reason = reason or "asked for"
        outputs.discard_results(run)
        self.progress.started(number, outcome)
        part_file = outputs.part_file(run)
        part_file.parent.mkdir(parents=True, exist_ok=True)
        log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed by _end)
        job = {"notebook": str(run.notebook), "output": str(part_file.resolve()), "parameters": run.parameters}
        worker = Worker(job, record=run.name, log=log, kernels=self.kernels, threads=self.threads)
        self.active.append(_Active(number, outcome, parts, part_file, worker, log))

    def _has_ended(self, active: _Active) -> bool:
        overdue = time.monotonic() - active.began > active.outcome.run.timeout
        return active.worker.status() is not None or overdue

    def _end(self, active: _Active):
        outcome, run, status = active.outcome, active.outcome.run, active.worker.status()
        active.worker.stop()
        self.active.remove(active)
        outcome.seconds = time.monotonic() - active.began
        try:
            results.close(run.name, "finished" if status == 0 else "failed")
            if status == 0:
                outputs.keep(json.loads(active.part_file.read_text(encoding="utf-8")), run, finished.output(run))
                finished.save(run, active.parts, self.hashes)
                outcome.status = "finished"
            else:
                outcome.status = "failed"
                outcome.error = outputs.keep_failure(run, outputs.cause(run, status, active.log))
        except (OSError, ValueError) as error:
            outcome.status, outcome.error = "failed", f"{type(error).__name__}: {error}"
        active.log.close()
        self.progress.ended(active.number, outcome)


@contextlib.contextmanager
def _lock(path: Path, name: str):
    """Hold the batch's lock; the system releases it with the process, so a killed sweep leaves none behind."""
    import fcntl  # not on Windows, which reads batches all the same

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"a sweep of {name} is already running; one at a time is allowed; wait for it or interrupt it."
            ) from None
        yield


def _model(given: str | None) -> str | None:
    """A folder as a path that holds in the notebooks' folder too; names and Hub ids as they are."""
    return str(Path(given).resolve()) if given and Path(given).is_dir() else given


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.sweep", description="Run a batch of notebooks.")
    parser.add_argument("batch", help="a file of notebooks/batches, in YAML")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="notebooks at once (default 1)")
    parser.add_argument("--model", help="a name, a folder or a Hub id for the parameter `model` of every notebook")
    parser.add_argument("--fresh", action="store_true", help="run again what is finished")
    given = parser.parse_args(arguments)
    try:
        outcomes = sweep(given.batch, workers=given.workers, fresh=given.fresh, model=_model(given.model))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(summary(outcomes))
    missed = [results.read(finished.record(o.run)) for o in outcomes if finished.record(o.run).exists()]
    for line in claims.missed(list(filter(None, missed))):
        print("claim that does not hold:", line)
    statuses = {outcome.status for outcome in outcomes}
    if statuses & {"interrupted", "not run"}:
        return 130
    return 1 if "failed" in statuses else 0


if __name__ == "__main__":
    sys.exit(main())
