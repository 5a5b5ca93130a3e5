"""Several processes save and load one place at once: no save fails, and every load gives one whole version."""

import os

import pytest
import torch

from lib.export import compressed_tensors, plain
from lib.folders import renames
from lib.sources import models
from tests import forked, tiny
from tests.packed import quantize_

WRITERS, READERS, SAVES = 3, 2, 4
KINDS = {"plain": plain.save, "packed": compressed_tensors.save}


def version(kind, number):
    """The checkpoint of writer `number`: they differ in every block, and in the number of their files."""
    model = tiny.llama(seed=number)
    if number:
        model.tokenizer.chat_template = {"default": "x", f"of_{number}": "y"}
    return model if kind == "plain" else quantize_(model)


def prepare(exchanged):
    """Take the system's exchange away, as some disks do, and the waiting for the disk, which takes most of the time."""
    os.fsync = lambda handle: None
    if not exchanged:
        renames._renameat2 = lambda: None


def write(kind, folder, number, exchanged, start, said):
    """What a writer does."""
    prepare(exchanged)
    model = version(kind, number)
    start.wait()
    try:
        for _ in range(SAVES):
            KINDS[kind](model, model.tokenizer, folder)
        said.put(None)
    except Exception as error:
        said.put(f"writer {number}: {type(error).__name__} {error}")


def read(kind, folder, exchanged, start, ended, said):
    """What a reader does."""
    prepare(exchanged)
    expected = [version(kind, number).state_dict() for number in range(WRITERS)]
    start.wait()
    try:
        while not ended.is_set():
            found = models.load(str(folder))[0].state_dict()
            if sum(equal(found, state) for state in expected) != 1:
                raise ValueError("a mix of versions")
        said.put(None)
    except Exception as error:
        said.put(f"reader: {type(error).__name__} {error}")


@pytest.mark.parametrize("kind, exchanged", [("plain", True), ("packed", True), ("plain", False)])
def test_no_save_is_lost_and_no_load_is_a_mix(tmp_path, kind, exchanged):
    folder = tmp_path / "it"
    first = version(kind, 0)
    KINDS[kind](first, first.tokenizer, folder)
    processes = forked.processes()
    start, ended, written, seen = processes.Event(), processes.Event(), processes.Queue(), processes.Queue()
    writers = [
        processes.Process(target=write, args=(kind, folder, n, exchanged, start, written)) for n in range(WRITERS)
    ]
    readers = [
        processes.Process(target=read, args=(kind, folder, exchanged, start, ended, seen)) for _ in range(READERS)
    ]
    for process in (*writers, *readers):
        process.start()
    start.set()
    failures = [written.get(timeout=240) for _ in writers]
    ended.set()
    failures += [seen.get(timeout=240) for _ in readers]
    for process in (*writers, *readers):
        process.join()
    assert not any(failures), failures
    found = models.load(str(folder))[0].state_dict()
    assert sum(equal(found, version(kind, number).state_dict()) for number in range(WRITERS)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
