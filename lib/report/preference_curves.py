"""What preferences do to a model while it learns them, drawn again and again in one place."""

from collections.abc import Callable

from lib.alignment.watch import OwnAnswers
from lib.report import redrawn, style
from lib.trainers.preference_training import Loss

POINTS = 4  # how often the curves are drawn in a training
PANELS = {  # title -> the measures that it shows, the first that a loss notes
    "preferred answers, nats": ("chosen", "desirable"),
    "other answers, nats": ("rejected", "undesirable"),
    "share in order": ("accuracy",),
    "reward margin": ("margin",),
    "KL, nats an answer": ("own kl", "kl"),
    "tokens an answer": ("own tokens", "tokens"),
    "entropy, nats a token": ("entropy",),
}
LOOKS = ("depth", "gptq", "rotation", "awq", "rtn", "best", "hqq", "codebook")  # whose colours and lines are borrowed


class Curves(redrawn.Redrawn):
    """Curves that grow while models learn: `curves.of(loss)` is the `on_step` of a training with that loss."""

    def __init__(self, steps: int):
        self.steps = steps
        self.seen: dict[str, list[dict]] = {}

    def of(self, loss: Loss, name: str | None = None, own: OwnAnswers | None = None) -> Callable[[int, float], None]:
        """A function (step, loss) that adds what `loss` noted to the curves of `name` (its own, by default).

        own: is called too, and shows KL and length of the model's own answers instead of the data's.
        """
        noted = self.seen[name or loss.name] = []

        def watch(step: int, value: float) -> None:
            if own is not None:
                own(step, value)
            found = own.seen.get(step, {}) if own is not None else {}
            noted.append({"step": step, **loss.measures.last, **{f"own {key}": each for key, each in found.items()}})
            if step == self.steps or step % max(1, self.steps // POINTS) == 0:
                self.draw()

        return watch

    def figure(self):
        """A panel for each measure that any training noted."""
        noted = {name for rows in self.seen.values() for row in rows for name in row}
        panels = {title: names for title, names in PANELS.items() if noted & set(names)}
        with style.use():
            figure = style.picture(3.2 * -(-len(panels) // 2), 4.8)
            for axes, (title, names) in zip(figure.subplots(2, -(-len(panels) // 2)).flat, panels.items()):
                for (name, rows), look in zip(self.seen.items(), map(style.look, LOOKS * len(self.seen))):
                    key = next((each for each in names if any(each in row for row in rows)), None)
                    found = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
                    if found:
                        axes.plot(*zip(*found), color=look.colour, linestyle=look.line, marker=".", label=name)
                axes.set(title=title, xlabel="step", xlim=(0.5, self.steps + 0.5))
            figure.axes[0].legend(fontsize=7)
            for axes in figure.axes[len(panels) :]:
                axes.set_visible(False)
        return figure
