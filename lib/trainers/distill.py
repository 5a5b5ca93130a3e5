"""Distillation: trains a model towards a teacher's whole next-token distribution, not only the next token.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2; for healing pruned
language models: Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation" (Minitron),
arXiv 2407.14679, section 3, whose ablations favour forward KL on logits.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lib import checkpoints
from lib.models import blocks, logits, partial, structure
from lib.sources import texts
from lib.trainers import chunked, divergences, minibatch, prefix, sharding


@dataclass(frozen=True, eq=False)
class Distillation:
    """The loss KL(p || q) from `teacher` p to the model q, or another divergence; called as `loss(model, batch)`.

    divergence: one of `divergences`. temperature T: both distributions are softmax(z / T), and the loss is multiplied
    by T², which keeps the size of its gradient. The teacher is run in eval mode and keeps no gradients.
    Raises ValueError at the first call for a teacher with another vocabulary or tokenizer.
    """

    teacher: nn.Module
    temperature: float = 1.0
    divergence: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = divergences.FORWARD_KL
    # student -> (blocks run once for both, what they were like when that was found)
    _shared: dict = field(default_factory=weakref.WeakKeyDictionary, repr=False)

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}; numbers above 0 are allowed; 1 is the usual choice.")

    @property
    def identity(self) -> dict:
        """Settings that determine the result of a training with this loss."""
        teacher = {"teacher": checkpoints.fingerprint(self.teacher)}
        teacher["teacher_layers"] = structure.fingerprint(self.teacher)
        other = {} if self.divergence == divergences.FORWARD_KL else divergences.identity(self.divergence)
        return {"loss": "distill", "temperature": self.temperature, **other, **teacher}

    def check(self, model: nn.Module) -> None:
        """Raise ValueError unless teacher and model have the same tokens; find the blocks that both can share.

        Must be called again when the choice of trained weights changes.
        """
        same_tokens(self.teacher, model)
        count = prefix.shared(self.teacher, model)
        self._shared[model] = count, prefix.state(self.teacher, model, count)

    def _common(self, model: nn.Module) -> int:
        """Number of blocks that teacher and model share; determined again where they have changed since `check`."""
        if sharding.spread_over(model):
            return 0  # a part of the student's weights can't be compared with the teacher's
        count, state = self._shared.get(model, (0, None))
        if count and state != prefix.state(self.teacher, model, count):
            self.check(model)
            count, _ = self._shared[model]
        return count

    def __call__(self, model: nn.Module, batch: dict) -> Tensor:
        """1/n Σ_t KL(p(· | x_<t) || q(· | x_<t)) in nats, times T²."""
        T, count = self.temperature, self._common(model)
        with logits.evaluating(self.teacher), partial.recorded(self.teacher, count) as common:
            run, projection = logits.split(self.teacher)
            states = minibatch.select(run(**minibatch.inputs(batch))[:, :-1], batch)

        def of_logits(found: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                z_p = projection(states[rows]).float()
            loss, gradient = self.divergence(*((z_p, found) if T == 1 else (z_p / T, found / T)))
            return loss * T**2, gradient if T == 1 else gradient.mul_(T)

        with partial.skipped(model, count, common[0]):
            return chunked.mean(model, batch, of_logits)


def same_tokens(teacher: nn.Module, model: nn.Module) -> None:
    """Raise ValueError for a teacher that predicts another vocabulary, or whose tokenizer has other rules."""
    sizes = [blocks.head(each).out_features for each in (teacher, model)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the teacher predicts {sizes[0]} tokens and the model {sizes[1]}; distillation compares them one by one; "
            "take a teacher with the model's tokenizer, the unpruned model, say."
        )
    if None in (getattr(teacher, "tokenizer", None), getattr(model, "tokenizer", None)):
        return  # only token ids were given: the vocabulary sizes agree, and nothing else can be checked
    if texts.tokenizer_hash(teacher) != texts.tokenizer_hash(model):
        raise ValueError(
            f"the teacher's tokenizer ({texts.tokenizer_hash(teacher)[:12]}) is not the model's "
            f"({texts.tokenizer_hash(model)[:12]}), though both have {sizes[0]} tokens; the same rules are needed; "
            "take a teacher with the model's tokenizer, the unpruned model, say."
        )
