"""Sampling settings of an engine (greedy or random), by which the cache and comparisons identify it."""

import json

from lib.decoding.sampling import Sampling
from lib.decoding.settings import PLAIN, Settings


class SamplingMixin:
    """The sampling settings of an engine."""

    def drawn(self, sampling: dict | None, seed: int, own: Settings = PLAIN) -> None:
        """Set the arguments of `Sampling` ({} or None: greedy) and the checkpoint's `own` settings.

        Raises ValueError for those that `Sampling` refuses.
        """
        how = Sampling(**(sampling or {}), seed=seed)
        self.sampling, self.seed, self.greedy, self.own = sampling or {}, seed, how.greedy, own
        self._plain = how.greedy and not how.penalised

    @property
    def settings(self) -> str:
        """How tokens are chosen: "greedy", or the settings as JSON, with the seed where it matters.

        The checkpoint's generation settings are included as "generation_config".
        """
        if self._plain and not self.own:
            return "greedy"
        said = self.sampling | ({} if self.greedy else {"seed": self.seed})
        return json.dumps(said | ({"generation_config": self.own.values} if self.own else {}), sort_keys=True)
