"""Aims a model at llama.cpp's types: codes are chosen on the grids of the file, so that the file is the tuned model.

    found = aimed.quantize_(model, calibration, types={"model.layers.0.mlp.up_proj": "Q4_0", ...}, steps=20)
    export.gguf.export(model, tokenizer, folder, aimed=found)

Embedding and head first, then block by block GPTQ on the type's own grid and, with `steps`, SignRound from there
(`on_grid`), on inputs from the finished blocks before it. The model stays an ordinary one: its weights become, in
float32, the numbers of the file to the last bit. `aimed_scales` trains the steps end to end afterwards, and
`aimed_sizes` chooses the types for a file of a given size.
"""

import contextlib
import hashlib
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from lib import files
from lib.jobs import JobState, fingerprint
from lib.models import blocks, capture
from lib.quantized import gguf_types
from lib.quantized.gguf_types import Blocks
from lib.quantized.grid import check_finite
from lib.quantizers import calibrate, embedding, on_grid, signround
from lib.sources import texts

Types = str | dict[str, str]  # of all matrices alike, or by layer name


def quantize_(
    model: nn.Module,
    calibration,
    *,
    types: Types,
    steps: int = 0,
    batch: int = 2,
    rate: float | None = None,
    range_rate: float | None = None,
    filtered: float = 0.001,
    seed: int = 0,
    state: Path | str | None = None,
) -> dict[str, Blocks]:
    """Replace the weights of all linear layers inside the blocks, of embedding and head by those of `types`, in place.

    Returns the matrices by layer name (a tied head is its embedding). The model becomes float32, which holds them
    exactly. calibration: windows of text, or token ids [count, length]. types: one of `gguf_types.TYPES` for all, or a
    dict by layer name; matrices that it does not name stay as they are. steps, batch, rate, range_rate, filtered: of
    `signround.quantize_`; 0 steps leave GPTQ's codes. state: folder that keeps finished blocks, so that a killed job
    resumes. Raises ValueError before the work for types that do not exist or whose blocks do not divide the columns.
    """
    plan = check(model, types)
    tokens = texts.tokens(calibration, model)
    calibrate.check_memory(model, tokens, streams=2)
    learning = {"rate": rate, "range_rate": range_rate, "filtered": filtered, "seed": seed}
    learning |= {"steps": steps, "batch": min(batch, len(tokens))}
    if steps:
        learning = signround.settle(len(tokens), **learning)
    if state is not None:
        told = hashlib.sha256(repr(sorted(plan.items())).encode()).hexdigest()
        state = JobState(state, method="aimed", **fingerprint(model, tokens), types=told, **learning)
    model.float()
    with state or contextlib.nullcontext():
        clean = capture.capture(model, tokens).hidden  # the original's inputs come from its own embedding
        found = _kept(state, "ends", lambda: _ends(model, tokens, plan))
        _write(model, found)

        def quantize_block(prefix: str, block: nn.Module, hidden: Tensor, targets: Tensor, call: tuple) -> dict:
            done = _kept(state, prefix, lambda: _block(block, hidden, targets, call, prefix, plan, learning))
            _write(model, done)
            found.update(done)
            return {}  # nothing is replaced: the block goes on with its new weights

        calibrate.sequential_blocks(model, tokens, quantize_block, clean=clean)
    return found


def check(model: nn.Module, types: Types) -> dict[str, str]:
    """Types by layer name; ValueError for names and types that do not exist, and for columns that no block divides."""
    blocks.refuse_adapters(model)
    check_finite(model)
    wanted = matrices(model)
    plan = dict.fromkeys(wanted, types) if isinstance(types, str) else dict(types)
    for name, kind in plan.items():
        if name not in wanted:
            raise ValueError(f"types name {name!r}, no matrix of the model; {files.choices(name, wanted)}")
        columns = wanted[name].weight.shape[1]
        if not gguf_types.held(kind, columns):
            fitting = ", ".join(each for each in gguf_types.TYPES if gguf_types.held(each, columns))
            instead = f"choose one of {fitting}" if fitting else "leave it out, and it is stored in half precision"
            size = gguf_types.by_name(kind).block
            raise ValueError(f"{kind} for {name} with {columns} columns; its blocks are {size} long; {instead}.")
    return plan


