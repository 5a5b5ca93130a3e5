"""What an ExecuTorch program holds: the codes and scales of every matrix, found byte for byte in the file.

XNNPACK keeps two codes a byte, rows one after the other, and scales in bfloat16; both stand in the file as they are.
"""

import json
import mmap
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.export import executorch_codes, onnx_codes, stored_tensors
from lib.models import blocks


def types(file: Path | str) -> dict[str, int]:
    """How many matrices are stored in which way, and how many parts of the graph XNNPACK computes."""
    said = json.loads(Path(file).with_name("program.json").read_text())
    return {**said["types"], **said["delegates"]}


def compare(file: Path | str, model: nn.Module) -> dict:
    """The weights of `file` beside those of `model`: as `gguf_contents.compare`, but a matrix is there or missing."""
    result = {"tensors": 0, "exact": 0, "largest": 0.0, "where": None, "missing": [], "left_over": []}
    matrices, _ = stored_tensors.stored(model)
    table = blocks.path_of(model, blocks.embeddings(model))
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for name, matrix in matrices.items():
            result["tensors"] += 1
            if executorch_codes.refusal(matrix) is None:
                codes, scale, _ = executorch_codes.signed(matrix)
                packed = onnx_codes.packed((codes.to(torch.int16) + 8).to(torch.uint8), 4)
                kinds = [scale] if name == table else [scale.to(torch.bfloat16), scale]
                whole = _holds(content, packed) and any(_holds(content, each) for each in kinds)
            else:
                whole = _holds(content, matrix.dense())
            result["exact"] += whole
            if not whole:
                result["missing"].append(name)
    return result


def _holds(content: mmap.mmap, values: Tensor) -> bool:
    return content.find(values.contiguous().view(torch.uint8).numpy().tobytes()) >= 0
