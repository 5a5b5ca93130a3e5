"""Prefix sharing: requests that begin alike share one forward pass over their common prefix.

All token sequences together form a prefix tree (a radix trie): few-shot examples are near its root, a passage is above
its endings, four choices are four leaves. Each node is computed once, in two ways:

- inside one pass, part of the tree is flattened to `tokens [1, N]`, and a mask lets each token attend to its ancestors
  only, at the positions of its own sequence, without padding (tree attention, as in SpecInfer, arXiv 2305.09781,
  section 4.2);
- between passes, the keys and values of a long common prefix are kept while the passes below it run (as in
  RadixAttention, arXiv 2312.07104, section 3).

The plan depends only on the sequences, and each pass only on the plan: running part of the passes, after an
interruption or on another machine, gives the same bits as the whole run.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from lib.evaluation import masks
from lib.models import blocks
from lib.models.logits import device

PASS_TOKENS = {"cpu": 256, "cuda": 2048}  # new tokens of one pass; more only adds attention that the mask hides
OVERHEAD = 40  # least cost of a pass, in tokens of a full one, since it reads all weights


@dataclass(eq=False)
class Node:
    """A stretch of tokens that the same sequences share; it begins at position `start`."""

    tokens: tuple[int, ...]
    start: int
    parent: "Node | None" = None
    children: dict[int, "Node"] = field(default_factory=dict)  # by first token
    size: int = 0  # tokens of the node and all below
    owner: "Pass | None" = None  # the pass whose hidden states are used; others may repeat the node

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    def above(self, stop: "Node | None" = None) -> list["Node"]:
        """The nodes from below `stop` (None: the root) down to this one."""
        chain, node = [], self
        while node is not stop and node.parent is not None:
            chain.append(node)
            node = node.parent
        return chain[::-1]


@dataclass(eq=False)
class Pass:
    """One forward pass: `nodes`, parents before children, behind the kept `cached` (None: behind nothing).

    keep: the nodes are a chain and become a cached prefix of their own, for passes that follow.
    """

    cached: "Pass | None"
    nodes: list[Node]
    keep: bool = False

    @property
    def past(self) -> int:
        """Tokens kept before this pass."""
        return self.nodes[0].start

    @property
    def count(self) -> int:
        """Tokens that this pass computes."""
        return sum(len(node.tokens) for node in self.nodes)

    def cached_prefixes(self) -> list["Pass"]:
        """The cached prefixes behind which this pass runs, from the root down."""
        chain, cached = [], self.cached
        while cached is not None:
            chain.append(cached)
            cached = cached.cached
        return chain[::-1]


def tree(sequences) -> Node:
    """The radix trie of token sequences (none empty); its root is empty."""
    order = sorted(set(sequences))
    root = Node((), 0)
    made, waiting = [root], [(root, 0, len(order))]
    while waiting:
        parent, low, high = waiting.pop()
        depth = parent.end
        if low < high and len(order[low]) == depth:
            low += 1  # the sequence that ends here sorts before those that go on
        while low < high:
            after = bisect_right(order, order[low][depth], low, high, key=lambda sequence: sequence[depth])
            common = shared(order[low], order[after - 1], depth)
            node = Node(order[low][depth:common], depth, parent)
            parent.children[node.tokens[0]] = node
            made.append(node)
            waiting.append((node, low, after))
            low = after
    for node in reversed(made):
        node.size = len(node.tokens) + sum(child.size for child in node.children.values())
    return root


def find(root: Node, sequence: tuple[int, ...]) -> Node:
    """The node at which `sequence`, one of the tree's, ends."""
    node = root
    while node.end < len(sequence):
        node = node.children[sequence[node.end]]
    return node


