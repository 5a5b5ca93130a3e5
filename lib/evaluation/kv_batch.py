"""Keys and values of a batch whose rows come and go: all rows end at the same column, each begins where it must."""

import torch
from torch import Tensor, nn

from lib.evaluation import masks
from lib.models import blocks

SPARE = 256  # columns added when a buffer is full: it is copied every so many steps


class Rows:
    """Rows of a batch, numbered 0, 1, ...; the last one takes the place of one that is removed.

    Buffers are [rows, heads, columns, size] a layer; row b occupies the columns [end - lengths[b], end).
    """

    def __init__(self, model: nn.Module, most: int):
        self.model, self.most = model, most
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.lengths: list[int] = []
        self.end = 0

    def add(self, keys: list[Tensor], values: list[Tensor]) -> None:
        """A new last row with the keys and values [heads, length, size] of its tokens, a pair a layer."""
        length = keys[0].shape[1]
        if not self.keys:
            self.keys = [_buffer(each, self.most, length) for each in keys]
            self.values = [_buffer(each, self.most, length) for each in values]
            self.end = length
        if length > self.end:
            self._move(length)
        row, self.lengths = len(self.lengths), [*self.lengths, length]
        for buffers, given in ((self.keys, keys), (self.values, values)):
            for buffer, each in zip(buffers, given):
                buffer[row, :, self.end - length : self.end] = each

    def remove(self, row: int) -> None:
        """Take row `row` out; the last row moves into its place."""
        last = len(self.lengths) - 1
        if row < last:
            used = slice(self.end - self.lengths[last], self.end)
            for buffer in (*self.keys, *self.values):
                buffer[row, :, used] = buffer[last, :, used]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def step(self, tokens: list[int]) -> Tensor:
        """Read one token a row; hidden states [rows, hidden] after the final norm."""
        from transformers.cache_utils import Cache

        if self.end == self.keys[0].shape[2]:
            self._move(max(self.lengths))
        first, place = self.end - max(self.lengths), blocks.device(self.model)
        lengths = torch.tensor(self.lengths, device=place)
        distance = self.end - torch.arange(first, self.end + 1, device=place)[None, None, None]
        mask = masks.prepare(self.model, distance <= lengths[:, None, None, None], distance)
        cache = Cache(layers=[_column_class()(self, layer, first) for layer in range(len(self.keys))])
        output = blocks.decoder(self.model)(
            input_ids=torch.tensor(tokens, device=place)[:, None], position_ids=lengths[:, None], attention_mask=mask,
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        self.end += 1
        self.lengths = [length + 1 for length in self.lengths]
        return output.last_hidden_state[:, -1]

    def _move(self, end: int) -> None:
        """Copy what is in use into new buffers in which the rows end at column `end`."""
        used = max(self.lengths, default=0)
        for buffers in (self.keys, self.values):
            for layer, old in enumerate(buffers):
                new = old.new_zeros(*old.shape[:2], end + SPARE, old.shape[3])
                new[:, :, end - used : end] = old[:, :, self.end - used : self.end]
                buffers[layer] = new
        self.end = end


def _buffer(given: Tensor, most: int, length: int) -> Tensor:
    heads, _, size = given.shape
    return given.new_zeros(most, heads, length + SPARE, size)


def _column_class():
    """A layer of transformers' cache that writes one column and shows the columns in use."""
    from transformers.cache_utils import DynamicLayer

    class Column(DynamicLayer):
        def __init__(self, rows: Rows, layer: int, first: int):
            super().__init__()
            self.rows, self.layer, self.first = rows, layer, first
            self.is_initialized = True

        def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
            rows, count = self.rows, len(key_states)
            shown = []
            for buffer, states in ((rows.keys[self.layer], key_states), (rows.values[self.layer], value_states)):
                buffer[:count, :, rows.end : rows.end + 1] = states
                shown.append(buffer[:count, :, self.first : rows.end + 1])
            return tuple(shown)

        def get_seq_length(self) -> int:
            return self.rows.end - self.first

    return Column
