"""The figure about exports: what each runtime's answers are worth, against how fast it gives them.

python -m lib.report.exports data/exports      # draws speed.png of what lib.peers.export_speed measured there
"""

import json
import sys
from pathlib import Path

from lib.report import axes as ax
from lib.report import style

_LEAST = 1e-6  # nats: below, sums of float32 in another order differ as much
_MARKERS = "osD^vP*X"


def quality_by_speed(rows: list[dict]):
    """KL over tokens a second of answering: a colour a runtime and mode, a marker a checkpoint, bars over all rounds.

    rows: as in `speed.json`: checkpoint, runtime, kl, decode, "decode from, to".
    """
    if not rows:
        return ax.placeholder("What a runtime's answers cost", "45_exports")
    runtimes, checkpoints = (list(dict.fromkeys(row[key] for row in rows)) for key in ("runtime", "checkpoint"))
    with style.use():
        figure = style.picture(7.6, 4.2)
        axes = figure.subplots()
        for row in rows:
            low, high = row["decode from, to"]
            axes.errorbar(
                row["decode"], max(row["kl"], _LEAST), xerr=[[row["decode"] - low], [high - row["decode"]]],
                fmt=_MARKERS[checkpoints.index(row["checkpoint"]) % len(_MARKERS)], capsize=2,
                color=f"C{runtimes.index(row['runtime']) % 10}",
            )  # fmt: skip
        for number, name in enumerate(runtimes):
            axes.plot([], [], "s", color=f"C{number % 10}", label=name)
        for number, name in enumerate(checkpoints if len(checkpoints) > 1 else []):
            axes.plot([], [], _MARKERS[number % len(_MARKERS)], color="black", label=name)
        axes.set(xlabel="tokens a second, answering", ylabel="KL, nats a token", xlim=(0, None), yscale="log")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
        ax.headline(axes, "What a runtime's answers cost", "To the right is faster, below is nearer to the original.")
    return figure


def main(arguments: list[str]) -> int:
    """Draw `speed.png` beside `speed.json` in a folder; 2 where there is none."""
    place = Path(arguments[0] if arguments else ".") / "speed.json"
    if not place.is_file():
        print(f"exports: {place} is not there; measure first: python -m lib.peers.export_speed", file=sys.stderr)
        return 2
    figure = quality_by_speed(json.loads(place.read_text())["rows"])
    figure.savefig(place.with_suffix(".png"), dpi=150)
    print(place.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
