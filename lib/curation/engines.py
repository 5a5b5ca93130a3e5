"""Many workers for `pipeline.run`: datatrove's executors carry a stage out, a shard a task.

    pipeline.run("crawl/", ["exact", "gopher", "fuzzy"], "data/clean", engine=engines.Local(workers=8))
    pipeline.run(..., engine=engines.Ray(workers=64, address="auto"))

What is written is what one process writes, so a run may begin on one machine and go on with many, and one that was
killed goes on at the first shard that is not there. What a stage decides over all documents is decided by the process
that calls; carrying it out is the workers' part. On several machines `folder`, the shards, and this repository must lie
on a disk that all of them see. Ray is no requirement of the project: `pip install ray==2.60.0`.
"""

import shutil
import sys
from dataclasses import dataclass

from lib import files
from lib.curation.step import Step

_OBJECTS = 80 << 20  # bytes of Ray's shared memory: tasks read and write files


class Task:
    """A step of a datatrove pipeline: the rank-th of some shards."""

    def __init__(self, step: Step, numbers: list[int]):
        self.step, self.numbers = step, numbers

    def __call__(self, data, rank: int, world_size: int) -> None:
        """Carry the stage out on one shard; what earlier steps of the pipeline gave is passed over."""
        self.step(self.numbers[rank])


@dataclass(frozen=True)
class Local:
    """So many processes of this machine."""

    workers: int = 2

    def __call__(self, step: Step, numbers: list[int]) -> None:
        """Carry a stage out on some shards."""
        from datatrove.executor import LocalPipelineExecutor  # loads where it is asked for

        _check(self.workers)
        _fresh(step)
        made = LocalPipelineExecutor([Task(step, numbers)], tasks=len(numbers), workers=self.workers, **_options(step))
        made.run()


@dataclass(frozen=True)
class Ray:
    """So many tasks at a time on a Ray cluster. address: of the cluster; None for one of this machine.

    One that is made here lives until the process ends, or `ray.shutdown()`. gigabytes: of memory that a task may take.
    """

    workers: int = 2
    address: str | None = None
    gigabytes: float = 1.0

    def __call__(self, step: Step, numbers: list[int]) -> None:
        """Carry a stage out on some shards."""
        try:
            import ray  # no requirement of the project
        except ImportError:
            raise ModuleNotFoundError(
                "ray is not installed; engines.Ray needs it; pip install ray==2.60.0, or take engines.Local."
            ) from None
        from datatrove.executor import RayPipelineExecutor  # loads where it is asked for

        _check(self.workers)
        _fresh(step)
        if not ray.is_initialized():
            cluster = {"address": self.address} if self.address else _one_machine(self.workers, self.gigabytes)
            ray.init(**cluster, runtime_env={"env_vars": {"PYTHONPATH": str(files.ROOT)}}, log_to_driver=False)
        made = RayPipelineExecutor(
            [Task(step, numbers)], tasks=len(numbers), workers=self.workers,
            mem_per_cpu_gb=self.gigabytes, tasks_per_job=-(-len(numbers) // self.workers), **_options(step),
        )  # fmt: skip
        made.run()


def _options(step: Step) -> dict:
    return {"logging_dir": str(step.logs), "skip_completed": False}


def _one_machine(workers: int, gigabytes: float) -> dict:
    memory = int(workers * (gigabytes + 0.1) * (1 << 30))
    return {"num_cpus": workers, "_memory": memory, "object_store_memory": _OBJECTS, "include_dashboard": False}


def _fresh(step: Step) -> None:
    """Forget what workers of an earlier run said; keep datatrove's reports in the files."""
    shutil.rmtree(step.logs, ignore_errors=True)
    from loguru import logger  # datatrove's

    logger.remove()
    logger.add(sys.stderr, level="ERROR")


def _check(workers: int) -> None:
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers={workers!r}; whole numbers from 1 are allowed; one for each core is usual.")
