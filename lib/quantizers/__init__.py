"""Quantizers: one file a method, one signature for all.

    quantize_(model, calibration, *, bits, group_size, ...) -> dict[str, Quantized]

`METHODS` names them for notebooks and batch files; `by_name` finds one and lists the choices when it can't.
"""

import importlib

from lib import files

METHODS = {"rtn": "lib.quantizers.rtn", "gptq": "lib.quantizers.gptq"}


def by_name(name: str):
    """Return `quantize_` of the method `name`; raise ValueError with the choices when there is none."""
    if name not in METHODS:
        raise ValueError(f"method {name!r} is unknown; {files.choices(name, METHODS)}")
    return importlib.import_module(METHODS[name]).quantize_
