"""Memory and throughput by the protocol of the Edge-Device LLM Competition (NeurIPS 2024): whole forward passes.

The protocol runs the model on one input of 2000 tokens again and again, logits of all positions and the cache
included, and reports inferences per second and the highest memory. Its published script reads the clock before the
device has finished and never resets the peak, so that loading the model counts; here the device is waited for, the
peak is reset before each system, systems take turns, and the median replaces the mean. `metrics.speed` measures
generation: time to the first token, and per further token.
"""

import numpy as np
import torch
from torch import nn

from lib.metrics import memory, speed
from lib.metrics.score import Score, bootstrap, exact
from lib.models import blocks
from lib.models.logits import device, evaluating

LENGTH = 2000  # tokens of an input


def measure(
    systems: dict[str, nn.Module], *, length: int = LENGTH, batch: int = 1, rounds: int = 5, seed: int = 0
) -> dict[str, dict[str, Score]]:
    """{system: {"throughput": inferences/s, "memory": bytes}} for models that take turns, each `rounds` times.

    An inference is one pass over `batch` inputs of `length` random tokens, the same for all systems. throughput: median
    with the bootstrap's error. memory: the model's own tensors and the most that a pass adds to what was in use, so
    that several systems in one process, which may share weights, don't count each other.
    Raises ValueError for no systems, counts below 1, and inputs longer than a model's context.
    """
    tokens = _inputs(systems, length=length, batch=batch, rounds=rounds, seed=seed)
    used = {system: peak(model, tokens) for system, model in systems.items()}
    taken: dict[str, list[float]] = {system: [] for system in systems}
    for _ in range(rounds):
        for system, model in systems.items():
            taken[system].append(speed.seconds(forward, model, tokens, rounds=1, warmups=0).value)
    found = {}
    for system, seconds in taken.items():
        rates = [batch / each for each in seconds]
        rate = Score(np.median(rates), bootstrap(rates, np.median), rounds, "inferences/s", True)
        found[system] = {"throughput": rate, "memory": used[system]}
    return found


def forward(model: nn.Module, tokens: torch.Tensor) -> None:
    """One whole pass over [batch, length]: logits of all positions, and a cache of keys and values."""
    with evaluating(model):
        model(input_ids=tokens.to(device(model)))


def peak(model: nn.Module, tokens: torch.Tensor) -> Score:
    """Bytes of the model's tensors, and the most that a pass over `tokens` [batch, length] adds; after a warm-up."""
    forward(model, tokens)
    _, used = memory.call(forward, model, tokens, device=str(device(model)))
    return exact(held(model) + used.increase.value, "bytes", higher_is_better=False)


def held(model: nn.Module) -> int:
    """Bytes of the model's parameters and buffers, shared ones counted once."""
    return sum({id(part): part.nbytes for part in (*model.parameters(), *model.buffers())}.values())


def _inputs(systems: dict[str, nn.Module], *, length: int, batch: int, rounds: int, seed: int) -> torch.Tensor:
    """Random token ids [batch, length] that every system knows, after all arguments have been checked."""
    if not systems:
        raise ValueError("no systems to measure; give at least one model, such as {'original': model}.")
    for name, value in {"length": length, "batch": batch, "rounds": rounds}.items():
        if value < 1:
            raise ValueError(f"{name}={value}; choose a whole number from 1.")
    for system, model in systems.items():
        context = getattr(blocks.config(model), "max_position_embeddings", None) or length
        if length > context:
            raise ValueError(
                f"length={length} and {system!r} reads at most {context} tokens; choose at most {context}."
            )
    vocabulary = min(blocks.embeddings(model).num_embeddings for model in systems.values())
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))
