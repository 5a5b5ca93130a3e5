"""Models in OpenVINO's form; our codes, scales and zero points are kept exactly.

`export` writes a folder with `openvino_model.xml` (the graph), `openvino_model.bin` (the tensors) and the tokenizer.
Codes of up to 4 bits are stored in 4, those of 5 to 8 in 8, with their zero points in the same type and scales in
float32, for any group size; half-integer zero points become whole ones of a bit more. Keys and values are states.
OpenVINO rounds more than weights unless it is told not to: bfloat16 products, 8-bit keys and values, inputs of packed
layers in 8 bits. A certificate has a line for each way.

    python -m lib.export.openvino CHECKPOINT FOLDER      # a saved model, packed or plain
"""

import argparse
import json
from pathlib import Path

from torch import nn

from lib import folders
from lib.export import checks, elsewhere, plain, saved_models, stored_tensors
from lib.folders import manifest
from lib.quantized import integers
from lib.quantized.grid import Quantized

FILE, DATA, RUNTIME = "openvino_model.xml", "openvino_model.bin", "openvino"
ROOM = 16 << 20  # bytes for graph and tokenizer
_FLOAT = 4  # bytes of a number in float32
WIDTHS = (4, 8)


def width(matrix: Quantized) -> int:
    """Bits in which the codes of `matrix` are stored."""
    bits = matrix.bits + (matrix.levels != "integer")
    return next(each for each in WIDTHS if each >= bits)


def plan(model: nn.Module, *, otherwise: str | None = None) -> dict[str, str]:
    """How each quantized matrix of `model` would be stored, by name: "4 bits", "8 bits", or "F32".

    otherwise: "F32" for matrices that the format can't hold; None refuses them. Raises ValueError for these.
    """
    if otherwise not in (None, "F32"):
        raise ValueError(f"otherwise={otherwise!r}; 'F32' is allowed, or None; choose one of them.")
    found = {}
    for name, matrix in stored_tensors.stored(model)[0].items():
        why = integers.refusal(matrix)
        if why is not None and otherwise is None:
            raise ValueError(
                f"{name} has {why}; OpenVINO's packed layers hold 2 to 8 bits with whole zero points; quantize it so, "
                f"or store it as plain numbers, otherwise='F32' (exact, {matrix.codes.numel() * _FLOAT:,} bytes)."
            )
        found[name] = "F32" if why is not None else f"{width(matrix)} bits"
    return found


def export(model: nn.Module, tokenizer, folder: Path | str, *, otherwise: str | None = None) -> Path:
    """Write `model` and `tokenizer` as `folder`/openvino_model.xml and .bin, complete or absent; returns `folder`.

    otherwise: as for `plan`. Raises ValueError as `plan` and `checks.check` do, FileNotFoundError with the command that
    installs OpenVINO, OSError as `folders.check`, all before the work; RuntimeError with OpenVINO's last words.
    """
    checks.check(model, tokenizer)
    kinds = list(plan(model, otherwise=otherwise).values())
    elsewhere.check(RUNTIME, FILE)
    folders.check(folder, 3 * plain.size(model) + ROOM)
    types = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    with folders.replace(folder, kind="openvino", types=types) as temporary:
        elsewhere.run(RUNTIME, "lib.export.openvino_program", model, tokenizer, temporary / FILE)
        tokenizer.save_pretrained(temporary)
    return Path(folder)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lib.export.openvino", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="the folder of a saved model, packed or plain")
    parser.add_argument("folder", help="where openvino_model.xml is to lie")
    parser.add_argument("--otherwise", choices=("F32",), help="type of quantized matrices that the format can't hold")
    given = parser.parse_args(arguments)
    model, tokenizer = saved_models.load(given.checkpoint)
    folder = export(model, tokenizer, given.folder, otherwise=given.otherwise)
    said = json.loads((folder / manifest.NAME).read_text())
    counts = ", ".join(f"{count} of {kind}" for kind, count in said["types"].items())
    size = sum((folder / name).stat().st_size for name in (FILE, DATA))
    print(f"{folder / FILE}: {size:,} bytes; {counts}")


if __name__ == "__main__":
    main()
