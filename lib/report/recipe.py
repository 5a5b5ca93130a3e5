"""The figure about allocation: where the bits go."""

import matplotlib
import numpy as np
import pandas as pd

from lib.report import axes as ax
from lib.report import selection, style


def allocation(table: pd.DataFrame):
    """Heat map of the bits of each group of layers by block (metric bits; labels block, layers)."""
    data = selection.newest(table, "bits")
    if data.empty:
        return ax.placeholder("Where the bits go", "28_allocation")
    blocks = data.dropna(subset=["block"]).assign(block=lambda part: part["block"].astype(int))
    grid = blocks.pivot(index="layers", columns="block", values="value").loc[list(dict.fromkeys(blocks["layers"]))]
    other = data[data["block"].isna()]
    low, high = int(data["value"].min()), int(data["value"].max())
    with style.use():
        figure = style.picture(9.6, 2.6)
        axes = figure.add_subplot()
        colours = matplotlib.colormaps["Blues"].resampled(max(2, high - low + 1))
        axes.imshow(grid.to_numpy(float), aspect="auto", cmap=colours, vmin=low - 0.5, vmax=high + 0.8)
        axes.grid(False)
        for (row, column), bits in np.ndenumerate(grid.to_numpy(float)):
            shade = "white" if bits > (low + high) / 2 else style.INK
            axes.annotate(f"{bits:.0f}", (column, row), ha="center", va="center", fontsize=8, color=shade)
        axes.set_yticks(range(len(grid)), labels=grid.index)
        axes.set_xticks(range(0, grid.shape[1], 5), labels=grid.columns[::5])
        axes.set_xlabel("block")
        text = "; ".join(f"{row.layers}: {row.value:.0f} bits" for row in other.itertuples())
        ax.headline(axes, "Where the bits go", f"Bits of each group of layers; {text}.")
    return figure
