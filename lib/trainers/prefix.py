"""Shared prefix of teacher and student: identical leading blocks run once for both.

Pruning does not change the blocks before the first removed one. Where healing does not train them either
(`adapters.full_(model, first=...)`), both models compute the same hidden states there, to the last bit. The shared
blocks run as part of the teacher, in eval mode: without dropout.
"""

import torch
from torch import Tensor, nn

from lib.models import blocks, partial
from lib.models.eval_mode import evaluating

_COUNTED = ("num_hidden_layers", "layer_types", "dtype", "architectures", "tie_word_embeddings")


def shared(teacher: nn.Module, student: nn.Module) -> int:
    """Number of leading blocks that compute the same in both models and are not trained in the student.

    The embedding counts with them. They have equal weights, the models' configurations differ in nothing else, and they
    are tried on a few tokens. At most one less than the student's blocks, since the student must run at least one of
    its own.
    """
    if type(teacher) is not type(student) or _settings(teacher) != _settings(student):
        return 0
    pairs = [(blocks.embeddings(teacher), blocks.embeddings(student))]
    pairs += zip(blocks.blocks(teacher), blocks.blocks(student))
    equal = 0
    for one, other in pairs:
        if not _equal(one, other):
            break
        equal += 1
    equal = min(max(0, equal - 1), len(blocks.blocks(student)) - 1)
    while equal and not torch.equal(_reaching(teacher, equal), _reaching(student, equal)):
        equal -= 1
    return equal


def state(teacher: nn.Module, student: nn.Module, count: int) -> list[tuple]:
    """State of the embedding and the first `count` blocks, which differs as soon as any of it changes."""
    found = []
    for model in (teacher, student) if count else ():
        for part in (blocks.embeddings(model), *list(blocks.blocks(model))[:count]):
            tensors = [*part.parameters(), *part.buffers()]
            found += [(id(module), type(module)) for module in part.modules()]
            found += [(each.data_ptr(), each._version, each.requires_grad) for each in tensors]
    return found


def _settings(model: nn.Module) -> dict:
    """The settings of a configuration without lists that have an entry for each block."""
    config = blocks.config(model)
    count, aliases = config.num_hidden_layers, config.attribute_map  # "n_layer" in some families
    left_out = {*_COUNTED, *(aliases[name] for name in _COUNTED if name in aliases)}
    return {
        name: value
        for name, value in config.to_dict().items()
        if name not in left_out and not (isinstance(value, list | tuple) and len(value) == count)
    }


def _reaching(model: nn.Module, place: int) -> Tensor:
    """The arguments that block `place` of `model` receives for a few tokens."""
    tokens = torch.arange(3, 19, device=blocks.device(model))[None] % blocks.embeddings(model).num_embeddings
    with evaluating(model), partial.recorded(model, place) as found:
        blocks.decoder(model)(input_ids=tokens, use_cache=False)
    return found[0]


def _equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have the same class and equal weights, and `other` does not train them."""
    kinds = [{(name, type(part)) for name, part in each.named_modules()} for each in (one, other)]
    theirs, ours = ({**dict(each.named_parameters()), **dict(each.named_buffers())} for each in (one, other))
    return (
        kinds[0] == kinds[1]
        and theirs.keys() == ours.keys()
        and all(not ours[name].requires_grad and _same(theirs[name], ours[name]) for name in ours)
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other.to(one.device))
