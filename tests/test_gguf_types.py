"""The grids of llama.cpp's files: bytes as the `gguf` package reads them, and scales that err less than its own."""

import gguf
import numpy
import pytest
import torch

from lib.quantized import gguf_types

UNREAD = ("Q2_0",)  # types that the package does not know yet
SEED = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(6, 512, generator=SEED) * torch.rand(6, 512, generator=SEED).add(0.1) * 0.05 + 0.01
SHARE = torch.rand(512, generator=SEED) + 0.1


def matrix(name, weight=WEIGHT, importance=SHARE):
    kind = gguf_types.by_name(name)
    grid = kind.choose(weight, importance)
    return grid, gguf_types.nearest(weight, grid)


def theirs(name, data):
    """What the `gguf` package (Q2_0: ggml's loop, written out) makes of the bytes."""
    if name not in UNREAD:
        return torch.from_numpy(gguf.quants.dequantize(data.numpy(), gguf.GGMLQuantizationType[name]))
    blocks = data.numpy().reshape(-1, 18)
    scale = blocks[:, :2].copy().view(numpy.float16).astype(numpy.float32)
    codes = [(blocks[:, 2 + place // 4] >> 2 * (place % 4)) & 3 for place in range(64)]
    return torch.from_numpy((numpy.stack(codes, 1).astype(numpy.float32) - 1) * scale).view(len(data), -1)


@pytest.mark.parametrize("name", sorted(gguf_types.TYPES))
def test_bytes_are_read_to_the_bit(name):
    """Found grids, then codes at random, which reach what rounding does not; and an empty group."""
    kind, spread = gguf_types.TYPES[name], WEIGHT.clone()
    spread[0, :256] = 0
    grid, codes = matrix(name, spread)
    for chosen in (codes, torch.randint(0, len(kind.levels), WEIGHT.shape, generator=SEED).to(torch.uint8)):
        made = gguf_types.Blocks(name, kind.pack(grid, chosen))
        assert made.data.shape == (6, 512 // kind.block * kind.nbytes)
        values = gguf_types.value(grid, chosen)
        assert torch.equal(values, theirs(name, made.data)) and torch.equal(values, made.dense())
        assert torch.equal(made.unpack()[1], chosen)
        again = made.unpack()[0]
        assert torch.equal(kind.pack(again, chosen), made.data)


@pytest.mark.parametrize("name", sorted(gguf_types.TYPES))
@pytest.mark.filterwarnings("ignore:invalid value")  # random bytes are also infinite scales
def test_codes_are_the_nearest_and_any_bytes_are_understood(name):
    grid, codes = matrix(name)
    every = torch.stack([gguf_types.value(grid, torch.full_like(codes, code)) for code in range(len(grid.levels))])
    assert torch.allclose((gguf_types.value(grid, codes) - WEIGHT).abs(), (every - WEIGHT).abs().amin(0), atol=1e-7)
    kind = gguf_types.TYPES[name]
    data = torch.randint(0, 256, (4, 2 * 512 // kind.block * kind.nbytes), dtype=torch.uint8, generator=SEED)
    wanted = theirs(name, data)
    assert torch.equal(gguf_types.Blocks(name, data).dense().nan_to_num(), wanted.nan_to_num())


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"])
def test_the_search_errs_less_than_the_package(name):
    """By weighted squares; llama.cpp's reference rounds to the range, as the package does."""
    packed = gguf.quants.quantize(WEIGHT.numpy(), gguf.GGMLQuantizationType[name])
    theirs_error = ((gguf_types.Blocks(name, torch.from_numpy(packed)).dense() - WEIGHT).square() * SHARE).sum()
    grid, codes = matrix(name)
    ours = ((gguf_types.value(grid, codes) - WEIGHT).square() * SHARE).sum()
    assert ours < theirs_error


def test_more_bits_err_less():
    errors = {}
    for name, kind in gguf_types.TYPES.items():
        grid, codes = matrix(name)
        errors[name] = float((gguf_types.value(grid, codes) - WEIGHT).square().mean())
        if name not in UNREAD:
            assert (kind.block, kind.nbytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    for family in (("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"), ("Q2_0", "Q4_0", "Q5_0", "Q8_0"), ("Q4_1", "Q5_1")):
        assert sorted(family, key=errors.get, reverse=True) == list(family)
    assert errors["Q4_K"] < errors["Q4_0"] and errors["IQ4_NL"] < errors["MXFP4"]


def test_unknown_types_are_told():
    with pytest.raises(ValueError, match=r"there is no type 'Q4K' to aim at.*Q4_K"):
        gguf_types.by_name("Q4K")
    assert gguf_types.held("Q4_0", 576) and not gguf_types.held("Q4_K", 576)
