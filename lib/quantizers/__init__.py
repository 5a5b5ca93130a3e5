"""Quantizers: one file per method, one signature for all.

    quantize_(model, calibration, *, bits, group_size, ...) -> dict[str, Quantized]

`METHODS` names them for notebooks and batch files; `by_name` finds one and lists the choices when it can't. `best_`
is the recipe that combines them.
"""

import importlib

from lib import extensions, files

METHODS = {
    name: f"lib.quantizers.{name}"
    for name in (
        "absmax",
        "zero_point",
        "rtn",
        "clip",
        "hqq",
        "codebook",
        "int8",
        "awq",
        "gptq",
        "gptaq",
        "corrected",
        "signround",
        "gptq_signround",
        "rotation",
    )
}


def by_name(name: str):
    """`quantize_` of the method `name`, or of the Python file at that path; ValueError with the choices for others."""
    if extensions.is_path(name):
        return extensions.load(name, "quantize_", "model", "calibration", "bits", "group_size").quantize_
    if name not in METHODS:
        raise ValueError(f"method {name!r} is unknown; {files.choices(name, METHODS)}")
    return importlib.import_module(METHODS[name]).quantize_


def best_(model, calibration, **options):
    """Quantize `model` by the recipe that measured best, to `bits` or `megabytes`, in about so many `minutes`.

    The arguments are those of `lib.quantizers.best.quantize_`.
    """
    from lib.quantizers import best  # needs torch; names of methods are read without

    return best.quantize_(model, calibration, **options)
