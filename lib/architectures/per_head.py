"""A linear layer for each head: the heads' outputs times one square matrix each."""

import torch
from torch import Tensor, nn


class PerHead(nn.ModuleList):
    """`heads` linear layers of `size` by `size`, without bias: matrices [heads, size, size] in all.

    They are layers of their own, so that whatever finds the linear layers of a model (quantizers, counts, adapters)
    finds these too. While all of them are plain they run as one product.
    """

    def __init__(self, heads: int, size: int):
        super().__init__(nn.Linear(size, size, bias=False) for _ in range(heads))

    def forward(self, heads: Tensor) -> Tensor:
        """yₕ = Wₕ xₕ for `heads` [..., heads, size]; the same shape."""
        if all(_plain(layer) for layer in self):
            return torch.einsum("...hi,hoi->...ho", heads, torch.stack([layer.weight for layer in self]))
        return torch.stack([layer(part) for layer, part in zip(self, heads.unbind(-2))], dim=-2)


def _plain(layer: nn.Module) -> bool:
    """Whether `layer` is a linear layer and nobody listens to it or has put a forward pass of its own into it."""
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return type(layer) is nn.Linear and not any(hooks) and "forward" not in vars(layer)
