"""KV cache of a batch whose rows come and go: each row starts at the first column and grows independently."""

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from lib.evaluation import masks
from lib.models import blocks

SPARE = 256  # columns added when a buffer is full: it is copied every so many steps


class KVBatch:
    """Keys and values of the rows of a batch, numbered 0, 1, ...; the last row takes the place of a removed one.

    Buffers are [rows, heads, columns, size] a layer; row b occupies the columns [0, lengths[b]).
    """

    def __init__(self, model: nn.Module, most: int):
        self.model, self.most = model, most
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.lengths: list[int] = []

    def add(self, keys: list[Tensor], values: list[Tensor]) -> None:
        """A new last row with the keys and values [heads, length, size] of its tokens, a pair a layer."""
        length = keys[0].shape[1]
        if not self.keys:
            self.keys, self.values = ([_buffer(each, self.most, length) for each in given] for given in (keys, values))
        self._room(length)
        row, self.lengths = len(self.lengths), [*self.lengths, length]
        for buffers, given in ((self.keys, keys), (self.values, values)):
            for buffer, each in zip(buffers, given):
                buffer[row, :, :length] = each

    def remove(self, row: int) -> None:
        """Take row `row` out; the last row moves into its place."""
        last = len(self.lengths) - 1
        if row < last:
            used = slice(0, self.lengths[last])
            for buffer in (*self.keys, *self.values):
                buffer[row, :, used] = buffer[last, :, used]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def step(self, tokens: list[list[int]]) -> Tensor:
        """Read some tokens for each row; hidden states [sum of all, hidden] after the final norm, row by row."""
        counts, place = [len(each) for each in tokens], blocks.device(self.model)
        most, lengths = max(counts), torch.tensor(self.lengths, device=place)
        padded = torch.tensor([[*each, *[0] * (most - len(each))] for each in tokens], device=place)
        offsets = torch.arange(most, device=place)
        # padding of a row is at the position of its last token, masked, and overwritten by the next step
        real = offsets[None] < torch.tensor(counts, device=place)[:, None]
        columns = lengths[:, None] + offsets
        positions = torch.where(real, columns, (lengths + torch.tensor(counts, device=place) - 1)[:, None])
        width = max(self.lengths) + most
        self._room(width)
        distance = positions[:, None, :, None] - torch.arange(width, device=place)
        mask = masks.prepare(self.model, distance >= 0, distance)
        cache = Cache(layers=[_Column(self, layer, columns, width) for layer in range(len(self.keys))])
        output = blocks.decoder(self.model)(
            input_ids=padded, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
        )
        self.lengths = [length + count for length, count in zip(self.lengths, counts)]
        return output.last_hidden_state[real]

    def _room(self, columns: int) -> None:
        """Copy what is in use into wider buffers where `columns` do not fit."""
        if columns <= self.keys[0].shape[2]:
            return
        used = max(self.lengths, default=0)
        for buffers in (self.keys, self.values):
            for layer, old in enumerate(buffers):
                new = old.new_zeros(*old.shape[:2], columns + SPARE, old.shape[3])
                new[:, :, :used] = old[:, :, :used]
                buffers[layer] = new


def _buffer(given: Tensor, most: int, length: int) -> Tensor:
    heads, _, size = given.shape
    return given.new_zeros(most, heads, length + SPARE, size)


class _Column(DynamicLayer):
    """A layer of transformers' cache that writes each row's new columns and shows the columns in use."""

    def __init__(self, rows: KVBatch, layer: int, columns: Tensor, width: int):
        super().__init__()
        self.rows, self.layer, self.columns, self.width = rows, layer, columns, width
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        rows, count, shown = self.rows, len(key_states), []
        which = torch.arange(count, device=key_states.device)[:, None]
        for buffer, states in ((rows.keys[self.layer], key_states), (rows.values[self.layer], value_states)):
            buffer[which, :, self.columns] = states.transpose(1, 2)
            shown.append(buffer[:count, :, : self.width])
        return tuple(shown)

    def get_seq_length(self) -> int:
        return self.width - self.columns.shape[1]
