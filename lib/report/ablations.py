"""Ablations: a metric of each variant of a method, with its spread over seeds (draws of the calibration text)."""

import pandas as pd

from lib.report import axes as ax
from lib.report import selection, style, tables

RECIPE = "29_best_recipe"
NAMES = {"kl_divergence": "KL divergence, nats a token"}
BESIDE = {"Seconds": "compress_seconds", "MB": "artifact_bytes"}  # what stands beside a variant's rank
PLACE = ["notebook", "model", "text", "bits"]  # a panel shows one of each
EFFORT = ["group_size", "windows", "calibration_windows", "steps", "length", "first_blocks", "embedding_bits"]


def by_variant(table: pd.DataFrame, metric: str = "perplexity", notebook: str | None = None):
    """`metric` of each variant (label `rung`, in the order recorded), with 95 % intervals, a panel per bit width.

    notebook: whose variants, such as "29_best_recipe"; None takes the newest. Of its models and texts, the one with
    most windows is drawn, the newest of equals: a quick run does not hide a longer one. Where several seeds are on
    record, values are means over them, and the spread over these draws of the calibration text stands beside each.
    """
    chosen = _by_width(over_seeds(table, metric), notebook)
    if not chosen:
        return ax.placeholder("What each step brings", notebook or "22_gptq")
    names = list(dict.fromkeys(name for part in chosen.values() for name in part["rung"]))
    with style.use():
        figure = style.picture(max(7.6, 1.6 + 3.4 * len(chosen)), 1.3 + 0.42 * len(names))
        panels = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
        for axes, (bits, part) in zip(panels, chosen.items()):
            _dots(axes, part, names, metric)
            title = f"{bits} bits" if bits else ""
            if axes is panels[0]:
                title = ", ".join(filter(None, [_title(names), title]))
            ax.headline(axes, title, f"{_reading(names)} Bars: 95 % intervals." if axes is panels[0] else "")
        panels[0].set_yticks(range(len(names)), labels=names)
        panels[0].set_ylim(len(names) - 0.5, -0.7)  # the first on top, with room for figures above it
        ax.footnote(figure, [line for part in chosen.values() for line in part.attrs["notes"]])
    return figure


def ranking(table: pd.DataFrame, metric: str = "kl_divergence") -> pd.DataFrame | str:
    """The variants of the recipe at each bit width, best first; without any, the sentence that says so.

    Runs are those that `by_variant` draws. ±: standard error over the windows of one draw; spread: standard deviation
    over the draws of the calibration text; behind: how much worse than the variant above, the mean over the draws that
    both have ± its standard error. Seconds and MB are means over the draws, – where no run recorded them.
    """
    chosen, by = _by_width(over_seeds(table, metric), RECIPE), [*PLACE, *EFFORT, "rung"]
    if not chosen:
        return ax.absence(RECIPE)
    shown, lines, each = pd.concat(chosen.values()), [], _each(table, metric)
    for bits, part in chosen.items():
        part = part.sort_values("value", ascending=not shown["higher_is_better"].eq(True).any(), kind="stable")
        part = part.assign(behind=_behind(part, each))
        for column, other in BESIDE.items():
            found = over_seeds(table, other)[[*by, "value"]].rename(columns={"value": column})
            part = part.merge(found, how="left", on=by)
        for place, row in enumerate(part.to_dict("records"), start=1):
            lines.append({"Bits": bits, "Place": place} | _line(row, metric))
    frame = pd.DataFrame(lines).set_index("Bits")
    frame.attrs["title"] = f"Methods by bit width: {selection.measured_on(shown)}"
    frame.attrs["notes"] = [
        "± is one standard error over the windows of one draw of the calibration text; in the column Behind (how much "
        "worse than the method above, draw by draw) over the draws."
    ]
    frame.attrs["notes"] += [line for part in chosen.values() for line in part.attrs["notes"]]
    return frame


def _line(row: dict, metric: str) -> dict:
    """A row of `ranking`, as it is read."""
    several = row["seeds"] > 1
    return {
        "Method": row["rung"],
        _name(metric): tables.fmt(row["value"], row["stderr"]),
        "Spread": f"{row['spread']:.2g}" if several else "–",
        "Behind": row["behind"],
        "Draws": f"{row['seeds']:.0f}" if several else "1",
        "Seconds": tables.fmt(row["Seconds"]),
        "MB": tables.fmt(row["MB"] / 1e6),
    }


def _behind(part: pd.DataFrame, each: pd.DataFrame) -> list[str]:
    """How much worse each row of `part` is than the one above, over the draws that both have; – for fewer than two."""
    same = each.merge(part[[*PLACE, *EFFORT]].drop_duplicates())
    drawn = same.pivot(index="seed", columns="rung", values="value").reindex(columns=part["rung"])
    steps = drawn.diff(axis=1)
    steps = -steps if part["higher_is_better"].eq(True).any() else steps
    return [tables.fmt(step.mean(), step.sem()) if step.count() > 1 else "–" for _, step in steps.items()]


