"""One configuration of the benchmark: refused when it says two things, applied, saved and read back."""

import pytest
import torch

from lib import benchmark
from lib.models.blocks import blocks
from lib.sources import models
from tests import tiny

DEFAULTS = {"method": "none", "bits": 16, "group_size": 32, "blocks": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "gtpq"}, r"method='gtpq'; choose one of .*depth, .*gptq, .*; did you mean 'gptq'"),
        ({"method": "gptq", "bits": 9}, "grids have 2 to 8 bits"),
        ({"method": "rtn", "bits": 4, "blocks": 2}, "removes none; set blocks=0"),
        ({"method": "depth"}, "it removes 1 or more"),
        ({"blocks": 3}, "which changes nothing"),
        ({"bits": 4}, "keeps 16-bit weights; set bits=16"),
    ],
)
def test_contradictions_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        benchmark.check(**DEFAULTS | change)


@pytest.mark.parametrize("change", [{}, {"method": "depth", "blocks": 1}, {"method": "gptq", "bits": 3}])
def test_what_is_saved_is_what_was_measured(change, tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    ids = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
    model, settings = tiny.llama(), DEFAULTS | change
    benchmark.compress_(model, ids, **settings)
    assert len(blocks(model)) == 4 - settings["blocks"]
    folder = benchmark.save(model, tiny.tokenizer(), model="some/tiny", text="packaged", windows=2, **settings)
    again, _ = models.load(str(folder))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
    assert folder.name.startswith("tiny-") and str(settings["method"]).replace("none", "original") in folder.name
