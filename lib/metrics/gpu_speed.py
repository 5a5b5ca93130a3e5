"""Time of a packed matrix product on a GPU, beside the library's own product in bfloat16."""

from dataclasses import replace

import torch
from torch import Tensor

from lib.metrics import speed
from lib.quantized.grid import Quantized
from lib.runtime import gpu
from lib.runtime.pack import PLAIN, pack


def measure(
    shapes: list[tuple[int, int]],
    bits: tuple[int, ...] = (2, 3, 4, 8, PLAIN),
    *,
    batch: int = 1,
    rounds: int = 5,
    calls: int = 100,
    device: str | torch.device = "cuda",
) -> dict:
    """{((rows, columns), bits): Score, the seconds of one product} for `batch` rows of x in bfloat16, random weights.

    Groups are of 64 columns; 16 bits stand for the library's product with weights in bfloat16. A round is `calls`
    products between two readings of the clock, which wait for the device; medians over `rounds`. Matrices that fit
    the device's cache are read from there: only larger ones can be compared with the bandwidth of its memory.
    """

    found = {}
    for shape in shapes:
        x = torch.randn(batch, shape[1], device=device, dtype=torch.bfloat16)
        for width in bits:
            whole = speed.seconds(_repeat, _timed(shape, width, x), calls, rounds=rounds)
            error = None if whole.stderr is None else whole.stderr / calls
            found[shape, width] = replace(whole, value=whole.value / calls, stderr=error)
    return found


def _timed(shape: tuple[int, int], bits: int, x: Tensor):
    """A function without arguments that multiplies x with a random matrix of `shape`, and nothing else."""
    if bits == PLAIN:
        weight = torch.randn(*shape, device=x.device, dtype=x.dtype)
        return lambda: torch.nn.functional.linear(x, weight)
    codes = torch.randint(2**bits, shape, dtype=torch.uint8)
    scale = torch.ones(shape[0], -(-shape[1] // 64), dtype=torch.bfloat16)
    matrix = gpu.load(pack(Quantized(codes, scale, None, bits, min(64, shape[1]))), x.device)
    return lambda: gpu.product(matrix, x)


def _repeat(function, calls: int) -> None:
    for _ in range(calls):
        function()
