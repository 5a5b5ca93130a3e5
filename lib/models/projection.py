"""From hidden states to logits by the model's own forward pass without its decoder, where that is possible.

Losses, scores and measurements run the decoder once and the head chunk by chunk, since logits are large. The operations
between the two differ by family, so they are not reimplemented: the model's own code runs on given hidden states, and
is used only where that reproduces the model's own logits.
"""

import contextlib
import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from lib.models import blocks, partial
from lib.models.eval_mode import evaluating


class Projection:
    """From hidden states [..., hidden] to logits [..., vocabulary], by the model's own code.

    Operations beside the head (factors, soft caps, a transform before it) are not reimplemented: the model's forward
    pass runs with the given hidden states in place of its decoder's output.
    head: the linear layer that the model names as its head.
    """

    def __init__(self, model: nn.Module):
        self.head, self._answer = blocks.head(model), _Answer()
        parts = {name: self._answer if part is blocks.decoder(model) else part for name, part in model._modules.items()}
        self._shell = _shell(model, parts)

    @classmethod
    def of(cls, model: nn.Module) -> "Projection":
        """The projection of `model`, sharing its weights; ValueError where it does not give the model's own logits.

        Tried on a few tokens the first time, and again when class, parts, hooks or configuration have changed.
        """
        if not projects(model):
            raise ValueError(
                f"{type(model).__name__} computes its logits from more than the hidden states that its decoder "
                "answers; run the model as a whole."
            )
        return cls(model)

    @property
    def vocabulary(self) -> int:
        """How many logits a position has."""
        return self.head.out_features

    def __call__(self, hidden: Tensor) -> Tensor:
        states = hidden if hidden.ndim == 3 else hidden.reshape(1, -1, hidden.shape[-1])
        ids = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
        self._answer.states = states
        try:
            found = type(self._shell).forward(self._shell, input_ids=ids, use_cache=False).logits
        finally:
            self._answer.states = None
        return found.reshape(*hidden.shape[:-1], found.shape[-1])

    def parameters(self) -> list[nn.Parameter]:
        """The weights between hidden states and logits: the head's, and of a transform before it, if any."""
        return list(self._shell.parameters())

    def frozen(self) -> "Projection":
        """A copy with weights of its own, which stays as it is when the model is compressed in place."""
        made = copy.copy(self)
        parts = copy.deepcopy({"head": self.head, **self._shell._modules}, {id(self._answer): self._answer})
        made.head, made._answer = parts.pop("head"), _Answer()
        parts = {name: made._answer if part is self._answer else part for name, part in parts.items()}
        made._shell = _shell(self._shell, parts)
        for weight in made.parameters():
            weight.requires_grad_(False)
        return made


class _Answer(nn.Module):
    """Replaces a decoder and returns `states`."""

    states: Tensor | None = None

    @property
    def decoder(self) -> "_Answer":
        """Some families (OPT) call the decoder inside their decoder."""
        return self

    def forward(self, *args, **kwargs):
        return BaseModelOutputWithPast(last_hidden_state=self.states)


def _shell(model: nn.Module, parts: dict[str, nn.Module]) -> nn.Module:
    """A second model of these `parts`, with the class and the configuration of `model`."""
    made = copy.copy(model)
    made._modules = parts
    for name in ("forward", "tokenizer"):  # attributes set on the model itself may refer to the whole model
        made.__dict__.pop(name, None)
    return made


@dataclass(frozen=True)
class Whole:
    """Replaces a `Projection` for a model that runs as a whole: its states are the logits already."""

    vocabulary: int

    def __call__(self, found: Tensor) -> Tensor:
        return found

    def parameters(self) -> list[nn.Parameter]:
        """None: all weights are before the states."""
        return []


def split(model: nn.Module) -> tuple[Callable[..., Tensor], Projection | Whole]:
    """`model` in two: from token ids [batch, length] (and a mask, say) to states, and from states to logits.

    The states are hidden states, which are small, where the head can be run apart, and else logits.
    """
    if projects(model):
        return lambda input_ids, **more: hidden_states(model, input_ids, **more), Projection.of(model)
    whole = Whole(blocks.head(model).out_features)

    def logits(input_ids: Tensor, **more) -> Tensor:
        return model(input_ids=input_ids.to(blocks.device(model)), **more, use_cache=False).logits

    return logits, whole


def _skipped(model: nn.Module, tokens: Tensor):
    """Context in which the blocks return fixed values, large enough for soft caps to show."""
    generator, size = torch.Generator().manual_seed(0), (*tokens.shape, blocks.config(model).hidden_size)
    states = 4 * torch.randn(size, generator=generator).to(tokens.device, model.dtype)
    return partial.skipped(model, len(blocks.blocks(model)), states)


def hidden_states(model: nn.Module, tokens: Tensor, **more) -> Tensor:
    """Hidden states after the final norm [batch, length, hidden] for token ids [batch, length]."""
    ids = tokens.to(blocks.device(model))
    return blocks.decoder(model)(input_ids=ids, **more, use_cache=False).last_hidden_state


_TRIED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # model -> (what it was like, whether it projects)


def projects(model: nn.Module, tokens: Tensor | None = None) -> bool:
    """Whether decoder and `Projection` add up to the model's own logits, tried on a few of `tokens`.

    Without tokens the result is cached until class, parts, hooks or configuration of the model change. A wrapper that
    `torch.compile` made runs as a whole.
    """
    if hasattr(model, "_orig_mod"):
        return False
    if tokens is not None or "forward" in model.__dict__:
        return _tried(model, tokens)
    parts = weakref.ref(blocks.head(model)), weakref.ref(blocks.decoder(model))
    hooks = dict(model._forward_hooks), dict(model._forward_pre_hooks)  # they may change its logits
    like = type(model), *parts, *hooks, model.config.to_dict()
    if _TRIED.get(model, (None,))[0] != like:
        _TRIED[model] = like, _tried(model, None)
    return _TRIED[model][1]


_MORE = (
    TypeError,
    AttributeError,
    RuntimeError,
    ValueError,
    IndexError,
)  # a part needs more arguments than it gets here


def _tried(model: nn.Module, tokens: Tensor | None) -> bool:
    some = torch.arange(3, 19)[None] if tokens is None else tokens[:1, :16]
    some = some.to(blocks.device(model)) % blocks.embeddings(model).num_embeddings
    answered = _skipped(model, some) if tokens is None else contextlib.nullcontext()  # then no block has to run
    with evaluating(model), contextlib.suppress(*_MORE if tokens is None else ()), answered:
        return _adds_up(model, some)
    return _tried(model, some)  # its decoder needs more from the blocks than states


def _adds_up(model: nn.Module, tokens: Tensor) -> bool:
    own = model(input_ids=tokens, use_cache=False).logits
    try:
        ours = Projection(model)(hidden_states(model, tokens))
    except _MORE:
        return False
    if own.shape != ours.shape:
        return False
    # the same operations on the same numbers: only their order can differ
    close, finite = 16 * torch.finfo(own.dtype).eps, own[own.isfinite()].abs()
    size = finite.max().item() if len(finite) else 0.0
    return torch.allclose(own, ours, rtol=close, atol=close * size, equal_nan=True)
