"""llama.cpp's own quantizer, and its logits of files on the same windows: runs where llama-cpp-python is installed.

    python -m lib.peers.gguf_script arguments.json

Arguments: `quantize`: a list of {"source", "target", "file_type" (number), "importance" (npz: an array a tensor),
"types" (numbers by kind of tensor: "token_embd", "output")}; `compare`: {"reference", "files" (by name), "windows"
(npy, [count, length]), "answer": a folder that gets NAME.npy, of each window the mean KL(reference || file) and the
share of tokens that both put first}; `report`: where facts are written. Only NumPy and llama_cpp are imported here.
"""

import ctypes
import json
import resource
import sys
import time
from pathlib import Path

import numpy

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
FOLDER = "llama-cpp-python"  # of its environment, in the one that THIMBLE_PEERS names
INSTALL = (  # compiles llama.cpp: a quarter of an hour of one core, 130 MB
    f"python3 -m venv $THIMBLE_PEERS/{FOLDER}",
    f"$THIMBLE_PEERS/{FOLDER}/bin/pip install --no-binary {PACKAGE} {PACKAGE}=={VERSION} numpy",
)


class Model:
    """A file opened by llama.cpp; `log_probabilities` of texts of up to `length` tokens, cache in float32."""

    def __init__(self, program, file: str, length: int):
        settings = program.llama_model_default_params()
        settings.n_gpu_layers = 0
        self.program, self.length = program, length
        self.model = program.llama_model_load_from_file(file.encode(), settings)
        if not self.model:
            raise ValueError(f"llama.cpp can't open {file}; it reads GGUF files of models that it knows; check it.")
        context = program.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = length
        context.n_threads = context.n_threads_batch = 1
        context.type_k = context.type_v = 0  # float32
        context.flash_attn_type = 0
        self.context = program.llama_init_from_model(self.model, context)
        self.vocabulary = program.llama_vocab_n_tokens(program.llama_model_get_vocab(self.model))

    def log_probabilities(self, ids) -> numpy.ndarray:
        """Of each next token, float64 [length - 1, vocabulary]."""
        program, count = self.program, len(ids)
        program.llama_memory_clear(program.llama_get_memory(self.context), True)
        batch = program.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.n_seq_id[place] = int(token), place, 1
            batch.seq_id[place][0], batch.logits[place] = 0, True
        failed = program.llama_decode(self.context, batch)
        program.llama_batch_free(batch)
        if failed:
            raise RuntimeError(f"llama.cpp ended with {failed} on {count} tokens; 0 is success; see its words above.")
        found = program.llama_get_logits(self.context)
        rows = numpy.ctypeslib.as_array(found, shape=(count, self.vocabulary))[:-1].astype(numpy.float64)
        rows -= rows.max(1, keepdims=True)
        return rows - numpy.log(numpy.exp(rows).sum(1, keepdims=True))


def quantize(program, asked: dict) -> None:
    """Let llama.cpp write `asked["target"]`."""
    settings = program.llama_model_quantize_default_params()
    settings.nthread, settings.ftype = 1, asked["file_type"]
    for key, field in (("token_embd", "token_embedding_type"), ("output", "output_tensor_type")):
        if key in asked.get("types", {}):
            setattr(settings, field, asked["types"][key])
    with numpy.load(asked["importance"]) as found:
        arrays = {name: numpy.ascontiguousarray(found[name], dtype=numpy.float32) for name in found.files}
    data = (program.llama_model_imatrix_data * (len(arrays) + 1))()  # an empty one ends it
    for entry, (name, values) in zip(data, arrays.items()):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    settings.imatrix = ctypes.cast(data, type(settings.imatrix))
    failed = program.llama_model_quantize(asked["source"].encode(), asked["target"].encode(), ctypes.byref(settings))
    if failed:
        raise RuntimeError(f"llama.cpp's quantizer ended with {failed} for {asked['target']}; 0 is success.")


def compare(program, asked: dict) -> dict:
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
    import llama_cpp  # only in its own environment

    asked = json.loads(Path(sys.argv[1]).read_text())
    llama_cpp.llama_backend_init()
    for each in asked.get("quantize", ()):
        quantize(llama_cpp, each)
    report = {"version": f"{PACKAGE} {llama_cpp.__version__}"}
    if "compare" in asked:
        report["seconds"] = compare(llama_cpp, asked["compare"])
    report["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(asked["report"]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
