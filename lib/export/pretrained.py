"""What `model.save_pretrained` writes for a model with quantized layers: the packed form, not our raw codes."""

from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lib.export import stored_tensors
from lib.models import blocks


class Packed(HfQuantizer):
    """Set as `model.hf_quantizer`: transformers asks it for the tensors and the config whenever it saves the model.

    The model itself does not change: `state_dict()` holds the codes of `QuantLinear`, and loads them again. Everything
    is computed when saving, so layers may be quantized, replaced or dropped after this is set.
    """

    def __init__(self):
        super().__init__(QuantizationConfigMixin(quant_method="compressed-tensors"))

    def get_state_dict_and_metadata(self, model):
        """The tensors to write, and no metadata; writes the layers' grids into `model.config` on the way."""
        blocks.state_tying_(model)
        config = stored_tensors.quantization_config(model)
        if config:
            model.config.quantization_config = config
            return stored_tensors.packed_state(model), {}
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        return None, {}

    def is_serializable(self) -> bool:
        """True: this class exists for saving."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Codes are constants, but gradients flow through the layer to adapters, norms and embeddings."""
        return True
