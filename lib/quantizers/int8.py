"""LLM.int8(): multiply in 8-bit integers, except for the few input features that are far larger than all others.

Both factors of a product are quantized by absmax, each vector with a scale of its own: the inputs X of one token, and
the weights W of one output. If one feature of a token is 60 and the others are about 1, those get two or three codes
each; if it is 3000, they all round to zero. So features that exceed the threshold α in any token are taken out of the
integer product and multiplied in floating point.

Source: Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", arXiv 2208.07339,
sections 3.1 (vector-wise quantization) and 3.2 (mixed-precision decomposition). Symbols are the paper's; our matrices
hold an output's weights in a row, the paper's in a column.
"""

import functools

import torch
from torch import Tensor, nn

from lib.quantized.grid import TINY, Quantized
from lib.quantized.linear import QuantLinear
from lib.quantizers import absmax, calibrate

TOP = 127  # the largest code
FEWEST, MULTIPLE = 17, 8  # rows, and columns, that `torch._int_mm` asks for on accelerators


@torch.no_grad()
def quantize_(
    model: nn.Module,
    calibration=None,
    *,
    bits: int = 8,
    group_size: int = -1,
    threshold: float = 6.0,
    state=None,
) -> dict[str, Quantized]:
    """Quantize every linear layer inside the blocks of `model`, in place; return the codes and grids by layer name.

    The layers become `Int8Linear`, which quantizes its inputs too, at every product. calibration: not used, part of
    the common signature. bits, group_size: only 8 and -1 (a scale per row).
    threshold: α, the magnitude above which an input feature is an outlier; 0 takes every feature out (integer weights
    alone), infinity none. state: folder that keeps finished blocks, so that a killed job resumes.
    Raises ValueError, before the work, for another grid, for a negative threshold, and for layers quantized already.
    """
    if (bits, group_size) != (8, -1):
        raise ValueError(
            f"bits={bits!r}, group_size={group_size!r}; LLM.int8() multiplies 8-bit codes with one scale a row; "
            "use bits=8 and group_size=-1, or another method (rtn, gptq) for other grids."
        )
    _check(threshold)
    done = absmax.round_(model, absmax.absmax, bits=bits, group_size=group_size, state=state, threshold=threshold)
    integer_products_(model, threshold=threshold)
    return done


def integer_products_(model: nn.Module, *, threshold: float = 6.0) -> list[str]:
    """Let the quantized layers of `model` multiply integers; returns the names of those that now do.

    For models that were loaded: a checkpoint holds codes and scales, which load as `QuantLinear` (inputs as they are,
    weights dequantized). Every layer inside the blocks with symmetric 8-bit codes and one scale a row becomes an
    `Int8Linear`, others are not changed. Raises ValueError when no layer has such a grid, and for a negative
    threshold.
    """
    _check(threshold)
    found = {name: layer for name, layer in calibrate.layers(model).items() if isinstance(layer, QuantLinear)}
    fitting = {name: layer for name, layer in found.items() if _fits(layer.quantized)}
    if not fitting:
        raise ValueError(
            f"none of the {len(found)} quantized layers of {type(model).__name__} has symmetric 8-bit codes with one "
            "scale a row; integer products need that grid; quantize with int8.quantize_, or absmax with bits=8."
        )
    for name, layer in fitting.items():
        model.set_submodule(name, Int8Linear(layer.quantized, layer.bias, threshold=threshold))
    return list(fitting)


