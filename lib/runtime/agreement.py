"""Checks that a model in memory computes what its configuration says; settings may have changed since."""

import numpy as np

from lib.runtime import architecture
from lib.runtime.architecture import Architecture, refuse
from lib.runtime.families import FAMILIES
from lib.runtime.rope_frequencies import TABLES, wrong


def architecture_of(model) -> Architecture:
    """The architecture of a transformers model, from its configuration, checked against its modules.

    Raises ValueError naming a part that is not supported, or that differs from the configuration.
    """
    from lib.models import blocks  # needs torch; saved models run without

    config = blocks.config(model).to_dict() | {"architectures": [type(model).__name__]}  # the name in what is refused
    if config.get("layer_types", ()) is None:  # the class sets it when it is created, so it was removed later
        raise wrong("layer_types", None, "a type of attention for each block")
    found = architecture.read(config, tables={**TABLES, "yarn": ()})
    name, wanted = type(model).__name__, FAMILIES[found.family].model
    refuse(f"a class of its own, not {wanted}" if name != wanted else None, name)
    _agree(model, found, name)
    return found


def _agree(model, wanted: Architecture, name: str) -> None:
    """Refuse modules that differ from the configuration, such as after it was edited."""
    from lib.models import blocks  # needs torch; saved models run without

    modules = {"the final norm": blocks.final_norm(model)}
    for index, block in enumerate(blocks.blocks(model)):
        modules |= {f"{path} of block {index}": part for path, part in block.named_modules() if path}
    for place, part in modules.items():
        if hasattr(part, "variance_epsilon") or hasattr(part, "eps"):
            eps = getattr(part, "variance_epsilon", getattr(part, "eps", None))
            if np.float32(eps) != np.float32(wanted.eps):
                refuse(f"eps={eps!r} in {place}, where its configuration says {wanted.eps}", name)
        if hasattr(part, "scaling") and not np.isclose(part.scaling, wanted.query_scale, rtol=1e-6):
            refuse(f"attention scaled by {part.scaling} in {place}, where {wanted.query_scale} is expected", name)
        if not getattr(part, "is_causal", True):
            refuse(f"attention to later positions in {place}", name)
        function = getattr(part, "act_fn", getattr(part, "activation_fn", None))
        if function is not None and not _computes(function, wanted.activation):
            refuse(f"another activation in {place} than its configuration says ({wanted.activation})", name)
        bend, expected = getattr(part, "head_act", None), wanted.after_heads.bend
        if bend is not None and not _computes(bend, expected, "heads"):
            refuse(f"another activation in {place} than its configuration says ({expected})", name)
    _untouched(model, wanted, name)


def _untouched(model, wanted: Architecture, name: str) -> None:
    """Refuse hooks, replaced forward passes, and blocks without the parts of their family."""
    from lib.models import blocks  # needs torch; saved models run without

    for index, block in enumerate(blocks.blocks(model)):
        there = {path for path, _ in block.named_modules()}
        lacking = sorted({*wanted.linears.values(), *wanted.norms.values()} - there)
        refuse(f"a block {index} without {lacking[0]}" if lacking else None, name)
    for path, part in model.named_modules():
        if path and (part._forward_hooks or part._forward_pre_hooks):  # those on the whole model listen to its calls
            refuse(f"a hook on {path}", name)
        if "forward" in vars(part):
            refuse(f"a forward pass of its own in {path or 'the model'}", name)


def _computes(function, activation: str, place: str = "mlp") -> bool:
    """Whether a module's activation is the one with this name, which the MLP and the heads' layers use differently."""
    import torch  # saved models run without torch
    from torch.nn import functional  # saved models run without torch

    from lib.runtime import torch_kernels  # needs torch

    wanted = {"silu": functional.silu, "gelu": lambda x: functional.gelu(x, approximate="tanh")}
    wanted = (wanted if place == "mlp" else torch_kernels.BENDS)[activation]
    x = torch.linspace(-6, 6, 97)
    return torch.allclose(function(x), wanted(x), atol=1e-6)
