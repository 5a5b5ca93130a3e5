"""The loss of a model while it is trained, drawn again and again in one place."""

import pandas as pd
from torch import nn

from lib.report import redrawn, style

POINTS = 8  # how often a curve is drawn in a training
LOOKS = ("depth", "gptq", "rotation", "awq", "rtn")  # whose colours and lines the curves borrow, one after another


class Curves(redrawn.Redrawn):
    """Loss curves that grow while models train: `curves.of("plain")` is a watcher for `from_scratch.train`.

    steps: of each training. tokens_per_step: for the axis.
    """

    def __init__(self, steps: int, tokens_per_step: int):
        self.steps, self.tokens_per_step = steps, tokens_per_step
        self.losses: dict[str, list[float]] = {}

    def of(self, name: str):
        """A function (model, step, loss) that adds to the curve `name` and draws it `POINTS` times in a training."""
        self.losses[name] = []

        def watch(model: nn.Module, step: int, loss: float) -> None:
            self.losses[name].append(loss)
            if step == self.steps or step % max(1, self.steps // POINTS) == 0:
                self.draw()

        return watch

    def figure(self):
        """Dots: a step's loss on rows that it learns from next. Line: their running mean."""
        with style.use():
            figure = style.picture(7.5, 3.0)
            axes = figure.subplots()
            for (name, losses), look in zip(self.losses.items(), map(style.look, LOOKS * len(self.losses))):
                seen = [self.tokens_per_step * (step + 1) / 1000 for step in range(len(losses))]
                smooth = pd.Series(losses).rolling(max(1, self.steps // 12), min_periods=1).mean()
                axes.plot(seen, losses, ".", color=look.colour, alpha=0.4)
                axes.plot(seen, smooth, color=look.colour, linestyle=look.line, label=name)
            axes.set(
                xlim=(0, self.steps * self.tokens_per_step / 1000), xlabel="thousand tokens", ylabel="nats a token"
            )
            axes.legend(loc="upper right")
        return figure
