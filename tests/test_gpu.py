"""The GPU kernels under Triton's interpreter, on the CPU, against the dequantized matrix in float64.

The interpreter is chosen when Triton is imported, so the comparison runs in a process of its own.
"""

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

COMPARE = """
import torch
from lib.quantized import grid
from lib.quantized.grid import Quantized
from lib.runtime import gpu, pack

generator = torch.Generator().manual_seed(0)


def quantized(rows, columns, bits, group_size, symmetric, levels):
    weight = torch.randn(rows, columns, generator=generator)
    scale, zero = grid.choose(weight, bits=bits, group_size=group_size, symmetric=symmetric, levels=levels)
    codes = grid.quantize(weight, scale, zero, bits=bits)
    return Quantized(codes, scale, zero, bits, columns if group_size == -1 else group_size, levels=levels)


def compare(shape, bits, group_size, symmetric, batches, levels="integer"):
    made = quantized(*shape, bits, group_size, symmetric, levels)
    matrix = gpu.load(pack.pack(made), "cpu")
    dense = made.dense()
    assert torch.equal(gpu.dequantize(matrix, torch.float32), dense), (shape, bits, group_size, symmetric)
    for batch in batches:
        x = torch.randn(batch, shape[1], generator=generator)
        expected = x.double() @ dense.double().T
        bound = 1e-5 * (x.double().abs() @ dense.double().abs().T) + 1e-4
        found = gpu.product(matrix, x)
        assert found.shape == expected.shape and found.dtype == x.dtype
        assert ((found - expected).abs() <= bound).all(), (shape, bits, group_size, symmetric, batch)
    return matrix


for bits in (2, 3, 4, 8):
    for symmetric in (False, True):
        compare((32, 128), bits, 64, symmetric, (1, 3))
    for levels in ("half", "balanced"):
        compare((32, 128), bits, 64, False, (1,), levels)
    compare((17, 96), bits, 32, False, (1, 2))       # rows that do not fill a tile
    compare((16, 80), bits, -1, False, (1,))         # one group a row, columns that do not fill a block
compare((16, 576), 4, 96, False, (1, 16))
compare((16, 64), 6, 64, False, (2,))                # stored as 8 bits
matrix = compare((16, 64), 3, 64, False, (17,))      # many rows: dequantized

x = torch.randn(2, 3, 64, generator=generator)
bias = torch.randn(16, generator=generator)
flat = gpu.product(matrix, x.reshape(6, 64))
torch.testing.assert_close(gpu.product(matrix, x, bias), flat.reshape(2, 3, 16) + bias)
torch.testing.assert_close(gpu.product(matrix, x.transpose(0, 1)), flat.reshape(2, 3, 16).transpose(0, 1))
half = gpu.product(matrix, x.to(torch.bfloat16))
assert half.dtype == torch.bfloat16
torch.testing.assert_close(half.float(), flat.reshape(2, 3, 16), atol=0.2, rtol=0.05)
assert gpu.product(matrix, x[:0]).shape == (0, 3, 16)

weight = torch.randn(20, 64, generator=generator).to(torch.bfloat16)
plain = gpu.load(pack.pack_plain(weight), "cpu")
assert torch.equal(gpu.dequantize(plain), weight)
torch.testing.assert_close(gpu.product(plain, x[0]), x[0] @ weight.float().T)

try:
    gpu.product(matrix, torch.zeros(1, 65))
except ValueError as error:
    assert "64 columns" in str(error)
else:
    raise AssertionError("an x of another width was accepted")
from lib.metrics import gpu_speed
taken = gpu_speed.measure([(16, 64), (32, 128)], (3, 16), batch=2, rounds=3, calls=2, device="cpu")
assert list(taken) == [((16, 64), 3), ((16, 64), 16), ((32, 128), 3), ((32, 128), 16)]
assert all(one.value > 0 and one.unit == "s" and one.n == 3 for one in taken.values())
from lib import timing
ticks = iter(range(100))
timing.clock = lambda: float(next(ticks))
assert gpu_speed.measure([(16, 64)], (4,), rounds=1, calls=4, device="cpu")[(16, 64), 4].value == 0.25  # of one product
print("equal")
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_products_on_a_gpu_and_their_time():
    from lib.metrics import gpu_speed
    from lib.runtime import gpu, pack
    from tests.test_pack import KINDS, random

    x = torch.randn(3, 128, device="cuda")
    for bits, (symmetric, levels) in itertools.product((2, 3, 4, 8), KINDS):
        made = random(48, 128, bits, 64, symmetric, levels=levels)
        wanted = x.double() @ made.dense().double().to("cuda").T
        assert (gpu.product(gpu.load(pack.pack(made)), x) - wanted).norm() < 1e-4 * wanted.norm()
    shape = (65536, 4096)
    for (_, bits), taken in gpu_speed.measure([shape], (2, 8, 16), rounds=3).items():
        # no device's memory gives 20 TB/s: a clock that does not wait for the products would say so
        assert taken.unit == "s" and taken.value > shape[0] * shape[1] * bits / 8 / 2e13


def test_kernels_equal_the_dequantized_product():
    done = subprocess.run(
        [sys.executable, "-c", COMPARE], cwd=Path(__file__).parent.parent, capture_output=True, text=True,
        env=os.environ | {"TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("equal\n"), done.stdout + done.stderr
