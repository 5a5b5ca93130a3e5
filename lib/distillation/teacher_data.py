"""Teacher data: what the original model writes behind prompts, as rows for a student to learn from.

Sources: BitDistiller (Du et al., arXiv 2402.10631, section 3.2) lets the teacher answer its training prompts; LLM-QAT
(Liu et al., arXiv 2305.17888, section 2.1) lets it write from single first tokens where there is no text at all.

Answers are written in shards, `PART` prompts a file, complete or absent: a killed job resumes at the first missing one,
and answer i depends on prompt i and seed + i alone, so the shards are the same however often it was killed.
"""

import contextlib
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lib import files, jobs, progress, runtime, tokenization
from lib.decoding import ends, settings
from lib.decoding.requests import Request
from lib.decoding.sampling import Sampling
from lib.distillation import wishes
from lib.evaluation.local import Local
from lib.evaluation.packed_engine import Packed
from lib.sources import note
from lib.sources import prompts as sources
from lib.trainers.minibatch import IGNORED

PART = 64  # prompts of a shard: what a killed job repeats at most
BYTES = 12  # of a token in a shard, about: its number as text


def from_data(
    tokenizer, kind: str, count: int, *, source: str = "data", seed: int = 0, wished: float = 0.0
) -> list[list[int]]:
    """Prompts of a `kind` of `sources.prompts`, in the chat template if there is one, as token ids.

    wished: share of them that also say which form the answer shall have, see `wishes`; 0 to 1.
    """
    if not 0 <= wished <= 1:
        raise ValueError(f"wished={wished}; it is a share: 0 to 1 are allowed.")
    prompts = sources.load(kind, count, source=source, seed=seed)
    number = round(wished * count)
    prompts = [*wishes.added(prompts[:number], seed=seed), *prompts[number:]]
    return [each.tolist() for each in sources.tokens(prompts, tokenizer)]


def beginnings(tokens, *, length: int, count: int | None = None) -> list[list[int]]:
    """The first `length` tokens of windows [count, longer], for the teacher to continue."""
    if not 1 <= length < tokens.shape[1]:
        raise ValueError(f"length={length} of windows of {tokens.shape[1]} tokens; 1 to {tokens.shape[1] - 1} allowed.")
    return [row[:length].tolist() for row in tokens[:count]]


def first_tokens(tokenizer, count: int, *, seed: int = 0) -> list[list[int]]:
    """`count` prompts of one token each, drawn from the vocabulary without special tokens: for when there is no text.

    What the tokenizer puts before a text comes before them.
    """
    special = set(tokenizer.all_special_ids)
    known = [token for token in range(len(tokenizer)) if token not in special]
    before = tokenization.first_ids(tokenizer)
    return [[*before, token] for token in random.Random(seed).choices(known, k=count)]


@dataclass(frozen=True)
class Answers(Sequence):
    """Answers of a teacher, a row each: `prompt` and `answer` (token ids), and `reason`, why it ended.

    As rows of a training they have `input_ids` and `labels`, those of the prompt masked. identity: of their content.
    """

    rows: tuple[dict, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place):
        row = self.rows[place]
        ids = torch.tensor([*row["prompt"], *row["answer"]])
        hidden = torch.arange(len(ids)) < len(row["prompt"])
        return {"input_ids": ids, "labels": ids.masked_fill(hidden, IGNORED)}

    @property
    def identity(self) -> str:
        """SHA-256 of the rows."""
        return hashlib.sha256("\n".join(map(_line, self.rows)).encode()).hexdigest()

    @property
    def tokens(self) -> int:
        """How many tokens the answers have."""
        return sum(len(row["answer"]) for row in self.rows)


