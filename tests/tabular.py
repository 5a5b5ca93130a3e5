"""A model that is a table: the logits after a token depend on that token and the one before it. And its like."""

import torch

from lib.decoding.sampling import Sampling
from lib.decoding.verify import Draft, Drafter


class TabularSession:
    """logits[before, last] [vocabulary] for every pair of tokens; behind the protocol of `lib.decoding.sessions`."""

    limit = None

    def __init__(self, vocabulary: int = 5, seed: int = 0, sharpness: float = 1.0):
        generator = torch.Generator().manual_seed(seed)
        self.logits = sharpness * torch.randn(vocabulary, vocabulary, vocabulary, generator=generator)
        self.tokens = []
        self.passes = []  # tokens read in each pass

    @property
    def length(self) -> int:
        return len(self.tokens)

    def extend(self, tokens, *, last=False):
        start = len(self.tokens)
        self.tokens += tokens.tolist()
        self.passes.append(len(tokens))
        pairs = [(self.tokens[i - 1] if i else 0, self.tokens[i]) for i in range(start, len(self.tokens))]
        first, second = zip(*pairs)
        found = self.logits[list(first), list(second)]
        return found[-1:] if last else found

    def rewind(self, length):
        assert 0 <= length <= len(self.tokens)
        del self.tokens[length:]


class Scripted(Sampling):
    """Takes the choices that `script` lists and then the first possible one; `weight` is the path's probability.

    `taken` lists (choice, number of possible choices), from which `paths` finds the next script.
    """

    def follow(self, script):
        self.script, self.taken, self.weight = list(script), [], 1.0

    def draw(self, probabilities):
        possible = probabilities.nonzero().flatten().tolist()
        return possible[self._choose([float(probabilities[token]) for token in possible])]

    def accept(self, probability):
        chances = [(True, min(1.0, probability)), (False, 1.0 - min(1.0, probability))]
        possible = [pair for pair in chances if pair[1] > 0]
        return possible[self._choose([chance for _, chance in possible])][0]

    def _choose(self, chances):
        place = len(self.taken)
        choice = self.script[place] if place < len(self.script) else 0
        self.taken.append((choice, len(chances)))
        self.weight *= chances[choice]
        return choice


def paths(sampling, run):
    """Every possible outcome of `run()`, which makes all its random choices through `sampling`, and its probability."""
    script = []
    while True:
        sampling.follow(script)
        outcome = run()
        yield outcome, sampling.weight
        taken = sampling.taken
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        if not taken:
            return
        script = [choice for choice, _ in taken[:-1]] + [taken[-1][0] + 1]


class Fixed(Drafter):
    """A drafter that proposes the tokens that `answer` has at this place, or random ones with probability `wrong`."""

    def __init__(self, text, length: int = 4, wrong: float = 0.0, vocabulary: int = 256, seed: int = 0):
        self.text, self.length, self.wrong, self.vocabulary = text, length, wrong, vocabulary
        self.generator = torch.Generator().manual_seed(seed)

    def draft(self, token_ids, at_most=None):
        count = self.length if at_most is None else min(self.length, at_most)
        found = torch.tensor(self.text[len(token_ids) : len(token_ids) + count], dtype=torch.long)
        spoiled = torch.rand(len(found), generator=self.generator) < self.wrong
        noise = torch.randint(self.vocabulary, (len(found),), generator=self.generator)
        return Draft(torch.where(spoiled, noise, found))
