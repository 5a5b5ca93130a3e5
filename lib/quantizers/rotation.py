"""Rotation: rotates the hidden space of a model to remove outliers from weights and inputs, then quantizes.

A norm with weight 1 maps a rotated residual stream to a rotated output. So an orthogonal Q can be multiplied into the
weights on both sides of the stream, and a smaller R into the values and the output projection of each attention, where
the two cancel: the model computes the same function, and each new coordinate is a sum of many old ones, which averages
outliers away.

Sources: Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", arXiv 2404.00456, section 4, stages
1a and 1b; Liu et al., "SpinQuant: LLM Quantization with Learned Rotations", arXiv 2405.16406, section 3.1, whose R1
and R2 are `residual` and `values` here. Nothing is trained, and inference needs no extra operation.
"""

import contextlib
import copy
import math

import psutil
import torch
from torch import Tensor, nn

from lib.jobs import JobState, fingerprint
from lib.models import blocks, capture, equivalence, logits, partial
from lib.quantized.grid import Quantized
from lib.quantizers import calibrate, gptq
from lib.quantizers.hadamard import rotation
from lib.quantizers.layer_rotation import AT_ONCE, LayerRotation, factors, neutral_, subtracts_mean, times, turn_
from lib.sources import texts

FLIPPED = "a Hadamard rotation of it flips signs and mixes nothing"  # no power of two but 1 divides it
REMEDY = "choose rotate_(values=False), which turns the residual stream alone"
INPUTS, OUTPUT = {"q_proj", "k_proj", "v_proj"}, {"o_proj", "dense", "out_proj"}


def quantize_(
    model: nn.Module,
    calibration,
    *,
    bits: int,
    group_size: int,
    symmetric: bool = False,
    levels: str = "integer",
    act_order: bool = True,
    candidates: int = 8,
    seed: int = 0,
    state=None,
    device: str | None = None,
) -> dict[str, Quantized]:
    """`rotate_` the model with the signs of `seed`, then quantize it with GPTQ; the other arguments are `gptq`'s.

    Embedding and head, if they were one matrix, are two afterwards, and the artifact is larger by one of them.
    """
    calibrate.check_layers(
        model, bits=bits, group_size=group_size, candidates=candidates, symmetric=symmetric, levels=levels
    )
    tokens = texts.tokens(calibration, model)
    calibrate.check_memory(model, tokens)
    _check(model, residual=True)
    grid = {"bits": bits, "group_size": group_size, "symmetric": symmetric, "levels": levels, "candidates": candidates}
    if state is not None:
        job = {**fingerprint(model, tokens, device), **grid, "seed": seed, "act_order": act_order}
        state = JobState(state, method="rotation", **job)

    def quantize_layer(names: list[str], weight: Tensor, hessian: Tensor) -> Quantized:
        return gptq.gptq(weight, hessian, act_order=act_order, **grid)

    return calibrate.sequential(rotate_(model, seed=seed), tokens, quantize_layer, state=state, device=device)


@torch.no_grad()
def rotate_(model: nn.Module, *, seed: int = 0, residual: bool = True, values: bool = True) -> nn.Module:
    """Rotate `model` in place and return it: the same function, still an ordinary model to save and to load.

    seed: of the random signs. residual: R1, one rotation of the residual stream. values: R2, one rotation of the
    values of each block. Products are computed in float64 and rounded once. Norms that layers read end with weight
    1. Embedding and head are untied, in `model.config` too, since the head alone takes up the weight of the last norm.
    Raises ValueError, before anything is changed, for a model with parts that can't be rotated.
    """
    _check(model, residual)
    layers, table = list(blocks.linears(blocks.blocks(model)).values()), blocks.embeddings(model)
    readers = _readers(model) if residual else {}
    pairs = [_value_and_output(model, index) for index in range(len(blocks.blocks(model)))] if values else []
    norms, generator = list(dict.fromkeys(readers.values())), torch.Generator().manual_seed(seed)
    mean = any(subtracts_mean(norm, table.embedding_dim) for norm in norms)
    whole = rotation(table.embedding_dim, generator, keep_mean=mean)
    turns = {layer: LayerRotation() for layer in layers}
    if residual:
        for layer in (*layers, blocks.head(model)):
            turns[layer] = (
                LayerRotation(readers[layer], inner=whole) if layer in readers else LayerRotation(outer=whole)
            )
        turns[table] = LayerRotation(inner=whole)
    for value, output, size in pairs:
        heads = rotation(size, generator)
        turns[value] = turns[value]._replace(outer=heads)
        turns[output] = turns[output]._replace(inner=heads)
    _try(model, turns, norms, whole if residual else None)
    if residual:
        blocks.untie_(model)
    for layer, turn in turns.items():
        turn_(layer, turn)
    for norm in norms:
        neutral_(norm)
    return model


