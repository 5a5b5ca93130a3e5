"""Log-probabilities of a model over windows of tokens, a chunk of rows at a time.

The logits of one window are large (512 x 49152 in float32: 100 MB), so the decoder runs once per batch of windows
and the head, which costs little, chunk by chunk. Every measurement of quality reads its logits here, so that two
of them on the same tokens agree to the last bit.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lib import progress
from lib.models import blocks, partial
from lib.models.blocks import device
from lib.models.eval_mode import evaluating
from lib.models.projection import Projection, Whole, hidden_states, projects, split

__all__ = ["Projection", "Whole", "device", "evaluating", "hidden_states", "projects", "split"]

CHUNK_BYTES = 12 << 20  # float32 logits of one chunk; comparing two models holds about seven such tensors

Rows = Callable[[slice], Tensor]  # rows among a batch's predicted positions -> their logits [rows, vocabulary]


def forward(model: nn.Module) -> Callable[[Tensor], Rows]:
    """A function from windows [batch, length] to the `Rows` of their predicted positions."""
    states, projection = split(model)
    return lambda windows: rows(states(windows)[:, :-1], projection)


def after_blocks(model: nn.Module) -> Callable[[Tensor], Rows]:
    """As `forward`, from the outputs of the last block, [batch, length, hidden], instead of from tokens."""
    states, projection = split(model)

    def run(hidden: Tensor) -> Rows:
        with partial.skipped(model, len(blocks.blocks(model)), hidden):
            ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
            return rows(states(ids)[:, :-1], projection)

    return run


def head_inputs(model: nn.Module, tokens: Tensor) -> Tensor:
    """The inputs of the head, [batch, length, columns], for token ids [batch, length]; the head itself does not run."""
    states, projection = split(model)
    seen, head = [], blocks.head(model)

    def look(inputs: Tensor) -> Tensor:
        seen.append(inputs)
        return inputs.new_zeros(1).expand(*inputs.shape[:-1], head.out_features)

    with partial.instead(head, look):
        projection(states(tokens))
    return seen[-1]


def rows(states: Tensor, projection: Callable = lambda logits: logits) -> Rows:
    """`Rows` over `states` [batch, positions, hidden] (or over logits, without a projection)."""
    flat = states.flatten(0, 1)
    return lambda some: projection(flat[some])


def log_probabilities(rows_of: Rows, some: slice, where: str) -> Tensor:
    """Float32 log-probabilities [rows, vocabulary]; refuses logits that are not finite, naming `where`."""
    result = rows_of(some).float().log_softmax(-1)
    if result.isnan().any():
        raise ValueError(
            f"logits of {where} are not finite; finite weights are needed: check the checkpoint, "
            "or load it in bfloat16 or float32 if float16 overflows."
        )
    return result


def batches(tokens: Tensor, model: nn.Module, batch: int | str, what: str) -> Iterator[tuple[int, Tensor]]:
    """(index of the first window, windows [<= batch, length]), with a progress bar over windows.

    `batch="auto"` is one window on a CPU, 16384 tokens on an accelerator.
    """

    if batch == "auto":
        batch = 1 if device(model).type == "cpu" else max(1, 16384 // tokens.shape[1])
    if not isinstance(batch, int) or batch < 1:
        raise ValueError(f'batch={batch!r}; choose "auto" or a whole number of windows from 1.')
    with progress.bar(total=len(tokens), desc=what, unit="window") as bar:
        for start in range(0, len(tokens), batch):
            yield start, tokens[start : start + batch]
            bar.update(min(batch, len(tokens) - start))


def chunks(count: int, vocabulary: int) -> Iterator[slice]:
    """Slices over `count` rows whose float32 logits take at most `CHUNK_BYTES`."""
    size = max(1, CHUNK_BYTES // (4 * vocabulary))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
