"""A reward model: a language model with a head of one number, trained on pairs by Bradley and Terry's model.

    reward_model.headed_(model)
    with adapters.lora_(model), reward_model.trained_(model):
        loop.train_(model, rows, reward_model.Loss(), collate=preference_rows.collate, ...)
    scores = reward_model.score(model, conversations, tokenizer, length=512)

P(y_w is preferred) = σ(r_w - r_l), with r = w·h at the last token of question and answer (Stiennon et al., arXiv
2009.01325, section 3.4). The head begins at zero, so the first loss is ln 2. "The last token" is the last that is no
padding by the mask: transformers' classifiers look for the last that is no pad *token*, which, where the end token pads
too, is the one before the end.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from lib import checkpoints, files
from lib.export import plain
from lib.models import blocks, logits
from lib.sources import models
from lib.sources.conversations import Conversation, Turn
from lib.trainers import answer_rows, minibatch, processes
from lib.trainers.measures import Measures, rows

HEAD = "score.safetensors"
_COLUMNS = ("input_ids", "labels", "attention_mask")


def headed_(model: nn.Module) -> nn.Module:
    """Give `model` the head `score` [1, hidden], float32 zeros, beside its own head, which stays as it is."""
    size = blocks.config(model).hidden_size
    model.score = nn.Linear(size, 1, bias=False, device="meta")  # where no random numbers are drawn
    model.score.weight = nn.Parameter(torch.zeros(1, size, device=blocks.device(model)), requires_grad=False)
    return model


@contextlib.contextmanager
def trained_(model: nn.Module) -> Iterator[nn.Module]:
    """Context in which the head is trained too; alone (a probe), where nothing else of the model is."""
    weight = _head(model).weight
    weight.requires_grad_(True)
    try:
        yield model
    finally:
        weight.requires_grad_(False)


def _head(model: nn.Module) -> nn.Linear:
    if not hasattr(model, "score"):
        raise ValueError(f"{type(model).__name__} has no head that scores; call reward_model.headed_ first.")
    return model.score


def rewards(model: nn.Module, batch: dict) -> Tensor:
    """The score of each row [rows] of a batch with `input_ids` and `attention_mask`, float32."""
    given, mask = minibatch.inputs(batch), batch["attention_mask"]
    if processes.together():
        return _in_one_pass(model, given, mask)
    return _read(_head(model), logits.hidden_states(model, given.pop("input_ids"), **given), mask)


def _read(head: nn.Linear, states: Tensor, mask: Tensor) -> Tensor:
    last = mask.to(states.device).sum(-1) - 1
    return head(states[torch.arange(len(last), device=states.device), last].float())[:, 0]


def _in_one_pass(model: nn.Module, given: dict, mask: Tensor) -> Tensor:
    """As `rewards`, inside the pass of torch's wrapper for several processes: it counts on gradients of all that its
    pass used, the logits too, and of nothing else."""

    def score_(module, inputs, output):
        return {"rewards": _read(_head(module), output.hidden_states[-1], mask)}

    hook = getattr(model, "module", model).register_forward_hook(score_)
    try:
        return model(**given, use_cache=False, output_hidden_states=True)["rewards"]
    finally:
        hook.remove()


def bradley_terry(chosen: Tensor, rejected: Tensor, center: float = 0.0) -> Tensor:
    """-ln σ(r_w - r_l) + c (r_w + r_l)² of each pair; c keeps rewards near 0 (Eisenstein et al., arXiv 2312.09244)."""
    return -logsigmoid(chosen - rejected) + center * (chosen + rejected).square()


@dataclass(frozen=True, eq=False)
class Loss:
    """`bradley_terry` on rows of pairs as `preference_rows.collate` makes them.

    measures: "margin" r_w - r_l, "accuracy", the share of pairs in which it is above 0, and the mean "reward".
    """

    center: float = 0.0
    measures: Measures = field(default_factory=Measures, repr=False)
    mean_over = "rows"
    evaluates = True

    @property
    def identity(self) -> dict:
        """Settings that determine the result of a training with this loss."""
        return {"loss": "bradley_terry", "center": self.center}

    def check(self, model: nn.Module) -> None:
        """Raise ValueError for a model without the head."""
        _head(model)

    def __call__(self, model: nn.Module, batch: dict) -> Tensor:
        found = rewards(model, {name: batch[name] for name in _COLUMNS})
        chosen, rejected = found.chunk(2)
        margin = (chosen - rejected).detach()
        self.measures.note(margin=rows(margin), accuracy=rows(margin > 0), reward=rows(found.detach()))
        return bradley_terry(chosen, rejected, self.center).mean()


def score(
    model: nn.Module, conversations: Sequence[Conversation], tokenizer, *, length: int, at_once: int = 8
) -> Tensor:
    """The reward of the last answer of each conversation [count], each cut at its right end to `length` tokens.

    The model may have another tokenizer than that which wrote the answers: they are texts. Raises ValueError for scores
    that are not finite.
    """
    answer_rows.check(tokenizer, length, "last")
    found, device = [], logits.device(model)
    with logits.evaluating(model):
        for start in range(0, len(conversations), at_once):
            some = []
            for each in conversations[start : start + at_once]:
                ids, labels, _ = answer_rows.encode(each.turns, tokenizer, answers="last", where=each.where)
                some.append({"input_ids": ids[:length], "labels": labels[:length]})
            batch = {name: each.to(device) for name, each in minibatch.collate(some).items()}
            found.append(rewards(model, batch).float().cpu())
    found = torch.cat(found)
    if not found.isfinite().all():
        place = int((~found.isfinite()).nonzero()[0])
        raise ValueError(
            f"the reward of {conversations[place].where} is {found[place].item()}; finite ones are needed; check the "
            "weights of the reward model."
        )
    return found


def answered(conversation: Conversation, text: str) -> Conversation:
    """The question of a conversation (all its turns, or those before its last answer) with another answer."""
    turns = conversation.turns[:-1] if conversation.turns[-1].role == "assistant" else conversation.turns
    return Conversation((*turns, Turn("assistant", text)), conversation.where)


def save_(model: nn.Module, tokenizer, folder: Path | str) -> Path:
    """Write an unquantized model to `folder`/model and, when that is whole, its head; errors are `plain.save`'s.

    What was killed in between has no head, or another model's, which `load` refuses.
    """
    head, folder = _head(model), Path(folder)
    plain.check(model, tokenizer)
    del model.score  # no part of the language model's own files
    try:
        plain.save(model, tokenizer, folder / "model")
        content = save({"weight": head.weight.detach().cpu().contiguous()}, {"model": checkpoints.fingerprint(model)})
        files.write_bytes(folder / HEAD, content)
    finally:
        model.score = head
    return folder


def is_whole(folder: Path | str) -> bool:
    """Whether `save_` has written a folder to its end."""
    return (Path(folder) / HEAD).is_file()


def load(folder: Path | str, **options) -> tuple[nn.Module, object]:
    """(Model with its head, tokenizer) from a folder that `save_` wrote; ValueError where they don't belong together.

    options: those of `models.load`.
    """
    if not is_whole(folder):
        raise FileNotFoundError(f"{folder} has no {HEAD}; a folder that reward_model.save_ wrote is needed; train one.")
    model, tokenizer = models.load(str(Path(folder) / "model"), **options)
    with safetensors.safe_open(Path(folder) / HEAD, "pt") as file:
        weight, made_for = file.get_tensor("weight"), file.metadata()["model"]
    if made_for != checkpoints.fingerprint(model) and options.get("dtype") is None:
        raise ValueError(f"{folder} holds the head of another model; train it again, or take the folder it came in.")
    headed_(model).score.weight.data.copy_(weight)
    return model, tokenizer
