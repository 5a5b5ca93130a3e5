"""Matrices narrower than a group, those of single heads: one group a row, whatever the method, saved and packed."""

import pytest
import torch

from lib import quantizers, runtime
from lib.export import compressed_tensors
from lib.metrics import count
from lib.models import blocks
from lib.quantized.grid import fitted
from lib.quantizers import allocate, calibrate, rtn
from lib.sources import models
from tests import families, tiny

CALIBRATION = tiny.tokens(2, 24, seed=5)
OPTIONS = {"signround": {"steps": 2}, "gptq_signround": {"steps": 2}}
METHODS = [name for name in quantizers.METHODS if name != "int8"]  # which has one scale a row everywhere


def headwise():
    """A block of width 64 with four heads of 16 and their matrices."""
    return tiny.architecture("headwise", num_hidden_layers=1)


@pytest.mark.parametrize("method", METHODS)
def test_heads_narrower_than_a_group_have_one_group_a_row(method, tmp_path, capsys):
    model = headwise()
    original, columns = (
        families.logits(model),
        {name: each.in_features for name, each in calibrate.layers(model).items()},
    )
    options = {"bits": 8, "group_size": 64, **OPTIONS.get(method, {})}
    if method == "rotation":
        with pytest.raises(ValueError, match="HeadwiseForCausalLM"):
            quantizers.by_name(method)(model, CALIBRATION, **options)
        return
    done = quantizers.by_name(method)(model, CALIBRATION, **options)
    assert {name: each.group_size for name, each in done.items()} == {
        name: min(64, width) for name, width in columns.items()
    }
    assert "4 matrices of 16 columns are narrower than group_size=64: one group a row" in capsys.readouterr().out
    found = families.logits(model)
    assert 0 < families.distance(found, original) < 0.13
    if method in ("rtn", "codebook", "gptq_signround"):
        compressed_tensors.save(model, model.tokenizer, tmp_path / "it")
        again, _ = models.load(str(tmp_path / "it"))
        assert families.distance(families.logits(again), found) < 1e-6
    if method == "rtn":
        answer = runtime.Session(runtime.load(tmp_path / "it", embedding_bits=None)).extend(CALIBRATION[0])
        with torch.no_grad():
            assert families.distance(answer, again(CALIBRATION[:1]).logits[0]) < 0.03


def test_their_size_is_known_before(tmp_path):
    model = headwise()
    predicted = allocate.megabytes(model, dict.fromkeys(calibrate.layers(model), 3), group_size=64)
    rtn.quantize_(model, bits=3, group_size=64)
    compressed_tensors.save(model, model.tokenizer, tmp_path / "it")
    assert count.artifact_bytes(tmp_path / "it") == round(predicted * 1e6)
    assert all(map(blocks.is_quantized, calibrate.layers(model).values()))


@pytest.mark.parametrize("columns, given, size", [(16, 64, 16), (64, 64, 64), (96, 32, 32), (16, -1, 16)])
def test_columns_of_a_group(columns, given, size):
    assert fitted(columns, bits=4, group_size=given) == size


@pytest.mark.parametrize("wrong", [0, -2, False, 5, 64.0])
def test_what_is_no_group_is_refused_for_them_too(wrong):
    with pytest.raises(ValueError, match=f"group_size={wrong!r} does not divide 16 columns"):
        fitted(16, bits=4, group_size=wrong)


def test_matrices_as_wide_as_the_stream_are_not_narrow():
    with pytest.raises(ValueError, match=r"group_size=128 does not divide 64 columns of .*q_proj"):
        calibrate.check_layers(headwise(), bits=4, group_size=128)
