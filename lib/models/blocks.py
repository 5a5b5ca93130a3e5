"""Anatomy of a model: embeddings, blocks, final norm, head, and the linear layers inside a block.

Nothing here lists architectures: the blocks are the one `nn.ModuleList` as long as `config.num_hidden_layers`, and
the rest is found from there. That covers Llama, Mistral, Qwen2, Qwen3, Phi, Phi3, Gemma 1 to 3 (text), OPT,
GPT-NeoX, Falcon, and families built the same way.
"""

import functools
import itertools
import sys
from collections.abc import Iterator

import torch
from torch import nn

SUPPORTED = "Llama, Mistral, Qwen2, Qwen3, Phi, Phi3, Gemma, Gemma2, Gemma3 (text), OPT, GPT-NeoX, Falcon"


def path_of_blocks(model: nn.Module) -> str:
    """Dotted path of the list of blocks, such as `model.layers`.

    Raises ValueError when no list, or more than one, has `config.num_hidden_layers` entries, or when the blocks
    are made of GPT-2's transposed `Conv1D` layers.
    """
    wanted = config(model).num_hidden_layers
    lists = dict(_lists(model, wanted, "", set()))
    if len(lists) != 1:
        raise _unsupported(model, f"{len(lists)} module lists with {wanted} entries where one is expected")
    ((path, found),) = lists.items()
    if any(type(module).__name__ == "Conv1D" for block in itertools.islice(found, 1) for module in block.modules()):
        raise _unsupported(model, "Conv1D layers (weights transposed) where nn.Linear is expected")
    return path


def _lists(module: nn.Module, wanted: int, prefix: str, seen: set) -> Iterator[tuple[str, nn.ModuleList]]:
    """(path, list) of every list with `wanted` entries, each once.

    What lies inside of such a list is not looked at: a list in a block (experts, say) may happen to have as many, and
    this is asked for each layer of a model.
    """
    for name, child in module.named_children():
        if child in seen:
            continue
        seen.add(child)
        if isinstance(child, nn.ModuleList) and len(child) == wanted:
            yield f"{prefix}{name}", child
        else:
            yield from _lists(child, wanted, f"{prefix}{name}.", seen)


def blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks, in the order in which they run."""
    return model.get_submodule(path_of_blocks(model))


def embeddings(model: nn.Module) -> nn.Module:
    """The token embedding, weight [vocabulary, hidden]."""
    return model.get_input_embeddings()


def path_of(model: nn.Module, part: nn.Module) -> str:
    """Dotted path of the module `part` inside `model`."""
    return next(name for name, module in model.named_modules() if module is part)


def device(module: nn.Module) -> torch.device:
    """Where the first weight (or buffer of codes) of `module` lies; of a model: where it takes its tokens."""
    part = embeddings(module) if hasattr(module, "get_input_embeddings") else module
    return next(itertools.chain(part.parameters(), part.buffers())).device


def tied(model: nn.Module) -> bool:
    """Whether embedding and head are one matrix: the same weights, or the same codes."""
    table, layer = embeddings(model), head(model)
    if is_quantized(table) or is_quantized(layer):
        both = is_quantized(table) and is_quantized(layer)
        return both and all(a is b for a, b in zip(table.quantized[:3], layer.quantized[:3]))
    one, other = table.weight, layer.weight
    return one is other or (not one.is_meta and one.shape == other.shape and one.data_ptr() == other.data_ptr())


def alike(model: nn.Module) -> bool:
    """Whether one stored matrix serves embedding and head: they are tied, or quantized to the same numbers."""
    table, layer = embeddings(model), head(model)
    both = is_quantized(table) and is_quantized(layer)
    return tied(model) or (both and equal(table.quantized, layer.quantized))


def state_tying_(model: nn.Module) -> None:
    """Set `tie_word_embeddings` in the configuration to whether embedding and head are one matrix, as saving needs it.

    The configuration alone is not reliable: transformers keeps two matrices where a checkpoint has two, and a merged
    adapter may have given the head a matrix of its own.
    """
    if model.get_output_embeddings() is None:
        return
    found = alike(model)
    model.config.tie_word_embeddings = config(model).tie_word_embeddings = found
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def untie_(model: nn.Module) -> None:
    """Give the head a matrix of its own, equal to the embedding's: saving writes both, loading ties none."""
    layer = head(model)
    if layer.weight is embeddings(model).weight:
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=layer.weight.requires_grad)
    state_tying_(model)


def head(model: nn.Module) -> nn.Module:
    """The linear layer from hidden states to logits; its weight may be the embedding's (tied)."""
    found = model.get_output_embeddings()
    if found is None:
        raise _unsupported(model, "no output head; load it with AutoModelForCausalLM")
    return found


