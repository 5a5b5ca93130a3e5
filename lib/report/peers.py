"""Figures about the comparison with other projects: quality and time by system."""

import pandas as pd

from lib.report import axes as ax
from lib.report import style

NOTEBOOK = "53_peers"
SIZES = ("windows", "calibration_windows")  # of the test, and of what the systems learn from


def side_by_side(table: pd.DataFrame):
    """KL divergence by system (label `arm`), a panel for each number of bits, and the seconds that compressing took.

    Labels: arm, text, bits. The first text is filled, others are hollow; bars are 95 % intervals.
    """
    data = _newest(table, "kl_divergence", "text")
    data = data[data["arm"].ne("none")]
    if data.empty:
        return ax.placeholder("Side by side", NOTEBOOK)
    widths = sorted(data["bits"].unique(), reverse=True)
    seconds = _newest(table, "compress_seconds")
    arms = sorted(data["arm"].unique(), key=lambda arm: data.loc[data["arm"].eq(arm), "value"].mean())
    with style.use():
        figure = style.picture(2.6 + 2.7 * len(widths), 1.4 + 0.4 * len(arms))
        panels = figure.subplots(1, len(widths) + 1, sharey=True, squeeze=False)[0]
        for panel, bits in zip(panels, widths):
            _divergences(panel, data[data["bits"].eq(bits)], arms)
            ax.headline(panel, f"{bits:.0f} bits", "KL divergence")
        marks = dict(zip(widths, "osD^v"))
        for bits, part in seconds.groupby("bits"):
            places = [arms.index(arm) for arm in part["arm"] if arm in arms]
            kept = part[part["arm"].isin(arms)]
            panels[-1].plot(kept["value"], places, marks.get(bits, "o"), color=style.INK, label=f"{bits:.0f} bits")
        ax.plain_log(panels[-1], "x")
        panels[-1].set(xlabel="seconds")
        ax.headline(panels[-1], "Time", "to compress")
        panels[0].set_yticks(range(len(arms)), labels=[style.look(arm).label for arm in arms])
        panels[0].set_ylim(len(arms) - 0.5, -0.5)
        if len(widths) > 1:
            panels[-1].legend()
    return figure


def _divergences(panel, data: pd.DataFrame, arms: list[str]) -> None:
    texts = list(data["text"].unique())
    for place, text in enumerate(texts):
        part = data[data["text"].eq(text)]
        heights = [arms.index(arm) + 0.18 * place for arm in part["arm"]]
        bars = ax.intervals(part, log=True)
        panel.errorbar(
            part["value"], heights, xerr=bars, fmt="o", markersize=5, color=style.look("gptq").colour,
            markerfacecolor="white" if place else None, label=text,
        )  # fmt: skip
    ax.plain_log(panel, "x")
    panel.set(xlabel="nats a token (lower is better)")
    if len(texts) > 1:
        panel.legend(fontsize=8)


def _newest(table: pd.DataFrame, metric: str, *labels: str) -> pd.DataFrame:
    """The newest rows of `metric` of this notebook, one for each system, number of bits and further labels."""
    if not {"arm", "bits", *labels} <= set(table.columns):
        return pd.DataFrame(columns=["arm", "bits", "value", "stderr", *labels])
    data = table[table["notebook"].eq(NOTEBOOK) & table["metric"].eq(metric)].dropna(subset=["arm", "bits", *labels])
    return together(data, ["bits"]).drop_duplicates(["arm", "bits", *labels], keep="last")


def together(data: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Of each group (`by`; the newest rows last), those that may stand side by side: most windows, one calibration.

    Of equal windows, the calibration size that most systems share (the newest on ties): neither a quick run nor a
    single system with more calibration data displaces the comparison.
    """
    data = data.reset_index(drop=True)
    sizes = [pd.to_numeric(data[name]).fillna(0) for name in SIZES if name in data]
    kept = []
    for _, part in data.groupby(by, sort=False):
        same = part.groupby([size[part.index] for size in sizes]) if sizes else [((0,), part)]
        _, chosen = max(same, key=lambda each: (each[0][0], each[1]["arm"].nunique(), each[1].index.max()))
        kept.extend(chosen.index)
    return data.loc[sorted(kept)]
