"""Which of llama.cpp's types for which matrix, so that a file of a given size diverges least.

Each matrix is rounded to nearest on the grid of each type that its columns allow. What that costs is the squared error
of each weight times the Fisher information of it, the mean square of the gradient of a text's log-likelihood, texts
being those that the model itself would write: the second-order term of the divergence, if errors of weights were not
related (Theis et al., arXiv 1801.05787, equation 6). Costs add up, so that the best types within a size are a
knapsack's solution (`allocate.solve`).
"""

import functools
import math
import tempfile
from pathlib import Path

import gguf
import torch
from torch import Tensor, nn

from lib import progress
from lib.export import gguf_metadata, gguf_vocabulary
from lib.models import attention, blocks
from lib.quantized import gguf_types
from lib.quantizers import aimed, allocate, on_grid
from lib.sources import texts

EVERY = tuple(gguf_types.TYPES)
_ROWS = 256  # of a matrix that are rounded, at least: those with the most information, and as many of the others
_ALIGN = 32  # bytes to which the tensors of a file are aligned
_OF_TENSOR = 80  # bytes of a tensor's name, shape and place in the header, at most

Errors = dict[str, dict[str, float]]  # by matrix and type


def errors(model: nn.Module, calibration, *, types=EVERY, windows: int = 4, seed: int = 0) -> Errors:
    """Expected divergence, in nats a token, by layer name and type; the model is not changed.

    calibration: windows of text or token ids [count, length], of which the first `windows` are used. types: those to
    choose from; a matrix gets those whose blocks divide its columns.
    """
    found, tokens = {}, texts.tokens(calibration, model)[:windows]
    for kind in types:
        gguf_types.by_name(kind)
    information = fisher(model, tokens, seed=seed)
    for name, layer in progress.bar(aimed.matrices(model).items(), desc="types", unit="matrix"):
        weight, weights = layer.weight.detach().float(), information.pop(name)
        share, found[name] = weights.mean(0), {}
        parted, shares = _sample(weights)
        for kind in types:
            if gguf_types.held(kind, weight.shape[1]):
                parts = (on_grid.rtn(weight[rows], kind, share).dense().sub_(weight[rows]).square_() for rows in parted)
                sums = (float(apart.mul_(weights[rows]).sum(dtype=torch.float64)) for apart, rows in zip(parts, parted))
                found[name][kind] = sum(times * value for times, value in zip(shares, sums, strict=True)) / 2
        if not found[name]:
            raise ValueError(f"{name} has {weight.shape[1]} columns; none of {', '.join(types)} holds them; add types.")
    return found


def _sample(weights: Tensor) -> tuple[list[Tensor], list[float]]:
    """Rows to round, and what they stand for: the 256 with the most information, and an even share of the others.

    A vocabulary has tens of thousands of rows, of which a text uses few: those are all looked at.
    """
    order = weights.sum(1).argsort(descending=True)
    first, others = order[:_ROWS], order[_ROWS:]
    if not len(others):
        return [first], [1.0]
    picked = others[:: max(1, len(others) // _ROWS)]
    return [first, picked], [1.0, len(others) / len(picked)]


def fisher(model: nn.Module, tokens: Tensor, *, seed: int = 0) -> dict[str, Tensor]:
    """Mean square, a token, of the gradient of log p(text) by each weight, [rows, columns] by layer name.

    The next tokens are drawn from the model's own predictions on `tokens` [count, length].
    """
    layers, generator = aimed.matrices(model), torch.Generator().manual_seed(seed)
    weights = [layer.weight for layer in layers.values()]
    wanted = [weight.requires_grad for weight in weights]
    total = [torch.zeros(weight.shape) for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for row in tokens.split(1):
            with torch.enable_grad(), attention.fast():
                logits = model(input_ids=row.to(blocks.device(model)), use_cache=False).logits[0].float()
                drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
                loss = nn.functional.cross_entropy(logits, drawn.to(logits.device), reduction="sum")
                for sum_, gradient in zip(total, torch.autograd.grad(loss, weights), strict=True):
                    sum_.addcmul_(gradient.float().cpu(), gradient.float().cpu(), value=1 / tokens.numel())
    finally:
        for weight, before in zip(weights, wanted, strict=True):
            weight.requires_grad_(before)
    return dict(zip(layers, total, strict=True))


def fit(model: nn.Module, tokenizer, found: Errors, *, megabytes: float) -> dict[str, str]:
    """Types by layer name with the least sum of errors whose file has at most `megabytes` (10⁶ bytes).

    Raises ValueError, naming the smallest size, where even the smallest types are too large.
    """
    layers = aimed.matrices(model)
    costs = [{kind: nbytes(layers[name], kind) for kind in of_types} for name, of_types in found.items()]
    if not 0 < megabytes < math.inf:
        raise ValueError(
            f"megabytes={megabytes}; a size is a positive number of 10⁶ bytes; 60 to 145 suit 135M weights."
        )
    rest = overhead(model, tokenizer)
    chosen = allocate.solve(costs, list(found.values()), round(megabytes * 1e6) - rest)
    if chosen is None:
        least = (sum(min(table.values()) for table in costs) + rest) / 1e6
        raise ValueError(f"megabytes={megabytes:g} is too small; the smallest types make {least:.2f}; allow those.")
    return dict(zip(found, chosen, strict=True))


def nbytes(layer: nn.Module, kind: str) -> int:
    """Bytes of the layer's matrix in a file, with its alignment."""
    made, count = gguf_types.by_name(kind), layer.weight.numel()
    return math.ceil(count // made.block * made.nbytes / _ALIGN) * _ALIGN


def overhead(model: nn.Module, tokenizer) -> int:
    """Bytes of a file without its matrices: vocabulary and metadata as they are written, names, norms and biases."""
    matrices = {f"{name}.weight" for name in aimed.matrices(model)} | {"lm_head.weight"}
    vectors = [tensor for name, tensor in model.state_dict().items() if name not in matrices]
    numbers = sum(math.ceil(4 * tensor.numel() / _ALIGN) * _ALIGN for tensor in vectors)
    return _written(model, tokenizer) + numbers + _OF_TENSOR * (len(vectors) + len(matrices)) + 4096


def _written(model: nn.Module, tokenizer) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "empty.gguf"
        writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf_metadata.architecture(model)])
        gguf_metadata.write(writer, model)
        gguf_vocabulary.write(writer, tokenizer, blocks.embeddings(model).num_embeddings)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path.stat().st_size


def quantize_(model: nn.Module, calibration, tokenizer, *, megabytes: float, types=EVERY, windows: int = 4, **options):
    """`aimed.quantize_` with the types that `fit` chooses for a file of `megabytes`; `options` are its others."""
    measured = functools.partial(errors, types=types, windows=windows)
    plan = fit(model, tokenizer, measured(model, calibration), megabytes=megabytes)
    return aimed.quantize_(model, calibration, types=plan, **options)
