"""Running a packed model: a session holds keys and values, and one call computes the whole model for its new tokens.

    session = Session(model)                     # after runtime.pack_(model), or of what runtime.load(folder) gave
    logits = session.extend(prompt)              # [tokens, vocabulary] of the new positions
    session.rewind(session.length - 2)           # forget the last two: a draft that was not accepted

`Batch` does the same for several sequences of unequal length. The logits of a token are the same bits whether it comes
alone, in a prompt, or beside other sequences.

So prompts take the integer kernels as well, however many rows they have: a library's product with tiles dequantized to
bfloat16, which `PackedLinear` uses on CPUs without AVX-512 VNNI, would round otherwise. With VNNI it would also be no
gain: the packaged model at 4 bits read a prompt of 512 at 1,815 tokens/s, transformers' in bfloat16 at 1,035. On AVX2
and portable CPUs a pass over the weights serves 4 rows instead of 24 (WIDEST in simd.h), so that prompts take them
apart anew every 4 tokens; how slow that is has not been measured.
"""

import ctypes

import numpy as np

from lib import machine
from lib.runtime import after_heads, cpu, structures
from lib.runtime.cache import Cache
from lib.runtime.families import LINEARS, NORMS
from lib.runtime.weights import Weights, check

ROWS = 264  # most positions of one call, which bounds the memory for activations; a multiple of 24
FIRST = 512  # positions that the cache has room for at first, unless more are asked for; it grows by doubling


class Native:
    """The compiled model; its addresses lead into the arrays of `weights`."""

    def __init__(self, weights: Weights, path: str | None = None, threads: int | None = None):
        check(weights)  # it may have been changed after creation
        self.weights, self.library, self._kept, a = weights, cpu.library(path), [], weights.architecture
        layers = (structures.Layer * len(weights.layers))()
        for structure, layer, window, rotation in zip(layers, weights.layers, a.windows, a.rotation):
            for name in LINEARS:
                setattr(structure, name, self._keep(structures.Matrix.of(*layer[name])))
            for name in NORMS:
                setattr(structure, name, layer[name].ctypes.data if name in layer else None)
            structure.window, structure.rotation = window, rotation
            self._after_heads(structure, layer)
        settings = structures.Settings(
            a.hidden, a.heads, a.key_heads, a.size, a.intermediate, a.blocks, a.vocabulary,
            threads or machine.threads(), a.rotated, a.activation == "gelu",
            after_heads.BENDS.index(a.after_heads.bend), a.after_heads.residual, a.eps, a.query_scale,
            weights.embedding_scale, 0,
        )  # fmt: skip
        ends = [
            self._keep(structures.Matrix.of(weights.embedding)),
            self._keep(structures.Matrix.of(weights.head, weights.head_bias)),
        ]
        pointers = [ctypes.addressof(part) for part in (settings, layers, *ends)]
        self._engine = self.library.thimble_new(*pointers, weights.norm.ctypes.data)

    def step(self, cache: Cache, tokens, slots, positions, which, logits) -> None:
        """Compute rows of int32 `tokens`, each with its slot and position; `logits` float32 gets those rows `which`."""
        self.library.thimble_step(
            self._engine, ctypes.addressof(cache.native), len(tokens), tokens.ctypes.data, slots.ctypes.data,
            positions.ctypes.data, len(which), which.ctypes.data, logits.ctypes.data,
        )  # fmt: skip

    def profile(self, on: bool) -> dict[str, float]:
        """Seconds by phase since the last call (and in them "waiting" for the other threads); `on` keeps counting."""
        seconds = (ctypes.c_double * (len(cpu.PHASES) + 1))()
        self.library.thimble_profile(self._engine, int(on), ctypes.addressof(seconds))
        return dict(zip((*cpu.PHASES, "waiting"), seconds))

    def _after_heads(self, structure: structures.Layer, layer: dict) -> None:
        """Add what happens to the heads before the output matrix."""
        names = [*self.weights.architecture.after_heads.linears(self.weights.architecture.heads)]
        if names == [after_heads.GATE]:
            structure.head_gate = self._keep(structures.Matrix.of(*layer[after_heads.GATE]))
        elif names:
            matrices = [self._keep(structures.Matrix.of(*layer[name])) for name in names]
            structure.head_layers = ctypes.addressof(self._keep((structures.Matrix * len(names))(*matrices)))

    def _keep(self, structure):
        self._kept.append(structure)
        return structure

    def __del__(self):
        if getattr(self, "_engine", None):
            self.library.thimble_free(self._engine)


