"""The local engine: a model on this machine answers the requests of tasks.

An engine is anything with `loglikelihoods`, `generate`, `identity` and `truncated`, and, where it can draw, `greedy`
and `settings` (see `sampling_mixin`); `packed_engine.Packed` and `endpoint.Endpoint` are the others.
Both methods take all requests of a task; `wanted` selects which to answer, and `finished(index, answer)` is called with
each answer as it comes.
"""

import copy
import hashlib
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from lib import checkpoints, timing, tokenization
from lib.decoding import ends, settings
from lib.decoding.generation_loop import Loop
from lib.decoding.requests import Request
from lib.decoding.session_backend import Sessions
from lib.decoding.sessions import ModelSession
from lib.evaluation import generation_requests, likelihood, prefixes
from lib.evaluation.row_backend import ROWS, RowBackend
from lib.evaluation.sampling_mixin import SamplingMixin
from lib.models import blocks, logits, rotary, structure
from lib.tasks.task import Generation, Likelihood, Outcome

LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")  # settings for the maximum input length
TYPES = (torch.float32, torch.bfloat16, torch.float16)
WITHOUT_LENGTH = 2048  # tokens, for models without such a setting


class Local(SamplingMixin):
    """Answers by `model` (any decoder that transformers knows, plain, quantized or pruned) and its tokenizer.

    dtype: "float32", "bfloat16", ... computes in a copy of that type; None in the model's own. Float32 answers are
    the harness's to 1e-4. bos: whether prompts begin with the tokenizer's special tokens; None leaves it to the
    tokenizer. budget: tokens of a pass, rows: generations at once; None chooses by the device. sampling: arguments
    of `decoding.sampling.Sampling` by which generations are drawn, {} for greedy; request i of a task has `seed` +
    i. plain: leave out what the checkpoint's generation settings do to logits (repetition penalties and the like),
    which transformers and the harness apply to greedy texts too; `settings` says what was applied.
    truncated: the indices of the last call's requests that were cut on the left.
    """

    def __init__(
        self, model: nn.Module, tokenizer=None, *, dtype=None, bos=None, budget=None, rows=None, sampling=None, seed=0,
        plain=False,
    ):  # fmt: skip
        self.tokenizer = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
        if self.tokenizer is None:
            raise ValueError(f"{type(model).__name__} without a tokenizer; give one as `tokenizer`.")
        self.model, self.bos, self.truncated = _typed(model, dtype), bos, []
        self._shares: tuple | None = None  # state of the layers in which sharing was tried, and the result
        self.drawn(sampling, seed, settings.of(model, plain))
        kind = blocks.device(model).type
        self.budget = budget or prefixes.PASS_TOKENS.get(kind, 256)
        self.rows = rows or ROWS.get(kind, 16)

    @property
    def identity(self) -> str:
        """SHA-256 of what determines the answers: weights, their type, layers, configuration, tokenizer, end tokens."""
        named = sorted(self.ends)
        kind = f"{blocks.embeddings(self.model).weight.dtype} {self.bos} {self.longest} {self.budget} {named}"
        parts = [checkpoints.fingerprint(self.model), structure.fingerprint(self.model)]
        parts.append(tokenization.identity(self.tokenizer))
        parts.append(kind)
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @property
    def longest(self) -> int:
        """The model's maximum input length, from the same settings as in the harness."""
        config = blocks.config(self.model)
        named = [getattr(config, name) for name in LENGTHS if getattr(config, name, None)]
        own = self.tokenizer.model_max_length
        return int(named[0] if named else own if own < 1 << 30 else WITHOUT_LENGTH)

    @property
    def shares(self) -> bool:
        """Whether this model's passes can share prefixes, tried on a few tokens once for each state of its layers."""
        state = structure.fingerprint(self.model), blocks.config(self.model)._attn_implementation
        if self._shares is None or self._shares[0] not in (state, "told"):
            with logits.evaluating(self.model):
                self._shares = state, shares_prefixes(self.model)
        return self._shares[1]

    @shares.setter
    def shares(self, told: bool) -> None:
        self._shares = "told", told

    def loglikelihoods(
        self, requests: list[Likelihood], *, wanted: Collection[int] | None = None, finished: Callable | None = None
    ) -> list[Outcome | None]:
        """An outcome per request, None for those not `wanted`."""
        encoded = likelihood.encode(self.tokenizer, requests, self.longest, bos=self.bos)
        self.truncated = [place for place, each in enumerate(encoded) if each.truncated]
        given = encoded, everything(wanted, requests), finished or nothing
        with logits.evaluating(self.model):
            return self._measured(*given)

    def _measured(self, encoded: list, wanted: set[int], finished: Callable) -> list[Outcome | None]:
        """Outcomes by shared passes, or by separate passes where sharing would change them."""
        together = self._together([len(each.inputs) for each in encoded])
        apart = likelihood.measure_plainly(self.model, encoded, wanted.difference(together), finished)
        if together:
            some = [encoded[index] for index in together]
            inside = {place for place, index in enumerate(together) if index in wanted}
            told = lambda place, outcome: finished(together[place], outcome)  # noqa: E731
            shared = likelihood.measure(self.model, some, inside, told, self.budget)
            for index, outcome in zip(together, shared):
                apart[index] = outcome
        return apart

    def _together(self, lengths: list[int]) -> list[int]:
        """The indices of requests that can share passes: those with the position tables of the longest one."""
        if not self.shares:
            return []
        tables = rotary.Tables.of(self.model)
        return [index for index, length in enumerate(lengths) if tables.alike(length)]

    def generate(
        self, requests: list[Generation], *, wanted: Collection[int] | None = None, finished: Callable | None = None
    ) -> list[str | None]:
        """A text per request, up to its first stop string; None for those not `wanted`."""
        asked = self._asked(requests, finished)
        self.answer(asked(sorted(everything(wanted, requests))))
        return asked.texts

    def answer(self, asked: list[Request]) -> None:
        """Let the generation loop answer requests: many in a pass where passes can be shared, else one by one."""
        together = self._together([len(each.prompt) + each.new_tokens for each in asked])
        apart = sorted(set(range(len(asked))).difference(together))
        with logits.evaluating(self.model):
            if apart:
                Loop(Sessions([ModelSession(self.model)]), [asked[place] for place in apart]).run()
            if together:
                backend = RowBackend(self.model, budget=self.budget, most=self.rows)
                Loop(backend, [asked[place] for place in together]).run()

    def _asked(self, requests: list[Generation], finished: Callable | None) -> generation_requests.Asked:
        """The requests of a task for the loop, with encoded prompts; stores which of them were cut on the left."""
        prompts = generation_requests.encode(self.tokenizer, requests, self.longest, bos=self.bos)
        self.truncated = [place for place, each in enumerate(prompts) if each.truncated]
        return generation_requests.Asked(
            self.tokenizer, requests, prompts, self.ends, self.sampling, self.seed, self.own, finished or nothing
        )

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return ends.of_task(ends.of_model(self.model), self.tokenizer)

    def tokens(self, requests: list[Likelihood | Generation]) -> tuple[int, int]:
        """(tokens to be read, each shared one counted once; tokens to be generated at most)."""
        written = sum(each.max_new_tokens for each in requests if isinstance(each, Generation))
        return prefixes.tree(self._inputs(requests)).size, written

    def tokens_asked(self, requests: list[Likelihood | Generation]) -> int:
        """Tokens that one forward pass per request would read."""
        return sum(map(len, self._inputs(requests)))

    def _inputs(self, requests: list[Likelihood | Generation]) -> list[tuple[int, ...]]:
        asked = [each for each in requests if isinstance(each, Likelihood)]
        written = [each for each in requests if isinstance(each, Generation)]
        read = [each.inputs for each in likelihood.encode(self.tokenizer, asked, self.longest, bos=self.bos)]
        return read + [
            each.tokens for each in generation_requests.encode(self.tokenizer, written, self.longest, bos=self.bos)
        ]

    def seconds_per_token(self) -> tuple[float, float]:
        """(seconds per token read, seconds per token generated), from one trial of each after a warm-up."""
        model, vocabulary = self.model, blocks.embeddings(self.model).weight.shape[0]
        prompt = tuple(place * 7919 % vocabulary for place in range(min(self.budget, self.longest - 2)))
        step = [prefixes.Pass(None, [prefixes.Node(prompt[:length], 0)]) for length in (self.rows, len(prompt))]
        seconds = []
        with logits.evaluating(model):
            for each in (step[0], *step):
                begin = timing.clock()
                *_, (_, hidden) = prefixes.Runner(model)(each)
                if self.shares:
                    logits.Projection.of(model)(hidden[-1:]).argmax()
                seconds.append(timing.clock() - begin)
        return seconds[2] / len(prompt), seconds[1] / self.rows