class Int8Linear(QuantLinear):
    """y = x Wᵀ + bias by `product`, with W held as int8 codes and one scale a row, and nothing else.

    It is a `QuantLinear` to everything that reads, saves or loads it: `quantized` and `state_dict()` show the unsigned
    codes, so checkpoints of both kinds of layer are the same. (They don't hold the threshold.) Gradients pass to the
    inputs as if the layer were linear in them (straight-through), for adapters around it.
    """

    def __init__(self, quantized: Quantized, bias: Tensor | None = None, *, threshold: float = 6.0):
        if not _fits(quantized):
            raise ValueError(
                f"a matrix with {quantized.bits} bits and scales {list(quantized.scale.shape)}; an Int8Linear has "
                "symmetric 8-bit codes and one scale a row; quantize it with absmax, bits=8 and group_size=-1."
            )
        super().__init__(quantized, bias)
        self.codes = _shifted(quantized.codes).view(torch.int8)
        self.threshold = threshold

    @property
    def quantized(self) -> Quantized:
        """Codes (a copy, unsigned) and grid, as packing, kernels and exporters read them."""
        return super().quantized._replace(codes=_shifted(self.codes.view(torch.uint8)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `inputs` [..., in_features] to [..., out_features], in the dtype of `inputs`."""
        with torch.no_grad():
            outputs = product(inputs.reshape(-1, self.in_features), self.codes, self.scale, threshold=self.threshold)
            if self.bias is not None:
                outputs += self.bias
            outputs = outputs.to(inputs.dtype).reshape(*inputs.shape[:-1], self.out_features)
        if torch.is_grad_enabled() and (inputs.requires_grad or (self.bias is not None and self.bias.requires_grad)):
            linear = nn.functional.linear(inputs, self.quantized.dense(inputs.dtype), self.bias)
            return outputs + (linear - linear.detach())  # plus zero, which carries the gradient
        return outputs

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}codes"] = self.quantized.codes

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        name = f"{prefix}codes"
        signed = {name: _shifted(state_dict[name]).view(torch.int8)} if name in state_dict else {}
        super()._load_from_state_dict(state_dict | signed, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Shape, grid and threshold, as `print(model)` shows them."""
        return f"{super().extra_repr()}, threshold={self.threshold:g}"


def product(X: Tensor, W_i8: Tensor, s_w: Tensor, *, threshold: float = 6.0) -> Tensor:
    """C ≈ Σ_{h∈O} Xʰ Wʰ + S · Σ_{h∉O} Xʰ_i8 Wʰ_i8, float32 [tokens, outputs] (section 3.2).

    X: inputs [tokens, features]. W_i8: int8 [outputs, features]. s_w: one scale an output, [outputs, 1]. O: the
    features that exceed `threshold` in magnitude in at least one of these tokens, so the rest of a batch has a small
    influence on each token's outputs. Their weights are the dequantized codes: a checkpoint holds no others.
    """
    if not len(X):
        return X.new_zeros(0, len(W_i8), dtype=torch.float32)
    X, O, C = X.float(), outliers(X, threshold), 0  # noqa: E741
    if len(O):
        C = X.index_select(1, O) @ W_i8.index_select(1, O).float().T
        X = X.index_fill(1, O, 0)
    X_i8, s_x = quantize_rows(X)
    # S = s_x ⊗ s_w is one over the paper's c_x ⊗ c_w (section 3.1); s_w is common to both sums
    return (integer_product(X_i8, W_i8) * s_x).add_(C).mul_(s_w.T)


def outliers(X: Tensor, threshold: float) -> Tensor:
    """O: the indices of the features of X [tokens, features] with a magnitude above `threshold` (section 3.2)."""
    return (X.abs().amax(0) > threshold).nonzero().flatten()


def quantize_rows(X: Tensor) -> tuple[Tensor, Tensor]:
    """Absmax along rows: float32 X ≈ s · X_i8 with int8 [rows, columns] and float32 s [rows, 1]."""
    s = (X.abs().amax(1, keepdim=True) / TOP).clamp_(min=TINY)  # a row of zeros has codes of zero; a NaN stays one
    # a tensor of its own: one row may come with strides that `torch._int_mm` on CPU silently gets wrong
    return torch.empty(X.shape, dtype=torch.int8, device=X.device).copy_((X / s).round_()), s


def integer_product(X_i8: Tensor, W_i8: Tensor) -> Tensor:
    """X_i8 W_i8ᵀ of int8 matrices [rows, columns] and [outputs, columns], exact, as int32 [rows, outputs].

    A sum of 2**17 products stays below 2**31, so matrices of up to 131,072 columns can't overflow.
    """
    if _taken(X_i8, W_i8) and has_integer_product(X_i8.device.type):
        return torch._int_mm(X_i8, W_i8.T)
    return _by_floats(X_i8, W_i8)


@functools.cache
def has_integer_product(device: str) -> bool:
    """Whether `torch._int_mm` exists on this kind of device and is exact there, tried on the largest numbers.

    Processors without 8-bit instructions add pairs of products in 16 bits, which overflow in some builds of torch.
    """
    for rows in (1, 2 * FEWEST):
        X_i8 = torch.full((rows, 64), TOP, dtype=torch.int8, device=device)
        W_i8 = torch.cat([X_i8[:1], -X_i8[:1]]).repeat(8, 1)
        try:
            if _taken(X_i8, W_i8) and not torch.equal(torch._int_mm(X_i8, W_i8.T), _by_floats(X_i8, W_i8)):
                return False
        except (AttributeError, RuntimeError):
            return False
    return True


def _by_floats(X_i8: Tensor, W_i8: Tensor) -> Tensor:
    """The same numbers from a product in float64, where every sum of fewer than 2**39 such products is exact."""
    return (X_i8.double() @ W_i8.double().T).to(torch.int32)


def _taken(X_i8: Tensor, W_i8: Tensor) -> bool:
    """Whether `torch._int_mm` takes these shapes on their device."""
    (rows, columns), outputs = X_i8.shape, len(W_i8)
    if X_i8.device.type == "cpu":
        return rows > 0 and columns > 1  # on a single column it returns memory that nothing has written to
    return rows >= FEWEST and columns % MULTIPLE == outputs % MULTIPLE == 0


def _fits(quantized: Quantized) -> bool:
    """Whether a matrix has symmetric 8-bit codes with one scale a row."""
    plain = quantized.zero_point is None and quantized.codebook is None
    return plain and quantized.bits == 8 and quantized.scale.shape[1] == 1


def _shifted(codes: Tensor) -> Tensor:
    """uint8 codes with the top bit flipped: from unsigned (zero is 128) to two's complement, and back."""
    return codes ^ 128


def _check(threshold: float) -> None:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not threshold >= 0:  # not: NaN too
        raise ValueError(
            f"threshold={threshold!r}; a magnitude of 0 or more is allowed, infinity too; use 6, the paper's."
        )