def write(
    teacher: nn.Module,
    prompts: Sequence[list[int]],
    folder: Path | str,
    *,
    temperature: float = 0.7,
    top_p: float = 0.95,
    new_tokens: int = 256,
    seed: int = 0,
    engine: Local | None = None,
) -> Answers:
    """Let `teacher` continue each of `prompts` by at most `new_tokens`, in shards in `folder`; returns all answers.

    engine: what runs the teacher, such as `engine_of` chooses; None takes transformers. The sampling is
    `decoding.sampling`'s, after the teacher's own generation settings; temperature 0 is greedy. Raises ValueError
    before the work for no prompts, prompts that do not fit, and a folder with answers of other arguments; OSError where
    its disk is too small; ValueError for shards that are cut short or were changed.
    """
    engine, folder = engine or Local(teacher), Path(folder)
    _check(prompts, new_tokens, engine.longest, Sampling(temperature, top_p=top_p))
    files.check_writable(folder / "part", BYTES * (sum(map(len, prompts)) + len(prompts) * new_tokens))
    job = jobs.fingerprint(teacher) | jobs.environment_fingerprint("decoding")
    job |= {"tokenizer": tokenization.identity(engine.tokenizer), "new_tokens": new_tokens, "seed": seed}
    job |= {"engine": type(engine).__name__}
    job |= {"prompts": hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()}
    rows: list[dict] = []
    with jobs.JobState(folder, method="teacher_data", temperature=temperature, top_p=top_p, **job):
        for start in progress.bar(range(0, len(prompts), PART), desc="teacher", unit="shard"):
            path, some = folder / f"part-{start // PART:05d}.jsonl", prompts[start : start + PART]
            if not path.exists():
                drawn = [Sampling(temperature, top_p=top_p, seed=seed + start + place) for place in range(len(some))]
                jobs.write_rows(path, _answered(teacher, engine, some, drawn, new_tokens))
            rows += _read(path, some)
    found = Answers(tuple(rows))
    note(kind="answers", name="teacher_data", origin=str(folder), sha256=found.identity)
    print(f"answers of the teacher: {len(found)} with {found.tokens:,} tokens, sha256 {found.identity[:8]}")
    return found


def engine_of(name: str, teacher: nn.Module) -> Local:
    """What runs `teacher`, which `models.load` read from `name`, fastest: the packed engine with all bits, on a CPU.

    It writes ten times as many tokens a second there. Transformers runs the families that it does not know, and
    weights of other types than bfloat16, which it would round.
    """
    if {(each.device.type, each.dtype) for each in teacher.parameters()} == {("cpu", torch.bfloat16)}:
        with contextlib.suppress(ValueError):
            return Packed(runtime.load(name, embedding_bits=None), teacher.tokenizer)
    return Local(teacher)


def _answered(teacher, engine: Local, prompts: Sequence[list[int]], drawn: list[Sampling], new_tokens: int):
    own, named = settings.of(teacher), ends.of_model(teacher)
    asked = [Request(prompt, new_tokens, sampling=each, own=own, ends=named) for prompt, each in zip(prompts, drawn)]
    engine.answer(asked)
    found = [(each.prompt, each.answer) for each in asked]
    return [{"prompt": prompt, "answer": answer.token_ids, "reason": answer.reason} for prompt, answer in found]


def _line(row: dict) -> str:
    return json.dumps({name: row[name] for name in ("prompt", "answer", "reason")}, separators=(",", ":"))


def _read(path: Path, prompts: Sequence[list[int]]) -> list[dict]:
    """The rows of a shard; ValueError where they are not answers to `prompts`."""
    rows = jobs.read_rows(path)
    if [row["prompt"] for row in rows] != list(prompts):
        raise ValueError(f"{path} is cut short or was changed; delete it, and its {len(prompts)} answers are written.")
    return rows


def _check(prompts: Sequence[list[int]], new_tokens: int, longest: int, sampling: Sampling) -> None:
    if not prompts or not all(map(len, prompts)):
        raise ValueError(
            f"{len(prompts)} prompts, each of one token or more, are needed; give some, or `first_tokens`."
        )
    most = max(map(len, prompts))
    if new_tokens < 1 or most + new_tokens > longest:
        raise ValueError(
            f"new_tokens={new_tokens} behind a prompt of {most} tokens, and the teacher reads {longest}; 1 to "
            f"{longest - most} are allowed; shorten the prompts or the answers."
        )
