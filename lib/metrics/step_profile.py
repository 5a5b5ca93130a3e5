"""Profile of a decoding step: the packed engine by its own clock, transformers by torch's profiler."""

from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from lib.metrics import speed

REST = "Python and small operations"
KINDS = {"attention": ("attention", "softmax"), "products": ("mm", "linear", "matmul")}


def of_session(session, tokens: Tensor, new_tokens: int) -> dict[str, float]:
    """Seconds per token by phase of the engine, and the remainder (`REST`: Python and the choice of the token).

    A session computed by plain torch has no phases: all of it is the rest.
    """
    _, seconds = speed.run(session, tokens, new_tokens)
    if not hasattr(session.backend, "profile"):
        return {REST: seconds}
    session.rewind(0)
    chosen = session.extend(tokens, last=True).argmax(-1)
    session.backend.profile(True)
    for _ in range(new_tokens - 1):
        chosen = session.extend(chosen).argmax(-1)
    found = {phase: value / (new_tokens - 1) for phase, value in session.backend.profile(False).items()}
    found.pop("waiting")  # it is part of the others
    return found | {REST: max(0.0, seconds - sum(found.values()))}


def of_model(model: nn.Module, tokens: Tensor, new_tokens: int) -> dict[str, float]:
    """Seconds per token of transformers' model: products, attention and the rest, for tokens [1, length].

    The shares are those of the profiler's time on the CPU, in which the profiler itself slows small operations; the
    whole is timed without it.
    """
    _, seconds = speed.run(model, tokens, new_tokens)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        speed.run(model, tokens[:, :1], new_tokens)
    found = dict.fromkeys([*KINDS, REST], 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), REST)
        found[kind] += event.self_cpu_time_total
    total = sum(found.values())
    return {kind: seconds * value / total for kind, value in found.items()}
