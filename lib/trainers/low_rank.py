"""Low-rank adapters on the linear layers of the blocks, plain or quantized, through peft.

    lora     W + s B A with s = α / r (Hu et al., arXiv 2106.09685, section 4.1); on quantized layers it is QLoRA
             (Dettmers et al., arXiv 2305.14314): W comes from codes, which stay what they are
    rslora   s = α / √r, so that higher ranks do not learn more slowly (Kalajdzievski, arXiv 2312.03732)
    dora     m (W + s B A) / ‖W + s B A‖ by rows, with a trained m (Liu et al., arXiv 2402.09353, equation 5)

peft adds to a layer's weight when it merges; of a quantized layer that is a copy, and the adapter would vanish without
a word. `QuantLora` refuses, and `finetuning.merging` does it.
"""

import contextlib
import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib import checkpoints, files
from lib.models import blocks, structure
from lib.quantized.linear import QuantLinear, sparing
from lib.trainers import low_rank_product

KINDS = ("lora", "rslora", "dora")
RANK = 16
_ADAPTER = "default"


class Part(NamedTuple):
    """The adapter of one layer: a [rank, columns], b [rows, rank], the factor s, and DoRA's m [rows] (else None)."""

    a: Tensor
    b: Tensor
    scaling: float
    magnitude: Tensor | None = None

    def merged(self, weight: Tensor) -> Tensor:
        """`weight` [rows, columns] with the adapter in it, float32."""
        whole = weight.detach().float().addmm(self.b.float(), self.a.float(), alpha=self.scaling)
        if self.magnitude is None:
            return whole
        return whole * (self.magnitude.float() / whole.norm(dim=1))[:, None]


class Base(NamedTuple):
    """The model that adapters were made for: its name, the SHA-256 of its tensors, and that of its layers."""

    name: str
    weights: str
    layers: str

    @classmethod
    def of(cls, model: nn.Module) -> "Base":
        """The identity of `model` as it is now, without adapters."""
        return cls(
            model.name_or_path or type(model).__name__,
            checkpoints.rounded_fingerprint(model),
            structure.fingerprint(model),
        )


@dataclass(eq=False)
class Adapters:
    """Adapters of a model: parts by layer name, filled in when the context of `attached_` ends. alpha: α."""

    kind: str
    rank: int
    alpha: float
    base: Base
    parts: dict[str, Part] = field(default_factory=dict, repr=False)

    @property
    def numbers(self) -> int:
        """How many numbers they have."""
        return sum(each.numel() for part in self.parts.values() for each in part if isinstance(each, Tensor))

    def check(self, model: nn.Module) -> None:
        """Raise ValueError, both models named, where `model` is another than the one that they were made for."""
        found = Base.of(model)
        if found[1:] != self.base[1:]:
            what = "weights" if found.weights != self.base.weights else "layers or settings"
            raise ValueError(
                f"the adapters were made for {self.base.name} (SHA-256 {self.base.weights[:12]}), and "
                f"{found.name} (SHA-256 {found.weights[:12]}) has other {what}; load the model that they were made for."
            )


@contextlib.contextmanager
def attached_(
    model: nn.Module,
    *,
    kind: str = "lora",
    rank: int = RANK,
    alpha: float | None = None,
    first: int = 0,
    seed: int = 0,
    start: dict[str, tuple[Tensor, Tensor]] | None = None,
) -> Iterator[Adapters]:
    """Context in which adapters are on the linear layers of the blocks and are trained alone; yields them.

    They come off at its end, kept in what was yielded, and `model` is what it was before. kind: one of `KINDS`. alpha:
    2 r where it is None. first: the first block with adapters. seed: draws A; B starts at zero, and the model starts
    unchanged. start: (A, B) to begin with by layer, whose product B A is added: `finetuning.loftq` makes them of the
    quantization error. Quantized layers keep no dequantized matrix meanwhile. Raises ValueError for arguments out of
    range.
    """
    base = Base.of(model)
    adapters = Adapters(kind, rank, 2 * rank if alpha is None else alpha, base)
    with wrapped_(model, kind=kind, rank=rank, alpha=adapters.alpha, first=first, seed=seed), sparing(model):
        for name, (a, b) in (start or {}).items():
            _begin_(model.get_submodule(name), a, b)
        try:
            yield adapters
        finally:
            adapters.parts = {name: _part(layer) for name, layer in _layers(model).items()}


