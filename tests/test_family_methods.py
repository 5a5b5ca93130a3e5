"""Every method on every family: near the original at 8 bits, and saved and packed as what was measured."""

import pytest

from lib import quantizers, runtime
from lib.export import compressed_tensors
from lib.models import blocks
from lib.sources import models
from tests import families, tiny
from tests.supported import REFUSED, attempt

CALIBRATION = tiny.tokens(2, 24, seed=5)
OPTIONS = {"signround": {"steps": 2}, "gptq_signround": {"steps": 2}}
NEAR = 0.13  # 8 bits leave 0.01 to 0.08, and 0.11 where a codebook meets granite_windows
# one of each form that weights take: even grids with and without zero points, another norm or head, integer products
SAVED = ("absmax", "rtn", "codebook", "int8", "awq", "rotation")
# every other method leaves one of these forms: it is saved and packed on a quarter of the families, each on another
FAMILIES, METHODS = list(families.FAMILIES), list(quantizers.METHODS)
PLAIN = tuple(method for method in SAVED if method not in ("codebook", "int8"))


@pytest.mark.parametrize("method", quantizers.METHODS)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_quantized(family, method, tmp_path):
    model, group_size = families.build_short(family), families.group_size(family)
    original, layers = families.logits(model), set(_layers(model))
    grid = {} if method == "int8" else {"bits": 8, "group_size": group_size, **OPTIONS.get(method, {})}
    with attempt(family, method):
        done = quantizers.by_name(method)(model, CALIBRATION, **grid)
        assert done.keys() == layers and all(map(blocks.is_quantized, map(model.get_submodule, layers)))
        found = families.logits(model)
        assert 0 < families.distance(found, original) < NEAR
        packed = family not in REFUSED["engine"] and family not in REFUSED["engine, from a folder"]
        if method in SAVED or (packed and (FAMILIES.index(family) + METHODS.index(method)) % 4 == 0):
            _saved(model, found, method, packed, tmp_path / "it")


def _saved(model, found, method, packed, folder):
    compressed_tensors.save(model, model.tokenizer, folder)
    again, _ = models.load(str(folder))
    if method != "int8":  # inputs are rounded by the method's own layers alone
        assert families.distance(families.logits(again), found) < 1e-6
    if method in PLAIN:
        assert families.distance(families.logits(families.reloaded(folder)), found) < 1e-6
    if packed and method == "codebook":
        with pytest.raises(ValueError, match="a grid with a codebook; evenly spaced grids are packed"):
            runtime.load(folder)
    elif packed:
        text = tiny.tokens(1, 40)
        answer = runtime.Session(runtime.load(folder, embedding_bits=None)).extend(text[0])
        assert families.distance(answer, families.logits(again, text)[0]) < 0.03


def _layers(model):
    path = blocks.path_of_blocks(model)
    return [f"{path}.{name}" for name in blocks.linears(blocks.blocks(model))]
