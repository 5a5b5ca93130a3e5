"""How far a model went while it learns, by answers of its own: KL from the reference, their length, and their end.

What a loss notes is of the data's answers; this is of the model's. It costs a generation every so many steps.
"""

import json
from pathlib import Path

from torch import nn

from lib import files
from lib.alignment import judging, on_policy

FILE = "own_answers.json"


class OwnAnswers:
    """Measures a model every so many steps; given to a training as `on_step`, or to `preference_curves`.

    asked: questions, one answer each of at most `new_tokens` tokens, always drawn with the same seeds. reference: the
    model before training. folder: the training's, where it has one: what was measured is kept there too, so that a
    training that was killed and resumed ends with all of it. seen: step -> "kl", nats an answer, "tokens", "ended".
    """

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module,
        asked: on_policy.Questions,
        tokenizer,
        *,
        every: int,
        new_tokens: int,
        folder: Path | str | None = None,
    ):
        if every < 1 or new_tokens < 1:
            raise ValueError(f"every={every} steps, new_tokens={new_tokens}; 1 or more of each are allowed.")
        self.model, self.reference, self.asked, self.tokenizer = model, reference, asked, tokenizer
        self.every, self.new_tokens = every, new_tokens
        self.path = None if folder is None else Path(folder) / FILE
        self.seen: dict[int, dict[str, float]] = {}
        if self.path is not None and self.path.exists():
            self.seen = {int(step): each for step, each in json.loads(self.path.read_text(encoding="utf-8")).items()}

    def __call__(self, step: int, loss: float) -> None:
        """Measure, where `step` is due."""
        if step % self.every == 0:
            self.measure(step)

    def measure(self, step: int) -> dict[str, float]:
        """Measure now, as after `step`."""
        given = self.model, self.reference, self.asked, self.tokenizer
        found = judging.answers(*given, new_tokens=self.new_tokens)
        self.seen[step] = {
            "kl": float(found.gone.mean()),
            "tokens": float(found.tokens.mean()),
            "ended": float(found.ended.mean()),
        }
        if self.path is not None:
            files.write_text(self.path, json.dumps(dict(sorted(self.seen.items()))))
        return self.seen[step]
