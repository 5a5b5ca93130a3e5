"""Figures on depth pruning: which blocks matter, what their loss does to the predictions, and what it saves."""

import numpy as np
import pandas as pd

from lib.report import axes as ax
from lib.report import selection, style

NOTEBOOK = "30_depth_pruning"
SCORES = {
    "leave_one_out": "Leave one out",
    "block_influence": "Block influence",
    "taylor_plus": "Taylor+",
    "angular_distance": "Angular distance",
    "divergence": "Leave one out, KL",
    "taylor": "Taylor",
    "magnitude": "Magnitude",
    "last": "Last k",
    "random": "Random",
}
EXPECTED = ("leave_one_out", "block_influence")  # every run of the notebook records them
WAYS = {"greedy": ", greedy", "contiguous": ", one span"}
MARKED = 4  # so many of the least important blocks are marked, in the order in which they would go
DEPTH = {"perplexity": "perplexity", "kl_divergence": "KL divergence, nats a token"}
SPEEDS = {
    "throughput": ("Whole passes over long inputs", "gptq"),
    "prefill": ("Prefill", "rtn"),
    "decode": ("Decoding", "depth"),
}
SIZES = {
    "memory": ("Weights and a pass over a long input", "gptq"),
    "artifact_bytes": ("Artifact on disk", "depth"),
}


