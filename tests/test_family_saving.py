"""Every family is saved and read back as what it was: here and by plain transformers, whole and quantized."""

import pytest
import torch

from lib.export import compressed_tensors, plain
from lib.quantizers import embedding, rtn
from lib.sources import models
from tests import families
from tests.supported import attempt

EXACT = 1e-6  # dequantized weights are the same bits; only the order of products may differ


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_saved_model_is_read_back_as_it_was(family, tmp_path):
    model = families.build_short(family)
    with attempt(family, "save"):
        plain.save(model, model.tokenizer, tmp_path / "it")
        found, tokenizer = models.load(str(tmp_path / "it"))
        assert tokenizer("two words\n")["input_ids"] == list(b"two words\n")
        wanted = families.logits(model)
        assert torch.equal(families.logits(found), wanted)
        assert torch.equal(families.logits(families.reloaded(tmp_path / "it")), wanted)


@pytest.mark.parametrize("form", ["untied", "tied, embedding and head too", "tied by name only"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_quantized_model_is_read_back_as_it_was(family, form, tmp_path):
    model = families.build_short(family, tie_word_embeddings=form.endswith("too"))
    if form.endswith("only"):  # the configuration says so beside a head of its own: transformers keeps both
        model.config.tie_word_embeddings = True
        plain.save(model, model.tokenizer, tmp_path / "original")
        model, _ = models.load(str(tmp_path / "original"))
    original, grid = families.logits(model), {"bits": 4, "group_size": families.group_size(family)}
    with attempt(family, "save"):
        rtn.quantize_(model, **grid)
        if form.endswith("too"):
            embedding.quantize_(model, **grid)
        wanted = families.logits(model)
        assert 0.01 < families.distance(wanted, original) < 0.7
        compressed_tensors.save(model, model.tokenizer, tmp_path / "it")
        found, _ = models.load(str(tmp_path / "it"))
        assert compressed_tensors.layers(found).keys() == compressed_tensors.layers(model).keys()
        assert families.distance(families.logits(found), wanted) < EXACT
        assert families.distance(families.logits(families.reloaded(tmp_path / "it")), wanted) < EXACT
