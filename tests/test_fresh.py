"""Systems in processes of their own: what is timed, in which order, and what a system that fails says."""

import pytest
import torch

from lib import runtime
from lib.export import compressed_tensors
from lib.metrics import fresh, speed, speed_process
from tests import packed, tiny


def test_systems_are_run_in_turns_and_compared_within_rounds(monkeypatch):
    order, found = [], {"ttft": 0.5, "prefill": 100.0, "peak": 7, "read": 5}

    def once(name, each, common, timeout):
        order.append(name)
        assert len(common["tokens"]) == 32 and max(common["tokens"]) < 50
        return found | {"tpot": {"a": 0.1, "b": 0.02}[name] * len(order)}

    monkeypatch.setattr(fresh, "_once", once)
    systems = {"a": fresh.System("transformers", "x"), "b": fresh.System("packed", "y")}
    measured, peaks, read = fresh.measure(systems, prompt=8, prefill=32, rounds=3, vocabulary=50)
    assert order == ["a", "b"] * 3 and peaks["a"].value == 7 and read == {"a": 5, "b": 5}
    assert measured.samples["a"]["decode"] == pytest.approx([10, 10 / 3, 2])
    ratios = sorted(5 * a / (a + 1) for a in (1, 3, 5))
    assert speed.ratio(measured, "b", "a").value == pytest.approx(ratios[1])


def test_a_packed_folder_and_a_model_run_for_real(tmp_path):
    model = packed.quantize_(tiny.llama(), lambda name: (4, 32, False), dtype=torch.bfloat16)
    compressed_tensors.save(model, model.tokenizer, tmp_path / "saved")
    systems = {"ours": fresh.System("packed", tmp_path / "saved")}
    measured, peaks, read = fresh.measure(systems, prompt=8, prefill=16, new_tokens=4, rounds=1, vocabulary=256)
    assert measured["ours"]["decode"].value > 0 and peaks["ours"].value > 1e6
    assert read["ours"] == runtime.load(tmp_path / "saved").bytes_per_token(8 + 2)
    run, read = speed_process.transformers({"model": str(tmp_path / "saved")})
    assert (
        read(3) - read(0)
        == 3 * 4 * model.config.num_hidden_layers * model.config.num_key_value_heads * model.config.head_dim
    )
    assert all(seconds > 0 for seconds in run([1, 2, 3], 3))


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"kind 'paked'; .*did you mean 'packed'"):
        fresh.measure({"a": fresh.System("paked", "x")})
    with pytest.raises(ValueError, match="prompt=64, prefill=32"):
        fresh.measure({"a": fresh.System("packed", "x")}, prompt=64, prefill=32)
    with pytest.raises(RuntimeError, match=r"system 'a' ended with 1(.|\n)*Error"):
        fresh.measure({"a": fresh.System("packed", tmp_path / "absent")}, rounds=1)


def test_a_gguf_file_is_read_whole_with_its_keys_and_values(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(1000))
    told = {"block_count": "3", "embedding_length": "64", "attention.head_count": "4", "attention.head_count_kv": "2"}
    told = {"general.architecture": "llama"} | {f"llama.{name}": value for name, value in told.items()}
    assert speed_process._gguf_bytes(path, told, 10) == 1000 + 10 * 3 * 2 * 16 * 2 * 2  # keys and values of 2 bytes
