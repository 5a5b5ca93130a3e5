"""What vLLM can run is known before it is started."""

import json

import pytest

from lib.export import compressed_tensors
from lib.serving import vllm
from tests import packed, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("models") / "my model"
    model = packed.quantize_(tiny.llama(num_attention_heads=4, num_key_value_heads=2))
    return compressed_tensors.save(model, model.tokenizer, made)


def changed(folder, monkeypatch, change):
    """`check` with another configuration."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    monkeypatch.setattr("lib.checkpoints.checkpoint", lambda folder: config)


def test_the_command_serves_the_folder(folder, capsys):
    environment, told = vllm.command(folder, parallel=2, port=9000)
    assert told[:5] == ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert told[told.index("--tensor-parallel-size") + 1] == "2" and "512" in told
    environment, told = vllm.command(folder, device="gpu", dtype="float16")
    assert environment == {} and told[:3] == ["vllm", "serve", str(folder)] and "float16" in told
    assert vllm.main([str(folder)]) == 0 and f"'{folder}'" in capsys.readouterr().out
    assert vllm.main([str(folder / "none")]) == 2 and vllm.main([str(folder), "--parallel", "3"]) == 2
    assert "4 heads and 2 key heads cannot be split over 3 devices; 1, 2, 4" in capsys.readouterr().err


def one_group(config):
    (group,) = config["quantization_config"]["config_groups"].values()
    return group


@pytest.mark.parametrize(
    "change,parallel,said",
    [
        (lambda c: c.update(num_attention_heads=9, num_key_value_heads=3), 2, "9 heads and 3 key heads"),
        (lambda c: one_group(c)["weights"].update(num_bits=3), 1, "weights of 3 bits"),
        (lambda c: one_group(c).update(targets=["Embedding"]), 1, "a quantized embedding"),
        (lambda c: c["quantization_config"].update(format="dense"), 1, "format 'dense'"),
        (lambda c: one_group(c)["weights"].update(group_size=32), 4, "groups of 32, which 4 devices cannot share"),
        (lambda c: None, 0, "parallel=0"),
    ],
)
def test_what_it_cannot_run_is_named(folder, monkeypatch, change, parallel, said):
    changed(folder, monkeypatch, change)
    with pytest.raises(ValueError, match=said):
        vllm.check(folder, parallel=parallel)
