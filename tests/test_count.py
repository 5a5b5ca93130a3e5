"""Counts against the files themselves, torch's own counter of operations, and numbers worked out by hand."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from lib.metrics import count
from lib.models import blocks
from lib.quantizers import rtn
from tests import tiny


def test_parameters_count_tied_tensors_once():
    tied, untied = tiny.llama(), tiny.llama(tie_word_embeddings=False)
    assert count.parameters(untied) - count.parameters(tied) == 256 * 64
    assert count.parameters(tied) == sum({p.data_ptr(): p.numel() for p in tied.parameters()}.values())


@pytest.mark.parametrize("build", [tiny.llama, tiny.qwen2])
def test_parameters_do_not_change_by_quantizing(build):
    model = build()
    parameters, read = count.parameters(model), count.bytes_per_token(model)
    rtn.quantize_(model, bits=4, group_size=32)
    assert sum(parameter.numel() for parameter in model.parameters()) < parameters
    assert count.parameters(model) == parameters
    assert count.bytes_per_token(model) == read  # the dequantized matrices are what is read


def test_ledger_accounts_for_every_byte(tmp_path):
    tiny.save(tmp_path, tiny.qwen2())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("about")
    table = count.ledger(tmp_path)
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    sizes = {path.relative_to(tmp_path).as_posix(): path.stat().st_size for path in paths}
    assert table.groupby("file").bytes.sum().to_dict() == sizes
    kinds = table.set_index("name").kind.to_dict()
    assert kinds["model.embed_tokens.weight"] == "embedding"
    assert kinds["model.layers.0.input_layernorm.weight"] == kinds["model.norm.weight"] == "norm"
    assert kinds["model.layers.0.self_attn.q_proj.weight"] == "linear"
    assert kinds["model.layers.0.self_attn.q_proj.bias"] == "bias"
    assert kinds["config.json"] == "config" and kinds["tokenizer.json"] == "tokenizer"
    assert kinds["notes/README.md"] == "document" and kinds["(header)"] == "header"


def test_ledger_knows_the_parts_of_a_quantized_layer(tmp_path):
    name = "model.layers.0.mlp.up_proj"
    tensors = {
        f"{name}.weight_packed": torch.zeros(8, 2, dtype=torch.int32),
        f"{name}.weight_scale": torch.ones(8, 1, dtype=torch.bfloat16),
        f"{name}.weight_zero_point": torch.zeros(1, 1, dtype=torch.int32),
        f"{name}.weight_shape": torch.tensor([8, 16]),
        f"{name}.weight_g_idx": torch.zeros(16, dtype=torch.int32),
        "lm_head.weight": torch.zeros(4, 4),
        "model.final_layernorm.bias": torch.zeros(4),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    table = count.ledger(tmp_path)
    assert table.bytes.sum() == (tmp_path / "model.safetensors").stat().st_size
    found = table.groupby("kind").bytes.sum().to_dict()
    header = found.pop("header")
    assert header > 8
    assert found == {"codes": 64, "scale": 16, "zero_point": 4, "shape": 16, "order": 64, "head": 64, "norm": 16}


def test_artifact_leaves_out_tokenizer_and_papers_only(tmp_path):
    tiny.save(tmp_path)
    shipped = count.artifact_bytes(tmp_path)
    for name in ("README.md", "LICENSE", "manifest.json", "vocab.json", "chat_template.jinja"):
        (tmp_path / name).write_text("x" * 1000)
    assert count.artifact_bytes(tmp_path) == shipped
    for name in ("model.gguf", "scales.dat", "adapter.bin", "model.safetensors.index.json"):
        (tmp_path / name).write_text("x" * 1000)
    assert count.artifact_bytes(tmp_path) == shipped + 4000
    parts = ("model.safetensors", "config.json", "generation_config.json")
    assert shipped == sum((tmp_path / name).stat().st_size for name in parts)


def test_bits_per_weight(tmp_path):
    model = tiny.llama()
    tiny.save(tmp_path, model)
    bits = count.bits_per_weight(tmp_path, model)
    assert bits == 8 * count.artifact_bytes(tmp_path) / count.parameters(model)
    assert bits > 32  # float32 weights, a header and a configuration
    assert count.bits_per_weight(tmp_path, count.parameters(model)) == bits


def test_measure_gathers_the_counts(tmp_path):
    model = tiny.llama()
    tiny.save(tmp_path, model)
    scores = count.measure(model, tmp_path)
    assert scores["parameters"].value == count.parameters(model)
    assert scores["artifact_bytes"].value == count.artifact_bytes(tmp_path)
    assert scores["bits_per_weight"].unit == "bits" and scores["flops_per_token"].stderr == 0


@pytest.mark.parametrize("build", [tiny.llama, tiny.qwen3, tiny.phi, tiny.gemma2])
def test_flops_equal_torchs_counter(build):
    model, length = build(attn_implementation="eager"), 12
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(length)[None])
    assert count.flops_per_token(model, context=length) * length == counter.get_total_flops()


def test_flops_without_context_leave_attention_out():
    model = tiny.llama()
    weights = sum(part.weight.numel() for part in blocks.linears(model).values())
    assert count.flops_per_token(model) == 2 * weights
    assert count.flops_per_token(model, 10) - count.flops_per_token(model) == 4 * (4 * 10 * 64)


def test_sliding_windows_bound_the_attention():
    model = tiny.mistral(sliding_window=8)
    model.config.layer_types = ["sliding_attention", "full_attention"] * 2
    attention = count.flops_per_token(model, 100) - count.flops_per_token(model)
    assert attention == 4 * 64 * (8 + 100 + 8 + 100)


def test_bytes_per_token_by_hand():
    tied, untied = tiny.llama().bfloat16(), tiny.llama(tie_word_embeddings=False).bfloat16()
    assert count.bytes_per_token(tied) == 2 * count.parameters(tied)
    assert count.bytes_per_token(untied) - count.bytes_per_token(tied) == 2 * 64  # one more row
    cache = count.bytes_per_token(tied, context=10) - count.bytes_per_token(tied)
    assert cache == 2 * 4 * 10 * 2 * 16 * 2  # keys and values, blocks, positions, heads, sizes, bytes


def test_falcon_shares_one_key_between_all_queries():
    import transformers

    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.FalconForCausalLM(transformers.FalconConfig(**sizes, multi_query=True))
    assert count.bytes_per_token(model, 10) - count.bytes_per_token(model) == 2 * 2 * 10 * 8 * 4


def test_a_file_cut_short_is_refused(tmp_path):
    tiny.save(tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    for kept in (content[:-1], content[:100], content[:3], struct.pack("<Q", 2**40) + content[8:]):
        path.write_bytes(kept)
        with pytest.raises(ValueError, match=r"cut short.*copy it again"):
            count.ledger(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no files"):
        count.ledger(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="0 weights"):
        count.bits_per_weight(tmp_path, 0)