@contextlib.contextmanager
def wrapped_(model: nn.Module, *, kind: str, rank: int, alpha: float, first: int, seed: int) -> Iterator:
    """Context in which peft's adapters are on `model`; yields peft's model, whose layers come off at the end."""
    from peft import LoraConfig, get_peft_model  # loads slowly, only for adapters

    check(model, kind, rank, first)
    path = blocks.path_of_blocks(model)
    names = [f"{path}.{name}" for name in blocks.linears(blocks.blocks(model)) if int(name.split(".")[0]) >= first]
    how = {"use_rslora": kind == "rslora", "use_dora": kind == "dora"}
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, task_type="CAUSAL_LM", **how)
    config._register_custom_module({QuantLinear: _quant_lora()})
    before = {name: each.requires_grad for name, each in model.named_parameters()}
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft still asks transformers by an older name
        torch.manual_seed(seed)
        # adapters in the model's type: the optimizer keeps its own float32 copies
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
    try:
        for layer in _layers(model).values():
            _typed_(layer, model.dtype if isinstance(layer.base_layer, QuantLinear) else layer.base_layer.weight.dtype)
            low_rank_product.fuse_(layer, _ADAPTER)
        yield wrapped
    finally:
        wrapped.unload()
        forget(model)
        for name, each in model.named_parameters():
            each.requires_grad_(before[name])


def check(model: nn.Module, kind: str, rank: int, first: int) -> None:
    """Raise ValueError for arguments that no adapters have."""
    count = len(blocks.blocks(model))
    blocks.refuse_adapters(model)
    if kind not in KINDS:
        raise ValueError(f"adapters of kind {kind!r} are unknown; {files.choices(str(kind), KINDS)}")
    if rank < 1 or not 0 <= first < count:
        raise ValueError(
            f"rank={rank} from block first={first} of {count}; ranks from 1 (8 to 64 are usual) and first blocks 0 to "
            f"{count - 1} are allowed; change them."
        )


def forget(model: nn.Module) -> None:
    """Remove peft's attributes from a model, so that it saves as an ordinary one."""
    for name in ("peft_config", "_hf_peft_config_loaded"):
        if name in vars(model):
            delattr(model, name)


@functools.cache
def _quant_lora() -> type:
    """peft's layer for a `QuantLinear`."""
    from peft.tuners.lora import Linear  # loads slowly, only for adapters

    class QuantLora(Linear):
        """B A beside a quantized layer, which alone can't take it in."""

        def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
            return module.in_features, module.out_features  # peft warns of layers that it does not know

        def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
            """Raise ValueError: codes hold no sum."""
            raise ValueError(
                "adapters on quantized layers can't be added to codes; merge them into 16 bits, back into low bits, or "
                "keep them beside (finetuning.merging)."
            )

    return QuantLora


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}


@torch.no_grad()
def _typed_(layer: nn.Module, dtype: torch.dtype) -> None:
    """Put the adapters of a layer into `dtype`: of a quantized one peft makes them in the type of its weight.

    Of a model on the meta device, whose memory is predicted, it leaves them in float32.
    """
    for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
        part.to(dtype)
    if isinstance(layer.base_layer, QuantLinear) and _ADAPTER in layer.lora_magnitude_vector:
        # of the weight as it computes with it: the model starts unchanged
        norm = torch.linalg.norm(layer.base_layer.quantized.dense(dtype), dim=1)
        layer.lora_magnitude_vector[_ADAPTER].weight.copy_(norm)


@torch.no_grad()
def _begin_(layer: nn.Module, a: Tensor, b: Tensor) -> None:
    layer.lora_A[_ADAPTER].weight.copy_(a)
    layer.lora_B[_ADAPTER].weight.copy_(b / layer.scaling[_ADAPTER])
    if _ADAPTER in layer.lora_magnitude_vector:
        whole = _part(layer)._replace(magnitude=None).merged(layer.base_layer.weight)
        layer.lora_magnitude_vector[_ADAPTER].weight.copy_(whole.norm(dim=1))


def _part(layer: nn.Module) -> Part:
    a, b = (each[_ADAPTER].weight.detach().clone() for each in (layer.lora_A, layer.lora_B))
    magnitude = None
    if _ADAPTER in layer.lora_magnitude_vector:
        magnitude = layer.lora_magnitude_vector[_ADAPTER].weight.detach().clone()
    return Part(a, b, layer.scaling[_ADAPTER], magnitude)
