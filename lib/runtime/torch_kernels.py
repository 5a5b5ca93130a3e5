"""Packed products and the model's step in plain torch: fallback without a compiler, reference for the kernels.

The same numbers are rounded in the same places as in products.h and cache.h: activations to int8 with a scale a block,
keys and values to bfloat16, or to codes of 8 or 4 bits. Only the order of float additions differs, and that the kernels
give queries that meet codes 15 bits.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lib.quantized import pairs
from lib.runtime import after_heads, cache_codes, cpu, pack
from lib.runtime.pack import PLAIN, TILE, Packed

BENDS = {"identity": lambda x: x, "relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu}


def quantize(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """int8 codes (as float32) [n, blocks, block] and scales [n, blocks, 1] of float32 x [n, columns], zero-padded."""
    x = functional.pad(x.float(), (0, -x.shape[1] % block)).unflatten(1, (-1, block))
    most = x.abs().amax(-1, keepdim=True)
    inverse = torch.where(most > 0, 127 / most, 0)
    return (x * inverse).round(), most / 127


def product(packed: Packed, x: Tensor, bias: np.ndarray | None = None) -> Tensor:
    """x [n, columns] Wᵀ + bias as the kernels compute it, float32 [n, rows]."""
    pack.check_inputs(packed, x.shape)
    if packed.bits == PLAIN:
        found = x.float() @ pack.unpack_plain(packed).float().T
    else:
        codes, scale, zero = grid(packed)
        a, s = quantize(x, packed.block)
        exact = torch.einsum("nbk,rbk->nbr", a, codes) - a.sum(-1, keepdim=True) * zero.T
        found = (exact * (s * scale.T)).sum(1)
    return found if bias is None else found + torch.from_numpy(bias)


def grid(packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [rows, blocks, block] (padded), scales and zero points [rows, blocks], all float32."""
    codes, scale, zero = pack.unpack_arrays(packed)
    if packed.book is not None:
        found = pack.unpack(packed)
        codes = (128 + pairs.levels(found.codes, found.zero_point, found.codebook, torch.float32).flatten(1)).numpy()
        zero = None
    blocks = -(-packed.columns // packed.block)
    codes = functional.pad(torch.from_numpy(codes), (0, blocks * packed.block - packed.columns))
    of = torch.arange(blocks) * packed.block // packed.group_size
    scale = torch.from_numpy(scale.view(np.int16)).view(torch.bfloat16).float()
    first, step = packed.zero
    zero = torch.full_like(scale, first) if zero is None else first + step * torch.from_numpy(zero).float()
    return codes.float().reshape(packed.rows, blocks, packed.block), scale[:, of], zero[:, of]


def rows(packed: Packed, first: int, last: int) -> Tensor:
    """Dequantized rows `first` to `last` - 1, float32 [last - first, columns]; compiled where that is possible."""
    if cpu.library() is not None:
        return torch.from_numpy(cpu.rows(packed, first, last))
    start, end = first // TILE, -(-last // TILE)
    size = sum(pack.tile_bytes(*packed.grid))
    data, count = packed.data[start * size : end * size], min(end * TILE, packed.rows) - start * TILE
    part = packed._replace(data=data, rows=count)
    found = pack.unpack_plain(part).float() if packed.bits == PLAIN else pack.unpack(part).dense()
    return found[first - start * TILE : last - start * TILE]


class Reference:
    """The engine's step in plain torch: same arguments, same results up to the order of additions."""

    def __init__(self, weights):
        self.weights = weights

    def step(self, cache, tokens, slots, positions, which, logits) -> None:
        """See `engine.Native.step`."""
        w, a = self.weights, self.weights.architecture
        x = torch.cat([rows(w.embedding, token, token + 1) for token in tokens.tolist()]) * w.embedding_scale
        tables = [torch.from_numpy(table)[:, positions.tolist(), None] for table in (cache.cosine, cache.sine)]
        for index, layer in enumerate(w.layers):
            cosine, sine = (table[a.rotation[index]] for table in tables)
            h = norm(x, layer["first_norm"], a.eps)
            q, k, v = (product(layer[name][0], h, layer[name][1]) for name in ("query", "key", "value"))
            q, k, v = (part.reshape(len(x), -1, a.size) for part in (q, k, v))
            if "query_norm" in layer:
                q, k = norm(q, layer["query_norm"], a.eps), norm(k, layer["key_norm"], a.eps)
            q, k = rotate(q, cosine, sine) * a.query_scale, rotate(k, cosine, sine)
            cache.put(index, slots, positions, k, v)
            read = self.change(layer, h, self.mix(index, cache, q, slots, positions))
            found = product(layer["output"][0], read, layer["output"][1])
            x = x + (norm(found, layer["attended_norm"], a.eps) if "attended_norm" in layer else found)
            h = norm(x, layer["second_norm"], a.eps)
            gate, up = (product(layer[name][0], h, layer[name][1]) for name in ("gate", "up"))
            gate = functional.silu(gate) if a.activation == "silu" else functional.gelu(gate, approximate="tanh")
            found = product(layer["down"][0], gate * up, layer["down"][1])
            x = x + (norm(found, layer["fed_norm"], a.eps) if "fed_norm" in layer else found)
        if len(which):
            found = product(w.head, norm(x[which.tolist()], w.norm, a.eps), w.head_bias)
            logits[: len(which)] = found.numpy()

    def mix(self, index, cache, q, slots, positions) -> Tensor:
        """softmax(q Kᵀ) V for queries [n, heads, size], each over the positions that it sees: [n, heads · size]."""
        a, found = self.weights.architecture, []
        shared, window = a.heads // a.key_heads, a.windows[index]
        q = torch.from_numpy(cache_codes.turned(q.numpy())) if cache.bits == 4 else q
        for row, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist())):
            keys, values = cache.get(index, slot, position + 1)  # [key heads, positions, size]
            keys, values = (part[:, -window:].repeat_interleave(shared, 0) for part in (keys, values))
            scores = torch.einsum("hd,hpd->hp", q[row], keys).softmax(-1)
            found.append(torch.einsum("hp,hpd->hd", scores, values).reshape(-1))
        return torch.stack(found)

    def change(self, layer: dict, h: Tensor, read: Tensor) -> Tensor:
        """What the heads give, of what they `read` [n, heads · size], and of the normed stream h [n, hidden]."""
        a, after = self.weights.architecture, self.weights.architecture.after_heads
        heads = read.unflatten(1, (a.heads, a.size))
        if after.kind == "gate":
            gates = product(layer[after_heads.GATE][0], h, layer[after_heads.GATE][1]).sigmoid()
            read = (heads * gates.unflatten(1, (a.heads, -1))).flatten(1)
        elif after.kind == "layer":
            matrices = [layer[after_heads.layer(head)] for head in range(a.heads)]
            found = torch.stack([product(w, heads[:, i], bias) for i, (w, bias) in enumerate(matrices)], 1)
            found = BENDS[after.bend](found)
            read = (heads + found if after.residual else found).flatten(1)
        return read


def norm(x: Tensor, weight: np.ndarray, eps: float) -> Tensor:
    """x / sqrt(mean x² + eps) · weight over the last dimension."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * torch.from_numpy(weight)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of [n, heads, size] with cosines and sines [n, 1, rotated / 2]; what lies beyond them stays."""
    half = cosine.shape[-1]
    a, b, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine, rest], -1)
