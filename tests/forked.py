"""Processes that are forked from one which has imported everything: an interpreter for each would take seconds.

A process of tests has one such server. Who starts it decides what it has imported, so that all files ask here: what it
lacks, every process that it starts would import anew.
"""

import multiprocessing

PRELOADED = (
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
    "compressed_tensors",
    "lib.trainers.checkpoints",
    "lib.trainers.loop",
    "tests.faults.test_kill_checkpoint",
    "tests.faults.test_parallel_writers",
    "tests.faults.test_resume_quantizing",
    "tests.faults.test_resume_training",
    "tests.test_working_set",
)


def processes():
    """The context whose `Process`, `Event` and `Queue` are multiprocessing's."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context
