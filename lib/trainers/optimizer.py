"""AdamW with float32 weights and moments for models in bfloat16.

A step of a typical size, 1e-4 of a weight, is lost when it is added to a bfloat16 number, which has 8 bits. So each
weight has a float32 copy that is updated, and the model computes with its rounded value.
Sources: Loshchilov and Hutter, arXiv 1711.05101 (AdamW); Micikevicius et al., arXiv 1710.03740, section 3.1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lib.trainers import sharding

BETAS = (0.9, 0.95)
MOMENTS = ("exp_avg", "exp_avg_sq", "step", "momentum_buffer")  # AdamW's or Muon's state of each weight


class AdamW(torch.optim.Optimizer):
    """AdamW on float32 copies of `parameters` (name -> parameter); the learning rate is that of `param_groups`.

    optimizer_class: another optimizer of torch with Adam's arguments and memory, `torch.optim.Adam` say.
    make: makes several optimizers of the copies by name and the learning rate, in the place of AdamW.
    """

    def __init__(
        self,
        parameters: dict[str, torch.nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
        optimizer_class: type[torch.optim.Optimizer] | None = None,
        make: Callable[[dict[str, Tensor], float], list[torch.optim.Optimizer]] | None = None,
    ):
        super().__init__(list(parameters.values()), {"lr": learning_rate})
        self.names = dict(parameters)
        self.copies = {name: parameter.detach().float().clone() for name, parameter in parameters.items()}
        options = {"lr": learning_rate, "betas": BETAS, "weight_decay": weight_decay}
        options |= {"fused": True} if optimizer_class is None else {}
        if make is None:
            self.inner = [(optimizer_class or torch.optim.AdamW)(self.copies.values(), **options)]
        else:
            self.inner = make(self.copies, learning_rate)
        of_copy = {id(each): one for one in self.inner for group in one.param_groups for each in group["params"]}
        self.states = {name: of_copy[id(copy)].state for name, copy in self.copies.items()}

    @torch.no_grad()
    def step(self, closure=None):
        """One update from the gradients of the parameters; those without a gradient stay."""
        for group in (group for one in self.inner for group in one.param_groups):
            group["lr"] = self.param_groups[0]["lr"]
        for name, copy in self.copies.items():
            gradient = self.names[name].grad
            copy.grad = None if gradient is None else gradient.float()
        for one in self.inner:
            one.step()
        for name, copy in self.copies.items():
            copy.grad = None
            self.names[name].copy_(copy)

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's state as "name:part" -> tensor; parts are value, exp_avg, exp_avg_sq and step.

        Of weights that are spread over processes, it is what this process has.
        """
        found = {}
        for name, copy in self.copies.items():
            state = self.states[name].get(copy, {})
            kept = {key: value for key, value in state.items() if key in MOMENTS and value is not None}
            found |= {f"{name}:{key}": sharding.local(value) for key, value in {"value": copy, **kept}.items()}
        return found

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Load a state from `tensors`, and set the parameters to the rounded copies."""
        for name, copy in self.copies.items():
            sharding.local(copy).copy_(tensors[f"{name}:value"])
            kept = {key: tensors[f"{name}:{key}"] for key in MOMENTS if f"{name}:{key}" in tensors}
            if kept:
                kept = {key: value.to(copy.device) for key, value in kept.items()}
                self.states[name][copy] = {key: sharding.like(value, copy) for key, value in kept.items()}
            self.names[name].copy_(copy)