def over_seeds(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean and spread of `metric` over the seeds of otherwise equal runs, a row for each of them and variant.

    Columns: those of `PLACE` and `EFFORT`, rung, value (the mean), stderr (over windows, of one draw), spread (standard
    deviation over the seeds, NaN for one), seeds (their number), higher_is_better and time (of the newest). The newest
    run of each seed counts, if it finished. Variants are in the order of the run that recorded most of them.
    """
    by, columns = [*PLACE, *EFFORT], ["value", "stderr", "n", "higher_is_better", "time"]
    data = _each(table, metric)
    groups = data.groupby([*by, "rung"], sort=False)["value"]
    data = data.assign(spread=groups.transform("std"), seeds=groups.transform("count"), value=groups.transform("mean"))
    data["time"] = data.groupby([*by, "rung"], sort=False)["time"].transform("last")
    data["most"] = data.groupby([*by, "run"], sort=False)["rung"].transform("count")
    data = data.sort_values("most", ascending=False, kind="stable").drop_duplicates([*by, "rung"])
    return data[[*by, "rung", *columns, "spread", "seeds"]]


def _each(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """`metric` of every variant and seed, a row each, from the newest run of the seed that has it, if that finished."""
    by, columns = [*PLACE, *EFFORT], ["value", "stderr", "n", "higher_is_better", "time"]
    data = selection.complete(table)
    data = data.reindex(columns=list(dict.fromkeys([*data.columns, *by, "rung"])))
    data = data[data["metric"].eq(metric) & data["rung"].notna()].sort_values("time", kind="stable")
    data = data[list(dict.fromkeys([*by, "rung", "seed", "run", "status", *columns]))]
    numbers = {name: pd.to_numeric(data[name], errors="coerce").fillna(0).astype(int) for name in ["bits", *EFFORT]}
    data = data.assign(model=data["model"].fillna(""), text=data["text"].fillna(""), **numbers)
    # a variant that the newest run of a seed left out (another list of methods) stays what it was
    data = data.drop_duplicates([*by, "rung", "seed"], keep="last")
    return data[data["status"].isin(selection.SHOWN)].astype({"value": float, "stderr": float})


def _by_width(data: pd.DataFrame, notebook: str | None) -> dict[int, pd.DataFrame]:
    """The rows of `draws` to show for each bit width, most bits first; of one notebook, model and text."""
    if data.empty:
        return {}
    data = data[data["notebook"].eq(notebook or data.sort_values("time", kind="stable")["notebook"].iloc[-1])]
    if data.empty:
        return {}
    data = selection.largest(data, ["model", "text"], _windows)
    return {bits: _chosen(data[data["bits"].eq(bits)]) for bits in sorted(data["bits"].unique(), reverse=True)}


def _chosen(data: pd.DataFrame) -> pd.DataFrame:
    """Of one width, the comparison with most windows, the newest of equals; spreads from the one with most draws."""
    shown, drawn = (
        selection.largest(data, EFFORT, size).copy() for size in (_windows, lambda part: part["seeds"].max())
    )
    notes = []
    if shown["seeds"].max() < 2 <= drawn["seeds"].max():
        beside = drawn.set_index("rung")[["spread", "seeds"]]
        shown = shown.drop(columns=beside.columns).join(beside, on="rung")
        row = drawn.iloc[0]
        notes = [
            f"{row.bits} bits: the spread is that of {row.windows} windows, {row.calibration_windows} of calibration "
            f"and {row.steps} steps; the values are not."
        ]
    shown.attrs["notes"] = notes
    return shown


def _windows(part: pd.DataFrame) -> int:
    return part["windows"].max()


def _dots(axes, part: pd.DataFrame, names: list[str], metric: str) -> None:
    log, look = ax.is_wide(part["value"]), style.look("gptq")
    places = part["rung"].map(names.index)
    axes.errorbar(part["value"], places, xerr=ax.intervals(part, log), fmt=look.marker, color=look.colour, capsize=3)
    axes.set(xlabel=_name(metric))
    axes.margins(x=0.08 if part["seeds"].max() < 2 else 0.35)
    if log:
        ax.plain_log(axes, "x")
    for place, row in zip(places, part.to_dict("records")):
        text, side = f"{row['value']:.4g}", "center"
        if row["seeds"] > 1:
            text += f" (spread {row['spread']:.2g} over {row['seeds']:.0f} draws)"
            across, _ = axes.transAxes.inverted().transform(axes.transData.transform((row["value"], place)))
            side = "left" if across < 0.335 else "right" if across > 0.665 else "center"  # within its panel
        axes.annotate(text, (row["value"], place), (0, 6), textcoords="offset points", ha=side, fontsize=8.5)


def _name(metric: str) -> str:
    return NAMES.get(metric, metric.replace("_", " "))


def _added(names: list[str]) -> bool:
    """Whether each variant but the first says by a plus that it adds to the one above."""
    return len(names) > 1 and all(name.startswith("+") for name in names[1:])


def _title(names: list[str]) -> str:
    return "What each step brings" if _added(names) else "Methods, each for itself"


def _reading(names: list[str]) -> str:
    return "Each row adds one thing to the one above." if _added(names) else "Each row starts from the original."
