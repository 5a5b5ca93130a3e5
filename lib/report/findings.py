"""What was found, as sentences computed from the numbers: a difference inside its interval is written as none."""

import math
from collections.abc import Iterator

import pandas as pd

from lib.report import figures, rows, tables
from lib.report.axes import reach

CLOSE = 0.05  # "close to the original": a perplexity at most this share above it


def findings(table: pd.DataFrame) -> list[str]:
    """Sentences about the main comparison of the table, most useful first; none where there is nothing to compare."""
    data = rows.having(table, "perplexity", "artifact_bytes")
    original = data[data["method"].eq("none")]
    if original.empty or len(data) < 2:
        return []
    original, compressed = original.iloc[0], data[data["method"].ne("none")]
    return [
        _smallest(original, compressed),
        *_methods(data),
        _front(data),
        *_worse(data),
        *_speed(compressed),
    ]


def compare(ours: pd.Series, theirs: pd.Series, metric: str = "perplexity") -> tuple[float, float, float]:
    """Difference ours - theirs, its standard error (nan where one is unknown), the half-width of its 95 % interval.

    The errors are taken as independent. Both were measured on the same windows, so the true interval is narrower:
    a difference called none here may be found by a paired test, one called real stays real.
    """
    errors = [row.get(f"{metric}_stderr", math.nan) for row in (ours, theirs)]
    fewest = min(row.get(f"{metric}_n", math.nan) for row in (ours, theirs))
    return ours[metric] - theirs[metric], math.hypot(*errors), reach(fewest) * math.hypot(*errors)


def _smallest(original: pd.Series, compressed: pd.DataFrame) -> str:
    near = compressed[compressed["perplexity"] <= (1 + CLOSE) * original["perplexity"]]
    if near.empty:
        best = compressed.loc[compressed["perplexity"].idxmin()]
        return (
            f"No compressed model stays within {CLOSE:.0%} of the original's perplexity of {_value(original)}; "
            f"the closest is {best.name} with {_value(best)}."
        )
    best = near.sort_values(["artifact_bytes", "perplexity"], kind="stable").iloc[0]
    size, whole = best["artifact_bytes"] / 1e6, original["artifact_bytes"] / 1e6
    return (
        f"The smallest artifact within {CLOSE:.0%} of the original's perplexity is {best.name}: "
        f"{size:,.0f} MB, {size / whole:.0%} of the original's {whole:,.0f} MB, "
        f"at {_value(best)} against {_value(original)} ({_verdict(*compare(best, original))})."
    )


def _value(row: pd.Series, metric: str = "perplexity") -> str:
    return tables.fmt(row[metric], row.get(f"{metric}_stderr", math.nan))


def _verdict(difference: float, error: float, half: float) -> str:
    if math.isnan(half) or not math.isfinite(difference):
        return "the interval of the difference is unknown"
    if abs(difference) <= half:
        return "no difference beyond the 95 % interval"
    return f"a difference of {tables.fmt(difference, error)}, outside the 95 % interval"


def _methods(data: pd.DataFrame) -> list[str]:
    """GPTQ against RTN at each number of bits that both have with one group size: one factor differs.

    KL divergence comes first: its error is not swollen by what makes some windows harder for every model.
    """
    found = []
    for metric, title in (("kl_divergence", "KL divergence"), ("perplexity", "Perplexity")):
        if metric in data and data[metric].notna().all():
            sentences = list(_by_bits(data, metric))
            found += [f"{title} of GPTQ against round-to-nearest. {'; '.join(sentences)}."] if sentences else []
    return found


def _by_bits(data: pd.DataFrame, metric: str) -> Iterator[str]:
    for (bits, _), pair in data[data["method"].isin(["rtn", "gptq"])].groupby(["bits", "group_size"], sort=False):
        ours, theirs = (pair[pair["method"].eq(method)] for method in ("gptq", "rtn"))
        if len(ours) == len(theirs) == 1:
            ours, theirs = ours.iloc[0], theirs.iloc[0]
            verdict = _verdict(*compare(ours, theirs, metric))
            yield f"{bits} bits: {_value(ours, metric)} against {_value(theirs, metric)}, {verdict}"


def _front(data: pd.DataFrame) -> str:
    front = data.iloc[figures.pareto(list(zip(data["artifact_bytes"], data["perplexity"])))]
    return f"No other configuration is both smaller and better than any of: {', '.join(front.index)}."


def _worse(data: pd.DataFrame) -> list[str]:
    metrics = {metric: title for title, (metric, _) in tables.PLAIN.items()}
    sentences = []
    for metric, title in metrics.items():
        labels = [label for label, row in zip(data.index, data.to_dict("records")) if tables.worse(row, metric)]
        if labels:
            sentences.append(f"{title.removesuffix(' %')} is worse than without any model for: {', '.join(labels)}.")
    return sentences


def _speed(compressed: pd.DataFrame) -> list[str]:
    """Range of decode speeds relative to the original in the same run, and whose differ from it."""
    speeds = dict(zip(compressed.index, compressed.to_dict("records")))
    ratios = {label: tables.ratio(row, "decode") for label, row in speeds.items()}
    ratios = {label: pair for label, pair in ratios.items() if math.isfinite(pair[0])}
    if not ratios:
        return []
    half = {label: reach(speeds[label].get("decode_n")) * error for label, (_, error) in ratios.items()}
    faster = [label for label, (ratio, _) in ratios.items() if ratio - 1 > half[label]]
    slower = [label for label, (ratio, _) in ratios.items() if 1 - ratio > half[label]]
    low, high = (pick(ratio for ratio, _ in ratios.values()) for pick in (min, max))
    return [
        f"The compressed models decode at {low:.2f} to {high:.2f} times the speed of the original in the same run. "
        f"Faster beyond the 95 % interval: {', '.join(faster) or 'none'}. Slower: {', '.join(slower) or 'none'}."
    ]