class Batch:
    """Sequences of unequal length that grow together; `lengths` [slots] are the positions in the cache.

    cache_bits: of keys and values, 16, 8 or 4.
    """

    def __init__(self, model, slots: int, *, capacity: int | None = None, backend=None, cache_bits: int = 16):
        if slots < 1 or (capacity is not None and capacity < 1):
            raise ValueError(f"slots={slots}, capacity={capacity}; both are whole numbers from 1.")
        self.weights = model if isinstance(model, Weights) else weights_of(model)
        self.backend = backend or backend_of(self.weights)
        self.lengths = [0] * slots
        self.cache = Cache(self.weights, slots, min(capacity or FIRST, self.weights.limit), cache_bits)

    def extend(self, sequences: dict[int, list[int]], *, last: bool = True) -> np.ndarray:
        """Append tokens to slots; float32 logits of each slot's last new token, or of all new tokens in order.

        Raises ValueError, with nothing changed, for no tokens, ids outside the vocabulary, and a full context.
        """
        self._check(sequences)
        tokens = np.concatenate([np.asarray(ids, np.int32) for ids in sequences.values()])
        counts = [len(ids) for ids in sequences.values()]
        slots = np.repeat(np.array(list(sequences), np.int32), counts)
        positions = np.concatenate([np.arange(n, dtype=np.int32) + self.lengths[s] for s, n in zip(sequences, counts)])
        self._room(int(positions.max()) + 1)
        wanted = np.cumsum(counts) - 1 if last else np.arange(len(tokens))
        logits = np.empty((len(wanted), self.weights.vocabulary), np.float32)
        for start in range(0, len(tokens), ROWS):
            some, end = slice(start, start + ROWS), start + ROWS
            mine = (wanted >= start) & (wanted < end)
            which, out = np.ascontiguousarray(wanted[mine] - start, np.int32), logits[mine.nonzero()[0][:1].sum() :]
            self.backend.step(self.cache, tokens[some], slots[some], positions[some], which, out)
        for slot, count in zip(sequences, counts):
            self.lengths[slot] += count
        return logits

    def _check(self, sequences):
        if not sequences or not all(len(ids) for ids in sequences.values()):
            raise ValueError(
                "no tokens were given; each sequence takes one or more; a prompt needs at least one token."
            )
        known, limit = self.weights.embedding.rows, self.weights.limit
        for slot, ids in sequences.items():
            if min(ids) < 0 or max(ids) >= known:
                raise ValueError(
                    f"token ids from {min(ids)} to {max(ids)}; the vocabulary has 0 to {known - 1}; "
                    "use this model's own tokenizer."
                )
            if self.lengths[slot] + len(ids) > limit:
                raise ValueError(
                    f"{len(ids)} tokens after {self.lengths[slot]}; the context ends at {limit} positions; "
                    "give a shorter prompt or ask for fewer new tokens."
                )

    def _room(self, needed: int) -> None:
        if needed > self.cache.capacity:
            self.cache = self.cache.grown(min(max(needed, 2 * self.cache.capacity), self.weights.limit))


class Session(Batch):
    """One sequence: `length`, `extend(token_ids)`, `rewind(length)`."""

    def __init__(self, model, *, capacity: int | None = None, backend=None, cache_bits: int = 16):
        super().__init__(model, 1, capacity=capacity, backend=backend, cache_bits=cache_bits)

    @property
    def length(self) -> int:
        """Positions in the cache."""
        return self.lengths[0]

    def extend(self, token_ids, *, last: bool = False):
        """Append int tokens [k]; logits of the new positions as a float32 tensor [k, vocabulary] (`last`: [1, ...])."""
        import torch  # saved models run without torch

        ids = token_ids.reshape(-1).tolist() if hasattr(token_ids, "tolist") else list(token_ids)
        return torch.from_numpy(super().extend({0: ids}, last=last))

    def rewind(self, length: int) -> None:
        """Forget all positions from `length` on."""
        if not 0 <= length <= self.lengths[0]:
            raise ValueError(f"length={length}; the session has {self.lengths[0]} positions; choose 0 to that.")
        self.lengths[0] = length


def weights_of(model) -> Weights:
    """The weights of a packed model, taken out once."""
    found = getattr(model, "_packed_weights", None)
    if found is None:
        from lib.runtime.packed_model import from_model  # a process that only runs folders needs no torch

        found = from_model(model)
        object.__setattr__(model, "_packed_weights", found)
    return found


def backend_of(weights: Weights):
    """The compiled model of these weights, made once; plain torch where there is no compiler."""
    key = machine.threads()
    if key not in weights.backends:
        weights.backends[key] = _reference(weights) if cpu.library() is None else Native(weights)
    return weights.backends[key]


def _reference(weights: Weights):
    from lib.runtime.torch_kernels import Reference  # needs torch; compiled kernels don't

    return Reference(weights)
