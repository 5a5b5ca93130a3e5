"""Quantization-aware distillation: a quantized student learns from the original, by its scales alone or by codes too.

Sources: BitDistiller (Du et al., arXiv 2402.10631), section 3: clipping first, then training towards the original on
text that it wrote itself; EfficientQAT (Chen et al., arXiv 2407.11062) for training scales alone.

    gptq_signround.quantize_(student, calibration, bits=2, group_size=64, ...)         # where it starts
    found = quantization_aware.train_(student, rows, Distillation(original), steps=500, held_out=(reference, tokens))

The student that comes out is the one with the smallest divergence on text that it was not trained on.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from lib import files
from lib.distillation import learnable_norm
from lib.distillation.bitdistiller_linear import BitDistillerLinear
from lib.distillation.code_linear import CodeLinear
from lib.distillation.held_out_divergence import HeldOut
from lib.distillation.latent_linear import LatentLinear
from lib.distillation.learnable_norm import LearnableNorm
from lib.distillation.lsq_linear import LSQLinear
from lib.models.reference import digest
from lib.quantizers import activations, e2e_qp
from lib.quantizers.learnable_scale import LearnableScaleLinear
from lib.trainers import loop, training_data
from lib.trainers.divergence import Diverged
from lib.trainers.history import History

CHECKPOINTS = 60  # seconds between two of them
# bytes of a code that moves: where it began, what is trained, its copy and its gradient, two moments, the way back
LATENT = 28
# how codes move: latents beside the start's codes, or the published ways
LINEARS = {"codes": CodeLinear, "lsq": LSQLinear, "bitdistiller": BitDistillerLinear}
EVERY = 20  # steps between two measurements on unseen text


@dataclass(frozen=True)
class Distilled:
    """What a training gave. divergences: step -> KL to the original on unseen text, nats a token; best: their step.

    moved: share of the codes that are others than at the start, in the state that was kept.
    """

    history: History
    divergences: dict[int, float]
    best: int | None
    moved: float


def train_(
    student: nn.Module,
    data,
    loss: Callable[[nn.Module, dict], Tensor],
    *,
    steps: int,
    learning_rate: float | None = None,
    code_steps: float = 0.0,
    originals: dict[str, Tensor] | None = None,
    linear: str = "codes",
    norms: bool = False,
    held_out: tuple | None = None,
    every: int = EVERY,
    patience: int | None = None,
    batch: int = 1,
    micro_batch: int = 1,
    seed: int = 0,
    folder: Path | str | None = None,
    collate: Callable[[list[dict]], dict] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    followers: Sequence = (),
) -> Distilled:
    """Train the quantized layers inside the blocks of `student`, in place; all other weights stay.

    data, loss, steps, batch, micro_batch, seed, folder, collate, on_step: those of `loop.train_`, so that a student can
    also learn answers or preferences and stay what it is, at no byte more; a killed training resumes in
    `folder`. learning_rate: of the scales' δ at its peak, as in `e2e_qp` (None chooses by the bits). code_steps: how
    far, in code steps, a latent moves in one step at most at the peak of the rate; 0 trains scales alone. originals:
    the weights before they were quantized, by layer name: latents then begin where these lie, else in the middle of
    their codes. linear: how codes move, one of `LINEARS`. norms: whether the weights of norms are trained too.
    held_out: (reference of the original, token ids [windows, length]) of text that is not trained on; measured every
    `every` steps, and the best state is the one that stays; `patience` measurements without a better one end the
    training. followers: of `trackers`, told each step's "loss" and, where it was measured, "unseen_kl".
    Raises ValueError for a student without quantized layers, for codes that cannot move, for numbers out of range, and
    where the loss is not finite: the layers then have the best state on unseen text so far, and are as they were where
    none is measured; MemoryError, before the work, for more codes that move than fit into memory.
    """
    layers = e2e_qp.quantized_layers(student)
    rate = e2e_qp.rate_of(list(layers.values())) if learning_rate is None else learning_rate
    _check(rate, code_steps)
    source = training_data.of(data, student, checked=collate is None)
    again = activations.must_recompute(student, micro_batch * int(source.length or 0))
    before = {name: layer.codes for name, layer in layers.items()}
    parts = _parts(student, layers, code_steps / rate, originals or {}, linear) | (_norms(student) if norms else {})
    told = {"code_steps": code_steps, "linear": linear, "norms": norms, "originals": _digest(originals or {})}
    settings = {"steps": steps, "batch": batch, "micro_batch": micro_batch, "learning_rate": rate, "seed": seed}
    with e2e_qp.trained_alone(student, parts, again), torch.enable_grad():
        watch = held_out and _watch(student, parts, held_out, folder, followers, every=every, patience=patience)
        options = {"optimizer": torch.optim.Adam, "folder": folder, "every": CHECKPOINTS, "collate": collate}
        options |= {"stop": watch and watch.stop, "on_step": lambda *step: _tell(watch, on_step, followers, *step)}
        with _saved_(watch, folder):
            history = loop.train_(student, source, _Named(loss, told), **settings, **options)
        _settle_(parts, watch, len(history.losses), followers)
    return Distilled(history, *((watch.divergences, watch.best) if watch else ({}, None)), _moved(layers, before))


def _check(rate: float, code_steps: float) -> None:
    if not (rate > 0 and 0 <= code_steps < float("inf")):
        raise ValueError(f"learning_rate={rate} and code_steps={code_steps}; above 0 and from 0 on are allowed.")


def _settle_(parts: dict, watch: HeldOut | None, last: int, followers: Sequence) -> None:
    """Store what was learned up to step `last`: the best state on unseen text, where that was watched."""
    for part in parts.values():
        part.settle_()
    if watch:
        known = last in watch.divergences
        watch.settle_(last)
        if not known:
            _follow(watch, followers, last)


@contextlib.contextmanager
def _saved_(watch: HeldOut | None, folder: Path | str | None) -> Iterator[None]:
    """Context in which a loss that is not finite leaves the best state so far in the layers, and says so."""
    try:
        yield
    except Diverged as error:
        if not watch:
            raise
        watch.settle_(max(watch.divergences))
        where = f", which {Path(folder).name}/held_out keeps" if folder else ""
        said = f" In their place the student has its best state on unseen text, that of step {watch.best}{where}."
        raise Diverged(f"{error}{said}") from None


def _watch(student, parts: dict, held_out: tuple, folder: Path | str | None, followers: Sequence, **options) -> HeldOut:
    """What measures on unseen text, after its first measurement, of which `followers` are told."""
    found = HeldOut(student, parts, *held_out, **options, folder=folder and Path(folder) / "held_out")
    found.begin()
    _follow(found, followers, 0)
    return found


def _tell(watch: HeldOut | None, on_step: Callable | None, followers: Sequence, step: int, loss: float) -> None:
    """Tell everybody of a step, the `watch` first."""
    for each in filter(None, (watch, on_step)):
        each(step, loss)
    _follow(watch, followers, step, loss=loss)


def _follow(watch: HeldOut | None, followers: Sequence, step: int, **values: float) -> None:
    """Tell the `followers` the `values` of `step`, and what the `watch` measured there."""
    if watch and step in watch.divergences:
        values["unseen_kl"] = watch.divergences[step]
    for each in followers if values else ():
        each.log(values, step=step)


def _moved(layers: dict, before: dict[str, Tensor]) -> float:
    """The share of codes that are others than `before`."""
    moved = sum(int((layer.codes != before[name]).sum()) for name, layer in layers.items())
    return moved / sum(layer.codes.numel() for layer in layers.values())


class _Named:
    """`loss` with the settings of this training among those that say what its folder holds."""

    def __init__(self, loss: Callable[[nn.Module, dict], Tensor], settings: dict):
        self.loss, self.settings = loss, settings

    def __call__(self, model: nn.Module, batch: dict) -> Tensor:
        return self.loss(model, batch)

    def __getattr__(self, name: str):
        return getattr(self.loss, name)

    @property
    def identity(self) -> dict:
        own = getattr(self.loss, "identity", None) or {
            "loss": getattr(self.loss, "__module__", type(self.loss).__name__)
        }
        return own | self.settings


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of tensors and their names, "" of none."""
    found = [f"{name} {digest(each)}" for name, each in sorted(tensors.items())]
    return hashlib.sha256(" ".join(found).encode()).hexdigest() if found else ""


