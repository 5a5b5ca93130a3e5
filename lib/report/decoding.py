"""The figure about lossless decoding: tokens a step and speed by kind of task."""

import pandas as pd

from lib.report import axes as ax
from lib.report import selection, style

ARMS = {
    "lookup": ("gptq", "prompt lookup"),
    "guarded": ("depth", "prompt lookup with guard"),
    "speculative": ("rtn", "speculative"),
    "speculative, guarded": ("awq", "speculative with guard"),
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
