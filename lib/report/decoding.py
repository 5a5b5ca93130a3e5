"""Figures about lossless decoding: tokens a step and speed by kind of task, accepted tokens, and the three variants."""

import numpy as np
import pandas as pd

from lib.report import axes as ax
from lib.report import selection, style

ARMS = {
    "lookup": ("gptq", "prompt lookup"),
    "guarded": ("depth", "prompt lookup with guard"),
    "speculative": ("rtn", "speculative"),
    "speculative, guarded": ("awq", "speculative with guard"),
}
VARIANTS = {
    "variant_seconds": ("Time per token", "milliseconds", 1e3),
    "variant_bytes": ("Weights in memory", "MB", 1e-6),
    "variant_kl": ("KL divergence", "nats a token, from the original", 1.0),
}


def by_kind(table: pd.DataFrame):
    """Tokens per step and speed-up over plain decoding, by kind of task; labels read: kind, arm."""
    steps, speed = selection.newest(table, "tokens_per_step"), selection.newest(table, "speed_up")
    if steps.empty or speed.empty:
        return ax.placeholder("Fewer steps for the same text", "41_decoding")
    kinds = list(dict.fromkeys(steps["kind"]))
    with style.use():
        figure = style.picture(9.6, 1.5 + 0.52 * len(kinds))
        left, right = figure.subplots(1, 2, sharey=True)
        _points(left, steps, kinds)
        left.set(xlabel="tokens per step of the model", xlim=(0.8, None))
        ax.headline(left, "Fewer steps for the same text", "Plain decoding has 1. Bars: 95 % intervals over prompts.")
        _points(right, speed, kinds)
        right.set(xlabel="speed relative to plain decoding")
        ax.headline(
            right, "What that is worth in time", "Same prompts, same cap, in turns. Right of the line is faster."
        )
        for axes in (left, right):
            axes.axvline(1, color=style.MUTED, linewidth=1, linestyle=":")
        left.set_yticks(range(len(kinds)), labels=kinds)
        left.set_ylim(len(kinds) - 0.5, -0.5)
        right.legend(*left.get_legend_handles_labels(), loc="best")
    return figure


def acceptance(table: pd.DataFrame, arm: str = "lookup"):
    """How many drafted tokens were accepted, as shares of the steps that drafted, a panel per kind of task.

    Labels read: kind, arm, accepted; metric accepted_share.
    """
    data = selection.newest(table, "accepted_share")
    data = data[data["arm"].eq(arm)] if len(data) else data
    if data.empty:
        return ax.placeholder("How much of a draft is accepted", "41_decoding")
    kinds = list(dict.fromkeys(data["kind"]))
    most = int(data["accepted"].max())
    with style.use():
        figure = style.picture(9.6, 2.9)
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axes, kind in zip(panels, kinds):
            part = data[data["kind"].eq(kind)]
            axes.bar(part["accepted"].astype(int), 100 * part["value"].astype(float), color=style.look("gptq").colour)
            axes.set(xlim=(-0.7, most + 0.7), title=f"{kind}\n{int(part['n'].max())} drafts")
            axes.title.set_fontsize(9.5)
            axes.xaxis.get_major_locator().set_params(integer=True)
        panels[0].set_ylabel("drafts, %")
        figure.supxlabel("tokens of the draft that were accepted", fontsize=9.5, color=style.MUTED)
    return figure


def variants(table: pd.DataFrame):
    """Original, low-bit, and low-bit with lookup: time per token, memory and quality; label read: variant."""
    found = {metric: selection.newest(table, metric) for metric in VARIANTS}
    if any(part.empty for part in found.values()):
        return ax.placeholder("Original, low-bit, low-bit with lookup", "41_decoding")
    names = list(dict.fromkeys(found["variant_seconds"]["variant"]))
    with style.use():
        figure = style.picture(9.6, 1.3 + 0.42 * len(names))
        panels = figure.subplots(1, len(VARIANTS), sharey=True)
        for axes, (metric, (title, unit, factor)) in zip(panels, VARIANTS.items()):
            part = found[metric].drop_duplicates("variant", keep="last").set_index("variant").reindex(names)
            values = factor * part["value"].astype(float)
            axes.barh(range(len(names)), values, height=0.6, color=style.look("gptq").colour,
                      xerr=ax.half_widths(part, factor), ecolor=style.INK)  # fmt: skip
            for place, value in enumerate(values):
                text = "not measured" if np.isnan(value) else _number(value)
                axes.annotate(text, (0 if np.isnan(value) else value, place), (3, 7), textcoords="offset points",
                              fontsize=8.5)  # fmt: skip
            axes.set(xlabel=unit, xlim=(0, 1.35 * np.nanmax(values) or 1))
            ax.headline(axes, title)
        panels[0].set_yticks(range(len(names)), labels=names)
        panels[0].set_ylim(len(names) - 0.5, -0.7)
    return figure


def table_of_variants(table: pd.DataFrame) -> pd.DataFrame:
    """The three variants as rows, with "value ± error" cells: ms per token, MB of weights, KL divergence."""
    columns = {}
    for metric, (title, unit, factor) in VARIANTS.items():
        part = selection.newest(table, metric).drop_duplicates("variant", keep="last").set_index("variant")
        columns[f"{title}, {unit}"] = part.apply(lambda row, factor=factor: _cell(row, factor), axis=1)
    return pd.DataFrame(columns).reindex(list(dict.fromkeys(selection.newest(table, "variant_seconds")["variant"])))


def _cell(row: pd.Series, factor: float) -> str:
    value, error = factor * float(row["value"]), factor * float(row["stderr"] if pd.notna(row["stderr"]) else 0)
    return f"{_number(value)} ± {error:.2g}" if error else _number(value)


def _number(value: float) -> str:
    """Three digits, and never as a power of ten where the number is large."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _points(axes, data: pd.DataFrame, kinds: list[str]) -> None:
    """A point with its interval per kind and arm; arms of a kind a little apart."""
    arms = [arm for arm in ARMS if arm in set(data["arm"])]
    for place, arm in enumerate(arms):
        part = data[data["arm"].eq(arm)].drop_duplicates("kind", keep="last")
        look, shift = style.look(ARMS[arm][0]), 0.24 * (place - (len(arms) - 1) / 2)
        bars = ax.intervals(part, log=False)
        axes.errorbar(
            part["value"], [kinds.index(kind) + shift for kind in part["kind"]], xerr=bars,
            fmt=look.marker, color=look.colour, capsize=3, markersize=5, label=ARMS[arm][1],
        )  # fmt: skip
