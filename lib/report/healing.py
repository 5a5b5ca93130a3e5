"""Figures about healing: what comes back with how many tokens, and what the healed models can do."""

import pandas as pd

from lib.report import axes as ax
from lib.report import selection, style

NOTEBOOK = "31_healing"
# way -> name for readers, and the method whose colour, marker and line it borrows
WAYS = {
    "distill": ("distillation", "gptq"),
    "full": ("next token, all weights", "depth"),
    "lora": ("next token, adapters", "rtn"),
    "head": ("next token, head and last blocks", "rotation"),
    "distill_lora": ("distillation, adapters", "awq"),
}
METRICS = {"recovered_perplexity": "Perplexity", "recovered_divergence": "KL divergence from the original"}
LABELS = ["way", "healing_tokens"]


def curves(table: pd.DataFrame, metric: str = "recovered_perplexity"):
    """Recovered share of the gap against healing tokens, a line for each way of training.

    A panel for every importance score (columns) and number of removed blocks (rows) that there are runs of.
    Only runs on one model, text and number of test windows, those with most points: others are no part of the grid.
    """
    data = _grid(table, metric)
    if data.empty:
        return ax.placeholder("The healing curve", NOTEBOOK)
    scores, depths = sorted(data["score"].unique()), sorted(data["removed_blocks"].unique())
    with style.use():
        figure = style.picture(3.2 * len(scores) + 1, 2.6 * len(depths) + 0.8)
        grid = figure.subplots(len(depths), len(scores), sharex=True, sharey="row", squeeze=False)
        for line, depth in zip(grid, depths):
            for axes, score in zip(line, scores):
                part = data[data["score"].eq(score) & data["removed_blocks"].eq(depth)]
                _or_missing(_lines, axes, part)
                ax.headline(axes, f"{score.replace('_', ' ')}, {depth:.0f} blocks less")
                axes.set_xlabel("")
            line[0].set_ylabel("recovered, %")
        for axes in grid[-1]:
            axes.set_xlabel("healing tokens")
        _title(figure, data, windows=True)
        _legend(figure, max(grid.flat, key=lambda axes: len(axes.containers)))
    return figure


def answers(table: pd.DataFrame, score: str | None = None):
    """Scores of tasks against healing tokens: a row a task, a column a number of removed blocks, a line a way.

    Horizontal lines are the original and the pruned model. score: the importance score that chose the blocks; the one
    with most points unless told.
    """
    data = _grid(table, "task_score", "task")
    if not data.empty:
        counts = data["score"].value_counts()
        score = score or next(s for s in reversed(list(data["score"])) if counts[s] == counts.max())
        data = data[data["score"].eq(score)]
    if data.empty:
        return ax.placeholder("What the healed model can do", NOTEBOOK)
    depths, names = sorted(data["removed_blocks"].unique()), sorted(data["task"].unique())
    with style.use():
        figure = style.picture(3.2 * len(depths) + 1, 2.8 * len(names) + 0.6)
        grid = figure.subplots(len(names), len(depths), sharex=True, sharey="row", squeeze=False)
        for line, task in zip(grid, names):
            for axes, depth in zip(line, depths):
                part = data[data["task"].eq(task) & data["removed_blocks"].eq(depth)]
                _or_missing(_task, axes, part)
                ax.headline(axes, f"{task}, {depth:.0f} blocks less", f"By {score.replace('_', ' ')}; bars: 95 %.")
            asked = data[data["task"].eq(task)].iloc[-1]
            line[0].set_ylabel(f"{asked['measured']} of {asked['n']:.0f} samples, %")
        _title(figure, data, windows=False)
        _legend(figure, max(grid.flat, key=lambda axes: len(axes.containers)))
    return figure


