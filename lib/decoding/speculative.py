"""Speculative decoding: a smaller model drafts tokens, the target model verifies them.

The drafting model M_q may be a low-bit or depth-pruned version of the model M_p, or a smaller one of its family; it
must have the same vocabulary, since its probabilities are compared token by token.

Source: Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", arXiv 2211.17192;
the check itself is `verify.verify`.
"""

import torch
from torch import Tensor, nn

from lib.decoding.lookup import Length
from lib.decoding.sampling import Sampling
from lib.decoding.sessions import Session, read, rewind_to_common_prefix, room
from lib.decoding.verify import NOTHING, Draft, Drafter
from lib.models import blocks


class Speculative(Drafter):
    """A drafter that asks a smaller model, `session`.

    draft_length: most tokens drafted (γ). sampling: of the smaller model; give the same settings, better the same
    object, as to the loop: the nearer q is to p, the more tokens are accepted. Greedy drafts have no probabilities.
    adaptive: see `lookup.Length`. Raises ValueError for a draft length below 1.
    """

    def __init__(
        self, session: Session, *, draft_length: int = 4, sampling: Sampling | None = None, adaptive: bool = False
    ):
        if isinstance(draft_length, bool) or not isinstance(draft_length, int) or draft_length < 1:
            raise ValueError(f"draft_length={draft_length!r}; choose a whole number from 1.")
        self.session, self.sampling = session, sampling or Sampling()
        self.length = Length(draft_length, adaptive)
        self._known = torch.empty(0, dtype=torch.long)

    def begin(self, token_ids: Tensor) -> None:
        """Read the prompt when the model does; otherwise the first draft would take that time."""
        self.length.forget()
        limit = room(self.session)
        if len(token_ids) and (limit is None or len(token_ids) <= limit):  # no draft behind longer ones
            read(self.session, rewind_to_common_prefix(self.session, token_ids, self._known))
            self._known = token_ids.clone()

    def unread(self, token_ids: Tensor) -> int:
        """Tokens added since the last draft, except those that one step with drafts adds."""
        return max(0, len(token_ids) - self.session.length - self.length.longest - 1)

    def draft(self, token_ids: Tensor, at_most: int | None = None) -> Draft:
        """Tokens that the smaller model writes behind `token_ids` [length], with the distributions q they came from."""
        count = self.length.next(token_ids)
        count = count if at_most is None else min(count, at_most)
        limit = room(self.session)
        if limit is not None:  # the last drafted token is never read by the drafting model
            count = min(count, limit - len(token_ids) + 1)
        if count < 1:
            return NOTHING
        text, distributions = torch.cat([token_ids, token_ids.new_zeros(count)]), []
        logits = self._read(token_ids)
        for end in range(len(token_ids), len(text)):
            if end > len(token_ids):
                logits = self.session.extend(text[end - 1 : end])[-1]
            text[end] = self._choose(logits, text[:end], distributions)
        self._known = text[:-1]
        found = Draft(text[len(token_ids) :], torch.stack(distributions) if distributions else None)
        self.length.proposed(token_ids, found.token_ids)
        return found

    def _read(self, token_ids: Tensor) -> Tensor:
        """Let the session read `token_ids` from its common prefix on; returns the last logits."""
        rest = rewind_to_common_prefix(self.session, token_ids, self._known)
        if len(rest) > self.length.longest + 1:  # a new prompt rather than the tokens of one step
            read(self.session, rest[:-1])
            rest = rest[-1:]
        return self.session.extend(rest)[-1]

    def _choose(self, logits: Tensor, history: Tensor, distributions: list[Tensor]) -> int:
        """x_i ~ q_i(x), Algorithm 1; q_i is added to `distributions`. The likeliest token when greedy."""
        if self.sampling.greedy:
            return self.sampling.best(logits, history)
        distributions.append(self.sampling.probabilities(logits, history))
        return self.sampling.draw(distributions[-1])


def check_vocabularies(target: nn.Module, drafting: nn.Module) -> None:
    """Raise ValueError unless the two models have one vocabulary: as many logits, and tokenizers that agree.

    Tokenizers are compared where both models have one as `model.tokenizer`.
    """
    sizes = [blocks.head(model).out_features for model in (target, drafting)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the drafting model has a vocabulary of {sizes[1]}, the model {sizes[0]}; one vocabulary is needed; "
            "draft with a low-bit or depth-pruned version of the model itself, or with one of its family."
        )
    tokenizers = [getattr(model, "tokenizer", None) for model in (target, drafting)]
    if None in tokenizers or tokenizers[0] is tokenizers[1]:
        return
    ours, theirs = (tokenizer.get_vocab() for tokenizer in tokenizers)
    if ours != theirs:
        example = min(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        raise ValueError(
            f"the tokenizers differ, for instance in {example!r} (id {ours.get(example)} in the model, "
            f"{theirs.get(example)} in the drafting model); one tokenizer is needed; draft with a model of its family."
        )


def expected_tokens(acceptance: float, length: int) -> float:
    """E(tokens a step) = (1 - α^(γ+1)) / (1 - α), equation 1, for α = `acceptance` of each token and γ = `length`."""
    if acceptance >= 1:
        return length + 1.0
    return (1 - acceptance ** (length + 1)) / (1 - acceptance)
