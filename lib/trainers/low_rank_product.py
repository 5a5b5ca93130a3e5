"""x Wᵀ + s (x Aᵀ) Bᵀ of a layer with an adapter, in as many passes over memory as it takes and no more.

peft writes the adapter's part, scales it, and adds it to the layer's: each a pass over a tensor as wide as the outputs,
and as many on the way back, which at small sizes take longer than the products. Here B's product is added where the
layer's is written, and the adapter's share of ∂x where W's is. What autograd keeps is the inputs and x Aᵀ, as before.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lib.quantized.linear import QuantLinear


class LowRankProduct(torch.autograd.Function):
    """y = x Wᵀ + bias + s (x Aᵀ) Bᵀ for x [..., columns], with gradients for x, A and B.

    weight: W [rows, columns], or a function that makes it of a type, called in each pass so that neither keeps it.
    """

    @staticmethod
    def forward(
        ctx, inputs: Tensor, a: Tensor, b: Tensor, weight: Tensor | Callable, bias: Tensor | None, scaling: float
    ) -> Tensor:
        flat = inputs.flatten(0, -2)
        inner = flat @ a.T
        kept = () if callable(weight) else (weight,)
        dense = weight(inputs.dtype) if callable(weight) else weight
        # not a view of another tensor, which a model could not change in place (OLMo clips what this gives)
        outputs = inputs.new_empty(*inputs.shape[:-1], len(dense))
        rows = outputs.view(-1, len(dense))
        torch.mm(flat, dense.T, out=rows) if bias is None else torch.addmm(bias, flat, dense.T, out=rows)
        rows.addmm_(inner * scaling, b.T)
        ctx.save_for_backward(flat, inner, a, b, *kept)
        ctx.weight, ctx.scaling, ctx.shape = weight if callable(weight) else None, scaling, inputs.shape
        return outputs

    @staticmethod
    def backward(ctx, gradient: Tensor):
        flat, inner, a, b, *kept = ctx.saved_tensors
        gradient = gradient.flatten(0, -2)
        of_inner = (gradient @ b).mul_(ctx.scaling)
        of_b = (gradient.T @ inner).mul_(ctx.scaling)
        of_a = of_inner.T @ flat
        of_inputs = None
        if ctx.needs_input_grad[0]:
            of_inputs = gradient @ (kept[0] if kept else ctx.weight(gradient.dtype))
            of_inputs = of_inputs.addmm_(of_inner, a).view(ctx.shape)
        return of_inputs, of_a, of_b, None, None, None


def fuse_(layer: nn.Module, adapter: str) -> None:
    """Let peft's `layer`, a plain LoRA on a frozen linear layer, compute by `LowRankProduct`; others stay as they are.

    Where its own tensors have other types, or autocast chooses them, peft's own forward pass is taken.
    """
    base = layer.base_layer
    if type(base) not in (nn.Linear, QuantLinear) or adapter in layer.lora_variant:
        return
    layer.forward = functools.partial(_forward, layer, layer.forward, adapter)


def _forward(layer: nn.Module, own: Callable, adapter: str, inputs: Tensor, *args, **options) -> Tensor:
    a, b, base = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.base_layer
    quantized = isinstance(base, QuantLinear)
    fixed = [each for each in (None if quantized else base.weight, base.bias) if each is not None]
    alike = {each.dtype for each in (inputs, a, b, *fixed)} == {inputs.dtype}
    frozen = not any(each.requires_grad for each in fixed) and (base.sparing if quantized else True)
    if args or options or not (alike and frozen and torch.is_grad_enabled()) or layer.merged or layer.disable_adapters:
        return own(inputs, *args, **options)
    if torch.is_autocast_enabled(inputs.device.type):
        return own(inputs)
    weight = base.quantized.dense if quantized else base.weight
    return LowRankProduct.apply(inputs, a, b, weight, base.bias, layer.scaling[adapter])