def _grid(table: pd.DataFrame, metric: str, *also: str) -> pd.DataFrame:
    """The newest row of `metric` for each score, depth, way and amount of tokens, all of one setting.

    A setting is a model, texts, a number of test windows and of a task's samples: of several, the one with most points
    (the newest of equals), because points of different ones lie on no common line.
    """
    data = selection.complete(table).sort_values("time", kind="stable")
    if metric in METRICS:  # tasks are loaded after the texts, and change nothing about perplexity
        data["data_hash"] = data.groupby("run")["data_hash"].transform("first")
    data = _points(data[data["metric"].eq(metric) & data["status"].isin(selection.SHOWN)])
    points = [*also, "score", "removed_blocks", *LABELS]
    if data.empty or not set(points) <= set(data.columns):
        return pd.DataFrame()

    def count(part: pd.DataFrame) -> int:
        return len(part.drop_duplicates(points))

    data = selection.largest(data, selection.SETTING, count)  # where a setting is not noted, that is one too
    parts = [selection.largest(part, ["n"], count) for _, part in data.groupby(["metric", *also])]
    return pd.concat(parts).sort_values("time", kind="stable").drop_duplicates(points, keep="last")


def _title(figure, data: pd.DataFrame, windows: bool) -> None:
    """Above all panels: the setting of what is drawn, as far as it is noted."""
    last = data.iloc[-1]
    parts = [str(last["model"]).rstrip("/").rsplit("/", 1)[-1]] if pd.notna(last["model"]) else []
    parts += [f"{last['text']} text"] if pd.notna(last["text"]) else []
    parts += [f"{float(last['windows']):.0f} test windows"] if windows and pd.notna(last["windows"]) else []
    figure.suptitle(", ".join(parts), fontsize=8.2, color=style.MUTED)


def _task(axes, data: pd.DataFrame) -> None:
    """One task at one depth: the healed models as lines, the original and the pruned one as levels."""
    levels, healed = data[data["healing_tokens"].eq(0)], data[data["healing_tokens"].gt(0)]
    for way, line in (("original", "solid"), ("pruned", "dotted")):
        for value in levels.loc[levels["way"].eq(way), "value"]:
            axes.axhline(100 * value, color=style.INK, linewidth=1.0, linestyle=line, label=way)
    _ways(axes, healed)


def _points(data: pd.DataFrame) -> pd.DataFrame:
    """The rows that say which way and how many tokens."""
    if data.empty or not set(LABELS) <= set(data.columns):
        return pd.DataFrame()
    return data.dropna(subset=LABELS)


def _legend(figure, axes) -> None:
    """One legend under all panels, where it covers nothing."""
    columns = max(1, int(figure.get_figwidth() / 2.7))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def _or_missing(draw, axes, data: pd.DataFrame) -> None:
    """`draw(axes, data)`, or a word about what has no finished run."""
    if data.empty:
        axes.text(0.5, 0.5, "no finished run", transform=axes.transAxes, ha="center", color=style.MUTED)
    else:
        draw(axes, data)


def _lines(axes, data: pd.DataFrame) -> None:
    """A line a way, with 95 % intervals, in per cent over a logarithmic axis of tokens."""
    axes.axhline(100, color=style.INK, linewidth=0.9, linestyle=style.look("none").line)
    axes.axhline(0, color=style.INK, linewidth=0.9)
    _ways(axes, data)


def _ways(axes, data: pd.DataFrame) -> None:
    if data.empty:  # nothing was healed: a model of one block has none to lose
        return
    for way in [way for way in WAYS if way in set(data["way"])]:
        part, (name, method) = data[data["way"].eq(way)].sort_values("healing_tokens"), WAYS[way]
        ax.line(axes, part["healing_tokens"].astype(float), part, style.look(method), name, factor=100, capsize=3)
    amounts = sorted(data["healing_tokens"].astype(float).unique())
    ax.span(axes, "x", amounts, 0.08, True)
    axes.set_xticks(amounts, [f"{amount:,.0f}" for amount in amounts])  # few, and the only ones that were measured
    axes.set_xlabel("healing tokens")