def importance_by_block(table: pd.DataFrame):
    """Importance of each block by each score, a panel a score; the blocks that would be removed first are numbered.

    Metric read: block_importance (labels score and block); an infinite one is a block that the score protects.
    """
    data = selection.newest(table, "block_importance").dropna(subset=["block", "value"])
    if data.empty:
        return ax.placeholder("Importance of each block", NOTEBOOK)
    scores = sorted(data["score"].unique(), key=lambda s: (list(SCORES).index(s) if s in SCORES else len(SCORES), s))
    columns = min(2, len(scores))
    lines = -(-len(scores) // columns)
    with style.use():
        figure = style.picture(9.6, 0.6 + 3.1 * lines if lines > 1 else 3.9)
        panels = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes, score in zip(panels, scores):
            part = data[data["score"].eq(score)].sort_values("block", key=pd.to_numeric)
            protected = _importance(axes, part)
            unit = f", {part['unit'].iloc[0]}" if isinstance(part["unit"].iloc[0], str) else ""
            axes.set(xlabel="block", ylabel=SCORES.get(score, score).lower() + unit)
            marked = f"filled and numbered: the {min(MARKED, len(part) - protected)} to remove first"
            errors = ". Bars: 95 % intervals." if part["stderr"].gt(0).any() else "."
            shaded = " Grey: protected." if protected else ""
            ax.headline(axes, SCORES.get(score, score), marked + errors + shaded)
        for axes in panels[len(scores) :]:
            axes.set_axis_off()
        absent = [SCORES[score] for score in EXPECTED if score not in scores]
        ax.footnote(figure, [f"No finished run of: {', '.join(absent)}."] if absent else [])
    return figure


def _importance(axes, part: pd.DataFrame) -> int:
    """One panel: a point with its interval per block, the least important numbered; how many are protected."""
    every, all_values = part["block"].astype(float).to_numpy(), part["value"].astype(float).to_numpy()
    finite = np.isfinite(all_values)
    blocks, values = every[finite], all_values[finite]
    log = ax.is_wide(values, 20)
    look, first = style.look("gptq"), np.argsort(values, kind="stable")[:MARKED]
    bars = ax.intervals(part[finite], log)
    axes.errorbar(
        blocks, values, yerr=bars, fmt=look.marker, color=look.colour, markerfacecolor="white",
        capsize=2, elinewidth=1,
    )  # fmt: skip
    for rank, index in enumerate(first, start=1):
        at, colour = (blocks[index], values[index]), style.look("depth").colour
        axes.plot(*at, look.marker, color=colour, markersize=11.5, zorder=4)
        axes.text(*at, str(rank), ha="center", va="center_baseline", fontsize=8, color="white", weight="bold", zorder=5)
    for block in every[~finite]:
        axes.axvspan(block - 0.5, block + 0.5, color=style.FRONT, linewidth=0, zorder=0)
    axes.margins(y=0.12)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if log:
        ax.plain_log(axes, "y")
    return int((~finite).sum())


def quality_by_depth(table: pd.DataFrame):
    """Perplexity and KL divergence against the number of blocks removed, one line a score and way; 95 % intervals.

    Metrics read: perplexity and kl_divergence with the labels score, blocks and (absent: one shot) way.
    """
    parts = {metric: selection.newest(table[table["notebook"].eq(NOTEBOOK)], metric) for metric in DEPTH}
    parts = {metric: part.dropna(subset=["value", "score"]) for metric, part in parts.items() if len(part)}
    parts = {metric: part for metric, part in parts.items() if len(part)}
    if not parts:
        return ax.placeholder("Quality against depth", NOTEBOOK)
    with style.use():
        figure = style.picture(9.6, 4.1)
        panels = figure.subplots(1, len(parts), squeeze=False)[0]
        for axes, (metric, part) in zip(panels, parts.items()):
            part = part.assign(way=part["way"].fillna("one_shot") if "way" in part else "one_shot")
            for place, score in enumerate(SCORES):
                for way, line in part[part["score"].eq(score)].groupby("way", sort=False):
                    _by_depth(axes, line.sort_values("blocks"), place, SCORES[score] + WAYS.get(way, ""), way)
            axes.set(xlabel="blocks removed", ylabel=DEPTH[metric])
            axes.xaxis.get_major_locator().set_params(integer=True)
            if ax.is_wide(part["value"][part["value"].gt(0)]):
                ax.plain_log(axes, "y")
        panels[-1].legend(fontsize=8)
        ax.headline(panels[0], "What each choice of blocks costs", "Nothing was trained afterwards. 95 % intervals.")
        if len(panels) > 1:
            ax.headline(panels[1], "How far the predictions move", "From those of the original, whose own is 0.")
    return figure


def _by_depth(axes, line: pd.DataFrame, place: int, label: str, way: str) -> None:
    line = line[line["value"].gt(0)]  # the original's divergence from itself has no place on a log axis
    colour, marker, dashes = _looks()[place]
    face, line_style = (colour, dashes) if way == "one_shot" else ("white", "-")
    look = style.Look(label, colour, marker, line_style)
    ax.line(axes, line["blocks"], line, look, label, log=True, capsize=2, markerfacecolor=face)


def _looks() -> list[tuple]:
    """(colour, marker, line style) of each of `SCORES`: the methods' own and the spare ones, grey for baselines."""
    methods = [(look.colour, look.marker, look.line) for look in map(style.look, ("gptq", "depth", "rtn"))]
    return [*methods, *style.SPARE, (style.MUTED, "x", "--"), (style.MUTED, "<", ":"), (style.MUTED, ">", "-.")]


def cost_by_depth(table: pd.DataFrame):
    """Speed as multiples of the original's, and bytes, against the number of blocks removed; 95 % intervals.

    Metrics read, with the label blocks: throughput, prefill, decode; memory and artifact_bytes.
    """
    data = table[table["notebook"].eq(NOTEBOOK)]
    speeds = {metric: selection.newest(data, metric).dropna(subset=["blocks"]) for metric in SPEEDS}
    sizes = {metric: selection.newest(data, metric).dropna(subset=["blocks"]) for metric in SIZES}
    if all(part.empty for part in (*speeds.values(), *sizes.values())):
        return ax.placeholder("Memory and speed against depth", NOTEBOOK)
    with style.use():
        figure = style.picture(9.6, 3.9)
        left, right = figure.subplots(1, 2)
        for metric, part in speeds.items():
            whole = part[part["blocks"].eq(0)]
            if len(whole):  # without the original in the same run there is nothing to compare with
                _cost(left, part, *SPEEDS[metric], 1 / float(whole["value"].iloc[0]))
        for metric, part in sizes.items():
            _cost(right, part, *SIZES[metric], 1e-6)
        left.set(xlabel="blocks removed", ylabel="times the original's speed")
        right.set(xlabel="blocks removed", ylabel="MB")
        right.set_ylim(bottom=0)
        ax.headline(left, "Speed against depth", "Batch 1, in turns, medians. Bars: 95 % intervals.")
        ax.headline(right, "Memory against depth", "A pass adds the logits of all positions, whatever the depth.")
        for axes in (left, right):
            axes.xaxis.get_major_locator().set_params(integer=True)
            if axes.containers:
                axes.legend(fontsize=8.5)
    return figure


def _cost(axes, part: pd.DataFrame, label: str, look: str, factor: float) -> None:
    if part.empty:
        return
    part = part.sort_values("blocks")
    ax.line(axes, part["blocks"], part, style.look(look), label, factor=factor, capsize=2)
