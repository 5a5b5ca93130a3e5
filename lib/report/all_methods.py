"""All methods and other projects in one picture: KL divergence against megabytes on disk."""

import numpy as np
import pandas as pd

from lib.report import ablations, peers, selection, style
from lib.report import axes as ax

ABLATION, PEERS, ARTIFACTS = ablations.RECIPE, "53_peers", "54_artifacts"
OURS = ("rtn", "gptq", "signround", "best")  # systems of those notebooks that are ours; the others are other projects
COLUMNS = ["notebook", "model", "text", "windows", "method", "ours", "detail", "megabytes", "value", "stderr", "n"]
COLUMNS += ["time"]
TITLE = "Quality against bytes, all methods and peers"


def by_megabytes(table: pd.DataFrame):
    """KL divergence against megabytes of the artifact: one point a configuration, a look for each method and peer.

    Of the benchmark, the ablation, the peers and the artifacts, those on one model and text: where most points are.
    """
    data = points(table)
    if data.empty:
        return ax.placeholder(TITLE, f"{selection.BENCHMARK}, {PEERS} or {ARTIFACTS}")
    with style.use():
        figure = style.picture(9.6, 5.2)
        axes = figure.add_subplot()
        names = sorted(data.groupby(["method", "ours"]).groups, key=lambda key: (not key[1], style.order(key[0])))
        for method, ours in names:
            part = data[data["method"].eq(method) & data["ours"].eq(ours)].sort_values("megabytes")
            look = style.look(method)
            label, face = (look.label, look.colour) if ours else (method, "white")
            how = dict(markerfacecolor=face, markersize=6, elinewidth=1, linestyle="none")
            ax.line(axes, part["megabytes"], part, look, label, log=True, **how)
        ax.span(axes, "x", data["megabytes"], 0.06, ax.is_wide(data["megabytes"], 2))
        ax.span(axes, "y", data["value"], 0.06, ax.is_wide(data["value"]))
        axes.set(xlabel="artifact on disk, MB", ylabel="KL divergence, nats a token (lower is better)")
        figure.legend(loc="outside right upper")
        ax.headline(axes, TITLE, _setting(data))
        ax.footnote(figure, _notes(data))
    return figure


def points(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each configuration of one model and text, with `COLUMNS`; the newest where one was measured twice.

    ours: False for another project's. detail: what tells configurations of a method apart. Of each notebook the runs
    with most windows count: a quick run does not stand beside a longer one. Variants whose size is not on
    record are left out.
    """
    parts = [_benchmark(table), _variants(table), _peers(table), _artifacts(table)]
    return _comparable(pd.concat(parts, ignore_index=True))


def _comparable(data: pd.DataFrame) -> pd.DataFrame:
    data = data[np.isfinite(data["value"]) & data["value"].gt(0) & data["megabytes"].gt(0)]
    if data.empty:
        return data
    data = data.assign(model=data["model"].astype(str).str.rstrip("/").str.rpartition("/")[2])
    data = data[data["windows"].eq(data.groupby(["notebook", "model", "text"])["windows"].transform("max"))]
    same = ["notebook", "model", "text", "method", "ours", "detail"]
    data = data.sort_values("time", kind="stable").drop_duplicates(same, keep="last")
    return selection.largest(data, ["model", "text"])


def _benchmark(table: pd.DataFrame) -> pd.DataFrame:
    """Configurations of the benchmark whose newest run finished."""
    parts = [selection.current(part) for part in selection.settings(table)]
    data = pd.concat(parts) if parts else selection.benchmarks(table)
    data = data[data["method"].ne("none") & data["arm"].ne("original")]
    return _joined(data.assign(ours=True, detail=data["label"]), ["run"])


def _variants(table: pd.DataFrame) -> pd.DataFrame:
    """Variants of the recipe, means over the draws of their calibration text."""
    found, by = ablations.over_seeds(table, "kl_divergence"), [*ablations.PLACE, *ablations.EFFORT, "rung"]
    sizes = ablations.over_seeds(table, "artifact_bytes").assign(megabytes=lambda part: part["value"] / 1e6)
    data = found[found["notebook"].eq(ABLATION)].merge(sizes[[*by, "megabytes"]], on=by)
    method = data["rung"].replace("recipe", "best")
    return _plain(data.assign(method=method, ours=True, detail=data["bits"].astype(str)))


def _peers(table: pd.DataFrame) -> pd.DataFrame:
    """Arms of the side-by-side comparison, each at its number of bits."""
    data = peers.together(_finished(table, PEERS), ["model", "text", "bits"])
    data = data.assign(method=data["arm"], detail=data["bits"].astype(str))
    return _joined(data.assign(ours=data["method"].isin(OURS)), ["run", "method"])


def _artifacts(table: pd.DataFrame) -> pd.DataFrame:
    """Whole artifacts; their size stands beside each row."""
    data = _finished(table, ARTIFACTS).assign(megabytes=lambda part: pd.to_numeric(part["megabytes"]))
    data = data[data["metric"].eq("kl_divergence") & data["arm"].ne("none")]
    data = data.assign(method=data["arm"], detail=data["kind"].astype(str), ours=data["arm"].isin(OURS))
    return _plain(data)


def _finished(table: pd.DataFrame, notebook: str) -> pd.DataFrame:
    data = selection.complete(table)
    data = data.reindex(columns=list(dict.fromkeys([*data.columns, "kind", "megabytes"])))
    data = data[data["notebook"].eq(notebook) & data["status"].isin(selection.SHOWN)]
    return data.sort_values("time", kind="stable").copy()  # in one piece: many labels leave a frame in fragments


def _joined(data: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Rows of the divergence with the megabytes that the same run recorded for the same system."""
    sizes = data[data["metric"].eq("artifact_bytes")].drop_duplicates(by, keep="last")
    sizes = sizes.assign(megabytes=pd.to_numeric(sizes["value"]) / 1e6)[[*by, "megabytes"]]
    # a label of that name in other notebooks would be a second column of it
    data = data[data["metric"].eq("kl_divergence")].drop(columns="megabytes", errors="ignore")
    return _plain(data.merge(sizes, on=by))


def _plain(data: pd.DataFrame) -> pd.DataFrame:
    numbers = {
        name: pd.to_numeric(data[name]).astype(float) for name in ("windows", "megabytes", "value", "stderr", "n")
    }
    return data.assign(**numbers)[COLUMNS]


def _setting(data: pd.DataFrame) -> str:
    return f"{selection.measured_on(data)}. Filled: ours; hollow: other projects. Bars: 95 % intervals."


def _notes(data: pd.DataFrame) -> list[str]:
    absent = sorted({selection.BENCHMARK, ABLATION, PEERS, ARTIFACTS} - set(data["notebook"]))
    lines = [f"No finished run on this model and text of: {', '.join(absent)}."] if absent else []
    if data["notebook"].eq(ABLATION).any():
        lines.append(f"{ABLATION}: means over the draws of the calibration text that are on record.")
    if data["method"].eq("llama.cpp").any():
        lines.append("llama.cpp: bytes of its tensors, without the tokenizer that its file also holds.")
    return lines
