"""How a student comes nearer while it trains: the loss of its steps and the divergence on unseen text, as it goes.

curve = distillation_curve.Curve()
quantization_aware.train_(student, ..., followers=[curve])
"""

from lib.report import redrawn, style


class Curve(redrawn.Redrawn):
    """A follower of a training (`trackers`) that draws in one place whenever unseen text was measured."""

    def __init__(self):
        self.losses: dict[int, float] = {}
        self.unseen: dict[int, float] = {}

    def log(self, values: dict[str, float], step: int) -> None:
        """Take in what is known after `step`; draws where the divergence on unseen text is among it."""
        if "loss" in values:
            self.losses[step] = values["loss"]
        if "unseen_kl" in values:
            self.unseen[step] = values["unseen_kl"]
            self.draw()

    def figure(self):
        """Dots: the loss of a step, on windows that it learns from next. Line: unseen windows; star: what is kept."""
        with style.use():
            figure = style.picture(6.5, 2.6)
            axes = figure.subplots()
            steps, unseen = style.look("depth"), style.look("gptq")
            axes.plot(*zip(*self.losses.items()) if self.losses else ((), ()), ".", color=steps.colour, label="steps")
            axes.plot(*zip(*self.unseen.items()), "o-", color=unseen.colour, label="unseen windows")
            best = min(self.unseen, key=self.unseen.get)
            axes.plot(best, self.unseen[best], "k*", markersize=12, label="kept")
            axes.set(xlabel="step", ylabel="KL divergence, nats a token")
            axes.legend(loc="upper right")
        return figure
