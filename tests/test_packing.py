"""The layout of packed matrices, against big integers and the package's own functions."""

import pytest
import torch

from lib.export import packing
from lib.quantized import grid
from tests.packed import matrix


@pytest.mark.parametrize("bits", range(2, 9))
def test_code_i_occupies_bits_i_times_width_of_its_row(bits):
    quantized = matrix(torch.randn(5, 48), bits, 16)
    stored = packing.pack(quantized)
    packed = stored["weight_packed"]
    assert packed.dtype == torch.int32 and packed.shape == (5, -(-48 * bits // 32))
    for row in range(5):
        number = int.from_bytes(packed[row].numpy().astype("<i4").tobytes(), "little")
        assert [number >> bits * i & (2**bits - 1) for i in range(48)] == quantized.codes[row].tolist()
    for group in range(3):
        column = stored["weight_zero_point"][:, group].contiguous().numpy().astype("<i4")
        number = int.from_bytes(column.tobytes(), "little")
        assert [number >> bits * i & (2**bits - 1) for i in range(5)] == quantized.zero_point[:, group].tolist()
    back = packing.unpack(stored, bits=bits, groups=3, symmetric=False, name="it")
    assert torch.equal(back.zero_point, quantized.zero_point) and torch.equal(back.codes, quantized.codes)
    assert packing.size(quantized) == sum(tensor.nbytes for tensor in stored.values())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_package_decompresses_to_equal_values(bits, symmetric):
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    quantized = matrix(torch.randn(40, 96), bits, 32, symmetric)
    weights = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=32)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    theirs = PackedQuantizationCompressor.decompress(packing.pack(quantized), scheme)["weight"]
    codes, scale, zero = quantized[:3]
    assert torch.equal(theirs, grid.dequantize(codes, scale, zero, bits=bits, dtype=torch.bfloat16))
    back = packing.unpack(packing.pack(quantized), bits=bits, groups=3, symmetric=symmetric, name="it")
    assert torch.equal(back.codes, codes) and torch.equal(back.scale, scale) and back.group_size == 32
    assert back.zero_point is None if symmetric else torch.equal(back.zero_point, zero)


def test_scales_that_bfloat16_would_round_stay_float32():
    quantized = matrix(torch.randn(8, 32), 4, 32)
    finer = quantized._replace(scale=quantized.scale.float() * 1.001)
    assert packing.pack(quantized._replace(scale=quantized.scale.float()))["weight_scale"].dtype == torch.bfloat16
    stored = packing.pack(finer)
    assert stored["weight_scale"].dtype == torch.float32
    assert torch.equal(packing.unpack(stored, bits=4, groups=1, symmetric=False, name="it").scale, finer.scale)
