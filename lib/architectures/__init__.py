"""Architectures: a Llama, and variants that replace one part of its blocks, one file each.

    model = architectures.build("headwise", {"hidden_size": 128, "num_hidden_layers": 6, ...}, seed=0)

Importing this package makes them known to transformers: `AutoModelForCausalLM.from_pretrained` opens what they saved,
and no remote code is needed. A file offers `MODEL`, a class of models with a `config_class`; `base` has what all share.
The packed engine (`lib.runtime`) computes all but talking heads and nonlinear queries, which it refuses by name.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers import initialization as transformers_initialization
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from lib import extensions, files
from lib.architectures import base, controls, initial


@dataclass(frozen=True)
class Row:
    """An architecture of the table: the file with its class of models, and what it is in words.

    settings: values of its configuration. change: for a control, (class of the variant `of`, configuration) -> the
    plain configuration that is compared with that variant.
    """

    file: str
    what: str
    settings: dict = field(default_factory=dict)
    of: str | None = None
    change: Callable[[type, LlamaConfig], LlamaConfig] | None = None


ARCHITECTURES = {
    "plain": Row("llama", "Llama"),
    "headwise": Row("headwise", "a matrix and GELU for each head, before concatenation"),
    "headwise_relu": Row("headwise", "with ReLU", {"head_activation": "relu"}),
    "headwise_silu": Row("headwise", "with SiLU", {"head_activation": "silu"}),
    "headwise_residual": Row("headwise", "with GELU, added to what the head read", {"head_residual": True}),
    "headwise_identity": Row("headwise", "control: without nonlinearity", {"head_activation": "identity"}),
    "head_gate": Row("gates", "a sigmoid gate for each head", {"attention_gate": "head"}),
    "element_gate": Row("gates", "a sigmoid gate for each element", {"attention_gate": "element"}),
    "talking_heads": Row("talking_heads", "heads mixed before and behind the softmax"),
    "nonlinear_query": Row("nonlinear_query", "queries by a small MLP"),
    # of headwise each weight serves once a token, as those of an MLP: equal weights are equal operations
    "wider": Row("llama", "control: the weights of headwise in the MLP", of="headwise", change=controls.equal_weights),
    "deeper": Row("llama", "control: one block more", of="plain", change=lambda _, config: controls.deeper(config)),
}


def by_name(name: str) -> type[PreTrainedModel]:
    """The class of models of the row `name`, or of the Python file at that path; others raise ValueError."""
    if extensions.is_path(name):
        return register(extensions.load(name, "MODEL").MODEL)
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture {name!r} is unknown; {files.choices(name, ARCHITECTURES)}")
    return importlib.import_module(f"lib.architectures.{ARCHITECTURES[name].file}").MODEL


def configuration(name: str, sizes: LlamaConfig | dict) -> LlamaConfig:
    """The configuration of the architecture `name` with Llama's `sizes`, among which may be settings of its own.

    A control makes its own of them: `sizes` are those of the models that it is compared with. Raises ValueError for
    names and values that make no model.
    """
    kind, row = by_name(name), ARCHITECTURES.get(name)
    given = sizes if isinstance(sizes, dict) else controls.sizes(sizes)
    known = kind.config_class().to_dict()
    if unknown := sorted(set(given) - set(known)):
        what = f"{unknown[0]}={given[unknown[0]]!r}"
        raise ValueError(f"{what} is no setting of {name!r}; {files.choices(unknown[0], known)}")
    llamas = base.Config().to_dict()
    base.Config(**{key: value for key, value in given.items() if key in llamas})  # Llama's own check says less
    found = kind.config_class(**given | (row.settings if row else {}))
    if row and row.change:
        found = row.change(by_name(row.of), found)
    found.initializer_range = initial.deviation(found)
    return found


def build(name: str, sizes: LlamaConfig | dict, seed: int) -> PreTrainedModel:
    """A model of the architecture `name` as training begins with it (`initial`), in float32 and eval mode.

    Models of one `seed` begin with the same values wherever their parts have the same name and shape.
    """
    config = configuration(name, sizes)
    with transformers_initialization.no_init_weights():
        model = by_name(name)(config)
    model.tie_weights()
    return initial.start_(model, seed).eval()


def register(kind: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Make a class of models known to transformers' Auto classes under its configuration's `model_type`; returns it."""
    config = kind.config_class
    if kind is not LlamaForCausalLM:
        name = config.__dict__.get("model_type")
        if not name or name in CONFIG_MAPPING_NAMES:
            raise ValueError(
                f"{config.__name__} has model_type={config.model_type!r}, which is transformers' own; a name that no "
                "other class has is allowed; give it one."
            )
        AutoConfig.register(name, config, exist_ok=True)
        AutoModelForCausalLM.register(config, kind, exist_ok=True)
    return kind


def make_known() -> None:
    """Register the classes of the table; done on import, so that importing the package is enough."""
    for file in sorted({row.file for row in ARCHITECTURES.values()}):
        register(importlib.import_module(f"lib.architectures.{file}").MODEL)


make_known()