def _try(
    model: nn.Module, turns: dict[nn.Module, LayerRotation], norms: list[nn.Module], stream: Tensor | None
) -> None:
    """Raise ValueError where these rotations would change the outputs of `model`; each part is tried on a copy."""

    def change_(block: nn.Module, trial: nn.Module) -> None:
        copied = dict(zip(block.modules(), trial.modules()))
        for layer in copied.keys() & turns.keys():
            turn_(copied[layer], turns[layer]._replace(norm=copied.get(turns[layer].norm)))
        for norm in copied.keys() & set(norms):
            neutral_(copied[norm])

    vocabulary = blocks.embeddings(model).num_embeddings
    tokens = torch.arange(3, 3 + equivalence.LENGTH)[None] % vocabulary
    captured, enlarged = (
        capture.capture(model, tokens),
        {layer for layer, turn in turns.items() if turn.outer is not None},
    )
    if stream is not None:
        _try_ends(model, tokens, captured.hidden, stream)
    different = equivalence.first_difference(model, captured, change_, stream=stream, enlarged=enlarged)
    if different is not None:
        what = f"a block {different[0]} that computes something else once it is turned (off by {different[1]:.2g})"
        heads = any(turn.outer is not None and turn.outer is not stream for turn in turns.values())
        raise _refused(model, what, *([REMEDY] if heads else []))


def _try_ends(model: nn.Module, tokens: Tensor, hidden: Tensor, stream: Tensor) -> None:
    """Raise ValueError where a rotation does not carry from the embedding to the blocks, or from them to the head."""
    turn = lambda values: times(values.double(), stream)  # noqa: E731
    hook = blocks.embeddings(model).register_forward_hook(lambda _, __, output: turn(output).to(output.dtype))
    try:
        found = capture.capture(model, tokens).hidden
    finally:
        hook.remove()
    kind = torch.finfo(hidden.dtype)
    close = 16 * kind.eps
    # below the least normal number rounding errs by a fixed amount, however small the value is
    if (found - turn(hidden)).norm() > close * (hidden.double().norm() + kind.tiny * math.sqrt(hidden.numel())):
        raise _refused(model, "something between embedding and blocks that does not turn with them")
    norm = blocks.final_norm(model)
    with logits.evaluating(model), partial.skipped(model, len(blocks.blocks(model)), hidden):
        expected = logits.hidden_states(model, tokens).double()
    trial = copy.deepcopy(norm).float()
    neutral_(trial)
    found = times(trial(turn(hidden).float()).double(), stream.T)
    factor, bias = factors(norm), getattr(norm, "bias", None)
    found = (found if factor is None else found * factor) + (0 if bias is None else bias.double())
    if (found - expected).norm() > close * expected.norm():
        raise _refused(model, "something between its last norm and the head that does not turn with them")


def _readers(model: nn.Module) -> dict[nn.Linear, nn.Module]:
    """The norm that each linear layer reads, for layers that read one; the others write to the residual stream.

    Found by running two tokens. Raises ValueError for a model whose residual stream can't be turned.
    """
    parts, outputs, found = blocks.blocks(model), [], {}
    layers = {**blocks.linears(parts), "head": blocks.head(model)}
    norms = {name: part for name, part in parts.named_modules() if blocks.is_norm(part)}
    norms["last"] = blocks.final_norm(model)
    _check_parts(model, [*layers.values(), *norms.values(), blocks.embeddings(model)])

    def note(norm: nn.Module, _: tuple, output: Tensor) -> None:
        outputs.append((output, norm))

    def look(layer: nn.Linear, args: tuple) -> None:
        place = args[0].untyped_storage().data_ptr()  # the head reads a view of what the last norm wrote
        found.update((layer, norm) for output, norm in outputs if output.untyped_storage().data_ptr() == place)

    with contextlib.ExitStack() as stack:
        for norm in norms.values():
            stack.callback(norm.register_forward_hook(note).remove)
        for layer in layers.values():
            stack.callback(layer.register_forward_pre_hook(look).remove)
        model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=blocks.device(model)), use_cache=False)
    _check_norms(model, norms, found)
    width = blocks.embeddings(model).embedding_dim
    for name, layer in layers.items():
        if layer not in found and layer.out_features != width:
            raise _refused(model, f"the layer {name}, which neither reads a norm nor writes to the residual stream")
    return found


