"""What was found, as sentences computed from the numbers: a difference inside its interval is written as none."""

import math

import pandas as pd
from scipy.special import stdtr

from lib.metrics.verdicts import Verdict, holm
from lib.report import figures, selection, style, tables
from lib.report.axes import half_width

CLOSE = 0.05  # "close to the original": a perplexity at most this share above it
ALIKE = 0.05  # "about the same size": artifacts at most this share larger than the smallest of them
LOSSES = {"kl_divergence": "KL divergence from the original", "perplexity": "perplexity"}  # the best one that all have


def question(table: pd.DataFrame) -> str:
    """What the main comparison of the table asks: of which model, on which text, by which methods."""
    data = selection.wide(table)
    asked = "At which size is which method best, and what does it cost?"
    methods = [style.look(method).label for method in dict.fromkeys(data["method"]) if method != "none"]
    if not methods:
        return asked
    count = int(data["method"].ne("none").sum())
    versions = f"{count} compressed version{'s' * (count > 1)} ({', '.join(methods)})"
    return f"{asked} Of {selection.title(table)}: the original against {versions}."


def answer(table: pd.DataFrame) -> list[str]:
    """The answer in three sentences: what loses least at which size, what that gains, and how sure it is.

    None where there is nothing to compare. Versions are compared with those of other methods of about their size.
    """
    data = selection.having(table, "perplexity", "artifact_bytes")
    original, compressed = data[data["method"].eq("none")], data[data["method"].ne("none")]
    if original.empty or compressed.empty:
        return []
    loss = next((m for m in LOSSES if m in compressed and compressed[m].notna().all()), "perplexity")
    pairs = _pairs(compressed, loss)
    return [_least(compressed, pairs, loss), _gain(original.iloc[0], compressed), _sure(pairs, loss)]


def _pairs(data: pd.DataFrame, loss: str) -> list[tuple[pd.Series, pd.Series]]:
    """At each size, largest first, the version that lost least, and the one of another method that comes next."""
    found, left = [], data.sort_values("artifact_bytes")
    while len(left):
        alike = left["artifact_bytes"] <= (1 + ALIKE) * left["artifact_bytes"].iloc[0]
        part, left = left[alike].sort_values(loss, kind="stable"), left[~alike]
        others = part[part["method"].ne(part["method"].iloc[0])]
        if len(others):
            found.append((part.iloc[0], others.iloc[0]))
    return found[::-1]


def _least(data: pd.DataFrame, pairs: list, loss: str) -> str:
    if not pairs:
        best = data.loc[data[loss].idxmin()]
        return (
            f"No two methods were compared at about the same size; of all, {best.name} with {_megabytes(best)} came "
            f"nearest, at a {LOSSES[loss]} of {_value(best, loss)} ({_windows(data, loss)})."
        )
    parts = [
        f"{best.name} at about {_megabytes(best)} ({_value(best, loss)} against {_value(next_, loss)} of {next_.name})"
        for best, next_ in pairs
    ]
    return f"By {LOSSES[loss]} ({_windows(data, loss)}) the least was lost by {_listed(parts)}."


def _gain(original: pd.Series, data: pd.DataFrame) -> str:
    best, sentence = _smallest(original, data)
    ratios = {label: tables.ratio(row, "decode") for label, row in zip(data.index, data.to_dict("records"))}
    timed = {label: ratio for label, (ratio, _) in ratios.items() if math.isfinite(ratio)}
    if best.name not in timed:
        return f"{sentence}."
    text = f"{sentence}; it decodes at {tables.fmt(*ratios[best.name])} times the original's speed"
    counts = data["decode_n"].dropna().unique() if "decode_n" in data else []
    text += f" (n = {counts[0]:.0f})" if len(counts) == 1 else ""
    fastest = max(timed, key=timed.get)
    return (
        f"{text}{'' if fastest == best.name else f', the fastest, {fastest}, at {tables.fmt(*ratios[fastest])} times'}."
    )


