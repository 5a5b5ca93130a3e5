"""Models built otherwise: OPT-350m (narrow embeddings, no final norm), Nemotron (norms that multiply by 1 + weight).

What works on them equals plain transformers; what doesn't is refused by name, and leaves the model as it was.
"""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from lib import quantizers, runtime
from lib.export import compressed_tensors, plain, size
from lib.metrics import count, perplexity
from lib.models import blocks
from lib.pruners import depth, heal, importance
from lib.quantizers import embedding, rotation
from lib.sources import models
from tests import tiny

IDS = tiny.tokens(4, 24)
SIZES = {
    "OPT": {"ffn_dim": 128, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    "Nemotron": {"tie_word_embeddings": False, "partial_rotary_factor": 0.5},
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))


@pytest.fixture(params=SIZES)
def model(request):
    return tiny._build(request.param, 0, SIZES[request.param])


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


def distance(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def check_saved(model, folder, save):
    """Saved, the model answers the same here and in plain transformers."""
    predicted = size.predict(model)
    save(model, model.tokenizer, folder)
    assert predicted == count.artifact_bytes(folder)
    assert torch.equal(logits(models.load(str(folder))[0]), logits(model))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder, dtype="auto")), logits(model))


@pytest.mark.parametrize("method", [name for name in quantizers.METHODS if name != "rotation"])
def test_every_method_that_needs_no_rotation(model, method, tmp_path):
    expected, group = logits(model), -1 if method == "int8" else 32
    quantizers.by_name(method)(model, IDS, bits=8, group_size=group)
    assert distance(logits(model), expected) < 0.06
    if method not in ("codebook", "int8"):  # a grid that plain transformers refuses, a layer that multiplies otherwise
        check_saved(model, tmp_path / "q", compressed_tensors.save)


def test_embedding_and_head(model, tmp_path):
    expected = logits(model)
    embedding.quantize_(model, IDS, bits=8, group_size=32)
    quantizers.by_name("gptq")(model, IDS, bits=8, group_size=32)
    assert distance(logits(model), expected) < 0.03
    check_saved(model, tmp_path / "q", compressed_tensors.save)


@pytest.mark.parametrize("score", ["block_influence", "angular_distance", "taylor", "magnitude"])
def test_blocks_are_scored_and_dropped(model, score, tmp_path):
    assert score in importance.SCORES
    removed = depth.prune_(model, IDS, score=score, blocks=1)
    assert len(removed) == 1 and len(blocks.blocks(model)) == 3
    check_saved(model, tmp_path / "pruned", plain.save)


@pytest.mark.parametrize("way", heal.WAYS)
def test_a_pruned_model_is_healed(model, way):
    teacher = copy.deepcopy(model)
    depth.drop_blocks_(model, [2])
    before = {name: part.clone() for name, part in model.state_dict().items()}
    history = heal.heal_(model, tiny.tokens(8, 16), teacher=teacher, first=2, steps=2, way=way)
    changed = [name for name, part in model.state_dict().items() if not torch.equal(part, before[name])]
    assert len(history.losses) and any(".2." in name for name in changed)
    # the way "head" trains the last three blocks, wherever the gap is
    assert way == "head" or not any(".0." in name or ".1." in name for name in changed)


def test_whatever_heals_the_whole_trains_the_final_norm_where_there_is_one(model):
    from lib.trainers import adapters

    with adapters.full_(model):
        trained = {name for name, part in model.named_parameters() if part.requires_grad}
    norms = {"model.norm.weight", "model.norm.bias"} if blocks.final_norms(model) else set()
    path = blocks.path_of_blocks(model)
    assert trained == norms | {name for name, _ in model.named_parameters() if name.startswith(f"{path}.")}


def test_measures_and_counts(model):
    with torch.no_grad():
        scores = logits(model)[:, :-1].log_softmax(-1).gather(-1, IDS[:, 1:, None])
    assert perplexity.measure(model, IDS).value == pytest.approx(scores.mean().neg().exp().item(), rel=1e-5)
    assert count.parameters(model) == sum(part.numel() for part in model.parameters())


def test_rotations_of_the_stream_are_refused_and_those_of_values_are_exact(model):
    before = {name: part.clone() for name, part in model.state_dict().items()}
    expected = logits(model)
    named = r"OPTForCausalLM has 0 norms|NemotronForCausalLM has the norm .* with a bias"
    for work in (rotation.rotate_, lambda it: quantizers.by_name("rotation")(it, IDS, bits=4, group_size=32)):
        with pytest.raises(ValueError, match=named):
            work(model)
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
    assert distance(logits(rotation.rotate_(model, residual=False)), expected) < 1e-5


def test_packing_runs_inside_its_own_generate_and_the_engine_refuses_by_name(model):
    expected = logits(model)
    packed = runtime.pack_(model, embedding_bits=None)
    assert distance(logits(packed), expected) < 0.02
    with pytest.raises(ValueError, match=r"has model type '(opt|nemotron)'"):
        runtime.Session(packed)