def _typed(model: nn.Module, dtype) -> nn.Module:
    """The model itself, or a copy with parameters of another type; rotary frequencies and codes stay as they are."""
    wanted = None if dtype is None else getattr(torch, str(dtype).removeprefix("torch."), None)
    if dtype is not None and wanted not in TYPES:
        names = ", ".join(str(each).removeprefix("torch.") for each in TYPES)
        raise ValueError(f"dtype={dtype!r}; choose one of {names}, or None for the model's own.")
    if wanted is None or all(each.dtype == wanted for each in model.parameters()):
        return model
    made = copy.deepcopy(model)
    for parameter in made.parameters():  # not `made.to`: it would round the rotary frequencies too
        parameter.data = parameter.data.to(wanted)
    checkpoints.finite(made)  # what a narrower type does not hold
    made.config.dtype = wanted
    return made


def everything(wanted: Collection[int] | None, requests: list) -> set[int]:
    """The indices of the wanted requests, by default all of them."""
    return set(range(len(requests))) if wanted is None else set(wanted)


def nothing(index: int, answer) -> None:
    """The default callback for answers: does nothing."""


@torch.no_grad()
def shares_prefixes(model: nn.Module) -> bool:
    """Whether a cached prefix and packed endings give this model's own logits; a model that can't raises an error.

    Tried on two sequences that share half their tokens: behind a cached prefix, and in one pass.
    """
    vocabulary = blocks.embeddings(model).weight.shape[0]
    begin, ends = [7, 3, 5, 2, 6, 4, 9, 8], [[1, 9, 4, 2, 5, 3, 8, 6], [6, 2, 2, 7, 1, 5, 4, 3]]
    sequences = [tuple(token % vocabulary for token in (*begin, *end)) for end in ends]
    place = blocks.device(model)
    own = [model(input_ids=torch.tensor([each], device=place), use_cache=False).logits[0, -8:] for each in sequences]
    try:
        return all(_agree(model, sequences, own, kept) for kept in (True, False))
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
        return False


def _agree(model: nn.Module, sequences: list[tuple[int, ...]], own: list[Tensor], kept: bool) -> bool:
    root, runner, projection = prefixes.tree(sequences), prefixes.Runner(model), logits.Projection.of(model)
    middle = next(iter(root.children.values()))
    leaves = list(middle.children.values())
    cached = prefixes.Pass(None, [middle], keep=True)
    last = prefixes.Pass(cached, leaves) if kept else prefixes.Pass(None, [middle, *leaves])
    *_, (_, hidden) = runner(last)
    found, count = projection(hidden).float(), len(leaves[0].tokens)
    close = 1e-3 if found.dtype == own[0].dtype else 0.1  # in shorter types the rounding alone differs by percents
    for place, leaf in enumerate(leaves):
        end = len(found) - (len(leaves) - place - 1) * count
        reference = own[[each[middle.end] for each in sequences].index(leaf.tokens[0])][-count:].float()
        if (found[end - count : end] - reference).norm() > close * reference.norm():
            return False
    return True
