"""The weights with which training begins.

Every matrix that reads the stream, and the embedding, has the deviation √(2 / (5 hidden size)) (Nguyen and Salazar,
"Transformers without Tears", arXiv 1910.05895, section 2.2, as GPT-NeoX has it), so that the size of what it answers
does not depend on the width. Those that add to the stream are divided by the root of the number of additions, two a
block (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.3), so that the stream's
size does not depend on the depth. From 2 to 16 blocks and over a threefold width the stream behind the last block
stays within a factor of 1.5, and the gradients of a model's blocks within one of 8 of each other (tested).
Norms are ones, biases zeros; what a variant adds, `start_` of its attention sets.

Each weight is drawn from a generator of its own, which seed and name decide: an added part shifts no later draw, and
models of one seed begin with the same values wherever they share a part.
"""

import hashlib
import math

import torch
from torch import nn

from lib.models import blocks

ADDING = ("o_proj.weight", "down_proj.weight")  # matrices whose products are added to the stream


def deviation(config) -> float:
    """Standard deviation of a matrix that reads the stream."""
    return math.sqrt(2 / (5 * config.hidden_size))


def generator(seed: int, name: str) -> torch.Generator:
    """The generator of the weight `name` in all models of `seed`."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@torch.no_grad()
def start_(model: nn.Module, seed: int) -> nn.Module:
    """Initialise all weights of `model` for a training with `seed`, in place; returns it."""
    config, names = blocks.config(model), {id(each): name for name, each in model.named_parameters()}

    def draw(parameter: nn.Parameter, size: float) -> None:
        drawn = torch.randn(parameter.shape, generator=generator(seed, names[id(parameter)]))
        parameter.copy_(drawn * size)

    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            added = math.sqrt(2 * config.num_hidden_layers) if name.endswith(ADDING) else 1.0
            draw(parameter, deviation(config) / added)
    for module in model.modules():
        if hasattr(module, "start_"):
            module.start_(draw)
    return model
