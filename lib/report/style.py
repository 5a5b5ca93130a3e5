"""The one place that decides how figures look: colours, markers, fonts, and how a figure is shown and saved.

The three colours of the main methods are Paul Tol's high-contrast set, which stays apart in every common form of
colour blindness and in grey; the spare ones are Okabe and Ito's. Each method also has its own marker and line style.
"""

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from lib import files

INK = "#1b1f24"  # text and reference lines
MUTED = "#5b6570"  # axis labels, notes
GRID = "#e3e6ea"
FRONT = "#d5dbe3"  # the band behind the Pareto front
DPI = 150  # of saved PNGs, and of the picture in a notebook
SHOWN_DPI = 100  # an inch of figure takes this many CSS pixels in a notebook

PARAMETERS = {
    "font.family": ["DejaVu Sans"],  # ships with matplotlib, so a figure has the same bytes on every machine
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelsize": 9.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#9aa3ad",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.4,
    "lines.markersize": 6.5,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "thimble",  # matplotlib's random ids become a function of the content
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Look:
    """How one method is drawn: its name for readers, colour, marker and line style."""

    label: str
    colour: str
    marker: str
    line: str


LOOKS = {
    "none": Look("Original", INK, "*", ":"),
    "rtn": Look("RTN", "#cc8f1b", "s", "--"),
    "gptq": Look("GPTQ", "#004488", "o", "-"),
    "depth": Look("Depth", "#bb5566", "^", "-."),
    "best": Look("Recipe", "#117733", "X", "-"),
    "absmax": Look("Absmax", "#aa7700", "<", ":"),
    "zero_point": Look("Zero point", "#ddaa33", ">", ":"),
    "clip": Look("Clipping", "#999933", "h", "--"),
    "hqq": Look("HQQ", "#882255", "v", "-."),
    "codebook": Look("NF codebook", "#cc6677", "p", "--"),
    "int8": Look("LLM.int8()", "#44aa99", "d", ":"),
    "awq": Look("AWQ", "#66a0c8", "P", "--"),
    "gptaq": Look("GPTAQ", "#332288", "8", ":"),
    "corrected": Look("Corrected", "#6699cc", "*", "--"),
    "signround": Look("SignRound", "#009e73", "D", "--"),
    "gptq_signround": Look("GPTQ + SignRound", "#225522", "D", "-."),
    "rotation": Look("Rotation", "#aa4499", "H", "-."),
    "auto-round": Look("auto-round", "#e07b39", "s", "-."),
    "gptqmodel": Look("gptqmodel", "#777777", "o", ":"),
    "llmcompressor": Look("llmcompressor", "#a0522d", "^", ":"),
    "llama.cpp": Look("llama.cpp", "#d55e00", "s", "--"),
}
# for methods that come later: colours of Okabe and Ito
SPARE = [("#56b4e9", "D", (0, (5, 1))), ("#009e73", "v", (0, (1, 1))), ("#cc79a7", "P", (0, (3, 1, 1, 1)))]


def look(method: str) -> Look:
    """The look of a method; one that is not in `LOOKS` gets a spare look that depends on its name alone."""
    if method in LOOKS:
        return LOOKS[method]
    return Look(method.upper() if len(method) < 5 else method.capitalize(), *SPARE[sum(method.encode()) % len(SPARE)])


def order(method: str) -> tuple[int, str]:
    """Sort key that keeps methods in one order everywhere: the known ones as in `LOOKS`, then the rest by name."""
    return (list(LOOKS).index(method) if method in LOOKS else len(LOOKS), method)


@contextlib.contextmanager
def use():
    """Draw in this style inside the block; matplotlib's settings are afterwards what they were before."""
    with matplotlib.rc_context(PARAMETERS):
        yield


class Picture(Figure):
    """A figure that Jupyter shows without pyplot."""

    def __init__(self, **options):
        super().__init__(**options)
        FigureCanvasAgg(self)  # measures text, which placing labels needs

    def _repr_png_(self):
        width, height = self.get_size_inches() * SHOWN_DPI
        return png(self), {"width": int(width), "height": int(height)}


def picture(width: float = 7.6, height: float = 4.6):
    """A new empty figure, in inches, that belongs to no GUI and no pyplot state and shows itself in a notebook."""
    return Picture(figsize=(width, height), layout="constrained")


def settle(figure) -> None:
    """Lay the figure out once and for all, so that SVG and PNG look the same whichever is made first."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def png(figure, dpi: int = DPI) -> bytes:
    """The figure as a small PNG (128 colours are plenty for a chart) whose bytes depend on the figure alone."""
    shown = Image.open(io.BytesIO(_bytes(figure, "png", dpi=dpi))).convert("RGB")
    buffer = io.BytesIO()
    shown.quantize(128, dither=Image.Dither.NONE).save(buffer, "png", optimize=True, dpi=(dpi, dpi))
    return buffer.getvalue()


def svg(figure) -> bytes:
    """The figure as SVG, without date, whose bytes depend on the figure alone."""
    return _bytes(figure, "svg", metadata={"Date": None, "Creator": None})


def save(figure, name: str) -> tuple[Path, Path]:
    """Write `name`.svg and `name`.png (150 dpi) into the folder of figures; each file is old or new, never a mix.

    Returns the two paths. Raises ValueError when `name` is not a plain file name without suffix.
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"name={name!r} is no plain name; use letters, digits, - and _ without folder or suffix.")
    folder = files.figures()
    return (
        files.write_bytes(folder / f"{name}.svg", svg(figure)),
        files.write_bytes(folder / f"{name}.png", png(figure)),
    )


def _bytes(figure, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    with use():  # fonts and SVG ids are looked up when a figure is drawn, not when it is made
        settle(figure)
        figure.savefig(buffer, format=form, **options)
    return buffer.getvalue()
