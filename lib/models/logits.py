"""Log-probabilities of a model over windows of tokens, a chunk of rows at a time.

The logits of one window are large (512 x 49152 in float32: 100 MB), so the decoder runs once per batch of windows
and the head, which costs little, chunk by chunk. Every measurement of quality reads its logits here, so that two
of them on the same tokens agree to the last bit.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from lib import progress
from lib.models import blocks

CHUNK_BYTES = 12 << 20  # float32 logits of one chunk; comparing two models holds about seven such tensors

Rows = Callable[[slice], torch.Tensor]  # rows among a batch's predicted positions -> their logits [rows, vocabulary]


@dataclass(frozen=True)
class Projection:
    """From hidden states [..., hidden] to logits [..., vocabulary]: the head, then what some families add to it.

    Cohere multiplies the logits, Granite divides them, Gemma 2 caps them softly: `cap * tanh(logits / cap)`.
    """

    head: nn.Module
    multiply: float | None = None
    divide: float | None = None
    softcap: float | None = None

    @classmethod
    def of(cls, model: nn.Module) -> "Projection":
        """The projection of `model`, sharing its head."""
        config = blocks.config(model)
        names = ("logit_scale", "logits_scaling", "final_logit_softcapping")
        return cls(blocks.head(model), *(getattr(config, name, None) for name in names))

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.head(hidden)
        if self.multiply is not None:
            logits = logits * self.multiply
        if self.divide is not None:
            logits = logits / self.divide
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def frozen(self) -> "Projection":
        """A copy with its own head, which stays as it is when the model is compressed in place."""
        return replace(self, head=copy.deepcopy(self.head).requires_grad_(False))


def hidden_states(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Hidden states after the final norm [batch, length, hidden] for token ids [batch, length]."""
    return blocks.decoder(model)(input_ids=tokens.to(device(model)), use_cache=False).last_hidden_state


def projects(model: nn.Module, tokens: torch.Tensor) -> bool:
    """Whether decoder and `Projection` add up to the model's own logits, tried on a few tokens of the first window."""
    some = tokens[:1, :16].to(device(model))
    own = model(input_ids=some, use_cache=False).logits
    ours = Projection.of(model)(hidden_states(model, some))
    return own.shape == ours.shape and torch.allclose(own, ours, rtol=1e-3, atol=1e-3, equal_nan=True)


def forward(model: nn.Module, tokens: torch.Tensor) -> Callable[[torch.Tensor], Rows]:
    """A function from windows [batch, length] to the `Rows` of their predicted positions.

    `tokens` serve to try whether the head can be run apart; where it can't, the model runs as a whole.
    """
    if projects(model, tokens):
        projection = Projection.of(model)
        return lambda windows: rows(hidden_states(model, windows)[:, :-1], projection)
    return lambda windows: rows(model(input_ids=windows.to(device(model)), use_cache=False).logits[:, :-1])


def rows(states: torch.Tensor, projection: Callable = lambda logits: logits) -> Rows:
    """`Rows` over `states` [batch, positions, hidden] (or over logits, without a projection)."""
    flat = states.flatten(0, 1)
    return lambda some: projection(flat[some])


def log_probabilities(rows_of: Rows, some: slice, where: str) -> torch.Tensor:
    """Float32 log-probabilities [rows, vocabulary]; refuses logits that are not finite, naming `where`."""
    result = rows_of(some).float().log_softmax(-1)
    if result.isnan().any():
        raise ValueError(
            f"logits of {where} are not finite; finite weights are needed: check the checkpoint, "
            "or load it in bfloat16 or float32 if float16 overflows."
        )
    return result


def batches(tokens: torch.Tensor, model: nn.Module, batch: int | str, what: str) -> Iterator[tuple[int, torch.Tensor]]:
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


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode without gradients inside the block; every module's own mode is put back after it."""
    training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.eval()
    try:
        # not inference_mode: what a layer keeps from a pass (a dequantized matrix) must serve later training too
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def device(model: nn.Module) -> torch.device:
    """Where the model takes its tokens."""
    return blocks.device(model)