def _parts(
    student, layers, code_rate: float, originals: dict[str, Tensor], linear: str
) -> dict[str, LearnableScaleLinear | LatentLinear]:
    if linear not in LINEARS:
        raise ValueError(f"linear={linear!r} is no way for codes to move; {files.choices(linear, LINEARS)}")
    if not code_rate:
        return {name: LearnableScaleLinear(layer, student.dtype) for name, layer in layers.items()}
    if unknown := sorted(set(originals) - set(layers)):
        raise ValueError(f"originals has {unknown[0]!r}, which is no quantized layer of the student; give its own.")
    _check_memory(layers)
    made = {name: {"code_rate": code_rate, "original": originals.get(name)} for name in layers}
    return {name: LINEARS[linear](layer, student.dtype, **made[name]) for name, layer in layers.items()}


def _norms(student: nn.Module) -> dict[str, LearnableNorm]:
    return {name: LearnableNorm(each) for name, each in learnable_norm.norms(student).items()}


def _check_memory(layers: dict) -> None:
    """Raise MemoryError, before the work, where what is kept for each code that moves does not fit into memory."""
    count, scales = (sum(each.numel() for each in some) for some in zip(*((x.codes, x.scale) for x in layers.values())))
    free = psutil.virtual_memory().available
    if (needed := LATENT * count) > free:
        raise MemoryError(
            f"{count:,} codes that move need about {needed / 1e9:.1f} GB beside the models and {free / 1e9:.1f} GB are "
            f"free; about {free / LATENT:,.0f} codes fit; scales alone (code_steps=0) need {LATENT * scales / 1e9:.2f} "
            "GB; take those, or a smaller model."
        )
