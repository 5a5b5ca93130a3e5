"""Learning from rewards of the model's own answers (RLOO) on the one training loop.

    questions = on_policy.questions(conversations, tokenizer, length=256)
    loss = on_policy.Loss(tokenizer, reward, reference=original, samples=4, beta=0.05, new_tokens=64)
    loop.train_(model, questions, loss, batch=8, micro_batch=8, ...)

In each step the model as it is answers each question of the batch several times, through the one generation loop, at
temperature 1 and without its checkpoint's own generation settings: drawn in any other way the answers would not be its
own, and the gradient that of something else. Answer j to question i at step t is drawn with a seed of (seed, t, i, j),
so that a training that was killed, or shared by several processes, draws the same ones.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lib.decoding import ends
from lib.decoding.requests import Request
from lib.decoding.sampling import Sampling
from lib.decoding.settings import PLAIN
from lib.evaluation.local import Local
from lib.models import logits
from lib.sources.conversations import Conversation
from lib.trainers import answer_rows, minibatch, policy_gradient, reward_model, token_logp
from lib.trainers.measures import Measures, rows
from lib.trainers.minibatch import IGNORED

Reward = Callable[[Sequence[Conversation]], Sequence[float]]  # questions with an answer -> a number each


class Questions(Sequence):
    """Questions as rows {"input_ids"} without anything to learn; `conversations` [place] has the turns of each."""

    def __init__(self, conversations: Sequence[Conversation], rows: Sequence[dict]):
        self.conversations, self._rows = tuple(conversations), tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place):
        return self._rows[place]


def questions(conversations: Sequence[Conversation], tokenizer, *, length: int) -> Questions:
    """Rows of the questions: of each conversation the turns before its last answer, as the model is asked them.

    Those of more than `length` tokens are left out, counted; ValueError where none is left.
    """
    answer_rows.check(tokenizer, length, "last")
    kept, found = [], []
    for each in conversations:
        turns = each.turns[:-1] if each.turns[-1].role == "assistant" else each.turns
        ids = answer_rows.asked(turns, tokenizer, each.where)
        if len(ids) <= length:
            kept.append(Conversation(turns, each.where))
            found.append({"input_ids": ids, "labels": torch.full_like(ids, IGNORED)})
    if not kept:
        raise ValueError(f"none of {len(conversations)} questions has at most {length} tokens; allow more.")
    print(f"{len(kept)} of {len(conversations)} questions have at most {length} tokens")
    return Questions(kept, found)


def by_model(model: nn.Module, tokenizer, *, length: int) -> Reward:
    """The rewards of a reward model."""
    return lambda answered: reward_model.score(model, answered, tokenizer, length=length).tolist()


@dataclass(frozen=True, eq=False)
class Loss:
    """RLOO on rows of `questions`; called as `loss(model, batch)`, as the loop calls it.

    tokenizer: the model's. asked: the `Questions` that are trained on. reward: a number for each answer. reference: the
    model whose KL divergence is taken from the reward, β ln π(y | x) / π_ref(y | x); needed for beta above 0. samples:
    answers a question, 2 or more; new_tokens: of an answer at most. name: of the reward, for the training's folder.

    measures: "reward", without the KL; "kl", the mean of ln π / π_ref of its own answers, nats an answer; "entropy",
    nats a token; "tokens" of an answer, and "ended", the share that ended by itself.
    """

    tokenizer: object
    asked: Questions
    reward: Reward
    reference: nn.Module | None = None
    samples: int = 4
    beta: float = 0.05
    new_tokens: int = 64
    clip: float = policy_gradient.CLIP
    seed: int = 0
    name: str = "reward"
    measures: Measures = field(default_factory=Measures, repr=False)
    mean_over = "rows"
    evaluates = True

    def __post_init__(self):
        if self.samples < 2 or self.new_tokens < 1 or self.beta < 0 or (self.beta and self.reference is None):
            raise ValueError(
                f"samples={self.samples}, new_tokens={self.new_tokens}, beta={self.beta} with"
                f"{'' if self.reference is not None else 'out'} a reference; 2 samples, 1 token and a beta of 0 and "
                "more are allowed, and a reference is needed for a beta above 0: a copy of the model before training."
            )

    @property
    def identity(self) -> dict:
        """Settings that determine the result of a training with this loss."""
        names = ("samples", "beta", "new_tokens", "clip", "name")
        return {"loss": "rloo", "drawn": self.seed} | {name: getattr(self, name) for name in names}

    def __call__(self, model: nn.Module, batch: dict) -> Tensor:
        """The mean over the answers. Raises ValueError for rewards that are not finite."""
        answers = self._answers(getattr(model, "module", model), batch)
        sequences = minibatch.collate([row for _, row in answers])
        sequences = {name: each.to(batch["input_ids"].device) for name, each in sequences.items()}
        found = token_logp.with_entropy(model, sequences)
        known = found.logp.detach()
        if self.reference is not None:
            with logits.evaluating(self.reference):
                known = token_logp.of_rows(self.reference, sequences)[0].to(known)
        gone = found.logp.detach() - known
        places = batch["window"].repeat_interleave(self.samples).tolist()
        answered = [reward_model.answered(self.asked.conversations[place], each.text)
                    for place, (each, _) in zip(places, answers)]  # fmt: skip
        reward = torch.tensor(list(self.reward(answered)), dtype=torch.float32).to(gone)
        advantage = policy_gradient.advantages(reward - self.beta * gone, self.samples)
        self.measures.note(
            reward=rows(reward), kl=rows(gone), entropy=(found.entropy.sum(), found.tokens.sum()),
            tokens=rows(found.tokens), ended=(sum(each.reason == "eos" for each, _ in answers), len(answers)),
        )  # fmt: skip
        return policy_gradient.rloo(found.logp, found.logp.detach(), advantage, self.clip).mean()

    def _answers(self, model: nn.Module, batch: dict) -> list[tuple]:
        """(Generation, row with the prompt masked) of each answer, those to one question side by side."""
        requests = []
        for ids, mask, place, step in zip(*(batch[name] for name in ("input_ids", "attention_mask", "window", "step"))):
            prompt = ids[mask.bool()].tolist()
            for sample in range(self.samples):
                drawn = Sampling(1.0, seed=_seed(self.seed, int(step), int(place), sample))
                requests.append(Request(prompt, self.new_tokens, sampling=drawn, own=PLAIN, ends=ends.of_model(model)))
        Local(model, self.tokenizer, plain=True).answer(requests)
        return [(_read(each.answer, self.tokenizer), row(each.prompt, each.answer.token_ids)) for each in requests]


def _read(answer, tokenizer):
    """The answer with its text, without the token that ended it."""
    if answer.text is None:
        answer.text = tokenizer.decode(answer.token_ids, skip_special_tokens=True)
    return answer


def row(prompt: list[int], answer: list[int]) -> dict:
    """The row of a prompt and its answer, token ids; only the answer has labels."""
    ids = torch.tensor([*prompt, *answer])
    return {"input_ids": ids, "labels": ids.masked_fill(torch.arange(len(ids)) < len(prompt), IGNORED)}


def _seed(*parts: int) -> int:
    """A generator's seed from numbers, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")
