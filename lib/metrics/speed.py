"""Speed: the only stopwatch of the project.

`measure` times prefill and decoding of several models ("systems") in one process. Each round times every system once,
in the same order (A B A B), so that a slower phase of the machine affects all of them; `ratio` compares within rounds.
Every system is warmed up until two runs in a row agree. Before each run the cache of keys and values is new, garbage is
collected and the device's free memory returned; while the clock runs, garbage collection is off and the clock is read
only when the device has finished.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator

import numpy as np
import torch
from transformers import DynamicCache

from lib import files
from lib.metrics.score import Score, bootstrap
from lib.models import blocks
from lib.models.logits import device, evaluating
from lib.timing import now, stopwatch

STABLE, WARMUPS = 0.1, 4  # two warm-up runs within 10 % of each other end the warm-up, as does the fourth
_METRICS = {"ttft": ("s", False), "tpot": ("s", False), "prefill": ("tokens/s", True), "decode": ("tokens/s", True)}


class Measured(dict):
    """{system: {metric: Score}}; `samples[system][metric]` has every round's value, `warmups` the runs before them."""

    def __init__(self, samples: dict[str, dict[str, list[float]]], warmups: dict[str, int]):
        self.samples, self.warmups = samples, warmups
        super().__init__(
            {
                system: {name: _median(values[name], *_METRICS[name]) for name in values}
                for system, values in samples.items()
            }
        )

    def spread(self, system: str, metric: str) -> tuple[float, float]:
        """The 10th and 90th percentile over rounds."""
        low, high = np.percentile(self.samples[system][metric], [10, 90])
        return float(low), float(high)


def measure(
    systems: dict,
    *,
    prompt: int = 128,
    new_tokens: int = 32,
    batch: int = 1,
    rounds: int = 3,
    seed: int = 0,
) -> Measured:
    """Time to the first token and per further token, for every system; medians over `rounds`.

    systems: name -> a model of transformers, or a session of the packed runtime (batch 1).
    Metrics: `ttft` (s, the prompt's forward pass and the choice of the first token), `tpot` (s per further token,
    mean over the `new_tokens - 1` of a run), `prefill` (prompt tokens/s) and `decode` (new tokens/s), the last two
    summed over the `batch`. All systems get the same random prompts [batch, prompt]; tokens are chosen greedily, one
    forward pass each, with a growing cache. `Score.stderr` is the bootstrap's standard error of the median, which
    few rounds only hint at; `spread` gives the 10th and 90th percentile.
    Raises ValueError for no systems, or counts that are too small.
    """
    _check(systems, prompt=prompt, new_tokens=new_tokens, batch=batch, rounds=rounds)
    tokens = _prompts(systems, (batch, prompt), seed)
    warmups = {system: _warm_up(model, tokens, min(new_tokens, 4)) for system, model in systems.items()}
    samples = {system: {name: [] for name in _METRICS} for system in systems}
    for _ in range(rounds):
        for system, model in systems.items():
            first, further = run(model, tokens, new_tokens)
            for name, value in zip(_METRICS, (first, further, batch * prompt / first, batch / further)):
                samples[system][name].append(value)
    return Measured(samples, warmups)


