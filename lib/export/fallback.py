"""Whether a backend took another path than the file says: dequantized weights in memory, or a slow kernel.

A runtime that has no kernel for a type may compute with dequantized weights, or with a slow loop, and say nothing. Its
bytes and its seconds tell. Both depend on the machine, so what is seen is remarked and is no fault of the export.
"""

from torch import nn

from lib.export import stored_tensors

LARGE = 256 << 20  # bytes of dense weights; below, what a runtime itself takes decides
SLOWER = 1.5  # times the seconds of plain transformers, which multiplies dense float32 weights


def remarks(backends: dict[str, dict], *, file: int, dense: int) -> list[str]:
    """What the bytes and seconds of a certificate's `backends` say, in words.

    file: bytes of the export. dense: bytes of its weights in float32. A backend's part holds "peak_bytes" and
    "base_bytes" (before it loaded anything) and, by mode, {"seconds": {"greedy": ...}}.
    """
    found, plain = [], _seconds(backends.get("transformers", {}))
    for name, said in backends.items():
        taken = said.get("peak_bytes", 0) - said.get("base_bytes", 0)
        if dense >= LARGE and file < dense / 2 and taken > file + dense / 2:
            found.append(
                f"{name} takes {taken / 1e6:,.0f} MB for a file of {file / 1e6:,.0f} MB: it holds dequantized weights, "
                f"which are {dense / 1e6:,.0f} MB in float32"
            )
        modes = _seconds(said)
        fastest = min(modes.values(), default=None)
        if name != "transformers" and plain and fastest and fastest > SLOWER * min(plain.values()):
            found.append(
                f"{name} needs {fastest / min(plain.values()):.1f} times the seconds of plain transformers with dense "
                "float32 weights: no fast kernel reads these types"
            )
        if "fast" in modes and modes["fast"] > SLOWER * fastest:
            found.append(f"{name}'s fast mode needs {modes['fast'] / fastest:.1f} times the seconds of its other one")
    return found


def dense(model: nn.Module) -> int:
    """Bytes of the weights of `model` in float32; tied ones count once, those of quantized layers as dequantized."""
    matrices, replaced = stored_tensors.stored(model)
    plain = {
        tensor.data_ptr(): tensor.numel()
        for key, tensor in model.state_dict().items()
        if key.rpartition(".")[0] not in replaced
    }
    return 4 * (sum(each.codes.numel() for each in matrices.values()) + sum(plain.values()))


def _seconds(said: dict) -> dict[str, float]:
    """Seconds of greedy answers by mode."""
    return {
        mode: part["seconds"]["greedy"] for mode, part in said.items() if isinstance(part, dict) and "seconds" in part
    }
