"""Systems of the comparison: known names, those that can run here, and ourselves in a process of our own."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lib import peers, quantizers
from lib.peers import environments, systems, thimble
from lib.quantizers import gptq
from tests import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("model"), tiny.llama().to(torch.bfloat16))


def test_every_arm_has_a_peer_and_settings_that_it_knows():
    for peer, settings in systems.SYSTEMS.values():
        module = peers.by_name(peer)
        assert environments._options(module, settings).keys() == module.OPTIONS.keys()
        if hasattr(module, "check"):
            module.check(bits=4, options=environments._options(module, settings))


def test_systems_that_are_not_installed_are_left_out_with_a_line_and_unknown_ones_refused(monkeypatch, capsys):
    monkeypatch.delenv("THIMBLE_PEERS", raising=False)
    assert systems.named("rtn; auto-round; gptq") == ["rtn", "gptq"]
    assert "left out: auto-round. THIMBLE_PEERS is not set" in capsys.readouterr().out
    with pytest.raises(ValueError, match="did you mean 'gptq'"):
        systems.named("rtn; gptk")


def test_our_own_arm_makes_what_the_quantizer_makes_in_this_process(checkpoint, tmp_path):
    tokens = tiny.tokens(3, 24)
    result = systems.quantize("gptq", checkpoint, tokens, minutes=1, bits=4, group_size=32, folder=tmp_path / "ours")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
    done = gptq.quantize_(model, tokens, bits=4, group_size=32)
    found = AutoModelForCausalLM.from_pretrained(result.folder, dtype="auto")
    for name, quantized in done.items():
        assert torch.equal(found.get_submodule(name).weight.float(), quantized.dense())
    assert result.seconds > 0 and result.packed_bytes > 0 and result.facts == {"embedding": False}


@pytest.mark.long
def test_the_recipe_takes_a_size_and_nothing_else_does(checkpoint, tmp_path):
    options = {"bits": 4, "group_size": 32, "folder": tmp_path / "small", "megabytes": 0.1, "minutes": 1.0}
    result = environments.quantize("thimble", checkpoint, tiny.tokens(3, 24), **options)
    assert result.packed_bytes <= 0.1e6 and result.facts["embedding"]
    with pytest.raises(ValueError, match="only the recipe takes a size"):
        thimble.check(bits=4, options=thimble.OPTIONS | {"method": "gptq", "megabytes": 1.0})


def test_without_minutes_nothing_is_learned_and_no_clock_decides(checkpoint, tmp_path):
    tokens = tiny.tokens(3, 24)
    options = {"bits": 3, "group_size": 32, "folder": tmp_path / "unlearned", "minutes": 0}
    result = environments.quantize("thimble", checkpoint, tokens, **options)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
    done = quantizers.best_(model, tokens, bits=3, group_size=32, steps=0)
    found = AutoModelForCausalLM.from_pretrained(result.folder, dtype="auto")
    for name, quantized in done.items():
        assert torch.equal(found.get_submodule(name).weight.float(), quantized.dense())
