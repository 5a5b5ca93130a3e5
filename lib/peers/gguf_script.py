"""llama.cpp's own quantizer, and its logits of files on the same windows, by its C interface.

    python -m lib.peers.gguf_script arguments.json

Arguments: `quantize`: a list of {"source", "target", "file_type" (number), "importance" (npz: an array a tensor)};
`compare`: {"reference", "files" (by name), "windows" (npy, [count, length]), "answer": a folder that gets NAME.npy, of
each window the mean KL(reference || file) and the share of tokens that both put first}; `report`: where facts are
written. Runs where `llama-cpp-py-sync` is installed, a wheel with llama.cpp's library and its header: nothing is
compiled. That library needs glibc 2.38; LLAMA_CPP_LIB names another one, of the same release, for older systems.
"""

import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path

import numpy

from lib.export import reader_script

PACKAGE, VERSION = "llama-cpp-py-sync", "0.11739"  # llama.cpp's build of that number
FOLDER = "llama-cpp-library"  # of its environment, in the one that THIMBLE_PEERS names
INSTALL = (  # seconds, 116 MB
    f"python3 -m venv $THIMBLE_PEERS/{FOLDER}",
    f"$THIMBLE_PEERS/{FOLDER}/bin/pip install --only-binary :all: {PACKAGE}=={VERSION} numpy",
)
LIBRARY = "LLAMA_CPP_LIB"  # the variable that names another libllama.so


class Program:
    """llama.cpp: `ffi` knows its types, `call` its functions."""

    def __init__(self):
        from llama_cpp_py_sync import _cffi_bindings as bindings  # only in its own environment

        self.ffi, other = bindings.get_ffi(), os.environ.get(LIBRARY)
        try:
            self.call = self.ffi.dlopen(other) if other else bindings.get_lib()
        except (OSError, RuntimeError) as error:
            raise RuntimeError(
                f"llama.cpp's library can't be loaded ({error}); this wheel's needs glibc 2.38; on an older system "
                f"build llama.cpp b{VERSION.partition('.')[2]} and name its libllama.so in {LIBRARY}."
            ) from None
        self.call.llama_backend_init()


class Model:
    """A file opened by llama.cpp; `log_probabilities` of texts of up to `length` tokens, cache in float32."""

    def __init__(self, program: Program, file: str, length: int):
        self.program, call = program, program.call
        settings = call.llama_model_default_params()
        settings.n_gpu_layers = 0
        self.model = call.llama_model_load_from_file(file.encode(), settings)
        if not self.model:
            raise ValueError(f"llama.cpp can't open {file}; it reads GGUF files of models that it knows; check it.")
        context = call.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = length
        context.n_threads = context.n_threads_batch = 1
        context.type_k = context.type_v = call.GGML_TYPE_F32
        context.flash_attn_type = call.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = call.llama_init_from_model(self.model, context)
        self.vocabulary = call.llama_vocab_n_tokens(call.llama_model_get_vocab(self.model))

    def log_probabilities(self, ids) -> numpy.ndarray:
        """Of each next token, float64 [length - 1, vocabulary]."""
        call, count = self.program.call, len(ids)
        call.llama_memory_clear(call.llama_get_memory(self.context), True)
        batch = call.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.n_seq_id[place] = int(token), place, 1
            batch.seq_id[place][0], batch.logits[place] = 0, 1
        failed = call.llama_decode(self.context, batch)
        call.llama_batch_free(batch)
        if failed:
            raise RuntimeError(f"llama.cpp ended with {failed} on {count} tokens; 0 is success; see its words above.")
        found = self.program.ffi.buffer(call.llama_get_logits(self.context), 4 * count * self.vocabulary)
        rows = numpy.frombuffer(found, numpy.float32).reshape(count, -1)[:-1].astype(numpy.float64)
        rows -= rows.max(1, keepdims=True)
        return rows - numpy.log(numpy.exp(rows).sum(1, keepdims=True))


def quantize(program: Program, asked: dict) -> None:
    """Let llama.cpp write `asked["target"]`."""
    ffi, call = program.ffi, program.call
    settings = ffi.new("llama_model_quantize_params *", call.llama_model_quantize_default_params())
    settings.nthread, settings.ftype = 1, asked["file_type"]
    with numpy.load(asked["importance"], allow_pickle=False) as found:
        arrays = {name: numpy.ascontiguousarray(found[name], dtype=numpy.float32) for name in found.files}
    held = [ffi.new("char[]", name.encode()) for name in arrays]
    data = ffi.new("struct llama_model_imatrix_data[]", len(arrays) + 1)  # an empty one ends it
    for entry, name, values in zip(data, held, arrays.values()):
        entry.name, entry.size = name, values.size
        entry.data = ffi.cast("const float *", values.ctypes.data)
    settings.imatrix = data
    failed = call.llama_model_quantize(asked["source"].encode(), asked["target"].encode(), settings)
    if failed:
        raise RuntimeError(f"llama.cpp's quantizer ended with {failed} for {asked['target']}; 0 is success.")


def compare(program: Program, asked: dict) -> dict:
    """Mean KL and agreement of each file on each window, written beside each other; returns seconds by file."""
    windows, answer = numpy.load(asked["windows"], allow_pickle=False), Path(asked["answer"])
    files = {name: Model(program, file, windows.shape[1]) for name, file in asked["files"].items()}
    reference = Model(program, asked["reference"], windows.shape[1])
    found = {name: numpy.zeros((2, len(windows))) for name in files}
    seconds = dict.fromkeys(files, 0.0)
    for place, ids in enumerate(windows):
        p = reference.log_probabilities(ids)
        share, first = numpy.exp(p), p.argmax(1)
        for name, model in files.items():
            start = time.perf_counter()
            q = model.log_probabilities(ids)
            seconds[name] += time.perf_counter() - start
            found[name][:, place] = (share * (p - q)).sum(1).mean(), (q.argmax(1) == first).mean()
        print(f"window {place + 1} of {len(windows)}", flush=True)
    for name, values in found.items():
        numpy.save(answer / f"{name}.npy", values, allow_pickle=False)
    return seconds


def main() -> None:
    """Do what the arguments ask."""
    asked, program = json.loads(Path(sys.argv[1]).read_text()), Program()
    for each in asked.get("quantize", ()):
        quantize(program, each)
    report = {"version": f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"}
    if "compare" in asked:
        report["seconds"] = compare(program, asked["compare"])
    report["peak_bytes"] = reader_script.peak_bytes()
    Path(asked["report"]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
