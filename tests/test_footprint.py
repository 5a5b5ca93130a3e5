"""Memory of a training, predicted from shapes, against counts by hand and against what runs."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lib.finetuning import memory, ways
from lib.metrics import footprint
from lib.models import attention
from lib.quantizers import rtn
from tests import tiny

CONFIG = tiny.llama(hidden_size=64, num_hidden_layers=6).config


def predict(way="full", **options):
    options = {"batch": 2, "length": 64, "dtype": torch.float32, "group_size": 32, "rank": 4} | options
    return memory.predict(CONFIG, way, **options)


def made(way, bits=None):
    model = tiny.llama(num_hidden_layers=6)
    if bits:
        rtn.quantize_(model, bits=bits, group_size=32)
    return model


LONG = pytest.mark.long  # a prediction takes as long as a test may


SHOWN = ("full", "scales")


@pytest.mark.parametrize("way", [way if way in SHOWN else pytest.param(way, marks=LONG) for way in memory.WAYS])
def test_weights_gradients_and_optimizer_are_those_of_the_way_on_a_real_model(way):
    bits = 4 if way in memory.QUANTIZED else None
    model, found = made(way, bits), predict(way, bits=bits)
    kept = sum(each.nbytes for each in {id(each): each for each in (*model.parameters(), *model.buffers())}.values())
    options = {"rank": 4} if way in ("lora", "rslora", "dora", "qlora") else {}
    with ways.trained_(model, way, **options):
        trained = [each for each in model.parameters() if each.requires_grad]
        numbers = sum(each.numel() for each in trained)
    assert found.gradients == found.undo == 4 * numbers and found.optimizer == 12 * numbers and found.step == 0
    assert found.weights == pytest.approx(kept + (0 if way in ("full", "head") else 4 * numbers), rel=0.02, abs=2048)


def saved(model, tokens):
    """Bytes that autograd keeps of a forward pass, each storage once, without weights."""
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = model.base_model(input_ids=tokens, use_cache=False)[0]
    return sum(size for size, _ in kept.values()), states


@pytest.mark.parametrize(
    ("way", "bits", "dtype"),
    [pytest.param("full", None, "float32", marks=LONG), ("qlora", 4, "float32"), ("lora", None, "bfloat16")],
)
def test_activations_are_what_autograd_keeps_of_a_real_model(way, bits, dtype):
    dtype = getattr(torch, dtype)
    model, found = made(way, bits).to(dtype), predict(way, bits=bits, dtype=dtype)
    with ways.trained_(model, way, **({} if way == "full" else {"rank": 4})), attention.fast():
        kept, _ = saved(model, tiny.tokens(2, 64))
        weights = sum(each.nbytes for each in model.parameters())
    assert kept <= found.activations <= 1.2 * kept  # tables of positions are no activations, and alive
    assert bits or found.weights == pytest.approx(weights, rel=0.01)


@LONG
def test_memory_grows_as_it_must():
    once, twice = predict(batch=2), predict(batch=4)
    assert twice.activations == pytest.approx(2 * once.activations, rel=0.05) and twice.optimizer == once.optimizer
    assert predict(recompute=True).activations < 0.4 * once.activations
    assert predict(passes=2).total - predict().total in range(0, once.gradients + 1)
    half = predict(dtype=torch.bfloat16)
    assert half.step == 2 * half.gradients and half.weights == pytest.approx(once.weights / 2, rel=0.01)
    assert predict("qlora", bits=4).total < predict("lora", dtype=torch.float32).total < once.total


def test_a_model_of_seventy_billion_weights_needs_no_memory_to_be_predicted():
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8
    )
    found = memory.predict(config, "full", batch=1, length=2048)
    assert found.weights == pytest.approx(2 * 68.7e9, rel=0.02)
    assert found.optimizer == pytest.approx(6 * found.weights, rel=0.001)


def test_what_can_not_be_predicted_is_refused():
    for options, said in (
        ({"way": "ful"}, "did you mean 'full'"),
        ({"way": "qlora"}, "give bits=4"),
        ({"batch": 0}, "batch=0"),
        ({"length": 1}, "length=1"),
        ({"way": "scales", "bits": 9}, "bits=9"),
        ({"way": "lora", "rank": 0}, "rank=0"),
    ):
        with pytest.raises(ValueError, match=said):
            predict(**options)


def test_bytes_are_counted_as_they_come_and_go():
    live = footprint._Live()
    with FakeTensorMode(), live:
        first = torch.zeros(1000)
        second = first * 2
        view = second[10:]
        assert live.now == 8000
        del first
        assert live.now == 4000
        del second
        assert live.now == 4000 and len(view) == 990
        del view
    assert live.now == 0 and live.most == 8000
