"""How an engine chooses tokens: greedily, or drawn; what the cache of answers and comparisons tell apart by."""

import json

from lib.decoding.sampling import Sampling


class Drawing:
    """The part of an engine that knows how its generations are chosen."""

    def drawn(self, sampling: dict | None, seed: int) -> None:
        """Set the arguments of `Sampling` ({} or None: greedy); raises ValueError for those that it refuses."""
        how = Sampling(**(sampling or {}), seed=seed)
        self.sampling, self.seed, self.greedy = sampling or {}, seed, how.greedy
        self._plain = how.greedy and not how.penalised

    @property
    def settings(self) -> str:
        """How generations are chosen: "greedy", or the settings as JSON, with the seed where one has a say."""
        if self._plain:
            return "greedy"
        return json.dumps(self.sampling | ({} if self.greedy else {"seed": self.seed}), sort_keys=True)
