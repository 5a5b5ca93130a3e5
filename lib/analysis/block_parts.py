"""What a block computes for a text, one part at a time: attention weights, heads, what attention and MLP add.

The heads' part is seen twice in architectures of our own that change it: as the heads read it, and as they pass it on
to the output matrix. `effective_rank` and `not_linear` say what such a change does.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lib.models import blocks, partial, pick
from lib.models.eval_mode import evaluating


@dataclass
class Parts:
    """What one block computes for `count` texts of `length` tokens, float32 on the CPU.

    stream, after: the residual stream before and behind the block [count, length, hidden]. weights: how much each token
    reads from each, [count, heads, length, length]; rows sum to 1, but for heads that are mixed. read: what each head
    read, its weights times its values, [count, length, heads, size]. given: what it gives to the output matrix, in most
    models the same. attended, fed: what the last matrices of attention and MLP answer, [count, length, hidden].
    """

    stream: Tensor = field(default_factory=lambda: torch.empty(0))
    after: Tensor = field(default_factory=lambda: torch.empty(0))
    weights: Tensor = field(default_factory=lambda: torch.empty(0))
    read: Tensor = field(default_factory=lambda: torch.empty(0))
    given: Tensor = field(default_factory=lambda: torch.empty(0))
    attended: Tensor = field(default_factory=lambda: torch.empty(0))
    fed: Tensor = field(default_factory=lambda: torch.empty(0))


def measure(model: nn.Module, tokens: Tensor, places: Iterable[int] | None = None) -> dict[int, Parts]:
    """The parts of the blocks `places` (all by default) for token ids [count, length], by place, from one pass.

    Attention is computed without fused kernels, which keep no weights. Raises ValueError for places without a block.
    """
    every = list(blocks.blocks(model))
    places = list(range(len(every))) if places is None else list(places)
    if wrong := [place for place in places if not 0 <= place < len(every)]:
        raise ValueError(f"place {wrong[0]}; the model has the blocks 0 to {len(every) - 1}; choose of these.")
    found = {place: Parts() for place in places}
    heads = blocks.config(model).num_attention_heads
    with contextlib.ExitStack() as stack:
        for place, parts in found.items():
            stack.enter_context(_watched(model, every[place], place, heads, parts))
        stack.enter_context(evaluating(model))
        stack.enter_context(_plain_attention(model))
        blocks.decoder(model)(input_ids=tokens.to(blocks.device(model)), use_cache=False)
    for parts in found.values():
        parts.read = parts.read if len(parts.read) else parts.given
    return found


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of the singular values' shares, from 1 to the columns, of `values` [rows, columns].

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, section 2.
    """
    sizes = torch.linalg.svdvals(values.double())
    shares = sizes / sizes.sum()
    return float(torch.special.entr(shares).sum().exp())


def not_linear(read: Tensor, given: Tensor) -> list[float]:
    """For each head the share of what it gives that no matrix makes of what it read, from 0 to 1.

    read, given: [count, length, heads, size]. The matrix is the one with least squares over all tokens, of which there
    must be more than `size`; 0 is a layer that folds into the output matrix.
    """
    size, tokens = read.shape[-1], read.shape[:2].numel()
    if tokens <= size:
        raise ValueError(f"{tokens} tokens for heads of size {size}; a fit needs more than that; give more text.")
    found = []
    for x, y in zip(read.flatten(0, 1).unbind(1), given.flatten(0, 1).unbind(1)):
        x, y = x.double(), y.double()
        left = y - x @ torch.linalg.lstsq(x, y, driver="gelsd").solution  # for heads of less than full rank too
        found.append(float(left.square().sum() / y.square().sum().clamp_min(1e-300)))
    return found


@contextlib.contextmanager
def _watched(model: nn.Module, block: nn.Module, place: int, heads: int, parts: Parts) -> Iterator[None]:
    """Context in which a pass of the model fills `parts` with what `block` computes."""
    names = {kind: _name(model, kind, place) for kind in ("output", "down")}
    output, down = (model.get_submodule(name) for name in names.values())
    attention = model.get_submodule(names["output"].rpartition(".")[0])

    def split(values: Tensor) -> Tensor:
        return _kept(values).unflatten(-1, (heads, -1))

    def entered(_, args: tuple, kwargs: dict) -> None:
        parts.stream = _kept(partial.taken(args, kwargs)[0])

    def attended(_, __, answer) -> None:  # transformers' own listeners would stay in the model
        if not isinstance(answer, tuple) or answer[1] is None:
            raise ValueError(
                f"{type(attention).__name__} answers no attention weights; attention as transformers' own is allowed; "
                "look at another model."
            )
        parts.weights = _kept(answer[1])

    def left(_, __, answer) -> None:
        parts.after = _kept(partial.first(answer))

    hooks = [
        block.register_forward_pre_hook(entered, with_kwargs=True),
        block.register_forward_hook(left),
        attention.register_forward_hook(attended),
        output.register_forward_pre_hook(lambda _, args: setattr(parts, "given", split(args[0]))),
        output.register_forward_hook(lambda _, __, answer: setattr(parts, "attended", _kept(answer))),
        down.register_forward_hook(lambda _, __, answer: setattr(parts, "fed", _kept(answer))),
    ]
    with contextlib.ExitStack() as stack:
        for hook in hooks:
            stack.callback(hook.remove)
        for part in block.modules():
            if hasattr(part, "after"):  # of our architectures
                stack.enter_context(_listening(part, parts))
        yield


@contextlib.contextmanager
def _listening(attention: nn.Module, parts: Parts) -> Iterator[None]:
    """Context in which what `attention` changes before its output matrix is kept as it was read."""
    after = attention.after

    def listen(heads: Tensor, hidden: Tensor) -> Tensor:
        parts.read = _kept(heads)
        return after(heads, hidden)

    attention.after = listen
    try:
        yield
    finally:
        del attention.after  # the instance's own, which hides that of its class


@contextlib.contextmanager
def _plain_attention(model: nn.Module) -> Iterator[None]:
    """Context in which the model computes its attention weights openly."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _name(model: nn.Module, kind: str, place: int) -> str:
    """The name of the linear layer of that `kind` (`pick.KINDS`) in the block `place`."""
    return pick.linear(model, kind, place / max(1, len(blocks.blocks(model)) - 1))


def _kept(values: Tensor) -> Tensor:
    return values.detach().float().cpu()
