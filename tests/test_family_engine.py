"""Every family in the packed engine, from a model and from a folder: the same logits, or refused by name."""

import pytest

from lib import runtime
from lib.export import compressed_tensors
from lib.quantizers import rtn
from lib.runtime.engine import Session
from tests import families
from tests.supported import attempt

NEAR = 0.03  # the kernels round the inputs of each layer to 8 bits; another window or rotation differs by 0.2
SENSITIVE = {"granite_windows": 0.08}  # any 8-bit rounding moves its logits that far
TEXT = families.TEXT[:1]


@pytest.fixture(scope="module", params=families.FAMILIES)
def quantized(request, tmp_path_factory):
    """(family, folder of the quantized model, its logits in plain transformers, the model packed)."""
    model, folder = families.build(request.param), tmp_path_factory.mktemp("packed") / "it"
    rtn.quantize_(model, bits=6, group_size=families.group_size(request.param))
    wanted = families.logits(model, TEXT)
    compressed_tensors.save(model, model.tokenizer, folder)
    return request.param, folder, wanted, runtime.pack_(model, embedding_bits=None)


def test_packed_layers_run_in_the_models_own_forward_pass(quantized):
    family, _, wanted, packed = quantized
    assert families.distance(families.logits(packed, TEXT), wanted) < SENSITIVE.get(family, NEAR)


def test_packed_from_a_model(quantized):
    family, _, wanted, packed = quantized
    with attempt(family, "engine"):
        assert families.distance(Session(packed).extend(TEXT[0]), wanted[0]) < NEAR


def test_packed_from_a_folder(quantized):
    family, folder, wanted, _ = quantized
    with attempt(family, "engine", "engine, from a folder"):
        session = Session(runtime.load(folder, embedding_bits=None))
        assert families.distance(session.extend(TEXT[0]), wanted[0]) < NEAR
        session.rewind(30)  # and a second time, in two parts
        assert families.distance(session.extend(TEXT[0, 30:]), wanted[0, 30:]) < NEAR