def run(model, tokens: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """(seconds to the first token, mean seconds per further token) of one greedy generation from [batch, prompt].

    model: one of transformers, or a session, which is rewound to length 0.
    """
    with contextlib.nullcontext() if _is_session(model) else evaluating(model), _undisturbed():
        step, tokens = _stepper(model, tokens)
        start = now()
        chosen = step(tokens)
        first = now()
        for _ in range(new_tokens - 1):
            chosen = step(chosen)
        end = now()
    return first - start, (end - first) / (new_tokens - 1)


def ratio(measured: Measured, system: str, reference: str, metric: str = "decode") -> Score:
    """`system` over `reference` within each round: the median of the rounds' ratios; 1 means no difference.

    The direction is the metric's own: above 1 is better for tokens/s, below 1 for seconds.
    Raises KeyError for a system or a metric that was not measured.
    """
    for given, allowed in ((system, measured), (reference, measured), (metric, _METRICS)):
        if given not in allowed:
            raise KeyError(f"{given!r} was not measured; {files.choices(given, allowed)}")
    pairs = zip(measured.samples[system][metric], measured.samples[reference][metric])
    return _median([ours / theirs for ours, theirs in pairs], "ratio", _METRICS[metric][1], baseline=1.0)


def seconds(function: Callable, *args, rounds: int = 5, warmups: int = 1, **kwargs) -> Score:
    """Median seconds of `function(*args, **kwargs)` over `rounds` calls, after `warmups` that don't count."""
    if rounds < 1:
        raise ValueError(f"rounds={rounds}; choose a whole number from 1.")
    for _ in range(warmups):
        function(*args, **kwargs)
    taken = []
    with _undisturbed():  # once for all: a collection takes longer than many a function that is timed here
        for _ in range(rounds):
            with stopwatch() as watch:
                function(*args, **kwargs)
            taken.append(watch.seconds)
    return _median(taken, "s", False)


def once(watch) -> Score:
    """The seconds of one `timing.stopwatch` as a Score of one sample, whose error is unknown."""
    return Score(watch.seconds, None, 1, "s", False)


def mfu(prefill: Score, flops_per_token: float, peak: float | None) -> Score | None:
    """Model FLOP utilisation: tokens/s x FLOP per token / peak FLOP/s; None where the peak is unknown."""
    return None if peak is None else _scaled(prefill, prefill.value * flops_per_token / peak)


def mbu(tpot: Score, bytes_per_token: float, bandwidth: float | None) -> Score | None:
    """Model bandwidth utilisation: bytes read per step / seconds per step / peak bytes/s; None where it is unknown."""
    return None if bandwidth is None else _scaled(tpot, bytes_per_token / tpot.value / bandwidth)


def _warm_up(model, tokens: torch.Tensor, new_tokens: int) -> int:
    """Run until two consecutive runs agree within `STABLE` in both times, `WARMUPS` times at most; the number."""
    before, count, stable = run(model, tokens, new_tokens), 1, False
    while not stable and count < WARMUPS:
        after, count = run(model, tokens, new_tokens), count + 1
        stable = all(abs(new - old) <= STABLE * old for new, old in zip(after, before))
        before = after
    return count


def _stepper(model, tokens: torch.Tensor) -> tuple[Callable, torch.Tensor]:
    """A function from tokens [batch, any] to the likeliest next ones [batch, 1], and `tokens` where it wants them."""
    if _is_session(model):
        model.rewind(0)
        return lambda some: model.extend(some, last=True).argmax(-1, keepdim=True), tokens
    cache = DynamicCache(config=model.config)

    def step(some):
        found = model(input_ids=some, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return found.logits[:, -1:].argmax(-1)

    return step, tokens.to(device(model))


def _is_session(model) -> bool:
    return hasattr(model, "rewind")


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Collect garbage and free the device's cached memory, then keep garbage collection off inside the block."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _prompts(systems: dict, shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Random token ids that every system's vocabulary has."""
    vocabulary = min(
        system.weights.vocabulary if _is_session(system) else blocks.embeddings(system).num_embeddings
        for system in systems.values()
    )
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def _median(values: list[float], unit: str, higher_is_better: bool, baseline: float | None = None) -> Score:
    return Score(np.median(values), bootstrap(values, np.median), len(values), unit, higher_is_better, baseline)


def _scaled(score: Score, value: float) -> Score:
    """`value` with the relative standard error of `score`."""
    stderr = None if score.stderr is None else score.stderr / score.value * value
    return Score(value, stderr, score.n, "share of peak", True, None)


def _check(systems: dict, **counts: int) -> None:
    if not systems:
        raise ValueError("no systems to measure; give at least one model, such as {'original': model}.")
    least = {"prompt": 1, "new_tokens": 2, "batch": 1, "rounds": 1}
    for name, value in counts.items():
        if value < least[name]:
            raise ValueError(f"{name}={value}; choose a whole number from {least[name]}.")
    if counts["batch"] > 1 and any(map(_is_session, systems.values())):
        raise ValueError(f"batch={counts['batch']} with a session, which holds one sequence; set batch=1.")