def _sure(pairs: list, loss: str) -> str:
    """Which of the leads are more than noise, all of them read as one table."""
    found = {}
    for best, next_ in pairs:
        difference, error, _ = compare(best, next_, loss)
        n = min(best.get(f"{loss}_n", math.nan), next_.get(f"{loss}_n", math.nan))
        known = error > 0 and math.isfinite(difference) and n > 1
        p = float(2 * stdtr(n - 1, -abs(difference) / error)) if known else 1.0
        found[_megabytes(best)] = Verdict(-difference, p, int(n) if n == n else 0)
    found = holm(found)
    seen = [size for size, each in found.items() if each.seen]
    unseen = [size for size in found if size not in seen]
    how = f"(Student's t at 5 %, Holm's correction for {len(found)}, errors taken as independent)"
    if not found:
        return "Whether any lead is more than noise, these runs cannot say: that needs two methods at one size."
    if not seen:
        return f"No lead is more than noise {how}: no difference was seen at {_listed(unseen)}."
    text = (
        f"The lead{'s' * (len(seen) > 1)} at {_listed(seen)} {'are' if len(seen) > 1 else 'is'} more than noise {how}"
    )
    return f"{text}; at {_listed(unseen)} no difference was seen." if unseen else f"{text}."


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _megabytes(row: pd.Series) -> str:
    """Megabytes of the artifact; sizes that are not alike read differently."""
    size = row["artifact_bytes"] / 1e6
    return f"{size:,.0f} MB" if size >= 10 else f"{size:.3g} MB"


def _windows(data: pd.DataFrame, metric: str) -> str:
    counts = sorted(data[f"{metric}_n"].dropna().unique())
    return f"n = {', '.join(f'{count:,.0f}' for count in counts)}" if counts else "n unknown"


def findings(table: pd.DataFrame) -> list[str]:
    """The `answer`, which versions no other beats, and which are worse than no model; none without a comparison."""
    sentences = answer(table)
    if sentences:
        data = selection.having(table, "perplexity", "artifact_bytes")
        sentences += [_front(data), *_worse(data)]
    return sentences


def compare(ours: pd.Series, theirs: pd.Series, metric: str = "perplexity") -> tuple[float, float, float]:
    """Difference ours - theirs, its standard error (nan where one is unknown), the half-width of its 95 % interval.

    The errors are taken as independent. Both were measured on the same windows, so the true interval is narrower:
    a difference called none here may be found by a paired test, one called real stays real.
    """
    errors = [row.get(f"{metric}_stderr", math.nan) for row in (ours, theirs)]
    fewest = min(row.get(f"{metric}_n", math.nan) for row in (ours, theirs))
    return ours[metric] - theirs[metric], math.hypot(*errors), half_width(fewest) * math.hypot(*errors)


def _smallest(original: pd.Series, compressed: pd.DataFrame) -> tuple[pd.Series, str]:
    """The smallest version close to the original, or the closest one where none is, and the sentence about it."""
    near = compressed[compressed["perplexity"] <= (1 + CLOSE) * original["perplexity"]]
    if near.empty:
        best = compressed.loc[compressed["perplexity"].idxmin()]
        return best, (
            f"No compressed model stays within {CLOSE:.0%} of the original's perplexity of {_value(original)}; "
            f"the closest is {best.name} with {_value(best)}"
        )
    best = near.sort_values(["artifact_bytes", "perplexity"], kind="stable").iloc[0]
    size, whole = best["artifact_bytes"] / 1e6, original["artifact_bytes"] / 1e6
    return best, (
        f"The smallest artifact within {CLOSE:.0%} of the original's perplexity is {best.name}: "
        f"{size:,.0f} MB, {size / whole:.0%} of the original's {whole:,.0f} MB, "
        f"at {_value(best)} against {_value(original)} ({_verdict(*compare(best, original))})"
    )


def _value(row: pd.Series, metric: str = "perplexity") -> str:
    return tables.fmt(row[metric], row.get(f"{metric}_stderr", math.nan))


def _verdict(difference: float, error: float, half: float) -> str:
    if math.isnan(half) or not math.isfinite(difference):
        return "the interval of the difference is unknown"
    if abs(difference) <= half:
        return "no difference beyond the 95 % interval"
    return f"a difference of {tables.fmt(difference, error)}, outside the 95 % interval"


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
