"""What was learned gets into the model in each of its ways, is saved, and is the same in another process."""

import subprocess
import sys

import pytest
import torch

from lib.export import compressed_tensors, plain
from lib.finetuning import adapter_folder, low_rank_folder, merging, ways
from lib.metrics import count
from lib.models import blocks
from lib.quantized import low_rank_linear
from lib.quantized.linear import QuantLinear
from lib.quantizers import rtn
from lib.sources import models
from lib.trainers import loop, low_rank, next_token
from tests import tiny
from tests.test_finetuning_ways import quantized, same, snapshot

TOKENS = tiny.tokens(4, 24)
KINDS = {"lora": None, "dora": None, "qlora": 4}
READ = """
import sys, torch
sys.path.insert(0, {root!r})
from lib.sources import models
from lib.finetuning import low_rank_folder
from safetensors.torch import save_file
load = low_rank_folder.load if low_rank_folder.is_folder({folder!r}) else models.load
model, _ = load({folder!r})
tokens = torch.randint(256, (4, 24), generator=torch.Generator().manual_seed(0))
save_file({{"logits": model(input_ids=tokens).logits.detach()}}, {answer!r})
"""


def tuned(way="qlora", bits=4, steps=6, **options):
    """(model as it was, adapters, the logits of the two together)."""
    model = tiny.llama() if bits is None else quantized(bits)
    with ways.trained_(model, way, rank=4, **options) as adapters:
        loop.train_(model, TOKENS, next_token.loss, steps=steps, learning_rate=1e-2, batch=2)
        logits = model(input_ids=TOKENS).logits.detach()
    return model, adapters, logits


@pytest.mark.parametrize("way", KINDS)
def test_merged_into_16_bits_it_answers_as_it_did_with_the_adapters(way):
    model, adapters, logits = tuned(way, KINDS[way])
    before = model(input_ids=TOKENS).logits
    merging.into_16_bits_(model, adapters)
    torch.testing.assert_close(model(input_ids=TOKENS).logits, logits, rtol=1e-4, atol=1e-4)
    assert (logits - before).abs().max() > 0.1 and not any(isinstance(each, QuantLinear) for each in model.modules())
    with pytest.raises(ValueError, match=r"were made for LlamaForCausalLM .* has other (weights|layers)"):
        merging.into_16_bits_(model, adapters)  # twice


@pytest.mark.parametrize("levels", ["integer", "half"])
def test_back_in_low_bits_the_model_stays_on_its_grid_at_its_size(levels, tmp_path):
    model = tiny.llama()
    rtn.quantize_(model, bits=4, group_size=32, levels=levels)
    compressed_tensors.save(model, model.tokenizer, tmp_path / "before")
    with ways.trained_(model, "qlora", rank=4, first=1) as adapters:
        loop.train_(model, TOKENS, next_token.loss, steps=20, learning_rate=1e-2, batch=2)
        logits = model(input_ids=TOKENS).logits.detach()
    start = model(input_ids=TOKENS).logits.detach()
    merging.into_low_bits_(model, adapters, TOKENS, method="gptq")
    grid = merging.grid_of(model)
    assert grid == {"bits": 4, "group_size": 32} | ({"levels": "half"} if levels == "half" else {})
    compressed_tensors.save(model, model.tokenizer, tmp_path / "after")
    assert count.artifact_bytes(tmp_path / "after") == count.artifact_bytes(tmp_path / "before")
    found = model(input_ids=TOKENS).logits
    assert (found - logits).norm() < 0.8 * (start - logits).norm()  # most of what was learned survives


def test_beside_the_codes_nothing_is_lost_and_its_bytes_are_counted(tmp_path):
    for kind in ("qlora", "dora"):
        model, adapters, logits = tuned(kind)
        codes = [part.codes for part in model.modules() if isinstance(part, QuantLinear)]
        start = model(input_ids=TOKENS).logits.detach()
        merging.beside_(model, adapters)
        after = [part.codes for part in model.modules() if isinstance(part, QuantLinear)]
        assert all(one is other for one, other in zip(codes, after))
        found = model(input_ids=TOKENS).logits
        assert (found - logits).norm() < 0.05 * (start - logits).norm()
        part = model.get_submodule("model.layers.0.mlp.up_proj")
        assert part.nbytes == 4 * 64 + 4 * 2 + 128 * 4 + 128 * 2 + (128 * 2 if kind == "dora" else 0)
        inputs = torch.randn(2, 64)
        torch.testing.assert_close(part(inputs), inputs @ part.weight.T, rtol=1e-4, atol=1e-4)
    whole = low_rank_folder.save(model, model.tokenizer, tmp_path / "whole")
    added = sum(each.nbytes for each in low_rank_linear.layers(model).values())
    bare = count.artifact_bytes(whole / "model")
    assert added <= count.artifact_bytes(whole) - bare <= added + 40_000  # and the header's names
    with pytest.raises(ValueError, match=r"load both with finetuning\.low_rank_folder\.load"):
        models.load(whole)
    with pytest.raises(ValueError, match="no low-rank part"):
        low_rank_folder.save(tiny.llama(), tiny.tokenizer(), tmp_path / "other")
    model.bfloat16()
    assert model.get_submodule("model.layers.0.mlp.up_proj").a_scale.dtype == torch.bfloat16