def _check_parts(model: nn.Module, turned: list[nn.Module]) -> None:
    """Raise ValueError for parameters outside of the modules that a rotation knows."""
    known = {id(part) for module in turned for part in module.parameters()}
    for name, part in model.named_parameters():
        if id(part) not in known:
            raise _refused(model, f"{name}, which is neither embedding, norm nor linear layer")


def _check_norms(model: nn.Module, norms: dict[str, nn.Module], readers: dict[nn.Linear, nn.Module]) -> None:
    """Raise ValueError for a norm that does not precede linear layers, or whose bias none of them can absorb."""
    for name, norm in norms.items():
        reading = [layer for layer, other in readers.items() if other is norm]
        inside = name.count(".") > 1  # a part of an attention
        if inside and not reading and name.rpartition(".")[2].startswith(("q_", "k_")):
            continue  # norms of queries and keys, which are not rotated
        if inside or not reading:
            what = f"the norm {name}, which is not on the way from the residual stream to linear layers"
            raise _refused(model, what, "choose rotate_(residual=False), which turns the values alone")
        if getattr(norm, "bias", None) is not None and any(layer.bias is None for layer in reading):
            raise _refused(model, f"the norm {name} with a bias, read by layers that have none to take it up")


def _value_and_output(model: nn.Module, index: int) -> tuple[nn.Linear, nn.Linear, int]:
    """Value and output projection of block `index` and the size of a head; ValueError where R has no place."""
    for attention in blocks.blocks(model)[index].modules():
        inside = dict(attention.named_children())
        names = {name for name, part in inside.items() if blocks.is_linear(part)}
        output = names & OUTPUT
        if len(output) == 1 and names - output == INPUTS and "v_norm" not in inside:
            value, output = inside["v_proj"], inside[output.pop()]
            size = output.in_features // blocks.config(model).num_attention_heads
            if inside["q_proj"].out_features == output.in_features and value.out_features % size == 0:
                if size % 2:
                    raise _refused(model, f"heads of an odd size, {size} (in block {index}): {FLIPPED}", REMEDY)
                return value, output, size
    raise _refused(model, f"an attention in block {index} without plain query, key, value and output layers", REMEDY)


def _check(model: nn.Module, residual: bool) -> None:
    """ValueError for a quantized model or an odd stream, MemoryError where the head's matrix and products don't fit."""
    layers, table = blocks.linears(blocks.blocks(model)), blocks.embeddings(model)
    for name, layer in {**layers, "head": blocks.head(model), "embedding": table}.items():
        if not isinstance(layer, nn.Linear | nn.Embedding):
            raise _refused(model, f"a {type(layer).__name__} ({name})", "rotate the original, then quantize it")
    if residual and table.embedding_dim % 2:
        raise _refused(model, f"{blocks.path_of(model, table)} of odd width, {table.embedding_dim}: {FLIPPED}")
    largest, free = max(layer.weight.numel() for layer in layers.values()), psutil.virtual_memory().available
    if (needed := table.weight.nbytes + 4 * 8 * max(AT_ONCE, largest)) > free:
        raise MemoryError(
            f"rotating {type(model).__name__} needs about {needed / 1e9:.1f} GB beside the model, {free / 1e9:.1f} GB "
            "are free; free some, or use gptq.quantize_, which needs no rotation."
        )


def _refused(model: nn.Module, found: str, remedy: str = "use gptq.quantize_, which needs no rotation") -> ValueError:
    return ValueError(
        f"{type(model).__name__} has {found}; models built like Llama, Mistral, Qwen2, Qwen3, Gemma 1 and Phi can be "
        f"rotated; {remedy}."
    )