def matrices(model: nn.Module) -> dict[str, nn.Module]:
    """Embedding, head (unless it is the embedding) and all linear layers inside the blocks, by name."""
    table, head = blocks.embeddings(model), blocks.head(model)
    found = {blocks.path_of(model, part): part for part in ((table,) if blocks.tied(model) else (table, head))}
    found |= calibrate.layers(model)
    if packed := [name for name, layer in found.items() if blocks.is_quantized(layer)]:
        raise ValueError(f"{packed[0]} is quantized already; types are aimed at from plain weights; load the original.")
    return found


def _ends(model: nn.Module, tokens: Tensor, plan: dict[str, str]) -> dict[str, Blocks]:
    """Embedding and head, a few thousand rows at a time."""
    table, head = (blocks.path_of(model, part) for part in (blocks.embeddings(model), blocks.head(model)))
    tied, found = blocks.tied(model), {}
    read = table if tied else head  # the matrix that makes logits
    hessian = embedding.final_moment(model, tokens) if read in plan else None
    if tied and hessian is not None:
        hessian = hessian + embedding.RIDGE * hessian.diagonal().mean() * torch.eye(len(hessian))
    for name in (table,) if tied else (table, head):
        if name in plan:
            rows = model.get_submodule(name).weight.detach().float().split(embedding.ROWS)
            by = (lambda part, kind: on_grid.gptq(part, hessian, kind)) if name == read else on_grid.rtn
            found[name] = Blocks(plan[name], torch.cat([by(part, plan[name]).data for part in rows]))
    return found


@torch.no_grad()
def _block(block, hidden, targets, call, prefix: str, plan: dict[str, str], learning: dict) -> dict[str, Blocks]:
    """The layers of a block by their names in the model; its weights are left as they were."""
    before = {name: layer.weight.detach().clone() for name, layer in blocks.linears(block).items()}
    found: dict[str, Blocks] = {}

    def quantize_shared(names: list[str], weight: Tensor, seen: Tensor) -> None:
        moment = capture.second_moment(seen)
        for name in names:
            if kind := plan.get(f"{prefix}.{name}"):
                found[name] = on_grid.gptq(before[name], moment, kind)
                block.get_submodule(name).weight.copy_(found[name].dense())

    calibrate.quantize_layers(block, hidden, call, prefix, quantize_shared)
    for name, weight in before.items():
        block.get_submodule(name).weight.copy_(weight)
    if learning["steps"] and found:
        done, _ = signround.reconstruct(block, hidden, targets, call, found, on_grid.GridWeight, **learning)
        found = {name: layer.quantized() for name, layer in done.items()}
    return {f"{prefix}.{name}": matrix for name, matrix in found.items()}


@torch.no_grad()
def _write(model: nn.Module, found: dict[str, Blocks]) -> None:
    for name, matrix in found.items():
        model.get_submodule(name).weight.copy_(matrix.dense())


def _kept(state: JobState | None, name: str, make) -> dict[str, Blocks]:
    """What `make` returns, or what `state` has of it."""
    path = state and state.folder / f"{name}.safetensors"
    if path and path.exists():
        with safetensors.safe_open(path, "pt") as file:
            return {each: Blocks(kind, file.get_tensor(each)) for each, kind in (file.metadata() or {}).items()}
    found = make()
    if path:
        tensors = {each: matrix.data.contiguous() for each, matrix in found.items()}
        kinds = {each: matrix.kind for each, matrix in found.items()}
        files.write_bytes(path, safetensors.torch.save(tensors, metadata=kinds))
    return found