def test_a_full_disk_costs_neither_the_model_nor_what_was_there(tmp_path, monkeypatch):
    model, adapters, _ = tuned(steps=2)
    kept = [adapter_folder.save(adapters, tmp_path / "adapter")]
    merging.beside_(model, adapters)
    kept.append(low_rank_folder.save(model, model.tokenizer, tmp_path / "whole"))
    before, logits = [sorted(each.rglob("*")) for each in kept], model(input_ids=TOKENS).logits
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    for save in (lambda: adapter_folder.save(adapters, kept[0]), lambda: low_rank_folder.save(model, None, kept[1])):
        with pytest.raises(OSError, match="its disk has 0 MB free"):
            save()
    assert [sorted(each.rglob("*")) for each in kept] == before and len(list(tmp_path.iterdir())) == 2
    assert torch.equal(model(input_ids=TOKENS).logits, logits) and low_rank_linear.layers(model)


SAVES = {
    "16 bits": (lambda m, a: merging.into_16_bits_(m, a), plain.save),
    "low bits": (lambda m, a: merging.into_low_bits_(m, a, TOKENS, method="gptq"), compressed_tensors.save),
    "beside": (lambda m, a: merging.beside_(m, a), low_rank_folder.save),
}


@pytest.mark.long
def test_saved_and_read_in_another_process_the_logits_are_equal(tmp_path, warm):
    for name, (merge_, save) in SAVES.items():
        model, adapters, _ = tuned(steps=2)
        merge_(model, adapters)
        folder, answer = tmp_path / f"{name} é", tmp_path / "answer.safetensors"
        save(model, model.tokenizer, folder)
        code = READ.format(root=str(plain.__file__).rpartition("/lib/")[0], folder=str(folder), answer=str(answer))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert not done.returncode, done.stderr
        from safetensors.torch import load_file

        assert torch.equal(load_file(answer)["logits"], model(input_ids=TOKENS).logits), name


def test_an_adapter_folder_is_read_by_peft_and_refused_for_another_model(tmp_path):
    from peft import PeftModel

    for way, bits in (("lora", None), ("dora", None), ("rslora", None), ("qlora", 4)):
        model, adapters, logits = tuned(way, bits, steps=2)
        folder = adapter_folder.save(adapters, tmp_path / way)
        found = adapter_folder.load(folder, model)
        assert (found.kind, found.rank, found.alpha, found.base) == (adapters.kind, 4, 8, adapters.base)
        for name, part in adapters.parts.items():
            assert all(
                torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
                for one, other in zip(part, found.parts[name])
            )
        if bits is None:
            wrapped = PeftModel.from_pretrained(tiny.llama(), folder)
            torch.testing.assert_close(wrapped(input_ids=TOKENS).logits, logits)
        other = tiny.llama(seed=1) if bits is None else quantized(bits, seed=1)
        other.name_or_path = "another"
        with pytest.raises(ValueError, match=r"made for LlamaForCausalLM \(SHA-256 \w+\), and another \(SHA"):
            adapter_folder.load(folder, other)
        assert adapter_folder.load(folder, model.bfloat16()).parts  # another type is the same model


def test_loading_with_an_adapter_of_ours_checks_which_model_it_was_made_for(tmp_path):
    for seed in (0, 1):
        tiny.save(tmp_path / f"model {seed}", tiny.llama(seed=seed))
    model, _ = models.load(tmp_path / "model 0")
    with ways.trained_(model, "lora", rank=4) as adapters:
        loop.train_(model, TOKENS, next_token.loss, steps=2, learning_rate=1e-2, batch=2)
    folder = adapter_folder.save(adapters, tmp_path / "adapter")
    merged, _ = models.load(folder, adapter="merge", dtype="float32")
    wanted = merging.into_16_bits_(model, adapters)(input_ids=TOKENS).logits
    torch.testing.assert_close(merged(input_ids=TOKENS).logits, wanted, rtol=1e-4, atol=1e-4)
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "model 0" / name).write_bytes((tmp_path / "model 1" / name).read_bytes())
    with pytest.raises(ValueError, match=r"was made for .*model 0 \(SHA-256 \w+\), and .*model 0 has SHA-256"):
        models.load(folder, adapter="merge")


def test_what_can_not_be_merged_is_refused_and_nothing_is_changed(tmp_path):
    model, adapters, _ = tuned(steps=2)
    before = snapshot(model)
    name, part = next(iter(adapters.parts.items()))
    adapters.parts[name] = part._replace(b=torch.full_like(part.b, float("nan")))
    for merge_ in (merging.into_16_bits_, lambda m, a: merging.into_low_bits_(m, a, TOKENS), merging.beside_):
        with pytest.raises(ValueError, match=f"adapter of {name} holds NaN"):
            merge_(model, adapters)
    adapters.parts[name] = part
    with pytest.raises(ValueError, match="'gpqt' is unknown"):
        merging.into_low_bits_(model, adapters, TOKENS, method="gpqt")
    empty = low_rank.Adapters("lora", 4, 8, adapters.base)
    for refused in (lambda: merging.beside_(model, empty), lambda: adapter_folder.save(empty, tmp_path / "x")):
        with pytest.raises(ValueError, match="empty until the context"):
            refused()
    assert same(snapshot(model), before)
    mixed = quantized(4)
    other = quantized(2).get_submodule("model.layers.0.mlp.up_proj")
    mixed.set_submodule("model.layers.0.mlp.up_proj", other)
    with pytest.raises(ValueError, match="28 of 28 layers are quantized, on 2 kinds of grids"):
        merging.grid_of(mixed)
    with pytest.raises(ValueError, match="0 of 28 layers"):
        merging.grid_of(tiny.llama())
    (tmp_path / "adapter").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config\.json"):
        adapter_folder.load(tmp_path / "adapter")
    assert blocks.linears(model)
