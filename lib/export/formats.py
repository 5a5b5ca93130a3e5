"""The formats of exports: by which file a folder is known, what reads its weights, and which runtimes open it."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from lib import files


class Format(NamedTuple):
    """file: the one that only this format has. contents: module with `types(file)` and `compare(file, model)`.

    readers: module of each runtime by its name; see `reader_script`. writer: what writes such a folder.
    """

    file: str
    contents: str
    readers: dict[str, str]
    writer: str


FORMATS = {
    "gguf": Format(
        "model.gguf",
        "lib.export.gguf_contents",
        {"transformers": "lib.export.reader_transformers", "llama.cpp": "lib.export.reader_llama_cpp"},
        "export.gguf.export",
    ),
    "onnx": Format(
        "model.onnx",
        "lib.export.onnx_contents",
        {"onnxruntime": "lib.export.reader_onnxruntime", "onnxruntime-genai": "lib.export.reader_onnxruntime_genai"},
        "export.onnx.export",
    ),
    "executorch": Format(
        "model.pte",
        "lib.export.executorch_contents",
        {"executorch": "lib.export.reader_executorch"},
        "export.executorch.export",
    ),
    "openvino": Format(
        "openvino_model.xml",
        "lib.export.openvino_contents",
        {"openvino": "lib.export.reader_openvino"},
        "export.openvino.export",
    ),
    # the last: any of the others may have a configuration beside its file. Layouts of others are checkpoints too, and
    # each reader says which of them it leaves out
    "checkpoint": Format(
        "config.json",
        "lib.export.checkpoint_contents",
        {
            "transformers, checkpoint": "lib.export.reader_checkpoint",
            "vllm": "lib.export.reader_vllm",
            "mlx-lm": "lib.export.reader_mlx",
            "thimble": "lib.runtime.export_reader",
        },
        "export.compressed_tensors.save",
    ),
}


def find(folder: Path) -> Format:
    """The format of the export in `folder`; FileNotFoundError where there is none."""
    for each in FORMATS.values():
        if (folder / each.file).is_file():
            return each
    writers = " or ".join(each.writer for each in FORMATS.values())
    names = " or ".join(each.file for each in FORMATS.values())
    raise FileNotFoundError(f"{folder} holds no {names}; a certificate is about one; write it with {writers}.")


def chosen(format: Format, names) -> dict[str, str]:
    """The readers called `names` of a format, all for None; ValueError for a name that is none of them."""
    for name in names or ():
        if name not in format.readers:
            raise ValueError(f"there is no backend {name!r} of {format.file}; {files.choices(name, format.readers)}")
    return {name: format.readers[name] for name in (names or format.readers)}


def contents(format: Format) -> ModuleType:
    """The module that reads what a file of the format holds."""
    return reader(format.contents)


def reader(module: str) -> ModuleType:
    """A module that `FORMATS` names: it is imported here, beside the names, which tells what depends on it."""
    return importlib.import_module(module)
