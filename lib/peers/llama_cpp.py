"""llama.cpp: block formats of 32 or 256 weights, with an importance matrix from the calibration tokens.

Unlike the other peers it quantizes the embedding too, and its formats fix their own groups: `group_size` is not used.
`type` names the format ("Q4_K_M"; "" takes one by `bits`). Layers whose columns 256 doesn't divide get other formats
than the name says (README of the project's quantize tool); `facts["types"]` counts what was really used.

The importance matrix: `llama-imatrix` reads text, so the windows are turned into one text, cut again by llama.cpp's
own tokenizer without a first token of its own, and `facts["exact_windows"]` counts those that came back token by
token (all, where the windows follow one another in a text).

Refused formats: a model that comes off a 4-bit grid with groups of 32 and a real-valued minimum is returned exactly
by Q4_1, which is that grid, and by Q5_1 and what falls back to it, which contain it. That says nothing about a format,
so layers that some mixture would give one of the two get `stand_in` instead. On such a model Q4_K and Q5_K, which keep
that grid's scale and minimum in 6 bits, still come four times nearer than other formats of their size: `facts["types"]`
says how many layers have them.
"""

import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lib.peers import script

NAME, PACKAGE, VERSION, MODULE = "llama.cpp", "gguf", "0.19.0", "gguf"
INTERPRETER = "llama.cpp/venv/bin/python"
INSTALL = (
    "pip download --no-binary llama-cpp-python --no-deps llama-cpp-python==0.3.36",
    "tar xzf llama_cpp_python-0.3.36.tar.gz && mv llama_cpp_python-0.3.36/vendor/llama.cpp $THIMBLE_PEERS/llama.cpp",
    "cd $THIMBLE_PEERS/llama.cpp && cmake -S . -B build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF",
    "cmake --build build --target llama-quantize llama-imatrix llama-tokenize",
    "python3 -m venv venv",
    "venv/bin/pip install torch==2.13.0 transformers==5.23.0 accelerate safetensors sentencepiece ./gguf-py",
)
TYPES = {
    2: ("Q2_K", "Q2_K_S", "Q2_0", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"),
    3: ("Q3_K_M", "Q3_K_S", "Q3_K_L", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M"),
    4: ("Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_NL", "IQ4_XS"),
    5: ("Q5_K_M", "Q5_K_S", "Q5_0"),
    6: ("Q6_K",),
    8: ("Q8_0",),
}
REFUSED = ("Q4_1", "Q5_1")
BITS = tuple(TYPES)
NEEDS_TOKENS = False  # without them there is no importance matrix
OWN_GROUPS = True
ENVIRONMENT = {}
OPTIONS = {
    "type": "",
    "token_embedding_type": "",  # "" leaves these two to llama.cpp
    "output_tensor_type": "",
    "stand_in": "Q5_0",
    "imatrix_file": "",  # one that an earlier run kept
    "keep": "",  # folder that gets the gguf file and the importance matrix
    "gguf_file": "",  # only dequantize this one
    "threads": 2,
}
EXACT = 0.004  # relative error below which a format of fewer than 8 bits has returned the weights themselves


def check(*, bits: int, options: dict) -> None:
    """Raise ValueError for a format that is unknown, refused, or of another number of bits."""
    for key in ("type", "token_embedding_type", "output_tensor_type", "stand_in"):
        if options[key].upper() in REFUSED:
            raise ValueError(
                f"{key}={options[key]!r} was asked; that grid returns weights that come off 4 bits with groups of 32 "
                f"and a minimum exactly, which measures nothing; choose another, {TYPES[4][0]} or Q5_0 for instance."
            )
    if options["type"] and options["type"] not in TYPES[bits]:
        raise ValueError(f"type={options['type']!r} is no {bits}-bit format; choose one of {', '.join(TYPES[bits])}.")


def quantize(job: script.Job) -> tuple[dict, dict]:
    """Weights by name (float32), the embedding included, and facts; runs where llama.cpp was built."""
    facts = {"type": job.options["type"] or TYPES[job.bits][0], "program": _program()}
    packed = Path(job.options["gguf_file"])
    if not job.options["gguf_file"]:
        source = job.work / "original.gguf"
        _run(sys.executable, _home() / "convert_hf_to_gguf.py", job.model, "--outtype", "auto", "--outfile", source)
        matrix = Path(job.options["imatrix_file"]) if job.options["imatrix_file"] else None
        start = time.perf_counter()
        if matrix is None and job.tokens is not None:
            matrix, facts["exact_windows"] = _importance(job, source)
        facts["importance_seconds"] = time.perf_counter() - start
        packed = job.work / f"{facts['type']}.gguf"
        facts["stand_ins"] = _pack(job, source, matrix, facts["type"], packed)
        job.seconds = time.perf_counter() - start
        _keep(job, packed, matrix)
    weights = dequantize(packed, job.work)
    types = _types(packed)
    _refuse_exact(job, weights, types)
    counts = {kind: list(types["kinds"].values()).count(kind) for kind in sorted(set(types["kinds"].values()))}
    return weights, {**facts, "types": counts, "packed_bytes": packed.stat().st_size, "tensor_bytes": types["bytes"]}


def dequantize(packed: Path, work: Path) -> dict:
    """The tensors of a gguf file by transformers' names, float32; `work` gets a float32 file, 4 bytes a weight.

    llama.cpp's own code does it (the `gguf` package lacks some formats); transformers undoes its order of rows.
    """
    from transformers import AutoModelForCausalLM  # loads torch; this file is also read without

    plain = Path(work) / "float32.gguf"
    _run(_tool("llama-quantize"), "--allow-requantize", packed, plain, "F32")
    model = AutoModelForCausalLM.from_pretrained(plain.parent, gguf_file=plain.name, dtype="float32")
    plain.unlink()
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    return weights


def _home():
    """The folder of llama.cpp: its environment lies inside."""
    return Path(sys.prefix).parent


def _tool(name):
    path = _home() / "build" / "bin" / name
    if not path.is_file():
        raise FileNotFoundError(f"{name} is not in {path.parent}; llama.cpp must be built; run: {INSTALL[3]}")
    return path


def _program():
    """Version of llama.cpp itself, as its sources say."""
    found = re.findall(r"set\(LLAMA_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)\)", (_home() / "CMakeLists.txt").read_text())
    return ".".join(found) or None


def _run(*command, job=None):
    """Run a program, return its output; its peak of memory goes to `job`. RuntimeError names a program that failed."""
    command = [str(part) for part in command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    print(said[-20_000:])
    if process.returncode:
        code = process.returncode
        raise RuntimeError(f"{Path(command[0]).name} ended with {code}; 0 is success; its words stand above.")
    if job is not None:
        job.peak_bytes = max(job.peak_bytes or 0, script.resident(usage))
    return said


def _importance(job, source):
    """(importance matrix file, number of windows that llama.cpp's tokenizer cuts as they were)."""
    from transformers import AutoTokenizer  # loads torch; this file is also read without

    count, length = job.tokens.shape
    text, matrix = job.work / "calibration.txt", job.work / "imatrix.gguf"
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    words = tokenizer.decode(job.tokens.flatten().tolist())
    # windows that begin with a special token ("<bos>") have it in their text; llama.cpp adds none of its own to it
    special = ["--parse-special"] if set(job.tokens[:, 0].tolist()) <= set(tokenizer.all_special_ids) else []
    text.write_bytes(words.encode())
    tool = _tool("llama-tokenize")
    cut = _run(tool, "-m", source, "--ids", "--no-bos", "--no-escape", "--log-disable", "-f", text)
    found = [int(part) for part in re.search(r"\[([\d, ]+)\]", cut).group(1).split(",")][: count * length]
    windows = [found[start : start + length] for start in range(0, len(found), length)]
    exact = sum(left == right for left, right in zip(windows, job.tokens.tolist()))
    text.write_bytes(words.encode() + b"\n")  # llama-imatrix drops one line end at the end
    _run(
        *(_tool("llama-imatrix"), "-m", source, "-f", text, "-o", matrix, "--no-escape", "--no-ppl", *special),
        *("-c", length, "-b", length, "-ub", length, "--chunks", count, "-t", job.options["threads"]),
        *("--override-kv", "tokenizer.ggml.add_bos_token=bool:false"),
        job=job,
    )
    return matrix, exact


def _pack(job, source, matrix, kind, packed):
    """Write the gguf file; returns the names of the tensors that got the stand-in instead of a refused format."""
    options = ["--imatrix", matrix] if matrix else []
    for flag in ("token_embedding_type", "output_tensor_type"):
        if job.options[flag]:
            options += [f"--{flag.replace('_', '-')}", job.options[flag]]
    tool, threads = _tool("llama-quantize"), job.options["threads"]
    dry = _run(tool, "--dry-run", *options, source, kind, threads)
    plan = dict(re.findall(r"(\S+\.weight) .* MiB \((\w+)\)", dry))
    refused = [name for name, given in plan.items() if given.upper() in REFUSED]
    if refused:
        # the whole plan is written down: a mixture counts the layers that it decides on itself, and naming only some
        # would make it give the refused format to the next ones
        plan |= dict.fromkeys(refused, job.options["stand_in"].lower())
        listed = job.work / "types.txt"
        listed.write_text("\n".join(f"^{re.escape(name)}$={given}" for name, given in plan.items()))
        options += ["--tensor-type-file", listed]
    _run(tool, *options, source, packed, kind, threads, job=job)
    return refused


def _types(packed):
    """{"kinds": format by tensor name, for matrices; "bytes": all tensors' data} of a gguf file."""
    from gguf import GGUFReader  # only to look into what was written

    tensors = GGUFReader(packed).tensors
    kinds = {tensor.name: tensor.tensor_type.name for tensor in tensors if len(tensor.shape) > 1}
    return {"kinds": kinds, "bytes": int(sum(tensor.n_bytes for tensor in tensors))}


def _refuse_exact(job, weights, types):
    """Raise ValueError when a format of fewer than 8 bits gave the model's own weights back."""
    coarse = [kind for kind in types["kinds"].values() if re.match(r"I?Q[1-6]", kind)]
    original = job.load()[0].state_dict()
    same = [
        name
        for name, value in weights.items()
        if value.ndim > 1
        and "embed" not in name
        and (value - original[name].float()).norm() < EXACT * original[name].float().norm()
    ]
    if same and coarse:
        raise ValueError(
            f"{len(same)} layers came back exactly, {same[0]} first, from formats {', '.join(sorted(set(coarse)))}; "
            "the model comes off such a grid, and the result would measure nothing; choose another type."
        )


def _keep(job, packed, matrix):
    if job.options["keep"]:
        folder = Path(job.options["keep"])
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(packed, _free(folder / packed.name))
        if matrix is not None and matrix.parent != folder:
            shutil.copy(matrix, _free(folder / "imatrix.gguf"))


def _free(path: Path) -> Path:
    """`path`, or where something lies there already, the first of NAME-2, NAME-3, ... that is free."""
    names = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return path if not path.exists() else next(each for each in names if not each.exists())


if __name__ == "__main__":
    script.main(quantize)
