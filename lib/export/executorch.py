"""Models as ExecuTorch programs for XNNPACK, which phones run as they are; our codes are kept exactly.

`export` writes a folder with `model.pte` and the tokenizer. The program takes token ids and their places, keeps keys
and values itself, and answers logits. XNNPACK's linear layers of 4 bits hold symmetric grids in groups of a multiple of
32 (`executorch_codes`); they round their inputs to 8 bits, so that answers equal the model's until two tokens are
nearly as good: a certificate says where, and by how little. ExecuTorch itself leaves layers that it can't hold in
float32 and says nothing; here they are refused, with the cost, unless `otherwise="F32"` allows it.

    python -m lib.export.executorch CHECKPOINT FOLDER      # a saved model, packed or plain, as a program
"""

import argparse
import json
from pathlib import Path

from torch import nn

from lib import folders
from lib.export import checks, elsewhere, executorch_codes, plain, saved_models, stored_tensors
from lib.folders import manifest
from lib.models import blocks
from lib.quantized.grid import Quantized

FILE, RUNTIME = "model.pte", "executorch"
LENGTH, BATCH = 512, 64
ROOM = 16 << 20  # bytes for graph and tokenizer
_FLOAT = 4  # bytes of a number that XNNPACK computes with unless it is packed


def plan(model: nn.Module, *, otherwise: str | None = None) -> dict[str, str]:
    """How each matrix of `model` would be stored, by name: "4 bits", or "F32".

    otherwise: "F32" for quantized matrices that XNNPACK's layers can't hold; None refuses them. Raises ValueError for
    these, naming what can be held and what it would cost.
    """
    if otherwise not in (None, "F32"):
        raise ValueError(f"otherwise={otherwise!r}; 'F32' is allowed, or None; choose one of them.")
    matrices, replaced = stored_tensors.stored(model)
    found = {name: _of_codes(name, matrix, otherwise) for name, matrix in matrices.items()}
    for key, value in model.state_dict().items():
        if key.rpartition(".")[0] not in replaced and value.ndim == 2 and value.is_floating_point():
            found[key.removesuffix(".weight")] = "F32"
    return found


def export(
    model: nn.Module,
    tokenizer,
    folder: Path | str,
    *,
    length: int = LENGTH,
    batch: int = BATCH,
    otherwise: str | None = None,
) -> Path:
    """Write `model` and `tokenizer` as `folder`/model.pte, complete or absent; returns `folder`.

    length: the most tokens of a text with its answer. batch: how many of them are read at once. otherwise: as for
    `plan`. Raises ValueError as `plan` and `checks.check` do and for lengths that are none, FileNotFoundError with the
    command that installs ExecuTorch, OSError as `folders.check`, all before the work; RuntimeError with its last words.
    """
    most = blocks.config(model).max_position_embeddings
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in (length, batch)) or not (
        1 < batch <= length <= most
    ):
        raise ValueError(
            f"length={length!r} and batch={batch!r}; 1 < batch <= length <= {most}, the model's own limit; choose such."
        )
    checks.check(model, tokenizer)
    kinds = list(plan(model, otherwise=otherwise).values())
    elsewhere.check(RUNTIME, FILE)
    # the program, and before it the checkpoint that it is made of
    folders.check(folder, 2 * plain.size(model) + _plain(model) * _FLOAT + ROOM)
    said = {"types": {kind: kinds.count(kind) for kind in sorted(set(kinds))}, "length": length, "batch": batch}
    with folders.replace(folder, kind="executorch", **said) as temporary:
        options = {"length": length, "batch": batch, "otherwise": otherwise}
        report = elsewhere.run(RUNTIME, "lib.export.executorch_program", model, tokenizer, temporary / FILE, **options)
        tokenizer.save_pretrained(temporary)
        (temporary / "program.json").write_text(json.dumps({**said, **report}, indent=1))
    return Path(folder)


def _plain(model: nn.Module) -> int:
    """How many numbers of matrices are not quantized."""
    _, replaced = stored_tensors.stored(model)
    return sum(
        value.numel() for key, value in model.state_dict().items()
        if key.rpartition(".")[0] not in replaced and value.is_floating_point()
    )  # fmt: skip


def _of_codes(name: str, matrix: Quantized, otherwise: str | None) -> str:
    why = executorch_codes.refusal(matrix)
    if why is not None and otherwise is None:
        size = matrix.codes.numel() * _FLOAT
        raise ValueError(
            f"{name} has {why}; XNNPACK's layers hold codes of -8 to 7 times bfloat16 scales in groups of a multiple "
            f"of {executorch_codes.MULTIPLE}: symmetric grids of up to 4 bits, and any of up to 3; quantize it so, or "
            f"store it as plain numbers, otherwise='F32' (exact, {size:,} bytes)."
        )
    return "4 bits" if why is None else "F32"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lib.export.executorch", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="the folder of a saved model, packed or plain")
    parser.add_argument("folder", help="where model.pte is to lie")
    parser.add_argument("--length", type=int, default=LENGTH, help="the most tokens of a text with its answer")
    parser.add_argument("--batch", type=int, default=BATCH, help="tokens that are read at once")
    parser.add_argument("--otherwise", choices=("F32",), help="type of quantized matrices that no layer holds")
    given = parser.parse_args(arguments)
    model, tokenizer = saved_models.load(given.checkpoint)
    options = {"length": given.length, "batch": given.batch, "otherwise": given.otherwise}
    folder = export(model, tokenizer, given.folder, **options)
    said = json.loads((folder / manifest.NAME).read_text())
    counts = ", ".join(f"{count} of {kind}" for kind, count in said["types"].items())
    print(f"{folder / FILE}: {(folder / FILE).stat().st_size:,} bytes; {counts}")


if __name__ == "__main__":
    main()
