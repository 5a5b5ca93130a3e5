"""Peak memory: a method that walks the blocks holds the model and one block's working set, however deep the model."""

import inspect
import multiprocessing

import pytest
import torch

from lib import quantizers
from lib.models import blocks
from tests import tiny

SIZES = {"hidden_size": 192, "intermediate_size": 768}
WEIGHTS = 4 * (3 * 192 * 192 + 3 * 192 * 768)  # bytes of one block's layers: two square, two of half the rows, the MLP
SHALLOW, DEEP = 2, 14
QUICK = {"rounding": {"steps": 3}, "refined": {"steps": 3}}  # what keeps a method short


def walks(method):
    return "state" in inspect.signature(quantizers.by_name(method)).parameters


def increase(method, blocks, answer):
    """Put the bytes that quantizing a model of so many blocks takes beyond what was there before."""
    from lib.metrics import memory

    torch.set_num_threads(1)
    model = tiny.llama(num_hidden_layers=blocks, **SIZES)
    quantize_ = quantizers.by_name(method)
    # what is loaded once, whatever the depth
    quantize_(tiny.llama(num_hidden_layers=1, **SIZES), tiny.tokens(8, 64), bits=3, group_size=32)
    _, used = memory.call(quantize_, model, tiny.tokens(8, 64), bits=3, group_size=32, **QUICK.get(method, {}))
    answer.put(used.increase.value)


def in_a_process(*args):
    processes = multiprocessing.get_context("forkserver")
    # processes are forked from one that has imported everything: a new interpreter for each would take seconds
    processes.set_forkserver_preload([__name__, "transformers.models.llama.modeling_llama"])
    answer = processes.SimpleQueue()
    process = processes.Process(target=increase, args=(*args, answer))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    return answer.get()


@pytest.mark.parametrize("method", filter(walks, quantizers.METHODS))
def test_the_working_set_does_not_grow_with_depth(method):
    shallow, deep = (in_a_process(method, blocks) for blocks in (SHALLOW, DEEP))
    # Hessians, inputs or second copies of the weights, kept for all blocks, would be more than their weights
    assert deep - shallow < 0.9 * (DEEP - SHALLOW) * WEIGHTS, f"{shallow / 1e6:.1f} MB, then {deep / 1e6:.1f} MB"


@pytest.mark.parametrize("method", filter(walks, quantizers.METHODS))
def test_the_work_is_linear_in_blocks(method):
    """Passes through blocks, counted: as many for each block that is added, wherever it stands."""

    def passes(count):
        model, counted = tiny.llama(num_hidden_layers=count), []
        kind = type(blocks.blocks(model)[0])
        forward = kind.forward
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kind, "forward", lambda *args, **options: counted.append(1) or forward(*args, **options))
            options = {"bits": 3, "group_size": 32, **QUICK.get(method, {})}
            quantizers.by_name(method)(model, tiny.tokens(2, 16), **options)
        return len(counted)

    few, some, many = passes(2), passes(4), passes(8)
    assert some > few and many - some == 2 * (some - few)