def final_norm(model: nn.Module) -> nn.Module:
    """The norm between the last block and the head: the one norm that stands beside the list of blocks.

    Raises ValueError for a model without one, such as OPT-350m.
    """
    norms = final_norms(model)
    if len(norms) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(norms)} norms beside its blocks where one is expected (OPT-350m has "
            "none); rotations and the packed engine need it; use other quantizers, pruning and healing, which do not."
        )
    return norms[0]


def final_norms(model: nn.Module) -> list[nn.Module]:
    """The norms that stand beside the list of blocks: one in most models, none in those whose blocks end in norms."""
    parent = model.get_submodule(path_of_blocks(model).rpartition(".")[0])
    return [module for module in parent.children() if is_norm(module)]


def is_norm(module: nn.Module) -> bool:
    """Whether `module` is a norm, by the name of its class: RMSNorm, LayerNorm, Nemotron's LayerNorm1P."""
    return "Norm" in type(module).__name__


def decoder(model: nn.Module) -> nn.Module:
    """The model without its head: token ids in, hidden states after the final norm out."""
    return model.base_model


def config(model: nn.Module):
    """The configuration of the text model (multimodal configurations keep it one level down)."""
    return model.config.get_text_config()


def linears(module: nn.Module) -> dict[str, nn.Module]:
    """Linear layers inside `module`, plain or quantized, by dotted name and in module order."""
    return {name: part for name, part in module.named_modules() if is_linear(part)}


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is an `nn.Linear`, a subclass that computes the same, or its quantized stand-in.

    Not a subclass that computes more, such as a router (Phi-3.5-MoE's).
    """
    return getattr(module, "stands_for", None) is nn.Linear or (isinstance(module, nn.Linear) and _plain(type(module)))


@functools.cache
def _plain(kind: type[nn.Linear]) -> bool:
    """Whether layers of the class `kind` answer x Wᵀ + b and nothing else; a class of its own forward is tried."""
    if kind.forward is nn.Linear.forward:
        return True
    layer, inputs = nn.Linear(2, 3, device="meta"), torch.tensor([[1.0, -2.0]])
    layer.weight = nn.Parameter(torch.arange(6.0).view(3, 2), requires_grad=False)
    layer.bias = nn.Parameter(torch.arange(3.0), requires_grad=False)
    wanted = layer(inputs)
    try:
        layer.__class__ = kind
        found = layer(inputs)
    except (TypeError, AttributeError, RuntimeError, ValueError):
        return False
    return isinstance(found, torch.Tensor) and found.shape == wanted.shape and torch.allclose(found, wanted)


def is_quantized(module: nn.Module) -> bool:
    """Whether `module` holds integer codes instead of a weight parameter: a `QuantLinear` or a `QuantEmbedding`."""
    return getattr(module, "stands_for", None) is not None


def weight_count(model: nn.Module) -> int:
    """Logical weights: tied weights or codes count once, a code as a weight; scales and zero points are no weights."""
    plain = sum(parameter.numel() for parameter in model.parameters())  # leaves out repetitions by itself
    # the codes of a tied head are the same tensor as its embedding's
    codes = {id(module.codes): module.codes.numel() for module in model.modules() if is_quantized(module)}
    return plain + sum(codes.values())


def refuse_adapters(model: nn.Module) -> None:
    """Raise ValueError for a model that carries adapters (of peft): parts of its linear layers that no saver writes."""
    loaded = sys.modules.get("peft.tuners.tuners_utils")  # not imported yet, so no such layer can exist
    kind = getattr(loaded, "BaseTunerLayer", ())
    found = [name for name, part in model.named_modules() if isinstance(part, kind)]
    if found or getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"{type(model).__name__} carries an adapter ({len(found)} layers, {found[0] if found else 'none left'} "
            "first); an ordinary model is compressed, pruned and saved; merge it first (model.merge_and_unload() of "
            "peft), or load its folder with sources.models.load(..., adapter='merge')."
        )


def equal(first: tuple, second: tuple) -> bool:
    """Whether two quantized matrices (`Quantized`) hold the same numbers on the same grid."""

    def same(a, b) -> bool:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and not (a is b or a.is_meta or b.is_meta):
            return torch.equal(a, b)
        return a is b or (isinstance(a, int | str) and a == b)

    return all(same(a, b) for a, b in zip(first, second))


def _unsupported(model: nn.Module, found: str) -> ValueError:
    return ValueError(f"{type(model).__name__} has {found}; supported are {SUPPORTED} and models built like them.")
