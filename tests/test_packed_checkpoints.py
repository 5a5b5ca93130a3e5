"""Tensors and configurations that don't belong together: no size that was not compared reaches the kernels."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lib import runtime
from lib.export import compressed_tensors
from lib.runtime import engine, pack
from lib.sources import models
from tests import packed, tiny
from tests.test_packed_folders import DAMAGES, edit

BLOCK = "model.layers.1."


def changed(folder, changes, dtype=None):
    """Put tensors of a saved folder to other values; None takes one out."""
    stored = load_file(folder / "model.safetensors") | changes
    kept = {key: tensor.contiguous() for key, tensor in stored.items() if tensor is not None}
    kept = {key: tensor if dtype is None else tensor.to(dtype) for key, tensor in kept.items()}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "manifest.json").unlink(missing_ok=True)
    return folder


WRONG = {
    "missing": (tiny.llama, {BLOCK + "mlp.up_proj.weight": None}, r"no model\.layers\.1\.mlp\.up_proj\.weight"),
    "missing norm": (tiny.llama, {BLOCK + "input_layernorm.weight": None}, r"no .*input_layernorm\.weight"),
    "missing norm of queries": (tiny.qwen3, {BLOCK + "self_attn.q_norm.weight": None}, r"no .*q_norm\.weight"),
    "missing bias": (tiny.qwen2, {BLOCK + "self_attn.k_proj.bias": None}, r"no .*k_proj\.bias"),
    "missing final norm": (tiny.llama, {"model.norm.weight": None}, r"no model\.norm\.weight"),
    "no embedding": (tiny.llama, {"model.embed_tokens.weight": None}, r"no model\.embed_tokens\.weight"),
    "norm of queries": (tiny.llama, {BLOCK + "self_attn.q_norm.weight": torch.ones(16)}, r"no place for.*q_norm"),
    "bias": (tiny.llama, {BLOCK + "self_attn.q_proj.bias": torch.ones(64)}, r"no place for.*q_proj\.bias"),
    "bias of the output": (tiny.qwen2, {BLOCK + "self_attn.o_proj.bias": torch.ones(64)}, r"no place for.*o_proj"),
    "bias of the head": (tiny.llama, {"lm_head.bias": torch.ones(256)}, r"no place for.*lm_head\.bias"),
    "a block more": (tiny.llama, {"model.layers.4.mlp.up_proj.weight": torch.ones(128, 64)}, r"no place for.*s\.4\."),
    "rows": (tiny.llama, {BLOCK + "self_attn.k_proj.weight": torch.ones(64, 64)}, r"\[64, 64\] where .*\[32, 64\]"),
    "columns": (tiny.llama, {BLOCK + "mlp.down_proj.weight": torch.ones(64, 64)}, r"\[64, 64\] where .*\[64, 128\]"),
    "norm": (tiny.llama, {BLOCK + "input_layernorm.weight": torch.ones(32)}, r"\[32\] where .*\[64\]"),
    "bias's size": (tiny.qwen2, {BLOCK + "self_attn.k_proj.bias": torch.ones(64)}, r"\[64\] where .*\[32\]"),
    "vocabulary": (tiny.llama, {"model.embed_tokens.weight": torch.ones(255, 64)}, r"\[255, 64\] where .*\[256, 64\]"),
    "whole numbers": (
        tiny.llama, {BLOCK + "mlp.up_proj.weight": torch.ones(128, 64).int()}, "up_proj.weight .* is of type I32",
    ),
    "float8": (
        tiny.llama, {BLOCK + "mlp.up_proj.weight": torch.ones(128, 64).to(torch.float8_e4m3fn)}, "is of type F8_E4M3",
    ),
    "NaN": (tiny.llama, {BLOCK + "mlp.up_proj.weight": torch.full((128, 64), torch.nan)}, r"up_proj.* NaN"),
    "infinity": (tiny.llama, {"model.norm.weight": torch.full((64,), torch.inf)}, r"norm\.weight .*infinite"),
    "too large": (
        tiny.llama, {"model.norm.weight": torch.full((64,), 1e300, dtype=torch.float64)}, r"norm\.weight .*infinite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_tensors_that_are_not_the_configurations_are_refused_by_name(case, tmp_path):
    make, changes, message = WRONG[case]
    folder = changed(tiny.save(tmp_path / "plain", make()), changes)
    with pytest.raises(ValueError, match=message):
        runtime.load(folder)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_of_its_own_is_kept_and_one_that_is_missing_is_refused(tied, tmp_path):
    folder, own = tiny.save(tmp_path / "plain"), torch.randn(256, 64).bfloat16()
    edit(folder / "config.json", lambda config: config.update(tie_word_embeddings=tied))
    if tied:
        assert runtime.load(folder).tied
    else:
        with pytest.raises(ValueError, match=r"no lm_head\.weight"):
            runtime.load(folder)
    changed(folder, {"lm_head.weight": own}, torch.bfloat16)
    loaded = runtime.load(folder, embedding_bits=None)
    assert not loaded.tied and torch.equal(pack.unpack_plain(loaded.head), own)
    found, tokens = runtime.Session(loaded).extend(tiny.tokens(1, 20)[0]), tiny.tokens(1, 20)
    with torch.no_grad():
        wanted = models.load(folder, dtype="float32")[0](tokens).logits[0]
    assert (found - wanted).norm() < 0.02 * wanted.norm()
    changed(folder, {"lm_head.weight": load_file(folder / "model.safetensors")["model.embed_tokens.weight"]})
    assert runtime.load(folder).tied == tied
    changed(folder, {"model.embed_tokens.weight": None})  # transformers takes the head for both, where they are tied
    if tied:
        assert runtime.load(folder).tied
    else:
        with pytest.raises(ValueError, match=r"no model\.embed_tokens\.weight"):
            runtime.load(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_type_of_number_gives_what_transformers_gives(dtype, tmp_path):
    folder = changed(tiny.save(tmp_path / "plain", tiny.qwen2()), {}, torch.bfloat16)
    wanted = runtime.Session(runtime.load(folder)).extend(tiny.tokens(1, 20)[0])
    changed(folder, {}, dtype)
    found = runtime.Session(runtime.load(folder)).extend(tiny.tokens(1, 20)[0])
    assert torch.equal(found, wanted) or (dtype == torch.float16 and (found - wanted).norm() < 0.01 * wanted.norm())


def test_frequencies_of_old_checkpoints_are_computed_anew_as_in_transformers(tmp_path):
    folder = changed(tiny.save(tmp_path / "plain"), {BLOCK + "self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    found = runtime.Session(runtime.load(folder, embedding_bits=None)).extend(tiny.tokens(1, 20)[0])
    with torch.no_grad():
        wanted = models.load(folder)[0](tiny.tokens(1, 20)).logits[0]
    assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_a_tensor_in_two_files_is_refused(tmp_path):
    model = tiny.llama()
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    tiny.tokenizer().save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    runtime.load(tmp_path)
    save_file(load_file(shards[1]) | {"model.norm.weight": torch.ones(64)}, shards[1])
    save_file(load_file(shards[0]) | {"model.norm.weight": torch.ones(64)}, shards[0])
    with pytest.raises(ValueError, match=r"model\.norm\.weight in .*safetensors and in "):
        runtime.load(tmp_path)


def test_an_adapter_beside_a_model_is_refused(tmp_path):
    folder = tiny.save(tmp_path / "plain")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        runtime.load(folder)
    with pytest.raises(ValueError, match="adapter='merge'; None or 'ignore'"):
        runtime.load(folder, adapter="merge")
    assert runtime.load(folder, adapter="ignore").vocabulary == 256


@pytest.fixture
def folder(tmp_path):
    """A packed tiny Llama without its manifest."""
    compressed_tensors.save(packed.quantize_(tiny.llama()), tiny.tokenizer(), tmp_path / "packed")
    (tmp_path / "packed" / "manifest.json").unlink()
    return tmp_path / "packed"


@pytest.mark.parametrize("damage", DAMAGES)
def test_packed_folders_that_models_load_refuses_are_refused(folder, damage):
    edit(folder / "config.json", lambda config: DAMAGES[damage][0](config["quantization_config"]))
    with pytest.raises(ValueError):
        compressed_tensors.load(folder)
    with pytest.raises(ValueError):
        runtime.load(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model.norm.weight": None}, r"no model\.norm\.weight"),
        ({"extra": torch.zeros(1)}, "no place for, the first is extra"),
        ({BLOCK + "mlp.up_proj.weight_scale": None}, r"no .*up_proj\.weight_scale"),
        ({BLOCK + "mlp.up_proj.weight_zero_point": None}, r"no .*up_proj\.weight_zero_point"),
        ({BLOCK + "mlp.up_proj.weight_shape": torch.tensor([64, 128])}, r"\[64, 128\] where .*\[128, 64\]"),
        ({BLOCK + "mlp.up_proj.weight_packed": torch.zeros(128, 7).int()}, r"\[128, 7\] where .*\[128, 8\]"),
        ({BLOCK + "mlp.up_proj.weight_packed": torch.zeros(128, 8)}, r"stored as F32"),
        ({BLOCK + "mlp.up_proj.weight_scale": torch.full((128, 2), torch.nan).bfloat16()}, "NaN"),
        ({BLOCK + "mlp.up_proj.weight": torch.zeros(128, 64)}, "no place for"),
        ({"model.layers.9.mlp.up_proj.weight_packed": torch.zeros(1)}, r"no place for.*layers\.9"),
    ],
)
def test_tensors_of_packed_folders_are_compared_too(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        runtime.load(changed(folder, changes))


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "compressed-tensors"])
def test_other_conventions_are_refused_by_name(method, tmp_path):
    folder = tiny.save(tmp_path / "plain")
    edit(folder / "config.json", lambda config: config.update(quantization_config={"quant_method": method}))
    with pytest.raises(ValueError, match=f"quantized as '{method}', format None"):
        runtime.load(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.layers.pop(), "blocks: 3, where"),
        (lambda w: w.layers[1].update(gate=w.layers[1]["down"]), r"mlp\.gate_proj of block 1: \[64, 128\]"),
        (lambda w: w.layers[1].update(first_norm=np.ones(32, np.float32)), r"input_layernorm of block 1: .*\[32\]"),
        (lambda w: w.layers[1].update(first_norm=np.ones(64)), "input_layernorm of block 1: float64"),
        (lambda w: w.layers[1].update(first_norm=np.ones(128, np.float32)[::2]), "input_layernorm of block 1"),
        (lambda w: w.layers[1].update(query_norm=np.ones(16, np.float32)), "parts of block 1"),
        (lambda w: w.layers[1].update(up=(w.layers[1]["up"][0], np.ones(64, np.float32))), "bias of mlp.up_proj"),
        (lambda w: setattr(w, "head", w.head._replace(data=w.head.data[:-1])), "bytes of the head"),
        (lambda w: setattr(w, "embedding", w.embedding._replace(bits=17)), "17 bits"),
        (lambda w: setattr(w, "head", w.head._replace(rows=300)), r"the head: \[300, 64\]"),
        (lambda w: setattr(w, "rotations", [w.rotations[0]._replace(frequencies=np.ones(4, np.float32))]), "frequenc"),
        (lambda w: setattr(w, "norm", w.norm[:32]), "the final norm"),
    ],
)
def test_no_array_of_another_size_reaches_the_kernels(change, message, folder):
    weights = runtime.load(folder)
    change(weights)
    with pytest.raises(ValueError, match=message):
        engine.Native(weights)


def test_models_with_numbers_that_are_none_are_not_packed():
    model = tiny.llama()
    model.model.layers[2].mlp.up_proj.weight.data[3, 5] = torch.nan
    with pytest.raises(ValueError, match=r"layers\.2\.mlp\.up_proj\.weight .*NaN"):
        runtime.pack_(model)
    assert "PackedLinear" not in str(model)


def test_hooks_and_other_classes_are_refused():
    model = tiny.llama()
    model.model.layers[1].mlp.register_forward_hook(lambda *given: None)
    with pytest.raises(ValueError, match=r"a hook on model\.layers\.1\.mlp"):
        runtime.Session(runtime.pack_(model))

    class Other(type(tiny.llama())):
        pass

    model = tiny.llama()
    model.__class__ = Other
    with pytest.raises(ValueError, match="class of its own, not LlamaForCausalLM"):
        runtime.Session(runtime.pack_(model))
