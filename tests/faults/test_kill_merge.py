"""SIGKILL while a merged model is being saved: the folder holds the old or the new one, whole."""

import itertools
import random
import time

import torch

from lib.finetuning import low_rank_folder, merging, ways
from lib.trainers import loop, next_token
from tests import forked, tiny
from tests.test_finetuning_ways import quantized

KILLS = 4


def version(seed):
    """A quantized model with adapters beside it; two seeds differ in every layer."""
    model = quantized(4, seed=seed)
    with ways.trained_(model, "qlora", rank=4, seed=seed) as adapters:
        loop.train_(model, tiny.tokens(4, 16), next_token.loss, steps=2, batch=2, learning_rate=1e-2, seed=seed)
    return merging.beside_(model, adapters)


def save_for_ever(folders, folder, saved):
    """What the killed process does: save the two versions in turns."""
    for model in itertools.cycle([low_rank_folder.load(each)[0] for each in folders]):
        low_rank_folder.save(model, model.tokenizer, folder)
        saved.set()


def test_killed_merges_leave_the_old_or_the_new_model(tmp_path):
    folder, chance, models = tmp_path / "it", random.Random(0), [version(0), version(1)]
    processes = forked.processes()
    sources = [low_rank_folder.save(each, each.tokenizer, tmp_path / f"{n}") for n, each in enumerate(models)]
    for _ in range(KILLS):
        saved = processes.Event()
        process = processes.Process(target=save_for_ever, args=(sources, folder, saved))
        process.start()
        assert saved.wait(120), "nothing was saved"
        time.sleep(chance.uniform(0, 0.2))
        process.kill()
        process.join()
        found, _ = low_rank_folder.load(folder)
        assert sum(equal(found.state_dict(), each.state_dict()) for each in models) == 1


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
