"""Which token follows from logits: greedily, or drawn after temperature, top-k, top-p and a checkpoint's own settings.

The processing is transformers' own (its processors, in the order in which `generate` applies them), and a draw is one
`torch.multinomial` as there: with the same seed, plain sampling gives the tokens that `model.generate` gives after
`torch.manual_seed(seed)`. Drafting uses more random numbers per token, so the tokens differ while their
distribution stays.
"""

import copy

import torch
from torch import Tensor

from lib.decoding.settings import PLAIN, Settings


class Sampling:
    """How the next token is chosen.

    temperature: divides the logits; 0 is greedy, the likeliest token. top_k: only the k likeliest tokens (0: all).
    top_p: only the likeliest tokens whose probabilities add up to p. repetition_penalty: logits of tokens that the
    prompt or the answer already has are divided (positive) or multiplied (negative) by it; it applies to greedy
    too (CTRL, arXiv 1909.05858, section 4.1); None takes the checkpoint's value. typical_p: only the tokens nearest to
    the expected surprise, whose probabilities add up to p (arXiv 2202.00666); 1 for all. penalties: more processors
    (`penalties`), applied before temperature, to greedy too. seed: of the generator that `draw` and `accept` use.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float | None = None,
        typical_p: float = 1.0,
        penalties: tuple = (),
        seed: int = 0,
    ):
        _check(temperature, top_k, top_p, 1.0 if repetition_penalty is None else repetition_penalty, typical_p)
        self.greedy = temperature == 0
        self.changed = {} if repetition_penalty is None else {"repetition_penalty": float(repetition_penalty)}
        self._warpers, self._penalties = _warpers(float(temperature), top_k, float(top_p), float(typical_p)), penalties
        self._processors = [*PLAIN.processors([0], 1, **self.changed), *penalties, *self._warpers]
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def penalised(self) -> bool:
        """Whether processing may change the likeliest token."""
        return len(self._processors) > len(self._warpers)

    def answering(self, settings: Settings, prompt: list[int], new_tokens: int) -> "Sampling":
        """This sampling with its own random numbers, applied after the checkpoint's `settings`.

        prompt, new_tokens: the token ids of the answer's prompt, and how many it has at most.
        """
        if not settings:
            return self
        made = copy.copy(self)
        own = settings.processors(prompt, new_tokens, **self.changed)
        made._processors = [*own, *self._penalties, *self._warpers]
        return made

    def processed(self, logits: Tensor, history: Tensor) -> Tensor:
        """Logits [vocabulary] after all processing, given the tokens so far, `history` [length]."""
        scores = logits[None].cpu() if self._processors else logits[None]
        for processor in self._processors:
            scores = processor(history[None], scores)
        return scores[0]

    def best(self, logits: Tensor, history: Tensor) -> int:
        """The likeliest token (the first of equals); raises ValueError where logits are NaN."""
        found = self.processed(logits, history)
        if found.isnan().any():
            raise not_finite()
        return int(found.argmax())

    def probabilities(self, logits: Tensor, history: Tensor) -> Tensor:
        """Probabilities [vocabulary] of the next token, float32; raises ValueError where logits are not finite."""
        found = self.processed(logits, history).softmax(-1)
        if not torch.isfinite(found.sum()):
            raise not_finite()
        return found

    def draw(self, probabilities: Tensor) -> int:
        """One token with these probabilities [vocabulary]."""
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def next(self, logits: Tensor, history: Tensor) -> int:
        """The token that follows: the likeliest where this is greedy, else one draw."""
        return self.best(logits, history) if self.greedy else self.draw(self.probabilities(logits, history))

    def accept(self, probability: float) -> bool:
        """True with this probability."""
        return float(torch.rand((), generator=self._generator)) < probability


def not_finite() -> ValueError:
    """The error for logits that hold NaN or no finite value."""
    return ValueError(
        "the model's logits are not finite; a next token needs finite ones; check the checkpoint, "
        "or load it in bfloat16 or float32 if float16 overflows."
    )


def _warpers(temperature: float, top_k: int, top_p: float, typical_p: float) -> list:
    """transformers' processors of draws that change anything, in the order of its `generate`."""
    from transformers.generation import logits_process as library  # loads slowly, only where tokens are drawn

    chosen = []
    if temperature not in (0.0, 1.0):
        chosen.append(library.TemperatureLogitsWarper(temperature))
    if temperature and top_k:
        chosen.append(library.TopKLogitsWarper(top_k))
    if temperature and top_p < 1:
        chosen.append(library.TopPLogitsWarper(top_p))
    if temperature and typical_p < 1:
        chosen.append(library.TypicalLogitsWarper(typical_p))
    return chosen


def _check(temperature, top_k, top_p, penalty, typical_p) -> None:
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature}; choose 0 (greedy) or a finite number above.")
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0:
        raise ValueError(f"top_k={top_k!r}; choose a whole number of tokens from 1, or 0 for all.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}; choose a probability above 0, up to 1 for all tokens.")
    if not 0 < penalty < float("inf"):
        raise ValueError(f"repetition_penalty={penalty}; choose a number above 0; 1 changes nothing.")
    if not 0 < typical_p <= 1:
        raise ValueError(f"typical_p={typical_p}; choose a probability above 0, up to 1 for all tokens.")
    if temperature == 0 and (top_k or top_p < 1 or typical_p < 1):
        typical = "" if typical_p == 1 else f" and typical_p={typical_p}"
        raise ValueError(
            f"top_k={top_k} and top_p={top_p}{typical} with temperature=0, which takes the likeliest token whatever "
            "they are; leave them out, or set a temperature above 0."
        )
