"""Names in a checkpoint and names in the model: transformers renames the tensors of some families while it loads.

GPT-NeoX' head is `embed_out` in a file and `lm_head` in the model; experts are stored one by one and held as one
tensor; a file may omit the prefix `model.`. `save_pretrained` renames all of it back, quantized or not. Code that reads
a file directly must rename in the same way, by transformers' own table, since a list of ours would become incomplete.
"""

import copy

from torch import Tensor, nn
from transformers import conversion_mapping, core_model_loading

from lib.export import packing


def of_model(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`tensors` of a checkpoint under the names that `model`, still unquantized, has for them.

    The renaming is stored in the model, so that saving reverses it. Names that the model doesn't have stay as they are.
    """
    changes = conversion_mapping.get_model_conversion_mapping(model)
    renamings = [each for each in changes if isinstance(each, core_model_loading.WeightRenaming)]
    converters = [each for each in changes if isinstance(each, core_model_loading.WeightConverter)]
    known = _known(model)
    collected: dict[str, core_model_loading.WeightConverter] = {}
    found: dict[str, Tensor] = {}
    for key in sorted(tensors, key=core_model_loading.dot_natural_key):
        name, pattern = core_model_loading.rename_source_key(
            key, renamings, converters, base_model_prefix=model.base_model_prefix, meta_state_dict=known
        )
        if name not in known or key in known:
            found[key] = tensors[key]
        elif pattern is None:
            found[name] = tensors[key]
        else:
            if name not in collected:
                collected[name] = copy.deepcopy(next(each for each in converters if pattern in each.source_patterns))
            collected[name].add_tensor(name, key, pattern, tensors[key])
    for name, converter in collected.items():
        for target, made in converter.convert(name, model=model, config=model.config).items():
            found[target] = made[0] if isinstance(made, list) else made
    model._weight_conversions = [each for each in changes if each.was_used()]
    return found


def _known(model: nn.Module) -> dict[str, bool]:
    """Every name that a tensor of `model` can have, quantized or not; the values are placeholders."""
    names = list(model.state_dict())
    stems = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
    return dict.fromkeys([*names, *(f"{stem}.{part}" for stem in stems for part in packing.NAMES)], True)
