"""What can be told before a distillation begins: whether its grid exists, can be trained, and fits into memory."""

import psutil
from torch import nn

from lib import files
from lib.distillation import quantization_aware
from lib.distillation.presets import Preset
from lib.quantized import pairs
from lib.quantizers import calibrate
from lib.trainers import divergences

PAIRED = ("gptq", "gptq_signround")  # starts that have grids of pairs


def before(original: nn.Module, made: Preset) -> None:
    """Raise ValueError for a preset that no training can follow, MemoryError for one that doesn't fit in memory.

    Nothing is written before this: what is refused leaves no folder that would refuse the next one.
    """
    for name, value, known in (
        ("linear", made.linear, quantization_aware.LINEARS),
        ("divergence", made.divergence, divergences.DIVERGENCES),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r} of a distillation; {files.choices(value, known)}")
    levels = {} if made.start == "codebook" else {"levels": made.levels}
    grid = {"bits": made.bits, "group_size": made.group_size, "paired": made.start in PAIRED}
    calibrate.check_layers(original, **grid, **levels)
    paired = made.levels == pairs.LEVELS
    if made.code_steps and (paired or (made.start == "codebook" and made.linear == "codes")):
        given = f"levels={made.levels!r}" if paired else "start='codebook'"
        other = "" if paired else "linear='bitdistiller', "
        raise ValueError(
            f"{given} and code_steps={made.code_steps:g} with linear={made.linear!r}: codes that move by steps need "
            f"levels in even steps; take {other}code_steps=0, or a start on an affine grid."
        )
    _check_memory(original, made)


def _check_memory(original: nn.Module, made: Preset) -> None:
    """The student beside the original, and what is trained of it."""
    layers = calibrate.layers(original).values()
    codes = sum(layer.weight.numel() for layer in layers)
    width = made.group_size if made.group_size > 0 else max(layer.in_features for layer in layers)
    copied = sum(each.numel() * each.element_size() for each in original.parameters())
    scales = copied + quantization_aware.LATENT * codes // width
    needed = copied + quantization_aware.LATENT * codes if made.code_steps else scales
    free = psutil.virtual_memory().available
    if needed > free:
        alone = f"scales alone (code_steps=0) need {scales / 1e9:.1f} GB; " if made.code_steps and scales < free else ""
        fits = free / needed * codes
        raise MemoryError(
            f"a student of {codes:,} codes and its training need about {needed / 1e9:.1f} GB beside the original and "
            f"{free / 1e9:.1f} GB are free; {alone}about {fits:,.0f} codes fit; take those, or a smaller model."
        )
