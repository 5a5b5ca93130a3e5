"""Half-integer and balanced levels as integer ones: the same values with one bit more a code, which other readers know.

With zero points that are multiples of a half, s (q - z) = s/2 (2 q - 2 z): twice the code on a grid of half the step,
whose zero point 2 z is a whole code of one bit more. Balanced levels, s (q - (2**bits - 1) / 2) = s/2 (2 q + 1 -
2**bits), are odd codes of the symmetric grid of one bit more, which stores no zero points either.
"""

import torch
from torch import nn

from lib.quantized.grid import PARTS, Quantized
from lib.quantized.linear import QuantizedModule, QuantLinear

MOST = 7  # bits of a grid for which one of a bit more exists


def integer(quantized: Quantized, name: str = "the matrix") -> Quantized:
    """The integer grid of one bit more that holds exactly the values of `quantized`, which may be on one already.

    Raises ValueError for 8 bits, beyond which grids don't go.
    """
    if quantized.levels == "integer":
        return quantized
    if quantized.bits > MOST:
        raise ValueError(
            f"levels={quantized.levels!r} of {name} with {quantized.bits} bits need integers of {quantized.bits + 1}; "
            f"they can be had from up to {MOST} bits; quantize with levels='integer', which lose next to nothing there."
        )
    odd = quantized.levels == "balanced"
    half = quantized.scale.float() / 2
    short = half.to(torch.bfloat16)
    return quantized._replace(
        codes=quantized.codes * 2 + odd,
        scale=short if torch.equal(short.float(), half) else half,
        zero_point=None if odd else (2 * quantized.zero_point.float()).to(torch.uint8),
        bits=quantized.bits + 1,
        levels="integer",
    )


def refusal(quantized: Quantized) -> str | None:
    """Why no integer grid holds the values of `quantized`, as the end of "it has ..."; None where one does."""
    if quantized.codebook is not None:
        return f"a codebook of {2**quantized.bits} levels, which are not evenly spaced"
    if quantized.levels != "integer" and quantized.bits > MOST:
        return f"{quantized.bits} bits with zero points that are halves"
    return None


def integers_(model: nn.Module) -> nn.Module:
    """Put every quantized matrix of `model` on an integer grid with equal values, in place; returns the model.

    Saved afterwards, plain transformers opens it. Raises ValueError, before anything is changed, for 8 bits.
    """
    found = {name: part for name, part in model.named_modules() if isinstance(part, QuantizedModule)}
    found = {name: part for name, part in found.items() if part.levels != "integer"}
    made: dict[int, Quantized] = {}  # a tied matrix is turned once
    for name, part in found.items():
        if id(part.codes) not in made:
            made[id(part.codes)] = integer(part.quantized, name)
    turned = {name: made[id(part.codes)] for name, part in found.items()}
    for name, part in found.items():
        for tensor in PARTS:
            setattr(part, tensor, getattr(turned[name], tensor))
        part.bits, part.levels = turned[name].bits, turned[name].levels
        if isinstance(part, QuantLinear):
            part.forget()
    tied = getattr(model, "_tied_weights_keys", None)
    if isinstance(tied, dict):  # without the zero points that balanced levels no longer have
        gone = {f"{name}.zero_point" for name in found if turned[name].zero_point is None}
        model._tied_weights_keys = {key: other for key, other in tied.items() if key not in gone}
    return model
