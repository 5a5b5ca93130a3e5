"""How a training from scratch is run: optimizer, decay, schedule, precision and memory, for the one loop.

    loop.train_(model, rows, next_token.loss, tokens=..., learning_rate=3e-3, recipe=Recipe(weight_decay=0.1))

Without a recipe the loop heals: AdamW without decay, and a schedule of its own. Schedules are transformers', optimizers
torch's; both step float32 copies of the weights (`optimizer`), whatever the products are computed in.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from lib import files
from lib.models import blocks, logits

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = {"cosine": "cosine", "wsd": "warmup_stable_decay", "constant": "constant_with_warmup"}
BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Recipe:
    """The options of a training from scratch.

    optimizer: "adamw" (arXiv 1711.05101), or "muon" for the matrices of the blocks (Jordan, 2024; steps of AdamW's size
    by Liu et al., arXiv 2502.16982, equation 4, so that one learning rate serves both) beside AdamW for all else.
    weight_decay: decoupled; none on norms and biases, and on embedding and head where `decay_embeddings` says so.
    schedule: "cosine", "wsd" (a rise, a plateau, and a fall over the last `cooldown` of the steps, arXiv 2404.06395) or
    "constant"; each begins with a linear rise over `warmup` of the steps.
    bfloat16: products in bfloat16 (autocast); weights and the optimizer's memory stay float32. compile: the decoder by
    `torch.compile`, or by its backend of that name. gradient_checkpointing: forget what blocks computed, and compute it
    again in the backward pass.
    """

    optimizer: str = "adamw"
    weight_decay: float = 0.1
    decay_embeddings: bool = False
    schedule: str = "cosine"
    warmup: float = 0.05
    cooldown: float = 0.2
    bfloat16: bool = False
    compile: bool | str = False
    gradient_checkpointing: bool = False

    def __post_init__(self):
        """Raise ValueError for what no training can do."""
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}; {files.choices(getattr(self, name), known)}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay={self.weight_decay}; numbers from 0 are allowed; 0.1 is usual.")
        if not (0 <= self.warmup <= 1 and 0 <= self.cooldown <= 1 and self.warmup + self.cooldown <= 1):
            raise ValueError(
                f"warmup={self.warmup} and cooldown={self.cooldown}; both are shares of the steps, together at most 1."
            )

    def settings(self) -> dict:
        """What of it decides a training's weights, by name."""
        return {f"recipe_{name}": value for name, value in asdict(self).items()}

    def optimizers(self, model: nn.Module, copies: dict[str, Tensor], rate: float) -> list[torch.optim.Optimizer]:
        """Torch's optimizers of the `copies` of trained parameters, by their names in `model`."""
        ends = {id(part.weight) for part in (blocks.embeddings(model), blocks.head(model))}
        ends = {name for name, each in model.named_parameters() if id(each) in ends}
        groups: dict[tuple[str, float], list[Tensor]] = {}
        for name, copy in copies.items():
            inside = copy.ndim == 2 and name not in ends
            decay = self.weight_decay if inside or (name in ends and self.decay_embeddings) else 0.0
            kind = "muon" if self.optimizer == "muon" and inside else "adamw"
            groups.setdefault((kind, decay), []).append(copy)
        found = {}
        for (kind, decay), members in groups.items():
            found.setdefault(kind, []).append({"params": members, "weight_decay": decay})
        made = []
        if "adamw" in found:
            made.append(torch.optim.AdamW(found["adamw"], lr=rate, betas=BETAS, fused=True))
        if "muon" in found:
            made.append(torch.optim.Muon(found["muon"], lr=rate, adjust_lr_fn="match_rms_adamw"))
        return made

    def scheduler(self, optimizer: torch.optim.Optimizer, steps: int):
        """Transformers' schedule over `steps`."""
        rise = round(self.warmup * steps)
        more = {"num_decay_steps": max(1, round(self.cooldown * steps))} if self.schedule == "wsd" else None
        return get_scheduler(SCHEDULES[self.schedule], optimizer, rise, steps, scheduler_specific_kwargs=more)

    def autocast(self, model: nn.Module):
        """The context in which a loss is computed."""
        return torch.autocast(blocks.device(model).type, torch.bfloat16, enabled=self.bfloat16)

    @contextlib.contextmanager
    def prepared(self, model: nn.Module) -> Iterator[None]:
        """Inside the block `model` is compiled and checkpoints its gradients as the recipe says."""
        decoder, cached = blocks.decoder(model), model.config.use_cache
        compiled = decoder._compiled_call_impl
        try:
            if self.gradient_checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if self.compile:
                model.config.use_cache = False  # as the Trainer sets it: a change would have the parts tried again
                logits.split(model)  # tries the model's parts, with blocks replaced for a moment, which compiles badly
                decoder.compile(**({} if self.compile is True else {"backend": self.compile}))
            yield
        finally:
            decoder._compiled_call_impl, model.config.use_cache = compiled, cached
            if self.gradient_checkpointing:
                model.gradient_checkpointing_disable()


def of(given: dict) -> Recipe:
    """A recipe of `given` options by name; ValueError, with the choices, for others."""
    names = [field.name for field in fields(Recipe)]
    for name in given:
        if name not in names:
            raise ValueError(f"{name!r} is no option of a recipe; {files.choices(name, names)}")
    return Recipe(**given)
