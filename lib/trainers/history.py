"""History of a training: losses, times and learning rates, one entry per step."""

from dataclasses import dataclass, field

from lib.trainers import divergence


@dataclass(frozen=True)
class History:
    """The result of a training beside the model: one entry per step. seconds: since the start, without interruptions.

    tokens_per_step: the mean, where steps differ. text_tokens: tokens of the data, each counted once; None for a
    stream. measures: name -> what the loss noted beside its value (`measures`), one number a step. joules: of the
    machine since the start, without interruptions; None where no counter told them.
    """

    losses: list[float]
    seconds: list[float]
    learning_rates: list[float]
    tokens_per_step: int | float
    text_tokens: int | None
    measures: dict[str, list[float | None]] = field(default_factory=dict)
    joules: list[float | None] = field(default_factory=list)

    @property
    def joules_per_step(self) -> float | None:
        """The mean of all steps; None where no counter told it."""
        return self.joules[-1] / len(self.joules) if self.joules and self.joules[-1] is not None else None

    @property
    def tokens(self) -> int:
        """Tokens trained on, repetitions included."""
        return round(self.tokens_per_step * len(self.losses))

    @property
    def passes(self) -> float | None:
        """How many times the data was read; None for a stream, which has no end."""
        return None if self.text_tokens is None else self.tokens / self.text_tokens

    def __str__(self) -> str:
        return f"{len(self.losses)} steps, loss {self.losses[0]:.4g} to {self.losses[-1]:.4g}"

    @property
    def rises(self) -> list[divergence.Rise]:
        """Where the loss rose far above what it had reached."""
        return divergence.rises(self.losses)

    @classmethod
    def of(cls, logged: list[dict], text_tokens: int | None) -> "History":
        """The history of a training with the log `logged`, one entry per step."""
        entries = [entry for entry in logged if "loss" in entry]
        names = ("loss", "seconds", "learning_rate", "tokens")
        losses, seconds, rates, tokens = ([entry[name] for entry in entries] for name in names)
        each = sum(tokens) / max(1, len(tokens))
        noted = [entry.get("measures", {}) for entry in entries]
        measures = {name: [one.get(name) for one in noted] for name in (noted[0] if noted else ())}
        each = int(each) if each == int(each) else each
        joules = [entry.get("joules") for entry in entries]
        return cls(losses, seconds, rates, each, text_tokens, measures, joules)
