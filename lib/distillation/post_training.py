"""The arm without distillation: the minutes of the whole pipeline spent on more calibration and more rounding.

Whoever distils for an hour could have quantized for an hour. So the same quantizer starts anew, with as many more
windows and learning steps as take the processor time of start and training together; what it calibrates on beyond the
first windows are those that the student was trained on.
"""

import dataclasses

import torch

from lib.distillation import presets, training_text

RUNG, FOLDER = "post-training", "post_training"
SPENDING = ("gptq_signround", "signround", "block_wise")  # starts that learn: more steps take more time


def check(made: presets.Preset) -> None:
    """Raise ValueError for a start that has no use for more time."""
    if made.start not in SPENDING:
        raise ValueError(
            f"start={made.start!r} takes no longer with more steps, so it cannot spend a training's minutes; the arm "
            f"of post-training needs one of {', '.join(SPENDING)}; take a preset that starts with one."
        )


def plan(made: presets.Preset, seconds: dict[str, float]) -> dict[str, float]:
    """How many windows and steps take the seconds of start and training: both of the start's, times `factor`.

    seconds: of processor time, by step of the ladder. The windows are at most those that the pipeline has read.
    """
    factor = (seconds["start"] + seconds["training"]) / seconds["start"]
    windows = min(round(made.calibration * factor), made.calibration + made.windows)
    return {"factor": factor, "calibration": windows, "rounding": max(1, round(made.rounding * factor))}


def enlarged(
    made: presets.Preset, windows: training_text.Windows, planned: dict[str, float]
) -> tuple[presets.Preset, training_text.Windows]:
    """The preset and the windows of the arm."""
    more = {name: planned[name] for name in ("calibration", "rounding")}
    everything = torch.cat([windows.calibration, windows.training])[: planned["calibration"]]
    return dataclasses.replace(made, **more), dataclasses.replace(windows, calibration=everything)
