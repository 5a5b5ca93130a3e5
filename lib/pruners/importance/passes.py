"""Shared by the scores: calibration tokens, hidden states with one block left out, and their predictions."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lib import progress
from lib.models import blocks as parts
from lib.models import capture, logits
from lib.sources import texts

BATCH = 16  # windows that a block sees at once


def tokens_of(model: nn.Module, calibration) -> Tensor:
    """Token ids [count, length] of a `Text`, `Windows` or tensor; ValueError where they, or the model, predict nothing.

    An encoder, or a model with encoder and decoder, has no next token to predict and is refused.
    """
    check_decoder(model)
    tokens = texts.tokens(calibration, model)
    if tokens.shape[1] < 2:
        raise ValueError(f"windows of {tokens.shape[1]} token predict nothing; give windows of two tokens or more.")
    return tokens


def check_decoder(model: nn.Module) -> None:
    """Raise ValueError unless `model` is a decoder with a head: one that predicts each token from those before it."""
    config = getattr(model, "config", None)
    generates = hasattr(model, "can_generate") and model.can_generate() and not config.is_encoder_decoder
    # GPT-NeoX is a decoder, but its config has the flags of an encoder
    encoder = getattr(config, "is_decoder", None) is False and not config.model_type.startswith("gpt_neox")
    if not generates or encoder:
        raise ValueError(
            f"{type(model).__name__} is no decoder that predicts the next token; only decoder-only language models "
            f"are pruned here ({parts.SUPPORTED}); load one with AutoModelForCausalLM."
        )


def through(steps: list, hidden: Tensor, bar=None) -> Tensor:
    """Hidden states [count, length, hidden size] after the blocks of `steps`, pairs of (block, how it is called)."""
    for block, call in steps:
        hidden = torch.cat([capture.run_block(block, some, call) for some in hidden.split(BATCH)])
        if bar is not None:
            bar.update()
    return hidden


def each_block(model: nn.Module, tokens: Tensor, look: Callable, what: str) -> list:
    """[look(before, after), ...] of each block's hidden states, both [count, length, hidden size].

    One pass over the blocks and none of the head; `what` names the progress bar.
    """
    with logits.evaluating(model):
        captured = capture.capture(model, tokens)
        before, found = captured.hidden, []
        for step in progress.bar(list(zip(parts.blocks(model), captured.calls)), desc=what, unit="block"):
            after = through([step], before)
            found.append(look(before, after))
            before = after
    return found


def left_out(model: nn.Module, tokens: Tensor, look: Callable, what: str) -> tuple[list, object]:
    """[look(hidden) without block 0, without block 1, ...] and look(hidden) with all, of the last hidden states.

    The blocks before the one left out are not run again, so n blocks take n(n + 1)/2 block passes.
    """
    with logits.evaluating(model):
        captured = capture.capture(model, tokens)
        steps, before, found = list(zip(parts.blocks(model), captured.calls)), captured.hidden, []
        with progress.bar(total=len(steps) * (len(steps) + 1) // 2, desc=what, unit="block") as bar:
            for index, step in enumerate(steps):
                found.append(look(through(steps[index + 1 :], before, bar)))
                before = through([step], before, bar)
        return found, look(before)


def predictions(model: nn.Module, hidden: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
    """(window, positions, log-probabilities [positions, vocabulary]) of the next tokens, from the last hidden states.

    The token that the last position of a window predicts is unknown. Raises ValueError for logits that are not finite.
    """
    run, size = logits.after_blocks(model), parts.head(model).out_features
    for window, states in enumerate(hidden):
        rows = run(states[None])
        for some in logits.chunks(len(states) - 1, size):
            yield window, some, logits.log_probabilities(rows, some, f"{type(model).__name__} with a block left out")
