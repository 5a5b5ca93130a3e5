"""A measured number with its uncertainty: what every metric returns and the only thing a run records."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lib.metrics.intervals import quantile

_CHUNK = 1 << 22  # resampled numbers held at once by the bootstrap: 32 MiB of float64


@dataclass(frozen=True)
class Score:
    """One measurement.

    value: the number itself, in `unit`; infinity is a legitimate perplexity, NaN is refused.
    stderr: its standard error in the same unit; 0 for a counted quantity, None where it is unknown.
    n: how many samples (windows, questions, repetitions) stand behind it.
    higher_is_better: the metric's direction, None where there is none.
    baseline: score of the reference (the uncompressed model, chance), None where there is none.
    Raises ValueError for NaN, a negative standard error or n below 1.
    """

    value: float
    stderr: float | None
    n: int
    unit: str
    higher_is_better: bool | None
    baseline: float | None = None

    def __post_init__(self):
        for name in ("value", "stderr", "baseline"):
            number = getattr(self, name)
            if name != "value" and number is None:
                continue
            number = float(number)
            if math.isnan(number):
                raise ValueError(f"{name}=nan in a Score of unit {self.unit!r}; numbers are allowed; {_remedy(name)}.")
            object.__setattr__(self, name, number)
        if self.stderr is not None and self.stderr < 0:
            raise ValueError(f"stderr={self.stderr} of a Score; 0 or more is allowed; give None if it is unknown.")
        object.__setattr__(self, "n", int(self.n))
        if self.n < 1:
            raise ValueError(f"n={self.n} samples behind a Score; 1 or more is allowed; measure something first.")

    def __str__(self):
        if self.stderr is None or not math.isfinite(self.stderr) or not math.isfinite(self.value):
            return f"{_plain(self.value)} (n={self.n})"
        if self.stderr == 0:
            return _plain(self.value) if self.n == 1 else f"{_plain(self.value)} (n={self.n})"
        # two digits of the error, and the value to the same place: more would be noise
        places = min(max(1 - math.floor(math.log10(self.stderr)), 0), 9)
        return f"{self.value:,.{places}f} ± {self.stderr:,.{places}f} (n={self.n})"

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's 95 % interval (low, high) over the n samples, or None where the standard error is unknown."""
        if self.stderr is None:
            return None
        reach = quantile(self.n - 1) * self.stderr if self.stderr else 0.0
        return self.value - reach, self.value + reach


def exact(value: float, unit: str, *, higher_is_better: bool | None = None, baseline: float | None = None) -> Score:
    """Score of a counted quantity (bytes, parameters): no error, n = 1."""
    return Score(value, 0.0, 1, unit, higher_is_better, baseline)


def from_values(values, unit: str, *, higher_is_better: bool | None = None, baseline: float | None = None) -> Score:
    """Score of the mean of `values` [n], with the standard error s / sqrt(n) (None for a single value)."""
    values = np.asarray(values, dtype=np.float64).ravel()
    if not len(values):
        raise ValueError(f"no values for a Score of unit {unit!r}; one or more is allowed; measure something first.")
    stderr = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
    return Score(values.mean(), stderr, len(values), unit, higher_is_better, baseline)


def bootstrap(values, statistic: Callable = np.mean, *, draws: int = 1000, seed: int = 0) -> float | None:
    """Standard error of `statistic` over samples drawn with replacement (Efron 1979, doi:10.1214/aos/1176344552).

        values: [n] or [n, ...], resampled along the first axis. The generator is its own: global seeds stay as they
        were. statistic: called once per block of draws as `statistic(samples [draws, n, ...], axis=1)`, as numpy's
        functions are; one that takes no `axis` is called once per draw with [n, ...] and returns a number.
    Returns None for fewer than two values, whose spread is unknown, and where a draw is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or len(values) < 2:
        return None
    generator = np.random.default_rng(seed)
    block = max(1, min(draws, _CHUNK // values.size))
    estimates = []
    for start in range(0, draws, block):
        size = min(block, draws - start)
        samples = values[generator.integers(0, len(values), (size, len(values)))]
        estimates.append(_apply(statistic, samples))
    estimates = np.concatenate(estimates)
    return float(np.std(estimates, ddof=1)) if np.isfinite(estimates).all() else None


def _apply(statistic, samples) -> np.ndarray:
    try:
        estimates = np.asarray(statistic(samples, axis=1), dtype=np.float64)
    except TypeError:
        estimates = np.array([float(statistic(sample)) for sample in samples])
    if estimates.shape != (len(samples),):
        raise ValueError(
            f"statistic returned shape {estimates.shape} for {len(samples)} draws; one number per draw is allowed; "
            "reduce over `axis`, or take no axis argument."
        )
    return estimates


def _plain(value: float) -> str:
    if math.isfinite(value) and value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < math.inf else f"{value:.4g}"


def _remedy(name: str) -> str:
    return "find where the NaN arises" if name == "value" else "give None where there is none"
