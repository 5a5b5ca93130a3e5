"""Log-likelihoods of continuations, equal to those of lm-evaluation-harness's `HFLM`, but each token computed once.

For a context c and a continuation x_1 ... x_n the answer is sum_i log p(x_i | c, x_<i) and whether every x_i is the
model's first choice. The rules by which text becomes tokens are the harness's (Gao et al. 2021,
doi:10.5281/zenodo.5371628): context and continuation are encoded together, spaces at the context's end move to the
continuation, an empty context becomes the token that a text begins with, and long inputs are cut on the left.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib import tokenization
from lib.evaluation import prefixes
from lib.models import blocks, logits
from lib.tasks.task import Likelihood, Outcome


@dataclass(frozen=True)
class Encoded:
    """`inputs`: the tokens that the model reads; `targets`: the tokens that its last len(targets) positions predict."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    truncated: bool


def encode(tokenizer, requests: list[Likelihood], longest: int, *, bos: bool | None = None) -> list[Encoded]:
    """Token ids of `requests` for a model that reads at most `longest` tokens.

    bos: whether contexts begin with the tokenizer's special tokens (None: the tokenizer's default); the harness's
    `add_bos_token`. Raises ValueError for a continuation that has no tokens, or more than fit.
    """
    pairs = [_move_spaces(request) for request in requests]
    texts = sorted({context for context, _ in pairs if context} | {c + x for c, x in pairs if c})
    ids = dict(zip(texts, tokenization.ids(tokenizer, texts, bos)))
    first = tokenization.beginning(tokenizer) if any(not context for context, _ in pairs) else []
    found = []
    for context, continuation in pairs:
        if context:
            whole, length = ids[context + continuation], len(ids[context])
        else:
            whole, length = list(tokenizer(continuation, add_special_tokens=False).input_ids), len(first)
            whole = whole if whole[:length] == first else [*first, *whole]
        targets = whole[length:]
        if not 1 <= len(targets) <= longest:
            raise ValueError(
                f"the continuation {continuation[:60]!r} of the context that ends {context[-60:]!r} has "
                f"{len(targets)} tokens; 1 to {longest}, as many as the model reads, are allowed; change the sample."
            )
        kept = whole[-(longest + 1) :]
        found.append(Encoded(tuple(kept[:-1]), tuple(targets), len(kept) < len(whole)))
    return found


def _move_spaces(request: Likelihood) -> tuple[str, str]:
    """(context, continuation) with the context's trailing whitespace moved over."""
    context = request.context.rstrip()
    return context, request.context[len(context) :] + request.continuation


class _Asked:
    """The requests on each node's hidden states, and the answers found so far."""

    def __init__(self, encoded: list[Encoded]):
        self.root = prefixes.tree(each.inputs for each in encoded)
        self.ends = [prefixes.find(self.root, each.inputs) for each in encoded]
        self.of: dict[prefixes.Node, list[tuple[int, int, int]]] = {}  # node -> (offset, request, target)
        self.missing = [len(each.targets) for each in encoded]
        self.logprob, self.greedy = [0.0] * len(encoded), [True] * len(encoded)
        for index, each in enumerate(encoded):
            begin = len(each.inputs) - len(each.targets)
            for node in self.ends[index].above():
                for position in range(max(begin, node.start), node.end):
                    asked = (position - node.start, index, each.targets[position - begin])
                    self.of.setdefault(node, []).append(asked)

    def nodes(self, index: int, encoded: Encoded) -> list[prefixes.Node]:
        """The nodes that hold answers to request `index`."""
        begin = len(encoded.inputs) - len(encoded.targets)
        return [node for node in self.ends[index].above() if node.end > begin]


@torch.no_grad()
def measure(
    model: nn.Module, encoded: list[Encoded], wanted: set[int], finished: Callable, budget: int
) -> list[Outcome | None]:
    """Outcomes of the requests in `wanted` (None for the others), `budget` tokens a pass; see `prefixes.plan`.

    finished(index, outcome) is called as soon as an outcome is known. The bits of an outcome depend on all requests
    given, not on which of them are wanted.
    """
    asked = _Asked(encoded)
    passes = prefixes.plan(asked.root, set(asked.ends), budget)
    needed = {node.owner for index in wanted for node in asked.nodes(index, encoded[index])}
    projection, runner = logits.Projection.of(model), prefixes.Runner(model)
    outcomes: list[Outcome | None] = [None] * len(encoded)
    for each in passes:
        if each not in needed:
            continue
        for done, hidden in runner(each):
            for index in _answer(asked, done, hidden, projection):
                if index in wanted and outcomes[index] is None:
                    outcome = Outcome(asked.logprob[index], asked.greedy[index], len(encoded[index].targets))
                    outcomes[index] = outcome
                    finished(index, outcome)
    return outcomes


def _answer(asked: _Asked, done: prefixes.Pass, hidden: Tensor, projection: logits.Projection) -> list[int]:
    """Add a pass's results for its own nodes; returns the requests that are complete."""
    rows, requests, targets, begin = [], [], [], 0
    for node in done.nodes:
        if node.owner is done:
            for offset, request, target in asked.of.get(node, ()):
                rows.append(begin + offset), requests.append(request), targets.append(target)
        begin += len(node.tokens)
    if not rows:
        return []
    values, first = read(hidden, torch.tensor(rows), torch.tensor(targets), projection, projection.head.out_features)
    complete = []
    for request, value, is_first in zip(requests, values.tolist(), first.tolist()):
        asked.logprob[request] += value
        asked.greedy[request] &= is_first
        asked.missing[request] -= 1
        if not asked.missing[request]:
            complete.append(request)
    return complete


def read(hidden: Tensor, rows: Tensor, targets: Tensor, projection: Callable, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Log-probability [n] (float64) of each target at its row of `hidden` [N, hidden], and whether it is the first.

    The head, whose output is wide, computes each row once and only the rows that are asked for.
    """
    rows, targets = rows.to(hidden.device), targets.to(hidden.device)
    single, place = rows.unique(return_inverse=True)
    values = torch.empty(len(rows), dtype=torch.float64)
    first = torch.empty(len(rows), dtype=torch.bool)
    states = hidden[single]
    for chunk in logits.chunks(len(single), vocabulary):
        found = logits.log_probabilities(lambda some: projection(states[some]), chunk, "the model")
        inside = (place >= chunk.start) & (place < chunk.stop)
        local, wished = place[inside] - chunk.start, targets[inside]
        values[inside.cpu()] = found[local, wished].double().cpu()
        first[inside.cpu()] = (found.argmax(-1)[local] == wished).cpu()
    return values, first


@torch.no_grad()
def measure_plainly(model: nn.Module, encoded: list[Encoded], wanted: set[int], finished: Callable):
    """The same answers by one forward pass per request, for models that don't accept attention masks."""
    outcomes: list[Outcome | None] = [None] * len(encoded)
    for index in sorted(wanted):
        each = encoded[index]
        inputs = torch.tensor([each.inputs], device=blocks.device(model))
        output = model(input_ids=inputs, use_cache=False).logits[0]
        rows = torch.arange(len(each.inputs) - len(each.targets), len(each.inputs))
        values, first = read(output, rows, torch.tensor(each.targets), lambda given: given, output.shape[-1])
        outcomes[index] = Outcome(float(values.sum()), bool(first.all()), len(each.targets))
        finished(index, outcomes[index])
    return outcomes
