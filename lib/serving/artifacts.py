"""Models that a server offers: found by name, checked for room, loaded packed where the engine runs them.

A model that the packed engine does not compute runs through transformers, one session a request; either way an
answer's bits depend on no other request.
"""

import copy
import threading
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from lib import checkpoints, tokenization
from lib.decoding import draft_controller, ends, settings
from lib.decoding.generation_loop import Backend, Loop
from lib.decoding.lookup import Lookup
from lib.decoding.session_backend import Sessions
from lib.decoding.sessions import ModelSession
from lib.decoding.settings import Settings
from lib.evaluation.row_backend import bytes_per_token
from lib.runtime import cache_codes, checkpoint, cpu
from lib.runtime.engine import Session, weights_of
from lib.runtime.slots import Slots
from lib.runtime.weights import Weights
from lib.serving.limits import Limits
from lib.sources import models

WITHOUT_LENGTH = 2048  # tokens, for models whose configuration names no context
SPARE = 512 << 20  # bytes that stay free for the server itself


@dataclass
class Artifact:
    """A loaded model and its generation loop.

    model: `Weights` of the packed engine, or a model of transformers. tokenizer: transformers' own, for prompts, chat
    templates and the texts of tokens; words: another object with the same rules, for the thread that generates.
    limit: positions that a prompt and its answer may take. sha256: of the checkpoint. costs: of steps that draft (see
    `DraftController`), where greedy answers may draft from their own text; None where none does. cache_bits: of keys
    and values of the packed engine, 16, 8 or 4; transformers keeps its own.
    """

    name: str
    model: object
    tokenizer: object
    limits: Limits
    sha256: str = ""
    words: object = None
    costs: dict[int, float] | None = None
    cache_bits: int = 16
    own: Settings = field(default_factory=lambda: settings.PLAIN)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self):
        self.packed = isinstance(self.model, Weights)
        cache_codes.check_bits(self.cache_bits)
        if self.cache_bits < 16 and not self.packed:
            raise ValueError(
                f"cache_bits={self.cache_bits} of {self.name}, which transformers runs; only the packed engine keeps "
                "keys and values in fewer than 16 bits; leave it out."
            )
        if self.words is None:
            self.words = copy.deepcopy(self.tokenizer)
        self.own = settings.of(self.model)
        named = self.model.stops if self.packed else ends.of_model(self.model)
        self.ends = frozenset(ends.of_task(named, self.tokenizer))
        self.longest_token = max(map(len, self.tokenizer.get_vocab()))  # characters
        self.special = frozenset(getattr(self.tokenizer, "all_special_ids", ()))
        context = self.model.limit if self.packed else getattr(
            self.model.config.get_text_config(), "max_position_embeddings", None
        )  # fmt: skip
        room = self.limits.cache_bytes // self.bytes_a_position
        self.limit = min(context or WITHOUT_LENGTH, self.limits.total_tokens or 1 << 60, room)
        if self.limit < 2:
            raise ValueError(
                f"cache_bytes={self.limits.cache_bytes} holds {room} positions of {self.name}; 2 or more are needed; "
                "allow more bytes."
            )
        self.loop = self.fresh_loop()

    @property
    def bytes_a_position(self) -> int:
        """Bytes that keys and values of a token take."""
        if self.packed:
            return cache_codes.bytes_a_position(self.model.architecture, self.cache_bits)
        return bytes_per_token(self.model)

    @property
    def vocabulary(self) -> int:
        """How many token ids the model knows."""
        if self.packed:
            return min(self.model.vocabulary, self.model.embedding.rows)
        return self.model.get_input_embeddings().num_embeddings

    @property
    def longest_prompt(self) -> int:
        """Tokens that a prompt may have."""
        return min(self.limit - 1, self.limits.input_tokens or 1 << 60)

    @property
    def dtype(self) -> str:
        """What the weights are stored in."""
        if not self.packed:
            return str(self.model.dtype).removeprefix("torch.")
        bits = sorted({matrix.bits for layer in self.model.layers for matrix, _ in _matrices(layer)})
        return "packed " + ", ".join(map(str, bits)) + " bits"

    @property
    def nbytes(self) -> int:
        """Bytes of the weights in memory."""
        if self.packed:
            return self.model.nbytes
        return sum(each.numel() * each.element_size() for each in self.model.parameters())

    @property
    def busy(self) -> bool:
        """Whether a request waits, is read or answered."""
        return bool(self.loop.waiting or self.loop.active or self.loop.backend.reading)

    def fresh_loop(self) -> Loop:
        """A loop with nothing in it."""
        return Loop(self._backend())

    def least_tokens(self, text: str) -> int:
        """Tokens that a text has at least, without reading it: a text of megabytes would keep others waiting."""
        return -(-len(text) // self.longest_token)

    def ids(self, text: str) -> list[int]:
        """Token ids of a prompt; one call at a time. Raises ValueError for half a character."""
        with self.lock:
            return tokenization.ids(self.tokenizer, [text])[0]

    def _backend(self) -> Backend:
        limits, positions = self.limits, self.limits.cache_bytes // self.bytes_a_position
        if self.packed:
            return Slots(self.model, limits.slots, piece=limits.piece, positions=positions, cache_bits=self.cache_bits)
        self.model.eval()
        # each session may fill the context: as many as the bytes allow
        count = max(1, min(limits.slots, positions // self.limit))
        return Sessions([ModelSession(self.model) for _ in range(count)], piece=limits.piece)


def _matrices(layer: dict):
    return [part for part in layer.values() if isinstance(part, tuple)]


def load(
    name: str, limits: Limits, *, embedding_bits: int | None = None, lookup: bool = False, cache_bits: int = 16
) -> Artifact:
    """The model `name` (packaged, a folder, a Hub id), packed where the engine runs it.

    embedding_bits: to which a 16-bit embedding and head are rounded; None leaves them as the checkpoint has them.
    lookup: whether greedy answers of a packed model draft from their own text, where the measured costs say that it
    pays; only there does a pass over several tokens have the bits of several passes. cache_bits: as for `Artifact`.
    Raises what `sources.models.load` raises, and MemoryError where it does not fit, before its weights are read.
    """
    folder, _ = models.find(name)
    cache_codes.check_bits(cache_bits)
    shown = called(name)
    check_room(folder, shown)
    try:
        if cpu.library() is None:
            raise ValueError("there is no compiler for the packed kernels")
        weights = checkpoint.load(folder, embedding_bits=embedding_bits)
        weights.tokenizer.core  # noqa: B018  opened now: a tokenizer that only transformers reads is none for it
    except ValueError as error:
        print(f"{shown}: not packed ({error}); transformers runs it", flush=True)
        model, tokenizer = models.load(folder)
        return Artifact(shown, model, tokenizer, limits, checkpoints.fingerprint(folder), cache_bits=cache_bits)
    tokenizer = checkpoints.tokenizer(folder)
    costs = draft_controller.step_costs(Session(weights, cache_bits=cache_bits), Lookup()) if lookup else None
    sha256 = checkpoints.fingerprint(folder)
    return Artifact(shown, weights, tokenizer, limits, sha256, weights.tokenizer, costs, cache_bits)


def called(name: str) -> str:
    """What clients call the model `name`: its Hub id, or the name of its folder. Raises what `models.find` raises."""
    folder, origin = models.find(name)
    return str(name) if origin.startswith("Hub ") else folder.name


def of(name: str, model, limits: Limits) -> Artifact:
    """A model in memory, with its `model.tokenizer`: packed where `runtime.pack_` has packed it, else as it is."""
    try:
        found = weights_of(model)
    except ValueError:
        found = model
    return Artifact(name, found, model.tokenizer, limits)


def check_room(folder: Path, name: str) -> None:
    """Raise MemoryError where the weights in `folder` do not fit the memory that is free."""
    needed, free = sum(path.stat().st_size for path in checkpoints.weights(folder)), available()
    if needed + SPARE > free:
        raise MemoryError(
            f"{name} has {needed / 1e6:,.0f} MB of weights, and {max(free - SPARE, 0) / 1e6:,.0f} MB of memory are "
            "free for them; choose a smaller model, or fewer bits, or end other programs."
        )


def available(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that this process may still take: the machine's, and its control group's where one limits it."""
    free = psutil.virtual_memory().available
    try:
        most, used = ((root / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if most == "max" else min(free, max(int(most) - int(used), 0))
    except (OSError, ValueError):
        return free
