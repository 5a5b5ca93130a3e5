"""What every exporter checks before its work: a whole model of this project's layers, and a tokenizer that fits."""

from torch import nn

from lib import tokenization
from lib.models import blocks

_OF_OTHERS = ("weight_packed", "qweight", "packed_weight", "codes_packed")  # tensors of layers that others have packed


def check(model: nn.Module, tokenizer) -> None:
    """Raise ValueError for a model or tokenizer that can't be exported, before anything is computed or written.

    Adapters beside the layers, numbers that aren't there, layers in another project's packed form, no tokenizer, a
    template that can't be stored, ids beyond the embedding's rows.
    """
    blocks.refuse_adapters(model)
    kind = type(model).__name__
    packed = next((name for name in model.state_dict() if name.rpartition(".")[2] in _OF_OTHERS), None)
    if packed is not None:
        raise ValueError(
            f"{kind} is packed already, in another program's form ({packed}); exporters read plain layers and this "
            "project's codes; load a checkpoint of compressed-tensors with export.compressed_tensors.load, and others "
            "as dequantized."
        )
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ValueError(f"{kind} has no numbers (meta tensors); a file needs them; load the weights.")
    if tokenizer is None:
        raise ValueError(f"{kind} has no tokenizer; an export needs one; set model.tokenizer.")
    template = tokenizer.chat_template or ""
    for each in template.values() if isinstance(template, dict) else [template]:
        tokenization.check(each, "the chat template")
    most, rows = max(tokenizer.get_vocab().values()), blocks.embeddings(model).num_embeddings
    if most >= rows:
        raise ValueError(
            f"the tokenizer has ids up to {most}, the embedding {rows} rows; every id needs a row; give the model's "
            "own tokenizer."
        )
