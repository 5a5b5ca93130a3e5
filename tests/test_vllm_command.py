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
    "change,given,said",
    [
        (lambda c: c.update(num_attention_heads=9, num_key_value_heads=3), {"parallel": 2}, "9 heads and 3 key heads"),
        (lambda c: one_group(c)["weights"].update(num_bits=3), {"device": "gpu"}, "3 bits; .* on a GPU read 4 and 8"),
        (lambda c: one_group(c)["weights"].update(num_bits=8), {}, "8 bits; .* on a CPU read 4"),
        (lambda c: one_group(c).update(targets=["Embedding"]), {}, "a quantized embedding"),
        (lambda c: c["quantization_config"].update(format="dense"), {}, "format 'dense'"),
        (lambda c: one_group(c)["weights"].update(group_size=32), {"parallel": 4}, "32, which 4 devices cannot share"),
        (lambda c: one_group(c)["weights"].update(group_size=16), {"parallel": 4}, "are 16 on each of 4 devices"),
        (lambda c: None, {"dtype": "float32"}, "compute in bfloat16 and float16"),
        (lambda c: None, {"dtype": "float64"}, "dtype='float64'"),
        (lambda c: None, {"device": "tpu"}, "device='tpu'"),
        (lambda c: None, {"parallel": 0}, "parallel=0"),
    ],
)
def test_what_it_cannot_run_is_named(folder, monkeypatch, change, given, said):
    changed(folder, monkeypatch, change)
    with pytest.raises(ValueError, match=said):
        vllm.check(folder, **given)


def test_wider_kernels_of_a_gpu_and_plain_weights_are_not_refused(folder, monkeypatch):
    changed(folder, monkeypatch, lambda c: one_group(c)["weights"].update(group_size=16))
    assert vllm.check(folder, parallel=4, device="gpu")
    changed(folder, monkeypatch, lambda c: c.pop("quantization_config"))
    assert "float32" in vllm.command(folder, parallel=4, dtype="float32")[1]
