"""The figures about serving: throughput by clients and engine, how latencies spread, and joules a token."""

import pandas as pd

from lib.report import axes as ax
from lib.report import selection, style

OURS = "Thimble"
NAMES = {"thimble": OURS, "llama.cpp": "llama.cpp", "transformers": "transformers serve", "vllm": "vLLM"}
TIMES = {"ttft": "time to the first token", "tpot": "time per output token", "latency": "whole answer"}
_LOOKS = {OURS: "gptq", "llama.cpp": "llama.cpp", "transformers serve": "none", "vLLM": "rotation"}


def throughput(table: pd.DataFrame):
    """Tokens a second of all clients together over their number, a line a server; labels read: clients, server."""
    data = selection.newest(table, "throughput")
    if data.empty:
        return ax.placeholder("What batching brings", "42_serving")
    data = _named(data)
    with style.use():
        figure = style.picture(7.6, 3.8)
        axes = figure.subplots()
        for server, part in data.groupby("server", sort=False):
            part = part.drop_duplicates("clients", keep="last").sort_values("clients")
            ax.line(axes, part["clients"], part, _look(server), server, capsize=3)
        axes.set(xlabel="clients that ask at once", ylabel="tokens a second, all clients", ylim=(0, None))
        axes.set_xticks(sorted(set(data["clients"])))
        if data["server"].nunique() > 1:
            axes.legend(loc="best")
        ax.headline(axes, "What batching brings", "Weights are read once for all answers of a step.")
    return figure


def latencies(table: pd.DataFrame):
    """From the median over p90 to p99 of each time, by load; labels read: what, share, load, server."""
    data = selection.newest(table, "latency_percentile")
    if data.empty:
        return ax.placeholder("How long a client waits", "43_load")
    data = _named(data)
    data["row"] = data["load"] if data["server"].nunique() == 1 else data["server"] + ", " + data["load"]
    rows, times = list(dict.fromkeys(data["row"])), [each for each in TIMES if each in set(data["what"])]
    with style.use():
        figure = style.picture(9.6, 1.6 + 0.42 * len(rows))
        panels = figure.subplots(1, len(times), sharey=True, squeeze=False)[0]
        for axes, what in zip(panels, times):
            part = data[data["what"].eq(what)]
            for place, row in enumerate(rows):
                values = part[part["row"].eq(row)].sort_values("share")
                look = _look(values["server"].iloc[0]) if len(values) else style.look("none")
                axes.plot(1e3 * values["value"], [place] * len(values), color=look.colour, linewidth=2, alpha=0.5)
                for value, marker in zip(1e3 * values["value"], "o|^"):
                    axes.plot(value, place, marker, color=look.colour)
            axes.set(xlabel="milliseconds", xlim=(0, None))
            ax.headline(axes, TIMES[what].capitalize(), "Circle: median. Bar: p90. Triangle: p99.")
        panels[0].set_yticks(range(len(rows)), labels=rows)
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def energy(table: pd.DataFrame):
    """Joules a token by bits: what sensors told, else what the processor time would take, which is marked estimated."""
    data, title = selection.newest(table, "joules_a_token"), "What a token takes"
    estimated = data.empty
    if estimated:
        data = selection.newest(table, "estimated_joules_a_token")
    if data.empty:
        return ax.placeholder(title, "44_energy")
    data = data.drop_duplicates("arm", keep="last")
    with style.use():
        figure = style.picture(7.6, 1.6 + 0.4 * len(data))
        axes = figure.subplots()
        hatch = {"hatch": "//", "alpha": 0.55} if estimated else {}
        axes.barh(list(data["arm"]), data["value"], color=style.look("gptq").colour, height=0.6, **hatch)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set(xlabel="joules a token" + (", ESTIMATED from processor time" if estimated else ""))
        said = "No sensor of this machine tells power: hatched bars are a model." if estimated else "Measured."
        ax.headline(axes, title, said)
    return figure


def _named(data: pd.DataFrame) -> pd.DataFrame:
    """With a server's name for readers; runs of one server alone name none, and are ours."""
    kinds = data["server"] if "server" in data else pd.Series(OURS, index=data.index)
    return data.assign(server=kinds.map(lambda each: NAMES.get(each, each) if isinstance(each, str) else OURS))


def _look(server: str) -> style.Look:
    return style.look(_LOOKS.get(server, server))
