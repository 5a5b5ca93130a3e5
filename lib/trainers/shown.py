"""What a training shows while it runs: loss, tokens a second, share of the machine's peak; the bar tells the time left.

The share (MFU) is shown where the machine's peak is known already (`metrics.peaks`): nothing is measured for it here.
"""

from torch import nn

from lib.metrics import count, peaks
from lib.models import blocks


class Shown:
    """Numbers behind the bar of a training of `model`. half: whether products are in bfloat16."""

    def __init__(self, model: nn.Module, half: bool):
        self.model, self.half = model, half
        self._known: dict[int, float | None] = {}

    def text(self, loss: float, tokens: int, rows: int, seconds: float) -> str:
        """After a step that took `seconds` for `tokens` in `rows`: such as "loss 3.21, 6,100 tokens/s, MFU 31 %"."""
        if not tokens or seconds <= 0:
            return f"loss {loss:.4g}"
        rate = tokens / seconds
        share = self._flops(tokens // max(1, rows))
        return f"loss {loss:.4g}, {rate:,.0f} tokens/s" + (f", MFU {share * rate:.0%}" if share else "")

    def _flops(self, length: int) -> float | None:
        """Seconds of the machine's peak that a token of a row of `length` takes; None where the peak is not known."""
        if length not in self._known:
            known = peaks.known(blocks.device(self.model).type)
            peak = known and known.flops.get("bfloat16" if self.half else "float32")
            self._known[length] = 3 * count.flops_per_token(self.model, length // 2) / peak if peak else None
        return self._known[length]
