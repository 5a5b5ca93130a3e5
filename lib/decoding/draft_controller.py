"""A controller that decides how many tokens to draft, from the measured costs of steps and the measured acceptance.

Verifying γ drafted tokens takes c(γ) seconds instead of c(0) and yields (1 - α^(γ+1)) / (1 - α) tokens on average, with
α the acceptance rate (arXiv 2211.17192, equation 1 and theorem 3.8, with measured costs instead of a constant). The
controller chooses the γ with the most tokens per second, or a plain step where no γ beats it. Because estimates can be
wrong, it also tracks the time saved so far and drafts only if, even with every drafted token rejected, total time stays
within (1 + `slack`) times plain decoding. The time that the drafter itself takes counts too. A later answer may spend
what an earlier one has saved, but at most `CREDIT` plain steps.
"""

import statistics
from collections import deque

import torch

from lib import timing
from lib.decoding.sessions import Session, read
from lib.decoding.speculative import expected_tokens
from lib.decoding.verify import Drafter

PATIENCE = 8  # one in so many drafts that do not seem to pay is made all the same, to notice when they do
MOST_PATIENCE = 256  # patience doubles with each draft that is rejected whole, up to this
FORGET = 0.8  # weight of the past in the share of accepted tokens, per draft
RENEW = 0.2  # weight of a new measurement in the cost of a step that drafts
RECENT = 7  # plain steps whose median is the cost of a plain step
STALE = 16  # drafts in a row with little gain, after which a plain step measures the present cost
LITTLE = 1.25
CREDIT = 1.5  # plain steps that an answer inherits at most


class DraftController:
    """Decides before each step how many tokens to draft.

    costs: {tokens drafted: seconds of the step}, as `step_costs` measures them, with 0 and at least one other length;
    they are updated as steps are taken. slack: the largest allowed loss, as a fraction of plain decoding's time.
    reading: seconds per token for a drafting model to read tokens that it has missed (`reading_cost`). Raises
    ValueError for costs without those lengths or that are not positive, and for a slack outside (0, 1).
    """

    def __init__(self, costs: dict[int, float], *, slack: float = 0.03, reading: float = 0.0):
        if 0 not in costs or len(costs) < 2 or min(costs) < 0 or min(costs.values()) <= 0:
            raise ValueError(
                f"costs={costs}; seconds above 0 for 0 drafted tokens and for one length or more are allowed; "
                "measure them with step_costs."
            )
        if not 0 < slack < 1:
            raise ValueError(f"slack={slack}; choose a share between 0 and 1, such as 0.03.")
        self.costs, self.slack, self.reading = dict(sorted(costs.items())), slack, reading
        self.balance = 0.0
        self.accepted, self.rejected = 2.0, 1.0  # prior: 2 of 3 drafted tokens are accepted
        self._plain = deque([costs[0]], maxlen=RECENT)
        self._patience = PATIENCE
        self.start()

    def start(self) -> None:
        """Start a new answer: saved time is capped and drafting is tried again sooner."""
        self.balance = min(self.balance, CREDIT * self.costs[0])  # [s]
        self._declined = self._drafts = 0
        self._patience = max(PATIENCE, self._patience // 2)

    def longest(self, at_most: int, unread: int = 0) -> int:
        """Tokens to draft now, 0 to `at_most` and to the longest length with a cost; 0 is a plain step.

        unread: tokens that the drafter has to read first.
        """
        affordable, at_most = 0, min(at_most, max(self.costs))
        credit = self.balance - unread * self.reading
        while affordable < at_most and self._loss(affordable + 1) <= credit:
            affordable += 1
        if not affordable:
            return 0
        best = max(range(1, affordable + 1), key=self.gain)
        gain = self.gain(best)
        if gain > 1:
            return best if gain > LITTLE or self._drafts < STALE else 0
        self._declined += 1
        return best if self._declined % self._patience == 0 else 0

    def gain(self, length: int) -> float:
        """Expected tokens a second of steps that draft `length` tokens, relative to plain steps."""
        acceptance = self.accepted / (self.accepted + self.rejected)
        return expected_tokens(acceptance, length) * self.costs[0] / self.cost(length)

    def cost(self, length: int) -> float:
        """Seconds of a step that drafts `length` tokens: measured, or on the line between measured neighbours."""
        if length in self.costs:
            return self.costs[length]
        known = sorted(self.costs)
        right = next((place for place, each in enumerate(known) if each > length), len(known) - 1)
        low, high = known[right - 1], known[right]
        slope = (self.costs[high] - self.costs[low]) / (high - low)
        return max(self.costs[low] + slope * (length - low), self.costs[0])

    def record(self, drafted: int, accepted: int, seconds: float, drafting: float = 0.0) -> None:
        """Record a step: `drafted` tokens (0: a plain step), of which `accepted` were right, in `seconds`.

        drafting: the part of the seconds that the drafter took, before the model ran.
        """
        if drafted:
            self._drafted(drafted, accepted, seconds)
        else:
            # plain decoding would have run the model too; only the drafter's time is lost
            self.balance += self.slack * self.costs[0] - drafting
            self._plain.append(seconds - drafting)
            self.costs[0], self._drafts = statistics.median_low(self._plain), 0

    def _drafted(self, drafted: int, accepted: int, seconds: float) -> None:
        self.balance += (1 + self.slack) * (accepted + 1) * self.costs[0] - seconds
        self.accepted = FORGET * self.accepted + accepted
        self.rejected = FORGET * self.rejected + (accepted < drafted)
        self._patience = PATIENCE if accepted else min(2 * self._patience, MOST_PATIENCE)
        self._drafts += 1
        old = self.cost(drafted)
        # one outlier must not dominate the estimate
        self.costs[drafted] = old + RENEW * (min(seconds, 2 * old) - old)

    def _loss(self, length: int) -> float:
        """Seconds lost against plain decoding when all `length` drafted tokens are rejected."""
        return self.cost(length) - (1 + self.slack) * self.costs[0]


def step_costs(
    session: Session,
    drafter: Drafter | None = None,
    *,
    lengths: tuple[int, ...] = (0, 1, 2, 4, 8),
    context: int = 128,
    rounds: int = 5,
) -> dict[int, float]:
    """Seconds of a step that drafts so many tokens (with `drafter`, its own time included) behind `context` tokens.

    Medians over `rounds`, each of which times all `lengths`, after one warm-up round. The session is left empty. The
    text is one token repeated: prompt lookup always finds a match in it. A drafting model should propose `max(lengths)`
    tokens when asked to.
    """
    text = torch.zeros(context + max(lengths) + 1, dtype=torch.long)
    session.rewind(0)
    read(session, text[:context])
    if drafter is not None:
        drafter.begin(text[:context])
    taken = {length: [] for length in lengths}
    for _ in range(rounds + 1):
        for length in lengths:
            with timing.stopwatch() as watch:
                if drafter is not None and length:
                    drafter.draft(text[: context + 1], length)
                session.extend(text[: length + 1])
                session.rewind(context)
            taken[length].append(watch.seconds)
    session.rewind(0)
    return {length: statistics.median(seconds[1:]) for length, seconds in taken.items()}


def reading_cost(drafter: Drafter, *, context: int = 128, rounds: int = 3) -> float:
    """Seconds per token for `drafter` to read a text of `context` tokens: the median of `rounds`."""
    taken = []
    for place in range(rounds + 1):
        text = torch.full((context,), 1 + place % 2)  # nothing is shared with the text before
        with timing.stopwatch() as watch:
            drafter.begin(text)
        taken.append(watch.seconds / context)
    return statistics.median(taken[1:])
