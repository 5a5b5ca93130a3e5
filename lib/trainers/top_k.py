"""Top-k distillation: the teacher's k likeliest tokens per position, kept on disk in place of the teacher.

One position takes 6 k bytes: 64 tokens take 384 bytes where all 49152 would take 98 kB. The remaining probability
counts as one more outcome, "any other token", so the loss is a divergence over k + 1 outcomes: at most the full one,
and zero only where the model gives the k tokens the teacher's probabilities. Within a sweep the teacher runs once.
The predictions stay on disk: a step reads those of its windows.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lib import checkpoints, files
from lib.models import blocks, logits, structure
from lib.models.reference import digest
from lib.sources import texts
from lib.trainers import chunked, divergences, minibatch

K = 64
TINY = math.exp(-80)  # the least probability of all other tokens together: a float32, which e^-inf is not
PART = 64  # windows of one file: what a killed job repeats at most


@dataclass(frozen=True, eq=False)
class TopKDistillation:
    """The loss towards stored predictions; called as `loss(model, batch)`; batch["window"] has the windows' indices.

    ids int32 and logp [windows, length - 1, k]: the teacher's likeliest tokens, and their log-probabilities; tensors,
    or `Stored`, which lie in files.
    """

    ids: "Tensor | Stored"
    logp: "Tensor | Stored"
    identity: dict
    tokenizer: str | None
    vocabulary: int
    divergence: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = divergences.FORWARD_KL

    def towards(self, divergence) -> "TopKDistillation":
        """The same kept answers under another of `divergences`."""
        other = {} if divergence == divergences.FORWARD_KL else divergences.identity(divergence)
        kept = {name: each for name, each in self.identity.items() if name not in divergences.identity(self.divergence)}
        return replace(self, divergence=divergence, identity=kept | other)

    def check(self, model: nn.Module) -> None:
        """Raise ValueError for a model that predicts other tokens than the teacher did."""
        size = blocks.head(model).out_features
        known = self.tokenizer is None or getattr(model, "tokenizer", None) is None
        if size != self.vocabulary or not (known or texts.tokenizer_hash(model) == self.tokenizer):
            raise ValueError(
                f"the kept answers are over {self.vocabulary} tokens of tokenizer {str(self.tokenizer)[:12]} and the "
                f"model predicts {size}, perhaps of another; keep the answers of a teacher with the model's tokenizer."
            )

    def __call__(self, model: nn.Module, batch: dict) -> Tensor:
        """1/n Σ_t KL(p || q) over the k tokens and the rest, in nats.

        A divergence's gradient by the logits of these k + 1 outcomes is that by the logits of the k tokens; the rest's
        logit is ln Σ exp z over all other tokens.
        """
        places = batch["window"].cpu()
        ids = minibatch.select(self.ids[places], batch).long()
        logp = minibatch.select(self.logp[places], batch).float()

        def of_logits(found: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            here, log_p, log_q = ids[rows].to(found.device), logp[rows].to(found.device), found.log_softmax(-1)
            log_rest_p = (1 - log_p.exp().sum(-1, keepdim=True)).clamp_min(TINY).log()
            others = log_q.scatter(-1, here, -torch.inf)
            log_rest_q = others.logsumexp(-1, keepdim=True).clamp_min(math.log(TINY))
            outcomes_p = torch.cat([log_p, log_rest_p], -1)
            loss, by = self.divergence(outcomes_p, torch.cat([log_q.gather(-1, here), log_rest_q], -1))
            # ∂L/∂z of another token: its share of the rest's probability, of what the rest's logit would get
            gradient = (others - log_rest_q).exp_().mul_(by[:, -1:])
            return loss, gradient.scatter_(-1, here, by[:, :-1])

        return chunked.mean(model, batch, of_logits)


@dataclass(frozen=True)
class Stored:
    """What the files of `cache_teacher` hold under one name, [windows, length - 1, k]: `part` windows a file.

    Indexed by windows [n], as a tensor is; no others are read.
    """

    paths: tuple[Path, ...]
    name: str
    part: int

    def __getitem__(self, places: Tensor) -> Tensor:
        """The predictions of these windows [n, length - 1, k], read from their files."""
        found = {}
        for place in sorted(set(places.tolist())):
            with safe_open(self.paths[place // self.part], "pt") as file:
                found[place] = file.get_slice(self.name)[place % self.part].clone()
        return torch.stack([found[place] for place in places.tolist()])


def cache_teacher(teacher: nn.Module, windows, *, k: int = K, folder: Path | str | None = None) -> TopKDistillation:
    """Run `teacher` over `windows` of text and store its `k` likeliest tokens at each position, `PART` windows a file.

    folder: None is the cache folder. The files are named after weights, tokens and k; files are complete or absent,
    finished ones are not computed again. Raises ValueError for a k that is no count of tokens and for files that
    have changed, OSError (before the work) where the disk is too small.
    """
    tokens, vocabulary = texts.rows(windows, teacher), blocks.head(teacher).out_features
    if not 1 <= k < vocabulary:
        raise ValueError(f"k={k} of {vocabulary} tokens; 1 to {vocabulary - 1} can be kept; {K} is usual.")
    made_of = {"teacher": checkpoints.fingerprint(teacher), "teacher_layers": structure.fingerprint(teacher)}
    made_of |= {"data": files.data_hash(tokens), "k": k}
    name = "-".join(str(part)[:16] for part in made_of.values())
    folder = Path(folder or files.cache() / "teachers") / name
    count = len(tokens)
    paths = tuple(folder / f"part-{number:05d}.safetensors" for number in range(-(-count // PART)))
    missing = min(count, PART * sum(not path.exists() for path in paths))
    files.check_writable(folder / "part", 6 * k * missing * tokens.shape[1])
    with logits.evaluating(teacher):
        for number, path in enumerate(paths):
            some = texts.tokens(tokens[number * PART : (number + 1) * PART], teacher)
            if not path.exists():
                _write(path, *_answers(teacher, some, k))
            _check(path, (len(some), some.shape[1] - 1, k))
    tokenizer = texts.tokenizer_hash(teacher) if getattr(teacher, "tokenizer", None) is not None else None
    stored = (Stored(paths, name, PART) for name in ("ids", "logp"))
    return TopKDistillation(*stored, {"loss": "top_k", **made_of}, tokenizer, vocabulary)


def _answers(teacher: nn.Module, tokens: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """ids int32 and log-probabilities float16 [windows, length - 1, k]."""
    ids, logp = [], []
    run = logits.forward(teacher)
    for start, some in logits.batches(tokens, teacher, "auto", "teacher"):
        rows, count = run(some), some[:, 1:].numel()
        for chunk in logits.chunks(count, blocks.head(teacher).out_features):
            found = logits.log_probabilities(rows, chunk, f"the teacher from window {start} on").topk(k)
            ids.append(found.indices.int().cpu())
            logp.append(found.values.half().cpu())
    shape = (len(tokens), -1, k)
    return torch.cat(ids).view(shape), torch.cat(logp).view(shape)


def _write(path: Path, ids: Tensor, logp: Tensor) -> None:
    note = json.dumps({"ids": digest(ids), "logp": digest(logp)})
    files.write_bytes(path, save({"ids": ids, "logp": logp}, metadata={"thimble": note}))


def _check(path: Path, shape: tuple[int, int, int]) -> None:
    """Raise ValueError for a file that is none of `_write`'s, or is not what was written."""
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in ("ids", "logp")}
            hashes = json.loads((file.metadata() or {}).get("thimble", "{}"))
    except SafetensorError as error:
        raise ValueError(f"{path} holds no answers ({error}); delete it, and they are computed again.") from error
    for name, tensor in found.items():
        if digest(tensor) != hashes.get(name) or tuple(tensor.shape) != shape:
            raise ValueError(f"{path} has changed since it was written ({name}); delete it and keep the answers again.")