def plan(root: Node, ends: set[Node], budget: int) -> list[Pass]:
    """Passes of about `budget` tokens that compute every node above `ends`, in the order in which they run.

    A prefix is cached where repeating it in the passes below would cost more than a pass of its own.
    """
    passes, waiting = [], [(root, None, root)]  # (where to go on, the cached prefix above it, that prefix's last node)
    while waiting:
        top, cached, anchor = waiting.pop()
        pack, inside, count = [], set(), 0
        for node, keep in _leaves(top, anchor, ends, budget):
            chain = node.above(anchor)
            if keep:
                kept = Pass(cached, chain, keep=True)
                waiting.append((node, kept, node))
                continue
            new = [part for part in chain if part not in inside]
            if pack and count + sum(len(part.tokens) for part in new) > budget:
                passes.append(Pass(cached, pack))
                pack, inside, count, new = [], set(), 0, chain
            pack, count = pack + new, count + sum(len(part.tokens) for part in new)
            inside.update(new)
        if pack:
            passes.append(Pass(cached, pack))
        if waiting and waiting[-1][1] is not None:
            passes.append(waiting[-1][1])  # the cached prefix runs before what is below it
    for made in passes:
        for node in made.nodes:
            node.owner = node.owner or made
    return passes


def _leaves(top: Node, anchor: Node, ends: set[Node], budget: int) -> Iterator[tuple[Node, bool]]:
    """Below `top`, in order: (node where a sequence ends, False) and (node to be kept, True), not looking below it."""
    waiting = list(reversed(top.children.values()))
    while waiting:
        node = waiting.pop()
        passes = (node.size - len(node.tokens)) / budget  # that would repeat it
        if node.children and (node.end - anchor.end) * (passes - 1) > OVERHEAD:
            yield node, True
            continue
        if node in ends:
            yield node, False
        waiting.extend(reversed(node.children.values()))


def shared(first: tuple, last: tuple, start: int = 0) -> int:
    """Length of the common prefix of two sequences that agree before `start`."""
    length = min(len(first), len(last))
    low, high = start, length  # slices compare in C: bisect instead of stepping
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[low:middle] == last[low:middle] else (low, middle - 1)
    return low


class Runner:
    """Runs the passes of a plan in order, keeping the keys and values of the cached prefixes that they follow."""

    def __init__(self, model: nn.Module):
        self.model, self.cache, self.held = model, None, []

    def __call__(self, wanted: Pass) -> Iterator[tuple[Pass, Tensor]]:
        """(pass, hidden states [N, hidden] after the final norm) of each cached prefix not yet run, then of `wanted`.

        While the caller holds the last pair, `self.cache` has the keys and values of its tokens behind the cached
        prefixes.
        """
        chain = [*wanted.cached_prefixes(), wanted]
        same = 0
        while same < min(len(chain), len(self.held)) and chain[same] is self.held[same]:
            same += 1
        self.held = self.held[:same]
        for each in chain[same:]:
            self._crop(each.past)
            yield each, self._forward(each)
            if each.keep:
                self.held.append(each)

    def _crop(self, length: int) -> None:
        if length == 0 or self.cache is None:
            self.cache = DynamicCache()  # without a configuration, so that no layer drops tokens outside its window
            return
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]

    def _forward(self, each: Pass) -> Tensor:
        place = device(self.model)
        tokens = torch.tensor([[token for node in each.nodes for token in node.tokens]], device=place)
        positions = torch.tensor([[p for node in each.nodes for p in range(node.start, node.end)]], device=place)
        mask = None  # a chain is causal: the model's own mask is right
        if any(node.parent is not before for before, node in zip(each.nodes, each.nodes[1:])):
            mask = masks.prepare(self.model, visible(each).to(place), positions[0, :, None] - _seen(each, positions))
        return blocks.decoder(self.model)(
            input_ids=tokens, position_ids=positions, attention_mask=mask, past_key_values=self.cache, use_cache=True
        ).last_hidden_state[0]


def _seen(each: Pass, positions: Tensor) -> Tensor:
    """Positions [1, past + N] of what a pass can see: the kept tokens, then its own."""
    return torch.cat([torch.arange(each.past, device=positions.device)[None], positions], 1)


def visible(each: Pass) -> Tensor:
    """Which kept and packed tokens each packed token sees: bool [N, past + N], true for its ancestors and itself."""
    past, count = each.past, each.count
    result = torch.zeros(count, past + count, dtype=torch.bool)
    result[:, :past] = True
    last, begin = {}, 0  # node -> row of its last token
    for node in each.nodes:
        end = begin + len(node.tokens)
        if node.parent in last:
            result[begin:end] = result[last[node.parent]]
        result[begin:end, past + begin : past + end] = torch.ones(end - begin, end - begin, dtype=torch.bool).tril()
        last[node], begin = end - 1, end
    return result
