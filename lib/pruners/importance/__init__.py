"""Block importance: one file per score, one signature for all.

    score(model, calibration, ...) -> list[float]     one number per block, low = remove first, infinite = protected

`calibration` is a `Text`, `Windows`, or token ids, LongTensor [count, length]; `model` is run in eval mode and left as
it was. `SCORES` names them for notebooks and batch files.
"""

from torch import nn

from lib import extensions, files
from lib.metrics.score import Score, from_values
from lib.pruners.importance import (
    angular_distance,
    block_influence,
    last,
    leave_one_out,
    leave_one_out_kl,
    magnitude,
    passes,
    random_order,
    taylor,
    taylor_plus,
)

SCORES = {
    "leave_one_out": leave_one_out.score,
    "divergence": leave_one_out_kl.score,
    "block_influence": block_influence.score,
    "angular_distance": angular_distance.score,
    "taylor": taylor.score,
    "taylor_plus": taylor_plus.score,
    "magnitude": magnitude.score,
    "random": random_order.score,
    "last": last.score,
}
UNITS = {
    "leave_one_out": "nats a token",
    "divergence": "nats a token",
    "block_influence": "1 - cosine",
    "angular_distance": "share of a half turn",
    "taylor": "sum of |gradient · weight|",
    "taylor_plus": "sum of |gradient · weight|",
    "magnitude": "sum of |weight|",
    "random": "a draw",
    "last": "blocks after it",
}
MEANS = ("leave_one_out", "divergence", "block_influence", "angular_distance")  # means over windows, with an error


def score(name: str, model: nn.Module, calibration, **options) -> list[float]:
    """The score called `name`, one of `SCORES`; ValueError for another name."""
    return by_name(name)(model, calibration, **options)


def by_name(name: str):
    """The function that scores by `name`, or the one in the Python file at that path; ValueError for other names."""
    if extensions.is_path(name):
        return extensions.load(name, "score", "model", "calibration").score
    if name not in SCORES:
        raise ValueError(f"block importance {name!r} is unknown; {files.choices(name, SCORES)}")
    return SCORES[name]


def measure(name: str, model: nn.Module, calibration) -> list[Score]:
    """The score called `name` of each block, with its standard error over windows where it is a mean over them."""
    function = by_name(name)
    if name not in MEANS:
        return [Score(value, None, 1, UNITS.get(name, "of its own"), None) for value in function(model, calibration)]
    per_window = [function(model, window[None]) for window in passes.tokens_of(model, calibration)]
    return [from_values(values, UNITS[name]) for values in zip(*per_window)]
