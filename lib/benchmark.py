"""One configuration of the benchmark: is it possible, apply it, save it. The notebook `50_benchmark` is its user."""

from pathlib import Path

from torch import nn

from lib import files, quantizers
from lib.pruners import depth, importance
from lib.quantizers.grid import BITS

METHODS = ("none", "depth", *quantizers.METHODS)


def check(*, method: str, bits: int, group_size: int, blocks: int) -> None:
    """Raise ValueError, before any work, for a configuration that does not exist or that says two things at once."""
    if method not in METHODS:
        raise ValueError(f"method={method!r}; {files.choices(method, METHODS)}")
    quantized = method in quantizers.METHODS
    if quantized and bits not in BITS:
        raise ValueError(f"bits={bits} for method={method!r}; grids have 2 to 8 bits; choose one of {list(BITS)}.")
    if quantized and blocks:
        raise ValueError(f"blocks={blocks} for method={method!r}, which removes none; set blocks=0 or method='depth'.")
    if method == "depth" and blocks < 1:
        raise ValueError(f"blocks={blocks} for method='depth'; it removes 1 or more; set blocks, or method='none'.")
    if method == "none" and blocks:
        raise ValueError(f"blocks={blocks} for method='none', which changes nothing; set blocks=0 or method='depth'.")
    if not quantized and bits != 16:
        raise ValueError(f"bits={bits} for method={method!r}, which keeps 16-bit weights; set bits=16 or a quantizer.")


def compress_(
    model: nn.Module,
    calibration,
    *,
    method: str,
    bits: int,
    group_size: int,
    blocks: int,
    score: str = "block_influence",
) -> nn.Module:
    """Compress `model` in place by one of `METHODS`; returns it. `score` orders the blocks for `depth`."""
    check(method=method, bits=bits, group_size=group_size, blocks=blocks)
    if method == "depth":
        scores = importance.score(score, model, calibration)
        depth.drop_blocks_(model, depth.lowest(scores, blocks))
    elif method != "none":
        quantizers.by_name(method)(model, calibration, bits=bits, group_size=group_size)
    return model


def save(model: nn.Module, tokenizer, /, *, method: str, bits: int, group_size: int, blocks: int, **parameters) -> Path:
    """Save the artifact under `checkpoints/`, under a name that tells the configuration; returns the folder.

    parameters: what else was varied; `model`, `text` and `calibration_windows` become part of the name.
    """
    from lib.export import compressed_tensors, plain

    source = Path(str(parameters.get("model", "model"))).name
    if method in quantizers.METHODS:
        how = f"{method}-{bits}bit-g{group_size}-{parameters.get('text')}{parameters.get('calibration_windows')}"
    elif method == "depth":
        how = f"depth-minus{blocks}-{parameters.get('text')}{parameters.get('calibration_windows')}"
    else:
        how = "original"
    folder = files.checkpoints() / f"{source}-{how}"
    quantized = method in quantizers.METHODS
    return (compressed_tensors if quantized else plain).save(model, tokenizer, folder)
