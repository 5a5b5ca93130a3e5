"""Throughput by the competition's protocol, with a clock of our own; memory against what the tensors take."""

import gc

import pytest
import torch

from lib import timing
from lib.metrics import memory, throughput
from lib.pruners.drop import drop_blocks_, without
from tests import tiny


@pytest.fixture(autouse=True)
def uncollected(monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: 0)  # before each pass, of all that the tests have loaded


@pytest.fixture
def clock(monkeypatch):
    """A clock that only forward passes move: by 10 ms for each block of the model that runs."""
    now = [0.0]
    monkeypatch.setattr(timing, "clock", lambda: now[0])

    def tick(model, seconds=0.01):
        for block in model.model.layers:
            block.register_forward_hook(lambda *_: now.__setitem__(0, now[0] + seconds))
        return model

    return tick


def test_inferences_per_second_are_whole_passes_over_all_blocks(clock):
    model = clock(tiny.llama())
    found = throughput.measure({"whole": model, "half": without(model, [1, 2])}, length=40, rounds=3)
    assert found["whole"]["throughput"].value == pytest.approx(1 / 0.04)
    assert found["half"]["throughput"].value == pytest.approx(1 / 0.02)
    assert found["whole"]["throughput"].n == 3 and found["whole"]["throughput"].higher_is_better
    batch = throughput.measure({"whole": model}, length=40, batch=4, rounds=1)["whole"]["throughput"]
    assert batch.value == pytest.approx(4 / 0.04) and batch.unit == "inferences/s"


def test_systems_take_turns_on_the_same_inputs(monkeypatch):
    seen = []
    monkeypatch.setattr(throughput, "forward", lambda model, tokens: seen.append((model, tokens)))
    one, two = tiny.llama(), tiny.qwen2()
    throughput.measure({"one": one, "two": two}, length=16, rounds=2)
    assert [model for model, _ in seen] == [one, one, two, two, one, two, one, two]  # warm-up and peak, then rounds
    assert all(torch.equal(tokens, seen[0][1]) and tokens.shape == (1, 16) for _, tokens in seen)


def test_a_pass_computes_the_logits_of_all_positions_and_a_cache():
    model, seen = tiny.llama(), []
    model.register_forward_hook(lambda _, args, output: seen.append(output))
    throughput.forward(model.train(), tiny.tokens(2, 12))
    assert seen[0].logits.shape == (2, 12, 256) and seen[0].past_key_values.get_seq_length() == 12
    assert not seen[0].logits.requires_grad and model.training


def test_memory_is_the_models_tensors_and_what_a_pass_adds(monkeypatch):
    model = tiny.llama()
    weights = sum(parameter.nbytes for parameter in model.parameters())  # tied weights come once
    assert throughput.held(model) == weights + sum(buffer.nbytes for buffer in model.buffers())
    block = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    whole = throughput.held(model)
    assert throughput.held(drop_blocks_(model, [0, 2])) == whole - 2 * block

    def call(function, *args, device):
        function(*args)
        return None, memory.Peak("invented", 1000, 5000)

    monkeypatch.setattr(memory, "call", call)
    assert throughput.peak(model, tiny.tokens()).value == throughput.held(model) + 4000


def test_the_peak_of_a_real_pass_holds_its_logits():
    model = tiny.llama(vocab_size=32_000)
    used = throughput.peak(model, torch.zeros(1, 400, dtype=torch.long)).value
    assert used - throughput.held(model) > 0.9 * 400 * 32_000 * 4  # float32 logits of all positions


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"length": 0}, "length=0; choose a whole number from 1"),
        ({"rounds": 0}, "rounds=0"),
        ({"batch": 0}, "batch=0"),
        ({"length": 513}, "length=513 and 'whole' reads at most 512 tokens; choose at most 512"),
    ],
)
def test_wrong_arguments_are_refused(options, problem):
    with pytest.raises(ValueError, match=problem):
        throughput.measure({"whole": tiny.llama()}, **options)


def test_no_arms_are_refused():
    with pytest.raises(ValueError, match="no systems to measure"):
        throughput.measure({})
